"""Hostile inputs by kind: each is made from a seed by spoiling a valid one, and knows what would be right.

A kind is a function ``(place, draw) -> Input``. ``KINDS`` lists them with how many are tried; an input is reproduced by
its kind and seed (throw_inputs.py --kinds KIND --seed N).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pdfs
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_data
import yaml
from attempts import Attempt
from fakehub import FakeHub
from PIL import Image

Right = Callable[[Attempt], str | None]
"""What is wrong with the result of an input that was accepted; None if nothing is."""


def nothing_wrong(attempt: Attempt) -> str | None:
    return None


@dataclass
class Input:
    """A hostile input at a door.

    name: what was spoilt; call: of attempts.py; right: judges an accepted one
    told: exit statuses by which a command says that it found faults in data (data check, ingest: 3)
    hub: prepares the Hub on loopback that this input needs; None = it needs none
    whole: files that show a complete result: a refused input leaves none of them
    """

    name: str
    call: dict[str, Any]
    right: Right = nothing_wrong
    told: tuple[int, ...] = ()
    whole: list[Path] = field(default_factory=list)
    hub: Callable[[FakeHub], None] | None = None


@dataclass
class Place:
    """What valid inputs are copied from, and the new folder of this one.

    metrics: of an evaluation of the base; vectors: of the adapter, as plain sentence-transformers gives them
    canary, canary_image: files outside of every data folder, whose content may appear nowhere
    """

    folder: Path
    base: Path
    adapter: Path
    beir: Path
    triples: Path
    recipe: dict[str, Any]
    run: Path
    metrics: dict[str, Any]
    vectors: list[list[float]]
    canary: Path
    canary_image: Path


# What is put in the place of something valid --------------------------------------------------------------------------

CELLS: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    math.nan,
    math.inf,
    "",
    " ",
    "\x00",
    "\ud800",
    "\u202e",
    "a" * 300_000,
]
CELLS += [[], {}, [[]], {"a": {"b": []}}, [None], ["a", 1], "=1+1", "-1", "1e999", "nan", "null", "q\tr\ns", "\ufeff"]
SNIPPETS = [
    "null",
    "true",
    "[]",
    "{}",
    "''",
    "' '",
    "-1",
    "0",
    "1",
    "0.5",
    "1e400",
    "-.inf",
    ".nan",
    "9" * 30,
    "9" * 5000,
]
SNIPPETS += ['"\\0"', '"\\ud800"', "2024-13-45", "2024-01-01", "!!binary x", "!!python/name:os.system x", "*nowhere"]
SNIPPETS += [
    "[[[[[]]]]]",
    "[" * 400 + "]" * 400,
    "{a: 1, a: 2}",
    "{? [a] : b}",
    "a" * 5000,
    "../../..",
    "/",
    "/dev/null",
]
SNIPPETS += [
    "/proc/self/mem",
    "~",
    "$HOME",
    "1_000",
    "0x10",
    "1:30:00",
    "yes",
    "|",
    "@",
    "%",
    "- a",
    "a: b: c",
    "é\u202e",
]
SNIPPETS += [
    "[1, [2]]",
    "[-1, -1]",
    "[1.5]",
    "[null]",
    "{type: os:system}",
    "os:system",
    "package:os/..",
    "a/b",
    "hf://x",
]
WORDS = [
    "",
    " ",
    "-1",
    "0",
    "1",
    "nan",
    "inf",
    "1e999",
    "9" * 30,
    "9" * 5000,
    "x",
    "é",
    "\u202e",
    "a" * 5000,
    "a\nb",
    "1_0",
]
WORDS += [
    "../..",
    "/",
    "/dev/null",
    "/proc/self/environ",
    "~",
    "\udcff",
    "os:system",
    "a/b",
    "a/b/c",
    "http://[",
    "-",
    "=",
    "٣",
]


def outside(place: Place, draw: random.Random) -> str:
    """A path to one of the canaries, or to another file of the machine."""
    canary = draw.choice([place.canary, place.canary_image])
    relative = os.path.relpath(canary, place.folder / "data")
    link = place.folder / "data" / f"link{canary.suffix}"
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(canary)
    return draw.choice(
        [str(canary), relative, f"./images/../{relative}", link.name, f"file://{canary}", "/proc/self/environ"]
    )


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bits": lambda raw, draw: _flip(raw, draw),
    "cut off": lambda raw, draw: raw[: draw.randrange(len(raw) or 1)],
    "a hole": lambda raw, draw: _without(raw, draw),
    "a part twice": lambda raw, draw: _twice(raw, draw),
    "zeros inside": lambda raw, draw: _inside(raw, bytes(draw.randrange(1, 64)), draw),
    "noise inside": lambda raw, draw: _inside(raw, draw.randbytes(draw.randrange(1, 64)), draw),
    "no UTF-8": lambda raw, draw: _inside(raw, b"\xff\xfe\xc3\x28", draw),
    "empty": lambda raw, draw: b"",
    "only spaces": lambda raw, draw: b" \n\t\r\n",
    "byte order mark": lambda raw, draw: b"\xef\xbb\xbf" + raw,
    "UTF-16": lambda raw, draw: raw.decode("latin-1").encode("utf-16"),
    "CRLF": lambda raw, draw: raw.replace(b"\n", b"\r\n"),
    "CR": lambda raw, draw: raw.replace(b"\n", b"\r"),
    "noise": lambda raw, draw: draw.randbytes(len(raw) or 1),
    "HTML": lambda raw, draw: b"<!DOCTYPE html><html><p>Not found</p></html>",
    "a pickle": lambda raw, draw: pickle.dumps({"a": 1}),
    "zipped": lambda raw, draw: gzip.compress(raw),
    "deep JSON": lambda raw, draw: b"[" * 100_000 + b"]" * 100_000,
    "digits": lambda raw, draw: b'{"a": ' + b"9" * 5000 + b"}",
    "a list": lambda raw, draw: b"[1, null]",
    "null": lambda raw, draw: b"null",
    "lines in another order": lambda raw, draw: b"\n".join(draw.sample(lines := raw.split(b"\n"), len(lines))),
    "a line twice": lambda raw, draw: raw + draw.choice(raw.split(b"\n")) + b"\n",
    "blank lines": lambda raw, draw: raw.replace(b"\n", b"\n\n"),
}


def spoilt(raw: bytes, draw: random.Random) -> tuple[str, bytes]:
    name = draw.choice([*BYTES])
    return name, BYTES[name](raw, draw)


def _flip(raw: bytes, draw: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(draw.choice([1, 1, 4, 32]) if changed else 0):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _inside(raw: bytes, what: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(raw) + 1)
    return raw[:at] + what + raw[at:]


def _without(raw: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(raw) or 1)
    return raw[:at] + raw[at + draw.randrange(1, 200) :]


def _twice(raw: bytes, draw: random.Random) -> bytes:
    at, end = sorted((draw.randrange(len(raw) or 1), draw.randrange(len(raw) or 1)))
    return raw[:end] + raw[at:end] + raw[end:]


# Recipes --------------------------------------------------------------------------------------------------------------


def recipe_values(place: Place, draw: random.Random) -> Input:
    """A value that does not belong there, for any key, in the file or as an override."""
    from smart_train.config.typed_values import keys

    every = [*keys(), "training.optim", "training.warmup_steps", "training.lr_scheduler_type", "training.bf16"]
    key, value = draw.choice(every), draw.choice([*SNIPPETS, outside(place, draw)])
    block, _, name = key.partition(".")
    recipe = {k: v for k, v in place.recipe.items()}
    text = yaml.safe_dump(recipe)
    overrides = []
    if draw.random() < 0.3:
        overrides = [f"{key}={value}"]
    else:
        parts = key.split(".")
        inner = recipe
        for part in parts[:-1]:
            inner[part] = dict(inner.get(part) or {})
            inner = inner[part]
        inner[parts[-1]] = "PLACEHOLDER"
        text = yaml.safe_dump(recipe).replace("PLACEHOLDER", value)
    path = place.folder / "recipe.yaml"
    path.write_text(text, "utf-8", errors="surrogatepass")
    return Input(f"{key}: {value[:60]}", _check(path, overrides), _as_written(key, value))


def _check(path: Path, overrides: list[str]) -> dict[str, Any]:
    return {"function": "check_recipe", "arguments": {"path": str(path), "overrides": overrides}}


def _as_written(key: str, value: str) -> Right:
    """A value that was accepted is the one that YAML has there (null: the default)."""

    def right(attempt: Attempt) -> str | None:
        try:
            written = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            return f"{value!r} is no YAML, and was accepted"
        got: Any = attempt.answer
        for part in key.split("."):
            got = got.get(part) if isinstance(got, dict) else None
        if written is None or isinstance(written, dict | list) or got == written or str(got) == str(written):
            return None
        try:
            return None if float(got) == float(written) else f"{key} is {got!r}, written was {written!r}"
        except (TypeError, ValueError, OverflowError):
            return f"{key} is {got!r}, written was {written!r}"

    return right


def recipe_text(place: Place, draw: random.Random) -> Input:
    """A recipe whose bytes are spoilt."""
    name, raw = spoilt(yaml.safe_dump(place.recipe).encode(), draw)
    path = place.folder / "recipe.yaml"
    path.write_bytes(raw)

    def right(attempt: Attempt) -> str | None:
        try:
            found = yaml.safe_load(raw.decode("utf-8-sig"))
        except (yaml.YAMLError, ValueError) as error:
            return f"accepted, and PyYAML does not read it: {error}"
        blocks = {name: values for name, values in found.items() if isinstance(values, dict) and name != "training"}
        plain = {f"{name}.{key}": v for name, values in blocks.items() for key, v in values.items()}
        got = {f"{name}.{key}": attempt.answer[name].get(key) for name, values in blocks.items() for key in values}
        wrong = [key for key, v in plain.items() if got[key] != v and not isinstance(v, dict)]
        return f"not as written: {wrong}" if wrong else None

    return Input(f"recipe, {name}", _check(path, []), right)


# Tables ---------------------------------------------------------------------------------------------------------------


def _rows(draw: random.Random) -> list[dict[str, Any]]:
    return [
        {"query": f"what stands beside the {tiny_data.TOPICS[n]}", "positive": tiny_data.passage(n)} for n in range(12)
    ]


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("parquet", "arrow"):
        table = pa.Table.from_pylist(rows)
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        return
    if kind == "json":
        text = json.dumps(rows)
    elif kind == "jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        stream = io.StringIO()
        writer = csv.DictWriter(
            stream, [*dict.fromkeys(k for row in rows for k in row)], delimiter=",\t"[kind == "tsv"]
        )
        writer.writeheader()
        writer.writerows(rows)
        text = stream.getvalue()
    raw = text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def _reference_rows(path: Path) -> list[dict[str, Any]] | None:
    """The rows as Python's or Arrow's own readers see them; None where they cannot read the file."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    try:
        if kind == "parquet":
            return pq.read_table(path).to_pylist()
        if kind == "arrow":
            with pa.memory_map(str(path)) as source:
                return pa.ipc.open_file(source).read_all().to_pylist()
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
        if kind == "json" and text.lstrip().startswith("["):
            return json.loads(text)
        if kind in ("json", "jsonl"):
            return [json.loads(line) for line in io.StringIO(text, newline="") if line.strip()]
        csv.field_size_limit(2**31 - 1)
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=",\t"[kind == "tsv"]))
    except Exception:  # whatever it raises, it cannot read it
        return None


def _same_pairs(path: Path) -> Right:
    """The pairs of texts are those of an independent reader; rows without a query or a document are left out."""

    def right(attempt: Attempt) -> str | None:
        rows = _reference_rows(path)
        if rows is None:
            return "accepted, and an independent reader cannot read the file"
        expected = set()
        for row in rows:
            query, positive = row.get("query"), row.get("positive")
            for one in positive if isinstance(positive, list) else [positive]:
                if isinstance(query, str) and isinstance(one, str) and query.strip() and one.strip():
                    expected.add((query, one))
        got = {(query, text) for query, (text, _), _ in attempt.answer["pairs"]}
        loose = {tuple(" ".join(part.split()) for part in pair) for pair in expected}
        found = {tuple(" ".join(part.split()) for part in pair) for pair in got}
        return None if loose == found else f"pairs differ: {sorted(loose ^ found)[:2]}"

    return right


TABLES = ["jsonl", "json", "csv", "tsv", "parquet", "arrow", "jsonl.gz", "csv.gz"]


def table_bytes(place: Place, draw: random.Random) -> Input:
    """A table whose bytes are spoilt."""
    path = place.folder / "data" / f"train.{draw.choice(TABLES)}"
    path.parent.mkdir()
    _write_table(path, _rows(draw))
    name, raw = spoilt(path.read_bytes(), draw)
    path.write_bytes(raw)
    return _data_door(place, path, f"{path.name}, {name}", draw)


def table_cells(place: Place, draw: random.Random) -> Input:
    """A table with a cell, a column or a row that does not belong there."""
    path = place.folder / "data" / f"train.{draw.choice(TABLES)}"
    path.parent.mkdir(exist_ok=True)
    rows = _rows(draw)
    value = draw.choice([*CELLS, outside(place, draw)])
    name = draw.choice(["query", "positive", "negative", "image", "file", "page", "scores", "negatives"])
    what = draw.choice(["cell", "cell", "cell", "column", "no column", "twice"])
    if what == "cell":
        rows[draw.randrange(len(rows))][name] = value
    elif what == "column":
        rows = [{**row, name: value} for row in rows]
    elif what == "no column":
        rows = [{k: v for k, v in row.items() if k != "query"} for row in rows]
    else:
        rows += rows[: draw.randrange(1, 12)]
    if path.suffix in (".parquet", ".arrow") and what in ("cell", "column") and not isinstance(value, str | None):
        rows = [{**row, name: value} for row in rows]  # a column of Arrow has one type
    try:
        _write_table(path, rows)
    except (pa.ArrowException, UnicodeError, OverflowError, ValueError, TypeError):  # no table can hold it
        path = path.with_name("train.jsonl")
        _write_table(path, rows)
    plain = what in ("no column", "twice") or name in ("query", "positive")
    return _data_door(place, path, f"{path.name}, {what} {name}: {str(value)[:40]!r}", draw, plain)


def _data_door(place: Place, path: Path, name: str, draw: random.Random, plain: bool = True) -> Input:
    if draw.random() < 0.6:
        call = {"function": "read_data", "arguments": {"path": str(path)}}
        return Input(name, call, _same_pairs(path) if plain else nothing_wrong)
    fixed = place.folder / "fixed"
    words = ["data", "check", str(path), "--fix", str(fixed)]
    return Input(name, {"words": words}, told=(3,), whole=[fixed / "qrels"])


BEIR_FILES = ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv", "negatives.jsonl", "teacher.jsonl"]


def beir(place: Place, draw: random.Random) -> Input:
    """A BEIR folder with one file spoilt, its qrels as BEIR, TREC or ranx write them; for four doors."""
    data = Path(shutil.copytree(place.beir, place.folder / "data"))
    tiny_data.write_lines(data / "negatives.jsonl", [{"_id": "q1", "negatives": ["d7", "d9"]}])
    tiny_data.write_lines(data / "teacher.jsonl", [{"_id": "q1", "scores": {"d1": 9.1, "d7": 4.0}}])
    style = draw.choice(["beir", "trec", "ranx"])
    judged = [line.split("\t") for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:]]
    if style == "trec":
        (data / "qrels" / "test.tsv").write_text("".join(f"{q} 0 {d} {g}\n" for q, d, g in judged))
    elif style == "ranx":
        (data / "qrels" / "test.tsv").unlink()
        found: dict[str, dict[str, int]] = {}
        for q, d, g in judged:
            found.setdefault(q, {})[d] = int(g)
        (data / "qrels" / "test.json").write_text(json.dumps(found))
    name = draw.choice(BEIR_FILES)
    path = data / name if (data / name).exists() else data / "qrels" / "test.json"
    how = draw.choice(["bytes", "field", "field", "missing", "folder"])
    if how == "bytes":
        told, raw = spoilt(path.read_bytes(), draw)
        path.write_bytes(raw)
    elif how == "field" and path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        row, value = draw.choice(rows), draw.choice([*CELLS, outside(place, draw)])
        key = draw.choice([*row, "image", "file", "page", "hash"])
        row[key], told = value, f"{key}: {str(value)[:40]!r}"
        tiny_data.write_lines(path, rows)
    elif how == "field":
        cells = [
            "q0\td0\tx",
            "q0\td0",
            "q0\td0\t1e999",
            "q0\td0\t-3",
            "q0\tnowhere\t1",
            "q0\td0\t1.5",
            "\t\t",
            "q0\td0\t1\tx\ty",
        ]
        told = draw.choice(cells)
        path.write_text(path.read_text() + told + "\n")
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
        told = how
    door, out = draw.choice(["read", "check", "evaluate", "mine"]), place.folder / "out"
    whole, right = [], nothing_wrong
    if door == "read":
        call: dict[str, Any] = {"function": "read_data", "arguments": {"path": str(data)}}
    elif door == "check":
        call, whole = {"words": ["data", "check", str(data), "--fix", str(out)]}, [out / "qrels"]
    elif door == "evaluate":
        words = ["evaluate", str(data), "--model", str(place.base), "--output", str(out)]
        call, whole, right = {"words": words}, [out / "metrics.json"], _finite_metrics(out)
    else:
        call = {"words": ["mine", str(data), "--model", str(place.base)]}
        whole = [data / "negatives" / "negatives.parquet"]
    return Input(f"{style}, {name}, {told}, {door}", call, right, (3,) if door == "check" else (), whole)


def _finite_metrics(out: Path) -> Right:
    def right(attempt: Attempt) -> str | None:
        for modes in json.loads((out / "metrics.json").read_text()).values():
            for mode, metrics in modes.items():
                for name, one in metrics.items():
                    if not 0 <= one["value"] <= 1:
                        return f"{mode} {name} is {one['value']}"
        return None

    return right


# Images and documents -------------------------------------------------------------------------------------------------

PICTURES = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]


def _picture(draw: random.Random) -> tuple[str, bytes]:
    kind, stream = draw.choice(PICTURES), io.BytesIO()
    tiny_data.draw_page(draw.randrange(tiny_data.PAGES)).save(stream, kind)
    name, raw = spoilt(stream.getvalue(), draw)
    return f"{kind}, {name}", raw


def _decodes(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
        return True
    except Exception:  # Pillow raises many kinds
        return False


def images(place: Place, draw: random.Random) -> Input:
    """A spoilt image that a row of a table names: found by data check, never replaced."""
    name, raw = _picture(draw)
    path = place.folder / "data" / "page.png"
    path.parent.mkdir()
    path.write_bytes(raw)
    tiny_data.draw_page(3).save(path.with_name("sound.png"))
    rows = [{"query": "which page", "image": "page.png"}, {"query": "and the other", "image": "sound.png"}]
    table = tiny_data.write_lines(path.with_name("train.jsonl"), rows)

    def right(attempt: Attempt) -> str | None:
        found = attempt.status == 3
        return f"status {attempt.status}; Pillow decodes it: {_decodes(path)}" if found == _decodes(path) else None

    return Input(f"image of a row, {name}", {"words": ["data", "check", str(table)]}, right, (3,))


def documents(place: Place, draw: random.Random) -> Input:
    """A folder of documents with a spoilt PDF, picture or text, for ingest: read, or skipped and reported by name."""
    folder = place.folder / "data"
    folder.mkdir()
    pdfs.book(folder / "sound.pdf", 2)
    kind = draw.choice(["pdf", "pdf", "scan", "picture", "text", "link", "special"])
    path = folder / f"spoilt.{ {'picture': 'png', 'text': 'md'}.get(kind, 'pdf') }"
    if kind in ("pdf", "scan"):
        (pdfs.book if kind == "pdf" else pdfs.scan)(path, 2)
        name, raw = spoilt(path.read_bytes(), draw)
        path.write_bytes(raw)
    elif kind == "picture":
        name, raw = _picture(draw)
        path.write_bytes(raw)
    elif kind == "text":
        name, raw = spoilt(("# Notes\n" + pdfs.words("notes", 300)).encode(), draw)
        path.write_bytes(raw)
    elif kind == "link":
        path = folder / f"spoilt{draw.choice([place.canary, place.canary_image]).suffix}"
        path.symlink_to(place.canary if path.suffix == ".txt" else place.canary_image)
        name = "to a canary"
    else:
        name = draw.choice(["bomb", "hidden bomb", "huge page", "no pages", "encrypted", "fifo", "loop", "odd name"])
        if name == "fifo":
            os.mkfifo(path)
        elif name == "loop":
            path.symlink_to(path.name)
        elif name == "odd name":
            path = folder / "a\nb\u202e\udcff.pdf"
            pdfs.book(folder / "x.pdf", 1).rename(path)
        else:
            make = {
                "bomb": pdfs.bomb,
                "huge page": pdfs.huge_page,
                "no pages": pdfs.no_pages,
                "encrypted": pdfs.encrypted,
            }
            make.get(name, lambda path: pdfs.bomb(path, form=True))(path)
    out = place.folder / "out"
    words = ["ingest", str(folder), "--out", str(out), "--jobs", "1", "--seconds", "20"]

    def right(attempt: Attempt) -> str | None:
        report = json.loads((out / "report.json").read_text())
        named = path.name in json.dumps(report, ensure_ascii=False)
        skipped = bool(report["skipped"])
        if skipped != (attempt.status == 3):
            return f"status {attempt.status}, skipped: {report['skipped']}"
        return None if named or not skipped or name == "odd name" else f"{path.name} is not in the report"

    return Input(f"document, {kind}, {name}", {"words": words}, right, (3,), [])


# Folders of models ----------------------------------------------------------------------------------------------------


def _spoil_folder(folder: Path, place: Place, draw: random.Random) -> str:
    """Spoil one file of a model's folder."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    where = str(path.relative_to(folder))
    how = draw.choice(["bytes", "bytes", "missing", "link", "fifo", "folder", "value", "value", "value", "pickle"])
    if how == "value" and path.suffix == ".json":
        found = json.loads(path.read_text())
        while isinstance(found, dict | list) and found:
            holder, key = found, draw.choice([*found] if isinstance(found, dict) else range(len(found)))
            if not isinstance(found[key], dict | list) or draw.random() < 0.3:
                break
            found = found[key]
        else:
            return f"{where}: unchanged"
        whole = json.loads(path.read_text())
        value = draw.choice([v for v in CELLS if v != "\ud800"] + [outside(place, draw), 10**9, -5])
        holder[key] = value
        # the same walk again, on the object that is written
        path.write_text(json.dumps(_replaced(whole, key, value)))
        return f"{where}: {key}: {str(value)[:40]!r}"
    if how in ("value", "bytes"):
        name, raw = spoilt(path.read_bytes(), draw)
        path.write_bytes(raw)
        return f"{where}: {name}"
    if how == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
        (folder / "model.safetensors").unlink(missing_ok=True)
        return "a pickle for the weights"
    path.unlink()
    if how == "link":
        path.symlink_to(place.canary)
    elif how == "fifo":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    return f"{where}: {how}"


def _replaced(found: Any, key: Any, value: Any) -> Any:
    """``found`` with every value under this key replaced."""
    if isinstance(found, dict):
        return {k: value if k == key else _replaced(v, key, value) for k, v in found.items()}
    if isinstance(found, list):
        return [value if at == key else _replaced(v, key, value) for at, v in enumerate(found)]
    return found


def _same_vectors(ours: list[list[float]], theirs: Any) -> str | None:
    if isinstance(theirs, str):
        return f"plain sentence-transformers does not read it: {theirs}"
    apart = max(abs(a - b) for rows in zip(ours, theirs, strict=True) for a, b in zip(*rows, strict=True))
    return None if apart < 1e-4 else f"plain sentence-transformers differs by {apart}"  # also where it is no number


def bases(place: Place, draw: random.Random) -> Input:
    """A base folder with one file spoilt."""
    folder = Path(shutil.copytree(place.base, place.folder / "data"))
    name = _spoil_folder(folder, place, draw)
    return Input(
        f"base, {name}",
        {"function": "encode", "arguments": {"model": str(folder)}},
        lambda one: _same_vectors(one.answer["vectors"], one.answer["plain"]),
    )


def adapters(place: Place, draw: random.Random) -> Input:
    """An adapter folder with one file spoilt; loaded or exported."""
    folder = Path(shutil.copytree(place.adapter, place.folder / "data"))
    name = _spoil_folder(folder, place, draw)
    if draw.random() < 0.3:
        out = place.folder / "out"
        words = ["export", str(folder), "--as", draw.choice(["merged", "multi-vector"]), "--out", str(out)]
        return Input(f"adapter, {name}, export", {"words": words}, whole=[out])
    call = {"function": "encode", "arguments": {"model": str(place.base), "adapter": str(folder)}}
    return Input(f"adapter, {name}", call, lambda one: _same_vectors(one.answer["vectors"], place.vectors))


def checkpoints(place: Place, draw: random.Random) -> Input:
    """A run with one file of its newest checkpoint spoilt, resumed: refused, or the same end as without a stop."""
    run = Path(shutil.copytree(place.run, place.folder / "run"))
    shutil.rmtree(run / "adapter")
    for last in (run / "checkpoints").glob("checkpoint-3"):
        shutil.rmtree(last)
    folder = run / "checkpoints" / "checkpoint-2"
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    name, raw = spoilt(path.read_bytes(), draw)
    path.write_bytes(raw)
    recipe = place.folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(place.recipe))
    words = ["train", str(recipe), f"output={run}", "training.resume_from_checkpoint=true"]

    def right(attempt: Attempt) -> str | None:
        ours, theirs = ((one / "adapter" / "adapter_model.safetensors").read_bytes() for one in (run, place.run))
        return None if ours == theirs else "it ends with other weights"

    return Input(f"checkpoint, {path.name}, {name}", {"words": words}, right, whole=[run / "adapter" / "verified.json"])


# Command lines, surroundings ------------------------------------------------------------------------------------------


def _lines(place: Place) -> dict[str, list[str]]:
    """A valid line for each command, by the words that name it."""
    out, base, data = str(place.folder / "out"), str(place.base), str(place.beir)
    return {
        "evaluate": ["evaluate", data, "--model", base, "--output", out, "--bootstrap", "10"],
        "probe": ["probe", data, "--model", base, "--output", out, "--bootstrap", "10"],
        "mine": ["mine", data, "--model", base, "--out", out],
        "ingest": ["ingest", str(place.folder / "documents"), "--out", out],
        "heatmap": ["heatmap", "copper bridge", "a bridge of copper", "--model", base, "--output", f"{out}.png"],
        "export": ["export", str(place.adapter), "--as", "merged", "--out", out],
        "merge": ["merge", str(place.adapter), str(place.adapter), "--out", out],
        "doctor": ["doctor", str(place.folder / "recipe.yaml")],
        "data check": ["data", "check", data],
        "new": ["new", f"{out}.yaml"],
        "train": ["train", str(place.folder / "recipe.yaml"), f"output={out}"],
        "publish": ["publish", str(place.run), "--repo", "me/mine", "--dry-run"],
        "benchmark": ["benchmark", "--model", base, "--tasks", "NanoBEIR", "--output", out],
    }


def command_lines(place: Place, draw: random.Random) -> Input:
    """A valid command line with a word replaced, a word more, or a value that does not belong to its option."""
    from smart_train.cli.main import build_parser

    (place.folder / "documents").mkdir()
    (place.folder / "documents" / "notes.md").write_text("# Notes\n" + pdfs.words("notes", 300))
    (place.folder / "recipe.yaml").write_text(yaml.safe_dump(place.recipe))
    name, words = draw.choice([*_lines(place).items()])
    parser: Any = build_parser()
    for word in name.split():
        parser = next(a for a in parser._actions if isinstance(a.choices, dict)).choices[word]
    options = [a for a in parser._actions if a.option_strings and a.nargs != 0]
    value = draw.choice([*WORDS, str(place.folder), str(place.canary), outside(place, draw)])
    at = len(name.split())
    if options and draw.random() < 0.7:
        words = [*words, draw.choice(options).option_strings[0], value]
    elif draw.random() < 0.7:
        words[draw.randrange(at, len(words))] = value
    else:
        words.insert(draw.randrange(at, len(words) + 1), value)
    call = {"words": [word.replace("\0", "") for word in words]}
    out = place.folder / "out"
    whole = {"evaluate": [out / "metrics.json"], "probe": [out / "probe.json"], "export": [out], "merge": [out]}
    return Input(" ".join(words)[:300], call, told=(3,), whole=whole.get(name, []))


LAUNCHERS = ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
VARIABLES = [*LAUNCHERS * 3, "HF_HOME", "HF_TOKEN", "TMPDIR", "HOME", "COLUMNS", "LINES", "LANG", "LC_ALL", "TERM",
             "PYTHONHASHSEED",
             "CUDA_VISIBLE_DEVICES",
             "WANDB_MODE", "ACCELERATE_USE_FSDP", "ACCELERATE_MIXED_PRECISION", "SLURM_NTASKS", "SLURM_PROCID", "TZ",
             "ACCELERATE_USE_DEEPSPEED", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "NO_COLOR", "MPLBACKEND", "MPLCONFIGDIR",
             "TQDM_MININTERVAL", "PYTHONWARNINGS", "TORCHELASTIC_RUN_ID", "USER", "http_proxy"]  # fmt: skip


def environments(place: Place, draw: random.Random) -> Input:
    """A variable of the environment with a value that does not belong there: refused, or the same figures."""
    value = draw.choice([word for word in WORDS if "\n" not in word] + ["2", str(place.canary), "/nowhere/at/all"])
    name, out = draw.choice(VARIABLES), place.folder / "out"
    words = ["evaluate", str(place.beir), "--model", str(place.base), "--output", str(out), "--bootstrap", "10"]

    def right(attempt: Attempt) -> str | None:
        found = json.loads((out / "metrics.json").read_text())
        return None if found == place.metrics else "other figures than without it"

    call = {"words": words, "environment": {name: value}}
    return Input(f"{name}={value[:60]}", call, right, whole=[out / "metrics.json"])


OUTPUTS = [
    "file",
    "full",
    "loop",
    "dangling",
    "device",
    "system",
    "long",
    "newline",
    "no UTF-8",
    "dash",
    "spaces",
    "deep",
    "data",
]


def outputs(place: Place, draw: random.Random) -> Input:
    """An output that cannot be, or has an odd name."""
    (place.folder / "documents").mkdir()
    (place.folder / "documents" / "notes.md").write_text("# Notes\n" + pdfs.words("notes", 300))
    (place.folder / "recipe.yaml").write_text(yaml.safe_dump(place.recipe))
    data = shutil.copytree(place.beir, place.folder / "data")
    kind, odd = draw.choice(OUTPUTS), place.folder / "odd"
    odd.mkdir()
    (odd / "file").write_text("kept")
    (odd / "loop").symlink_to("loop")
    (odd / "dangling").symlink_to("nowhere")
    (odd / "full").mkdir()
    (odd / "full" / "kept.txt").write_text("kept")
    named = {"device": "/dev/null", "system": "/proc/1/out", "long": str(odd / ("x" * 300)),
             "newline": str(odd / "a\nb"), "no UTF-8": str(odd / "a\udcffb"), "dash": "-",
             "spaces": str(odd / "  "), "data": str(data),
             "deep": str(odd.joinpath(*["d" * 200] * 30))}  # fmt: skip
    path = named.get(kind, str(odd / kind))
    lines = {name: words for name, words in _lines(place).items() if name not in ("doctor", "data check", "publish")}
    name, words = draw.choice([*lines.items()])
    out = str(place.folder / "out")
    words = [word.replace(out, path).replace(str(place.beir), str(data)) for word in words]
    kept = [odd / "file", odd / "full" / "kept.txt", data / "corpus.jsonl"]

    def right(attempt: Attempt) -> str | None:
        changed = [one.name for one in kept if not one.exists() or one.read_text() in ("", "\n")]
        return f"{changed} changed" if changed and name != "train" else None

    return Input(f"{name} into {kind}", {"words": words}, right)


# The Hub --------------------------------------------------------------------------------------------------------------


def hub_answers(place: Place, draw: random.Random) -> Input:
    """A Hub that fails, breaks off or holds spoilt files, for pulling, pushing, publishing and a base of its own."""
    door, out = draw.choice(["pull", "push", "publish", "base", "base"]), place.folder / "out"
    name = f"me/{door}-{draw.randrange(10**9)}"  # new for each input: the cache of an earlier one is not asked
    words = {
        "pull": ["data", "pull", name, "--out", str(out)],
        "push": ["data", "push", str(place.beir), "--repo", name],
        "publish": ["publish", str(place.run), "--repo", name],
        "base": ["evaluate", str(place.beir), "--model", name, "--output", str(out), "--bootstrap", "10"],
    }[door]
    kept = Path(shutil.copytree(place.base if door == "base" else place.beir, place.folder / "kept"))
    failure: dict[str, Any] = {}
    if door in ("push", "publish") or draw.random() < 0.6:
        failure = {
            "method": draw.choice(["GET", "HEAD", "POST", "GET HEAD POST PUT"]),
            "path": draw.choice(["", "resolve", "api/", "tree", "commit", "preupload", "safetensors", "json"]),
            "status": draw.choice([0, 200, 204, 301, 400, 401, 403, 404, 409, 416, 418, 500]),
            "times": draw.choice([None, 1, 2]),
            "half": draw.random() < 0.3,
            "message": draw.choice(["", "<html>", "\u202e" * 50, "a" * 5000, "[]"]),
            "code": draw.choice(["", "RepoNotFound", "GatedRepo", "EntryNotFound", "x"]),
        }
        told = f"{failure['method']} {failure['path']}: {failure['status']}, {failure['half']}"
    elif door == "base":
        told = _spoil_folder(kept, place, draw)
    else:
        rows = [json.loads(line) for line in (kept / "corpus.jsonl").read_text().splitlines()]
        rows[draw.randrange(len(rows))][draw.choice(["text", "image", "_id", "file"])] = outside(place, draw)
        tiny_data.write_lines(kept / "corpus.jsonl", rows)
        told = "a row that names a file of this machine"

    def prepare(hub: FakeHub) -> None:
        hub.failures.clear()
        hub.repos.clear()
        if door in ("pull", "base"):
            hub.put(name, kept, "model" if door == "base" else "dataset")
        if failure:
            hub.fail(**failure)

    def right(attempt: Attempt) -> str | None:
        if door != "base":
            return None
        found = json.loads((out / "metrics.json").read_text())
        return None if found == place.metrics or not failure else "other figures than of the same base in a folder"

    whole = {"pull": [out / "qrels"], "base": [out / "metrics.json"]}.get(door, [])
    return Input(f"{door}, {told}", {"words": words}, right, whole=whole, hub=prepare)


# The Python API -------------------------------------------------------------------------------------------------------

VALUES = ["None", "5", "math.nan", "b'bytes'", "''", "' '", "'\\0'", "'\\ud800'", "'a' * 200000", "[]", "['a']", "{}",
          "{'text': 5}", "{'text': None}", "{'image': 'nowhere.png'}", "{'txt': 'a'}", "Path('nowhere.png')",
          "('a', 'b')",
          "Image.new('RGB', (8, 8))", "Image.new('P', (1, 1))", "numpy.zeros((3, 3))", "torch.zeros(3)", "object()",
          "numpy.str_('a')", "True", "10**400", "decimal.Decimal('nan')", "datetime.date(2024, 1, 1)", "lambda: 0",
          "{'text': 'a', 'image': Image.new('RGB', (0, 4))}", "'\\u202e'", "{1: 2}", "{'a'}", "1j",
          "'\\n' * 5000"]  # fmt: skip


def contents(place: Place, draw: random.Random) -> Input:
    """A value that is no text and no page, among those that are, for encode_queries and encode_documents."""
    value, side = draw.choice(VALUES), draw.choice(["query", "document"])
    rows = draw.choice([f"['a', {value}, 'b']", f"[{value}]", value, f"iter(['a', {value}])"])
    call = {"function": "encode_contents", "arguments": {"model": str(place.base), "contents": rows, "side": side}}
    return Input(f"{side}: {rows}", call, lambda one: None if one.answer["finite"] else "vectors that are not finite")


def training_rows(place: Place, draw: random.Random) -> Input:
    """Rows that are no pairs, for SmartTrainer."""
    value = draw.choice(VALUES)
    rows = "[{'query': f'q{n}', 'positive': f'p{n}'} for n in range(8)]"
    spoilt_rows = draw.choice(
        [
            f"{rows} + [{{'query': {value}, 'positive': 'p'}}]",
            f"{rows} + [{{'query': 'q', 'positive': {value}}}]",
            f"{rows} + [{{'query': 'q', 'positive': 'p', 'negative': {value}}}]",
            f"{rows} + [{value}]",
            f"[{value}]",
            value,
        ]
    )
    call = {"function": "fit", "arguments": {"model": str(place.base), "rows": spoilt_rows}}
    return Input(
        f"rows {spoilt_rows}", call, lambda one: None if math.isfinite(one.answer["loss"]) else "no finite loss"
    )


KINDS: dict[str, tuple[Callable[[Place, random.Random], Input], int]] = {
    "values of recipes": (recipe_values, 150),
    "bytes of recipes": (recipe_text, 60),
    "bytes of tables": (table_bytes, 90),
    "cells of tables": (table_cells, 90),
    "BEIR, TREC and ranx folders": (beir, 80),
    "images": (images, 50),
    "documents": (documents, 50),
    "base folders": (bases, 60),
    "adapter folders": (adapters, 60),
    "checkpoints": (checkpoints, 16),
    "command lines": (command_lines, 120),
    "environments": (environments, 50),
    "outputs": (outputs, 50),
    "answers of a Hub": (hub_answers, 50),
    "contents in Python": (contents, 60),
    "training rows in Python": (training_rows, 30),
}
