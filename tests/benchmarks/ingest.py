"""What ingestion costs: pages/s, CPU and peak memory of ``ingest`` beside rendering alone with pypdfium2.

    python tests/benchmarks/ingest.py [--pdfs FOLDER] [--pages 400] [--pixels 1048576] [--jobs 1 2] [--json FILE]

Without --pdfs: a generated book of so many pages, half of them with a figure.  With it: the PDFs of that folder, each
once, up to so many pages.  Everybody draws the same pages at the same size:
    render         pypdfium2 alone: each page drawn, as a PIL image, and thrown away; one process
    render, store  the same, and written as JPEG: what any store of page images costs
    ingest, N      everything: found, hashed, drawn, text, outline, labels, stored, in N reading processes
    ingest, text   the same without images
Contenders run one after the other in processes of their own, the order turned by repeat; figures are medians.
CPU is user + system seconds of all processes, by page.  Memory is the largest resident set of one process: reading
processes and, after the +, the one that started them, which holds pyarrow.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def gathered(source: Path | None, pages: int, folder: Path) -> int:
    """Puts the PDFs into a folder and returns how many pages they have."""
    sys.path.insert(0, str(TESTS / "helpers"))
    if source is None:
        import pdfs

        for i in range(4):
            pdfs.book(folder / f"{i}.pdf", pages // 4, i)
        return pages // 4 * 4
    import pypdfium2

    from smart_train.ingest.pages import file_id

    total, there = 0, set[str]()
    for path in sorted(source.rglob("*.pdf")):
        name = file_id(path)
        with pypdfium2.PdfDocument(path) as document:
            count = len(document)
        if name not in there and total + count <= pages:
            there.add(name)
            total += count
            shutil.copy(path, folder / f"{len(there)}.pdf")
    if not total:
        raise SystemExit(f"{source}: no PDF of at most {pages} pages")
    return total


# -- contenders: each runs in a process of its own ------------------------------------------------------------------


def render(folder: Path, out: Path, pixels: int, store: bool) -> None:
    import pypdfium2

    for path in sorted(folder.iterdir()):
        document = pypdfium2.PdfDocument(path)
        for number in range(len(document)):
            page = document[number]
            width, height = page.get_size()
            image = page.render(scale=(pixels / (width * height)) ** 0.5, rev_byteorder=True).to_pil()
            if store:
                data = io.BytesIO()
                image.save(data, "JPEG", quality=90)
                (out / f"{path.stem}-{number}.jpg").write_bytes(data.getvalue())
            page.close()
        document.close()


def ours(folder: Path, out: Path, pixels: int, jobs: int, images: bool) -> None:
    from smart_train.ingest.ingestion import IngestOptions, ingest

    ingest(folder, out, IngestOptions(pixels=pixels, jobs=jobs, images=images))


def child(name: str, folder: Path, out: Path, pixels: int) -> None:
    """Runs one contender and prints its figures as JSON."""
    begin = time.perf_counter()
    if name.startswith("render"):
        render(folder, out, pixels, store=name == "render, store")
    else:
        ours(folder, out, pixels, 1 if name.endswith("text") else int(name.split()[-1]), not name.endswith("text"))
    seconds = time.perf_counter() - begin
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(u.ru_utime + u.ru_stime for u in (own, others))
    print(
        json.dumps({"seconds": seconds, "cpu": cpu, "mb": own.ru_maxrss / 1024, "readers_mb": others.ru_maxrss / 1024})
    )


# -- the table ------------------------------------------------------------------------------------------------------


def measure(name: str, folder: Path, pixels: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, __file__, "--child", name, "--folder", str(folder), "--out", out]
        done = subprocess.run(
            [*command, "--pixels", str(pixels)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(found: dict[str, dict[str, float]], pages: int) -> str:
    base = found["render"]
    lines = ["| | pages/s | of rendering alone | CPU ms a page | peak MB |", "|---|---|---|---|---|"]
    for name, row in found.items():
        memory = f"{row['readers_mb']:.0f} + {row['mb']:.0f}" if name.startswith("ingest") else f"{row['mb']:.0f}"
        lines.append(
            f"| {name} | {pages / row['seconds']:.1f} | {base['seconds'] / row['seconds']:.2f} | "
            f"{1000 * row['cpu'] / pages:.1f} | {memory} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pdfs", type=Path)
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--pixels", type=int, default=2**20)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, options.out, options.pixels)
        return
    names = ["render", "render, store", *(f"ingest, {jobs}" for jobs in options.jobs), "ingest, text"]
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        pages = gathered(options.pdfs, options.pages, Path(folder))
        for repeat in range(options.repeats):
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                rows[name].append(measure(name, Path(folder), options.pixels))
    found = {name: {key: median(row[key] for row in got) for key in got[0]} for name, got in rows.items()}
    print(f"{pages} pages, {options.pixels:,} pixels, medians of {options.repeats}, {os.cpu_count()} cores\n")
    print(table(found, pages))
    if options.json:
        told: dict[str, Any] = {"pages": pages, "pixels": options.pixels, "repeats": options.repeats, "rows": found}
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
