"""What is read keeps its fingerprint from version to version: a resumed run refuses data with another one."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_data

from smart_train.config.schema import DataBlock
from smart_train.data.load import load

EXPECTED = {  # train, dev, test, and train with a limit
    "beir": ["a840d98c8a01f7fb", "c836cb60897e9501", "30d4c0b27e286899", "1bda7bfc0e15db8b"],
    "triples": ["92a0f4646bd09bfd", "dec038e039b6ecc3", "d2ae7770e7326fb6", "f9dd43cd3a4f8e35"],
    "scored": ["6160aa9cde1a6af4", "313cdb6ed565914f", "84e1ba9bd3c6fc43", "6b68b31034ce8df9"],
    "pages": ["9d5c7b5190083bf1", "c1a7ec65828fd7fc", "7bc4e3f7861d6423", "1deb97296ffadb9e"],
    "mbeir": ["f6f7b66a21dac25a", "ff3f7c252ff1c740", "98ab001699e4d2b4", "9103940c4b917031"],
}


def annotations(folder: Path) -> Path:
    pages = [{"_id": f"d{n}", "title": "", "text": f"page {n}", "file": f"f{n // 3}", "page": n % 3} for n in range(30)]
    tiny_data.write_lines(folder / "corpus.jsonl", pages)
    rows = [f"where {n},f{n // 3},{n % 3}" for n in range(30)]
    (folder / "questions.csv").write_text("\n".join(["query,file,page", *rows]))
    return folder / "questions.csv"


def pool(folder: Path) -> Path:
    for split, numbers in (("train", range(10)), ("test", range(10, 14))):
        rows = [
            {"qid": f"9:{n}", "query_txt": f"what is {n}", "pos_cand_list": [f"9:{n}"], "neg_cand_list": [f"9:{n + 1}"]}
            for n in numbers
        ]
        tiny_data.write_lines(folder / "query" / split / f"x_{split}.jsonl", rows)
    rows = [{"did": f"9:{n}", "txt": f"text {n}", "img_path": None, "modality": "text"} for n in range(15)]
    tiny_data.write_lines(folder / "cand_pool" / "local" / "x.jsonl", rows)
    return folder


MAKE = {
    "beir": tiny_data.write_beir,
    "triples": lambda folder: tiny_data.write_triples(folder / "triples.jsonl"),
    "scored": lambda folder: tiny_data.write_scored(folder / "scored.jsonl"),
    "pages": annotations,
    "mbeir": pool,
}


@pytest.mark.parametrize("name", MAKE)
def test_train_dev_and_test_have_the_fingerprints_that_version_0_1_gave_them(tmp_path, name):
    path = MAKE[name](tmp_path / "data")
    found = [part.fingerprint()[:16] for part in load(DataBlock(path=str(path), dev=4, test=3, limit=None))]
    limited = load(DataBlock(path=str(path), dev=0, test=0, limit=7))[0].fingerprint()[:16]
    assert [*found, limited] == EXPECTED[name]
