"""A path in data stays inside the data's folder, and nothing is uploaded that is no image."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data

from smart_train.cli.main import main
from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data import hub_transfer, store
from smart_train.data.collection import Collection
from smart_train.data.load import check_data, load, read_all
from smart_train.data.readers import hub_datasets
from smart_train.data.readers.rows import read_rows
from smart_train.data.tables import Boundary

OUTSIDE = "lies outside of the data's folder"


def png(seed: int = 1) -> bytes:
    stream = io.BytesIO()
    tiny_data.draw_page(seed).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder for data, and an image beside it that is no part of it."""
    (tmp_path / "private.png").write_bytes(png(7))
    (tmp_path / "private.txt").write_text("my diary", "utf-8")
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "one.png").write_bytes(png(1))
    return folder


def beir(folder: Path, image: str) -> Path:
    rows = [{"_id": "d1", "text": "", "image": image}, {"_id": "d2", "text": "", "image": "images/one.png"}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "which page"}\n')
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "train.tsv").write_text("q1\td1\t1\n")
    return folder


def beir_parquet(folder: Path, image: str) -> Path:
    beir(folder, image)
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus" / "corpus.parquet")
    return folder


def rows_jsonl(folder: Path, image: str) -> Path:
    (folder / "train.jsonl").write_text(json.dumps({"query": "which page", "image": image}) + "\n")
    return folder


def rows_csv(folder: Path, image: str) -> Path:
    with (folder / "train.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["query", "image"], ["which page", image]])
    return folder


def rows_struct(folder: Path, image: str) -> Path:
    """Parquet in which an image is a path without bytes."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": image}, {"bytes": png(3), "path": "/etc/shadow"}], kind)
    pq.write_table(pa.table({"query": ["which page", "another"], "image": cells}), folder / "train.parquet")
    return folder


def pages(folder: Path, image: str) -> Path:
    (folder / "train.jsonl").write_text(json.dumps({"query": "which page", "file": image}) + "\n")
    return folder


def mbeir(folder: Path, image: str) -> Path:
    (folder / "cand_pool").mkdir()
    (folder / "query" / "train").mkdir(parents=True)
    row = {"did": "1:1", "txt": None, "img_path": image, "modality": "image"}
    (folder / "cand_pool" / "pool.jsonl").write_text(json.dumps(row) + "\n")
    query = {"qid": "1:1", "query_txt": "which page", "query_img_path": None, "pos_cand_list": ["1:1"]}
    (folder / "query" / "train" / "q_train.jsonl").write_text(json.dumps(query) + "\n")
    return folder


LAYOUTS = [beir, beir_parquet, rows_jsonl, rows_csv, rows_struct, pages, mbeir]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


def ways_out(folder: Path) -> list[str]:
    """An absolute path, a relative one, one through a folder, a link to a file, through a linked folder, and of the
    operating system."""
    private = folder.parent / "private.png"
    (folder / "images" / "link.png").symlink_to(private)
    (folder / "elsewhere").symlink_to(folder.parent)
    names = [str(private), "../private.png", "images/../../private.png", "images/link.png", "elsewhere/private.png"]
    return [*names, "/proc/self/environ.png", "../not-there.png"]


@layouts
@pytest.mark.parametrize("way", range(7))
def test_a_path_that_leads_outside_is_refused_on_every_road(place, layout, way):
    name = ways_out(place)[way]
    block = DataBlock(path=str(layout(place, name)))
    for read in (read_all, lambda data: load(DataBlock(path=data.path, dev=0, test=0))):
        with pytest.raises(DataError, match=OUTSIDE) as error:
            read(block)
        assert "write data.allow_outside: true" in str(error.value)


@layouts
@pytest.mark.parametrize("inside", ["images/one.png", "./images/../images/one.png", "absolute", "link"])
def test_a_path_inside_is_read_as_before(place, layout, inside):
    (place / "same.png").symlink_to(place / "images" / "one.png")
    name = {"absolute": str(place / "images" / "one.png"), "link": "same.png"}.get(inside, inside)
    whole = read_all(DataBlock(path=str(layout(place, name))))
    document = next(d for q in whole.splits["train"].values() for d in q)
    assert store.image_bytes(whole.corpus[document].image) == png(1)


@layouts
def test_allow_outside_reads_what_is_named(place, layout):
    data = DataBlock(path=str(layout(place, ways_out(place)[0])), allow_outside=True)
    whole = read_all(data)
    document = next(d for q in whole.splits["train"].values() for d in q)
    assert store.image_bytes(whole.corpus[document].image) == png(7)


def test_a_folder_that_is_reached_through_a_link_is_its_own_folder(place):
    rows_jsonl(place, str(place / "images" / "one.png"))
    (place.parent / "again").symlink_to(place)
    assert read_all(DataBlock(path=str(place.parent / "again"))).corpus
    rows_jsonl(place, str(place.parent / "again" / "images" / "one.png"))
    assert read_all(DataBlock(path=str(place))).corpus


def test_a_snapshot_of_the_hubs_cache_may_use_its_blobs_and_no_others(tmp_path):
    for repo in ("datasets--a--b", "datasets--c--d"):
        (tmp_path / repo / "blobs").mkdir(parents=True)
        (tmp_path / repo / "blobs" / "abc").write_bytes(png(1))
    folder = tmp_path / "datasets--a--b" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder / "one.png").symlink_to("../../blobs/abc")
    (folder / "two.png").symlink_to("../../../datasets--c--d/blobs/abc")
    boundary = Boundary(folder)
    assert boundary.holds(folder / "one.png") and not boundary.holds(folder / "two.png")


@pytest.mark.parametrize(
    "name", ["../private.txt", "absolute", "a.txt", "elsewhere/private.txt", "images/../../private.txt"]
)
def test_texts_outside_are_not_read_either(place, name):
    (place / "a.txt").symlink_to(place.parent / "private.txt")
    (place / "elsewhere").symlink_to(place.parent)
    pages(place, str(place.parent / "private.txt") if name == "absolute" else name)
    with pytest.raises(DataError, match=OUTSIDE) as error:
        load(DataBlock(path=str(place), dev=0, test=0))
    assert "diary" not in str(error.value)


# Rows of the Hub ------------------------------------------------------------------------------------------------------


def hub_rows(monkeypatch, stored: datasets.Dataset) -> tuple:
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: stored)
    monkeypatch.chdir(Path(__file__).parent)
    data = DataBlock(path="stranger/pages")
    return hub_datasets.table("stranger/pages", None, "train", None), data


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("way", range(6))
@pytest.mark.parametrize("stored_as", ["text", "struct"])
def test_hub_rows_bring_bytes_only(place, monkeypatch, stored_as, way, allow):
    name = ways_out(place)[way]
    if stored_as == "text":
        stored = datasets.Dataset.from_dict({"query": ["q"], "image": [name]})
    else:
        cells = [{"bytes": None, "path": os.path.abspath(place / name)}]
        image = datasets.Features({"query": datasets.Value("string"), "image": datasets.Image(decode=False)})
        stored = datasets.Dataset.from_dict({"query": ["q"], "image": cells}, features=image)
    table, data = hub_rows(monkeypatch, stored)
    data.allow_outside = allow  # a key of the recipe is about the user's own files
    with pytest.raises(DataError, match="must bring its images as bytes"):
        read_rows(table, data, "x")


def test_a_path_beside_bytes_is_not_opened(place, monkeypatch):
    cells = [{"bytes": png(3), "path": str(place.parent / "private.png")}]
    stored = datasets.Dataset(pa.table({"query": ["q"], "image": cells}))  # from_dict would drop the bytes
    table, data = hub_rows(monkeypatch, stored)
    (document,) = read_rows(table, data, "x").corpus.values()
    assert document.image.raw() == png(3)


def test_a_stored_image_opens_no_file_that_was_not_checked(place):
    rows_struct(place, str(place.parent / "private.png"))
    from smart_train.data.tables import open_files

    _, row = next(iter(open_files([place / "train.parquet"])))
    with pytest.raises(DataError, match="no file that may be read"):
        row["image"].raw()


# Push -----------------------------------------------------------------------------------------------------------------

NO_IMAGES = {
    "text": b"password=hunter2\n",
    "empty": b"",
    "environment": b"HOME=/root\0TOKEN=abc\0",
    "cut off": png(1)[:60],
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "xpm": b'/* XPM */\nstatic char *x[] = {"1 1 1 1", "a c #000000", "a"};\n',
    "pdf": b"%PDF-1.4\n",
}


class NoHub:
    """A Hub that must not be sent anything."""

    def create_repo(self, *args, **kwargs):
        return "https://hub.invalid/me/mine"

    def dataset_info(self, repo):
        return type("Info", (), {"private": True, "siblings": [], "sha": "0"})

    def upload_folder(self, **kwargs):
        raise AssertionError("something was sent")


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_nothing_is_sent_that_is_no_image(place, monkeypatch, kind):
    monkeypatch.setattr("huggingface_hub.HfApi", NoHub)
    (place / "images" / "two.png").write_bytes(NO_IMAGES[kind])
    for allow in (False, True):
        with pytest.raises(DataError, match="'d1' cannot be decoded .* nothing was sent"):
            hub_transfer.push(beir(place, "images/two.png"), "me/mine", allow_outside=allow)


@pytest.mark.parametrize("way", range(6))
def test_nothing_is_sent_from_outside_and_the_command_names_its_flag(place, monkeypatch, capsys, way):
    monkeypatch.setattr("huggingface_hub.HfApi", NoHub)
    name = ways_out(place)[way]
    for link in ("images/link.png", "elsewhere"):
        if not name.startswith(link):
            (place / link).unlink()
    beir(place, name)
    assert main(["data", "push", str(place), "--repo", "me/mine"]) != 0
    message = capsys.readouterr().err
    assert OUTSIDE in message and "give --allow-outside" in message


@pytest.mark.parametrize("link", ["corpus.jsonl", "notes.md", "images/more", "qrels/train.tsv", "queries.jsonl"])
def test_links_out_of_the_folder_are_refused_before_the_hub_is_asked(place, monkeypatch, link):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: pytest.fail("the Hub was asked"))
    beir(place, "images/one.png")
    there, away = place / link, place.parent / "away"
    if there.exists():
        there.rename(away)
    else:
        away.mkdir()
    there.symlink_to(away)
    with pytest.raises(DataError, match=f"a link to .*away {OUTSIDE}"):
        hub_transfer.push(place, "me/mine")


def test_a_collection_is_written_with_its_images_inside(place):
    """What ``write_beir`` writes can be read, also where the images came from elsewhere."""
    whole = read_all(DataBlock(path=str(beir(place, str(place.parent / "private.png"))), allow_outside=True))
    out = place.parent / "out"
    store.write_beir(Collection("mine", whole.corpus, whole.queries, whole.splits["train"]), out, "train")
    again = read_all(DataBlock(path=str(out)))
    assert {d: store.image_bytes(v.image) for d, v in again.corpus.items()} == {"d1": png(7), "d2": png(1)}


def test_a_recipe_may_allow_it(place):
    data = DataBlock(path=str(rows_jsonl(place, "../private.png")), allow_outside=True)
    assert check_data(data) == []
