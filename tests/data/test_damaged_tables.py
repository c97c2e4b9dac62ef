"""A damaged table is one sentence that names the file, whatever the library below raises."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.load import read_all

ROWS = [{"query": f"what is {n}", "positive": f"a passage about {n}"} for n in range(200)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)


def arrow(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


WRITE = {
    "train.parquet": parquet,
    "train.arrow": arrow,
    "train.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
}


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("seed", range(12))
def test_a_table_with_noise_inside_is_told_or_read_as_it_was(name, seed, tmp_path):
    path, drawn = tmp_path / name, random.Random(seed)
    WRITE[name](path)
    raw = bytearray(path.read_bytes())
    at = drawn.randrange(len(raw) - 40)
    raw[at : at + 40] = drawn.randbytes(40)
    path.write_bytes(raw)
    try:
        found = read_all(DataBlock(path=str(path)))
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert len(found.queries) <= len(ROWS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, r"train.jsonl:1: not JSON \(nested too deeply"),
        ('{"a":' * 100_000, r"train.jsonl:1: not JSON \(nested too deeply"),
        ('{"query": "q", "positive": ' + "9" * 5000 + "}", r"train.jsonl:1: not JSON \(a number has more digits"),
        ('{"query": "q", "positive": "\\ud800"}', "train.jsonl:1: positive has half of a surrogate pair"),
        ('{"query": "\\udc00", "positive": "p"}', "train.jsonl:1: query has half of a surrogate pair"),
        ('{"query": "q", "positive": "p", "negative": "\\ud800"}', "half of a surrogate pair"),
        ('{"query": "q", "positive": "p", "id": "\\ud800"}', "id has half of a surrogate pair"),
    ],
)
def test_json_that_python_cannot_hold_is_told_with_its_line(text, told, tmp_path):
    (tmp_path / "train.jsonl").write_text(text)
    with pytest.raises(DataError, match=told):
        read_all(DataBlock(path=str(tmp_path / "train.jsonl"), id="id" if '"id"' in text else None))
