"""Write the docstrings of the installed packages to a retrieval folder: runs on several days then have the same data.

python tests/benchmarks/docstrings.py docstrings
"""

from __future__ import annotations

import sys
from pathlib import Path

from smart_train.config.schema import DataBlock
from smart_train.data.collection import RetrievalDataset
from smart_train.data.load import find_reader, read_split
from smart_train.data.store import write_dataset


def main(folder: str) -> None:
    found = read_split(find_reader(DataBlock(path="pydocs")), "train")
    write_dataset(
        RetrievalDataset("docstrings", dict(found.corpus), dict(found.queries), {"train": found.qrels}), Path(folder)
    )
    print(f"{len(found.queries):,} queries and {len(found.corpus):,} documents in {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
