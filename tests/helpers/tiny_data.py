"""Tiny data in the layouts people have: page rows as parquet, a BEIR folder, JSONL with hard negatives."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

PAGES = 24
COLOURS = ["firebrick", "seagreen", "royalblue", "goldenrod", "purple", "teal"]
SHAPES = ["stripes", "dots", "frame", "bars"]
TOPICS = [
    "invoice",
    "revenue",
    "region",
    "company",
    "harbour",
    "bridge",
    "garden",
    "copper",
    "violin",
    "lantern",
    "mountain",
    "river",
    "signal",
    "engine",
    "paper",
    "market",
    "window",
    "forest",
    "music",
    "kitchen",
    "orange",
    "silver",
    "winter",
    "report",
]


def draw_page(number: int) -> Image.Image:
    """Page ``number`` of the set: its topic as text over a pattern that no other page has; sizes differ."""
    width, height = 64 + 32 * (number % 3), 96 + 32 * (number % 2)
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    colour, shape = COLOURS[number % len(COLOURS)], SHAPES[number // len(COLOURS)]
    for step in range(0, height, 16):
        if shape == "stripes":
            pen.line([(0, step), (width, step)], fill=colour, width=4)
        elif shape == "dots":
            pen.ellipse([step % width, step, step % width + 12, step + 12], fill=colour)
        elif shape == "bars":
            pen.rectangle([step // 2, height - step, step // 2 + 6, height], fill=colour)
    if shape == "frame":
        pen.rectangle([4, 4, width - 5, height - 5], outline=colour, width=8)
    pen.text((10, 10), f"{TOPICS[number]} {number}", fill="black")
    return page


def page_rows() -> list[dict[str, object]]:
    """Rows of (query, image, image_filename); every third page is asked for twice, so 32 rows of 24 pages."""
    rows = []
    for number in range(PAGES):
        questions = [f"find the {SHAPES[number // len(COLOURS)]} page about {TOPICS[number]}"]
        if number % 3 == 0:
            questions.append(f"which page says {TOPICS[number]} {number} in {COLOURS[number % len(COLOURS)]}?")
        page, name = draw_page(number), f"book_{number // 4}/page_{number:02d}.png"
        rows += [{"query": question, "image": page, "image_filename": name} for question in questions]
    return rows


def write_page_rows(folder: Path) -> Path:
    """FOLDER/train.parquet as ``datasets`` writes it, image column and all; returns the file."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageColumn

    rows = page_rows()
    columns = {name: [row[name] for row in rows] for name in ("query", "image", "image_filename")}
    features = Features({"query": Value("string"), "image": ImageColumn(), "image_filename": Value("string")})
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(str(folder / "train.parquet"))
    return folder / "train.parquet"


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def passage(number: int) -> str:
    """A passage with its topic, two neighbouring topics and a length of its own."""
    near = [TOPICS[(number + step) % PAGES] for step in (1, 5)]
    tail = " ".join(TOPICS[(number * 7 + step) % PAGES] for step in range(number % 5))
    return f"The {TOPICS[number]} of number {number} stands between the {near[0]} and the {near[1]}. {tail}".strip()


def write_beir(folder: Path) -> Path:
    """corpus.jsonl (24 passages), queries.jsonl (24), qrels/train.tsv (16 queries) and qrels/test.tsv (8)."""
    corpus = [{"_id": f"d{n}", "title": TOPICS[n].title(), "text": passage(n)} for n in range(PAGES)]
    queries = [{"_id": f"q{n}", "text": f"what stands beside the {TOPICS[n]}"} for n in range(PAGES)]
    write_lines(folder / "corpus.jsonl", corpus)
    write_lines(folder / "queries.jsonl", queries)
    (folder / "qrels").mkdir(exist_ok=True)
    for split, numbers in (("train", range(16)), ("test", range(16, PAGES))):
        lines = ["query-id\tcorpus-id\tscore"]
        for n in numbers:
            lines += [f"q{n}\td{n}\t1"] + ([f"q{n}\td{(n + 1) % PAGES}\t1"] if n % 4 == 0 else [])
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_triples(path: Path) -> Path:
    """JSONL of query, positive and one to three hard negatives: unequal numbers, as mined data has."""
    rows = []
    for n in range(PAGES):
        row: dict[str, object] = {"query": f"what stands beside the {TOPICS[n]}", "positive": passage(n)}
        row |= {f"negative_{k + 1}": passage((n + k + 2) % PAGES) for k in range(1 + n % 3)}
        rows.append(row)
    return write_lines(path, rows)


def write_scored(path: Path) -> Path:
    """The triples with another model's scores: of the positive, then of each negative, in its own unit."""
    rows = [json.loads(line) for line in write_triples(path).read_text(encoding="utf-8").splitlines()]
    for n, row in enumerate(rows):
        count = sum(name.startswith("negative_") for name in row)
        row["scores"] = [9.0 + n % 3, *(4.0 - 2 * k for k in range(count))]
    return write_lines(path, rows)
