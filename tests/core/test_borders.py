"""What libraries raise on hostile files becomes a sentence of ours that names the file, whatever its class."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from datasets import Dataset

from smart_train.checks.recipe import check
from smart_train.cli import heatmap
from smart_train.config.recipe import read
from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import RecipeError
from smart_train.core.bounded_json import load_json
from smart_train.core.errors import AdapterError, BaseNotFound, DataError, PublishError, UsageError, border
from smart_train.core.hub import hub_id, resolve_base
from smart_train.core.secrets import picture_texts
from smart_train.data.collection import Document
from smart_train.data.load import read_all
from smart_train.ingest.image_files import read_image
from smart_train.ingest.pages import Unreadable
from smart_train.models.base_config import BaseFiles, read_base
from smart_train.models.preprocessing import open_content

DIGITS = "9" * 100_000
JSON = {
    "deep list": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "digits": f'{{"query": "a", "positive": {DIGITS}}}',
    "cut off": '{"query": "a", "posi',
    "empty object cut": "{",
    "NUL": "\0" * 8,
    "a word": "nonsense",
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_json_that_cannot_be_read_has_one_error(text):
    for given in (text, text.encode()):
        with pytest.raises(json.JSONDecodeError):
            load_json(given)
    assert load_json('{"a": [1, 1e400]}')["a"][0] == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "corpus.jsonl"])
@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_rows_of_hostile_json_are_told_with_file_and_line(text, name, tmp_path):
    (tmp_path / name).write_text(text + "\n")
    if name == "corpus.jsonl":
        (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "a"}\n')
        (tmp_path / "qrels").mkdir()
        (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    with pytest.raises(DataError, match=name):
        read_all(DataBlock(path=str(tmp_path if name == "corpus.jsonl" else tmp_path / name)))


STORED = {
    "empty": b"",
    "magic alone": b"PAR1" + bytes(20) + b"PAR1",
    "a footer of 4 GB": b"PAR1" + b"\xff" * 24 + b"PAR1",
    "text": b"query,positive\na,b\n",
    "NUL": bytes(64),
}


@pytest.mark.parametrize("content", STORED.values(), ids=STORED)
def test_parquet_that_is_none_is_told(content, tmp_path):
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(DataError, match="rows.parquet"):
        read_all(DataBlock(path=str(tmp_path / "rows.parquet")))


WHOLE = gzip.compress(b"query,positive\n" + b"a,b\n" * 50)
GZIP = {
    "header alone": b"\x1f\x8b\x08\0" + b"x" * 30,
    "cut off": WHOLE[:-12],
    "flipped": WHOLE[:20] + b"\xff\xff" + WHOLE[22:],
    "wrong checksum": WHOLE[:-8] + bytes(8),
    "no gzip": b"query,positive\na,b\n",
}


@pytest.mark.parametrize("content", GZIP.values(), ids=GZIP)
def test_gzip_that_is_damaged_is_told(content, tmp_path):
    (tmp_path / "rows.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match="rows.csv.gz"):
        read_all(DataBlock(path=str(tmp_path / "rows.csv.gz")))


DISK = ["", "null", "[]", "{}", '{"_data_files": -1}', "[" * 100_000, "\0" * 40]


@pytest.mark.parametrize("content", [*DISK, "cut off", "gone"])
@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_damaged_folder_of_a_stored_data_set_is_told(name, content, tmp_path):
    Dataset.from_dict({"query": ["a"] * 9, "positive": ["b"] * 9}).save_to_disk(tmp_path / "stored")
    file = tmp_path / "stored" / name
    if content == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-30] if content == "cut off" else content.encode())
    if name != "dataset_info.json" or not content.startswith("{"):  # what it says of the data may be missing
        with pytest.raises(DataError, match="stored"):
            read_all(DataBlock(path=str(tmp_path / "stored")))


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)
    return start + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IEND\xaeB`\x82"


IMAGES = {
    "empty": b"",
    "of 100,000 x 100,000": png(100_000, 100_000),
    "of no size": png(0, 0),
    "cut off": png(9, 9)[:30],
    "a chunk of 4 GB": b"\x89PNG\r\n\x1a\n" + b"\xff" * 60,
    "text": b"<svg></svg>",
    **{
        head.decode("latin-1"): head + b"\xff" * 130
        for head in (b"GIF89a", b"II*\0", b"8BPS", b"BM", b"DDS ", b"\xff\xd8\xff\xe0", b"RIFF\xff\xff\xff\xffWEBPVP8 ")
    },
}


@pytest.mark.parametrize("content", IMAGES.values(), ids=IMAGES)
def test_an_image_that_is_none_is_told_on_every_road(content, tmp_path):
    path = tmp_path / "page.png"
    path.write_bytes(content)
    for opened in (open_content, lambda place: Document("d", image=place).content()):
        with pytest.raises(DataError, match=r"page\.png"):
            opened(path)
    with pytest.raises(UsageError, match=r"page\.png"):
        heatmap._document(str(path), "a text")
    with pytest.raises(PublishError, match="page"):
        list(picture_texts("page.png", path))
    with pytest.raises(Unreadable):
        read_image(path, 0, 10**6, 10**8)


YAML = {
    "NUL": "model: {base: x}\nna\0me: 1",
    "control": "model: {base: x}\nname: \x07",
    "digits": f"training: {{max_steps: {DIGITS}}}",
    "infinite": "training: {max_steps: .inf}",
    "date": "name: 2024-13-45",
    "binary": "name: !!binary '%%'",
    "set": "model: !!set {a, b}",
    "merge": "model: {<<: 5}",
    "duplicate": "name: a\nname: b",
    "deep": "model: " + "[" * 3000,
    "long path": "model: {base: " + "y" * 5000 + "}",
    "nobody's home": "model: {base: ~nobodyknows/y}",
    "DeepSpeed": "training: {deepspeed: DEEP.json}",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_a_recipe_of_odd_scalars_and_depths_is_told(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DEEP.json").write_text("[" * 100_000)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match="recipe.yaml"):
        check(read(tmp_path / "recipe.yaml", []))


@pytest.mark.parametrize("name", ["~nobodyknows/x", "x" * 5000, "a\0b", "/" + "x" * 500, "./" + "y" * 300])
def test_a_base_whose_name_is_no_path_is_told(name):
    with pytest.raises(BaseNotFound):
        hub_id(resolve_base(name))


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_a_base_whose_modules_are_hostile_json_is_told(text, tmp_path):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(BaseNotFound, match="modules.json: not JSON"):
        BaseFiles(str(tmp_path), None).modules()


FOREIGN = [
    zlib.error("bad"),
    KeyError("a"),
    RecursionError("deep"),
    UnicodeDecodeError("utf8", b"", 0, 1, "x"),
    OSError(),
]


@pytest.mark.parametrize("error", FOREIGN, ids=[type(one).__name__ for one in FOREIGN])
def test_a_border_names_the_file_and_keeps_the_cause(error):
    with (
        pytest.raises(AdapterError, match="^rows: not readable [(]") as raised,
        border("rows", "not readable", AdapterError),
    ):
        raise error
    assert raised.value.__cause__ is error


def test_a_border_lets_our_own_errors_and_an_interrupt_pass():
    for own in (DataError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(own)) as raised, border(Path("rows"), "not readable"):
            raise own
        assert raised.value is own


ODD = {
    "2_Normalize/config.json is a list": ("2_Normalize/config.json", [1]),
    "1_Pooling/config.json is a number": ("1_Pooling/config.json", 5),
    "no width": ("1_Pooling/config.json", {"embedding_dimension": None, "pooling_mode": "mean"}),
    "a width that is a block": ("1_Pooling/config.json", {"embedding_dimension": {}, "pooling_mode": "mean"}),
    "settings are a list": ("config_sentence_transformers.json", [1]),
    "no type of model": ("config.json", {"model_type": {}}),
    "a list": ("config.json", [[]]),
}


@pytest.mark.parametrize(("name", "content"), ODD.values(), ids=ODD)
def test_a_base_whose_files_hold_other_types_is_told(name, content, tiny_bert, tmp_path):
    base = shutil.copytree(tiny_bert, tmp_path / "base")
    assert (base / name).is_file()
    (base / name).write_text(json.dumps(content))
    with pytest.raises((BaseNotFound, AdapterError), match="base"):
        read_base(str(base))
