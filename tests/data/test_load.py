"""What people have -> three collections: every layout, its own splits, and what is said where something is wrong."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data
from PIL import Image

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document
from smart_train.data.load import check_data, image_column, load, no_scores
from smart_train.data.readers import hub_datasets as hub
from smart_train.data.readers import pydocs
from smart_train.data.store import write_beir
from smart_train.data.tables import PEEK, StoredImage

ROWS = [{"query": f"question {n}", "positive": f"answer {n} " * (n + 1), "source": "x"} for n in range(20)]


def data(path: Path | str, **change) -> DataBlock:
    return DataBlock(**({"path": str(path), "dev": 3, "test": 4} | change))


def whole(path: Path | str, **change) -> Collection:
    return load(data(path, **({"dev": 0, "test": 0} | change)))[0]


def jsonl(path: Path, rows: list[dict]) -> Path:
    return tiny_data.write_lines(path, rows)


def texts(collection: Collection) -> dict[str, list[str]]:
    """query text -> texts of its relevant documents, in order of the qrels."""
    return {
        collection.queries[q]: [collection.corpus[d].text for d in judged] for q, judged in collection.qrels.items()
    }


def expected(rows: list[dict] = ROWS) -> dict[str, list[str]]:
    return {row["query"]: [row["positive"].strip()] for row in rows}


def as_jsonl(folder):
    return jsonl(folder / "rows.jsonl", ROWS)


def as_gzip(folder):
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(as_jsonl(folder).read_bytes()))
    return folder / "rows.jsonl.gz"


def as_json(folder):
    (folder / "rows.json").write_text(json.dumps(ROWS, indent=1))
    return folder / "rows.json"


def as_csv(folder):
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / "rows.csv"


def as_parquet(folder):
    datasets.Dataset.from_list(ROWS).to_parquet(str(folder / "rows.parquet"))
    return folder / "rows.parquet"


def as_saved(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_folder(folder):
    jsonl(folder / "many" / "part-1.jsonl", ROWS[:9])
    jsonl(folder / "many" / "part-2.jsonl", ROWS[9:])
    return folder / "many"


def as_shards(folder):
    for n in range(2):
        part = datasets.Dataset.from_list(ROWS[n * 10 : n * 10 + 10])
        (folder / "hub" / "data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(str(folder / "hub" / "data" / f"train-0000{n}-of-00002.parquet"))
    return folder / "hub"


@pytest.mark.parametrize(
    "make", [as_jsonl, as_gzip, as_json, as_csv, as_parquet, as_saved, as_folder, as_shards], ids=lambda f: f.__name__
)
def test_a_table_is_read_the_same_from_every_kind_of_file(tmp_path, make):
    path = make(tmp_path)
    assert check_data(data(path)) == []
    assert texts(whole(path)) == expected()
    train, dev, test = load(data(path))
    assert (len(train.queries), len(dev.queries), len(test.queries)) == (13, 3, 4)
    assert texts(train) | texts(dev) | texts(test) == expected()
    assert [side.name for side in (train, dev, test)] == [f"{path.name}/{s}" for s in ("train", "dev", "test")]


@pytest.mark.parametrize("layout", ["files", "shards", "folders", "saved"])
@pytest.mark.parametrize("dev", ["dev", "validation", "val"])
def test_own_splits_are_used_where_the_data_has_them(tmp_path, layout, dev):
    parts = {"train": ROWS[:12], dev: ROWS[12:15], "test": ROWS[15:]}
    for name, rows in parts.items():
        table = datasets.Dataset.from_list(rows)
        if layout == "saved":
            table.save_to_disk(str(tmp_path / name))
            continue
        names = {
            "files": f"{name}.parquet",
            "shards": f"data/{name}-00000-of-00001.parquet",
            "folders": f"{name}/0.parquet",
        }
        file = tmp_path / names[layout]
        file.parent.mkdir(exist_ok=True)
        table.to_parquet(str(file))
    assert check_data(data(tmp_path)) == []
    assert [texts(side) for side in load(data(tmp_path))] == [expected(rows) for rows in parts.values()]
    assert [len(side.queries) for side in load(data(tmp_path, dev=2))] == [12, 2, 5]
    assert len(load(data(tmp_path, dev=0))[1].queries) == 0
    (problem,) = check_data(data(tmp_path, split="trian"))
    assert problem.key == "data.split" and "'trian'" in problem.what and "write data.split: train" in problem.fix
    with pytest.raises(DataError, match="no split 'trian'"):
        load(data(tmp_path, split="trian"))


def test_own_splits_that_overlap_are_reported(tmp_path, caplog):
    jsonl(tmp_path / "train.jsonl", ROWS[:12])
    jsonl(tmp_path / "test.jsonl", ROWS[10:])
    load(data(tmp_path, dev=0))
    assert "/test shares 2 documents and 2 queries with" in caplog.text


def test_queries_that_a_collection_both_trains_on_and_ranks_are_reported_and_its_one_corpus_is_not(tmp_path, caplog):
    texts = [f"what is topic {n % 6}" for n in range(9)]  # q6, q7 and q8 ask what q0, q1 and q2 ask
    jsonl(tmp_path / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": f"topic {n}"} for n in range(9)])
    jsonl(tmp_path / "queries.jsonl", [{"_id": f"q{n}", "text": text} for n, text in enumerate(texts)])

    def told(train, test):
        (tmp_path / "qrels").mkdir(exist_ok=True)
        for split, numbers in (("train", train), ("test", test)):
            (tmp_path / "qrels" / f"{split}.tsv").write_text("".join(f"q{n}\td{n}\t1\n" for n in numbers))
        caplog.clear()
        load(data(tmp_path, dev=0))
        return caplog.text

    assert "shares" not in told(range(4), (4, 5))
    assert "/test shares 2 queries with" in told(range(4), (2, 3, 4))
    assert "/test shares 3 queries with" in told(range(4), (2, 6, 7, 5))  # by id, and by text under another id


def test_rows_with_the_same_query_or_the_same_document_merge(tmp_path):
    rows = [
        {"query": "a", "text": "one"},
        {"query": " a ", "text": "two"},
        {"query": "b", "text": "one\n"},
        {"query": "c", "text": ["three", "one", "three"]},
        {"query": "a", "text": "one"},
    ]
    found = whole(jsonl(tmp_path / "r.jsonl", rows))
    assert texts(found) == {"a": ["one", "two"], "b": ["one"], "c": ["three", "one"]}
    assert len(found.corpus) == 3 and len(found.pairs()) == 5


def test_negatives_in_every_spelling_and_in_unequal_numbers(tmp_path):
    rows = [
        {"query": "a", "positive": "one", "negatives": ["n1", None, "n2", "n1"], "negative": "n0"},
        {"query": "b", "positive": "two", "negative_10": "n4", "negative_2": "n3", "negative_1": ""},
        {"query": "c", "positive": "three", "negative_1": None},
        {"query": "a", "positive": "four", "negatives": ["two", "one", "n5"]},
    ]
    found = whole(jsonl(tmp_path / "r.jsonl", rows), negatives=2)
    named = {found.queries[q]: [found.corpus[d].text for d in ids] for q, ids in found.negatives.items()}
    # a known positive ("one") is never a negative, and a text that is a document elsewhere is that document
    assert named == {"a": ["n1", "n2", "n0", "two", "n5"], "b": ["n3", "n4"]}
    assert len(found.corpus) == 4 + 6
    assert found.check()


def scored(found) -> dict[str, dict[str, float]]:
    """query text -> document text -> the teacher's score."""
    return {found.queries[q]: {found.corpus[d].text: s for d, s in row.items()} for q, row in found.teacher.items()}


@pytest.mark.parametrize(
    "names",
    [("anchor", "positive", "negative"), ("question", "answer", "negative_0"), ("query", "pos", "neg")],
    ids=["sentence-transformers", "questions and answers", "lists"],
)
def test_columns_are_known_by_their_usual_names_where_none_is_given(tmp_path, names):
    query, document, negative = names
    rows = [{query: f"question {n}", document: [f"answer {n}"], negative: [f"answer {n + 1}"]} for n in range(4)]
    if document != "pos":
        rows = [{name: value if isinstance(value, str) else value[0] for name, value in row.items()} for row in rows]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    found = whole(path, negatives=1)
    assert texts(found) == {f"question {n}": [f"answer {n}"] for n in range(4)}
    assert sum(map(len, found.negatives.values())) == 4
    (problem,) = check_data(data(path, query="querry"))  # a name that was given is not replaced
    assert problem.key == "data.query"


def test_parquet_without_images_leaves_no_copy_in_the_cache(tmp_path, monkeypatch):
    file = as_parquet(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("copied into the cache of datasets"))
    assert texts(whole(file)) == expected()


def test_scores_belong_to_the_documents_of_their_row_then_to_its_negatives(tmp_path):
    rows = [
        {"query": "a", "positive": "one", "negative_2": "n2", "negative_1": "n1", "scores": [9.5, 3, -1.0]},
        {"query": "b", "positive": ["two", "three"], "negative": "n1", "scores": [8, 7, 6.0]},
        {"query": "c", "positive": "four", "scores": [5]},
        {"query": "d", "positive": "five", "scores": 4.5},
        {"query": "e", "positive": "six", "negative_1": "n3", "scores": None},
        {"query": "f", "positive": "seven", "negative_1": "n4", "negatives": ["n5", "n6"], "scores": [1, None, 3, 4]},
    ]
    found = whole(jsonl(tmp_path / "r.jsonl", rows), negatives=1)
    assert scored(found) == {
        "a": {"one": 9.5, "n1": 3.0, "n2": -1.0},
        "b": {"two": 8.0, "three": 7.0, "n1": 6.0},
        "c": {"four": 5.0},
        "d": {"five": 4.5},
        "f": {"seven": 1.0, "n5": 3.0, "n6": 4.0},
    }
    assert found.check() and whole(jsonl(tmp_path / "r.jsonl", rows), negatives=1, scores="").teacher == {}


@pytest.mark.parametrize("scores", [[9, 1, 2], [9, 1, None, 2, None, None]])
def test_scores_of_rows_padded_to_equal_numbers_of_negatives_may_count_the_empty_cells_or_not(tmp_path, scores):
    row = {"query": "a", "positive": "one", "negative_1": "n1", "negative_2": " ", "negatives": ["n2", None, ""]}
    found = whole(jsonl(tmp_path / "r.jsonl", [row | {"scores": scores}]))
    assert scored(found) == {"a": {"one": 9.0, "n1": 1.0, "n2": 2.0}}


def test_scores_of_pages_and_of_negatives_by_id_from_a_column_of_another_name(tmp_path):
    columns = {
        "id": ["a", "b", "c"],
        "query": ["first", "second", None],
        "image": [tiny_data.draw_page(n) for n in range(3)],
        "negatives": [["b", "c"], ["gone", "a"], []],
        "reranker": [[0.9, 0.5, 0.25], [0.8, 0.1, 0.2], None],
    }
    kinds = {"id": datasets.Value("string"), "query": datasets.Value("string"), "image": datasets.Image()}
    kinds |= {
        "negatives": datasets.List(datasets.Value("string")),
        "reranker": datasets.List(datasets.Value("float32")),
    }
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(str(tmp_path / "r.parquet"))
    found = whole(tmp_path / "r.parquet", id="id", negatives=2, scores="reranker")
    by_query = {found.queries[q]: {d: round(s, 6) for d, s in row.items()} for q, row in found.teacher.items()}
    assert by_query == {"first": {"a": 0.9, "b": 0.5, "c": 0.25}, "second": {"b": 0.8, "a": 0.2}}


def test_a_pair_with_two_scores_keeps_the_last_and_is_reported(tmp_path, caplog):
    rows = [
        {"query": "a", "positive": "one", "negative": "n1", "scores": [1, 2]},
        {"query": "a", "positive": "n1", "negative": "one", "scores": [3, 4]},
        {"query": "a", "positive": "one", "scores": [4]},
    ]
    found = whole(jsonl(tmp_path / "r.jsonl", rows))
    assert scored(found)["a"].keys() == {"one", "n1"} and not found.negatives
    assert "pairs have two scores in scores; the last counts" in caplog.text


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([1, 2], r"r\.jsonl:2: scores has 2 values, but the row has 1 documents and 2 negatives; give one for each"),
        ([1, 2, 3, 4], r"r\.jsonl:2: scores has 4 values"),
        ([], r"r\.jsonl:2: scores has 0 values"),
        (5, r"r\.jsonl:2: scores has 1 values"),
        ("[1, 2]", r"r\.jsonl:2: scores has 2 values"),
        (
            "1, 2, 3",
            r"r\.jsonl:2: scores must be a list of numbers, got '1, 2, 3'; correct it, or write data\.scores: \"\"",
        ),
        ([1, "2", 3], r"r\.jsonl:2: scores must be a list of numbers"),
        ([1, True, 3], r"r\.jsonl:2: scores: the score is True; it must be a finite number"),
        ([1, float("inf"), 3], r"r\.jsonl:2: scores: the score is inf"),
    ],
)
def test_scores_that_do_not_fit_their_row_are_refused_with_it(tmp_path, scores, told):
    row = {"query": "a", "positive": "one", "negatives": ["n1", "n2"]}
    with pytest.raises(DataError, match=told):
        whole(jsonl(tmp_path / "r.jsonl", [row | {"scores": [1, 2, 3]}, row | {"scores": scores}]))


def test_data_without_a_teacher_is_known_before_and_after_reading(tmp_path, beir_folder):
    rows = jsonl(tmp_path / "r.jsonl", ROWS)
    assert no_scores(data("pydocs")) == "docstrings have no scores"
    assert no_scores(data(rows)) == f"{rows} has no column of scores"
    assert no_scores(data(beir_folder)) == f"{beir_folder} has no teacher.jsonl"
    empty = jsonl(tmp_path / "e.jsonl", [{**row, "scores": None} for row in ROWS])
    assert no_scores(data(empty)) is None and load(data(empty))
    for block in (data("pydocs"), data(rows), data(beir_folder), data(empty)):
        with pytest.raises(DataError, match=r"objective\.teacher\.weight: is on, but .*no (query|scores)"):
            load(block, teacher=True)
    full = jsonl(tmp_path / "f.jsonl", [{**row, "scores": [1.0]} for row in ROWS])
    assert any(load(data(full, dev=1, test=1), teacher=True)[0].teacher.values())
    assert no_scores(data(full, scores="")) is not None
    write_beir(whole(full), tmp_path / "beir", "train")
    assert no_scores(data(tmp_path / "beir")) is None and len(whole(tmp_path / "beir").teacher) == len(ROWS)


def test_a_column_that_first_appears_late_in_the_file_is_told(tmp_path, caplog):
    rows = [{"query": f"q{i}", "positive": f"p{i}", "negative_1": f"n{i}"} for i in range(PEEK)]
    whole(jsonl(tmp_path / "r.jsonl", [*rows, {"query": "z", "positive": "y", "negative_1": "x", "negative_2": "w"}]))
    assert "1 columns first appear after the rows" in caplog.text and "negative_2 (" in caplog.text
    caplog.clear()
    whole(jsonl(tmp_path / "s.jsonl", rows))
    assert caplog.text == ""


def test_a_negative_that_is_a_document_elsewhere_is_found_under_its_given_id(tmp_path):
    rows = [{"query": "a", "text": "one", "id": 1, "negative": "two"}, {"query": "b", "text": "two", "id": 2}]
    found = whole(jsonl(tmp_path / "r.jsonl", rows), id="id", negatives=1)
    assert list(found.corpus) == ["1", "2"] and list(found.negatives.values()) == [["2"]]


def test_negatives_may_be_ids_of_other_rows_also_of_rows_without_a_query(tmp_path, caplog):
    """As multilingual page sets have them: images by id, negatives as lists of ids, pages that nobody asks for."""
    kinds = {"id": datasets.Value("string"), "query": datasets.Value("string"), "image": datasets.Image()}
    columns = {
        "id": ["a", "b", "c", "d"],
        "query": ["first", "second", None, ""],
        "image": [tiny_data.draw_page(n) for n in range(4)],
        "negatives": [["b", "c", "gone"], ["a"], [], None],
    }
    features = datasets.Features(kinds | {"negatives": datasets.List(datasets.Value("string"))})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "r.parquet"))
    found = whole(tmp_path / "r.parquet", id="id", negatives=2)
    assert {found.queries[q]: ids for q, ids in found.negatives.items()} == {"first": ["b", "c"], "second": ["a"]}
    assert list(found.corpus) == ["a", "b", "c"] and found.check()
    assert found.corpus["c"].content().tobytes() == tiny_data.draw_page(2).tobytes()
    assert "2 rows without a query" in caplog.text and "1 negatives name no document" in caplog.text


def test_empty_rows_are_left_out_and_counted(tmp_path, caplog):
    rows = [
        *ROWS[:3],
        {"query": "", "positive": "x"},
        {"query": "y", "positive": None},
        {"query": " ", "positive": "z"},
    ]
    assert texts(whole(jsonl(tmp_path / "r.jsonl", rows))) == expected(ROWS[:3])
    assert "2 rows without a query are left out" in caplog.text and "r.jsonl:4" in caplog.text
    assert "1 rows without a document are left out" in caplog.text and "r.jsonl:5" in caplog.text


def test_files_and_pages_are_kept_and_a_split_keeps_a_file_together(tmp_path):
    rows = [{"query": f"q{n}", "text": f"t{n}", "doc_id": f"{n // 5}.pdf", "page": str(n)} for n in range(60)]
    sides = load(data(jsonl(tmp_path / "r.jsonl", rows), dev=5, test=10))
    homes = [{d.file for d in side.corpus.values()} for side in sides]
    assert not (homes[0] & homes[1] or homes[0] & homes[2] or homes[1] & homes[2])
    assert len(homes[2]) >= 2 and all(d.page == int(d.text[1:]) for d in sides[2].corpus.values())


def test_the_limit_counts_pairs_and_stops_the_reading(tmp_path):
    rows = [{"query": f"question {n}", "positive": f"answer {n}"} for n in range(150)]
    path = jsonl(tmp_path / "r.jsonl", rows)
    path.write_text(path.read_text() + "{broken\n")
    assert texts(whole(path, limit=120)) == expected(rows[:120])
    with pytest.raises(DataError, match=r"r\.jsonl:151: not JSON"):
        whole(path)


# ------------------------------------------------------------------------------------------------ images


def test_page_rows_keep_images_undecoded_and_merge_queries_of_one_page(page_rows):
    found = whole(page_rows)
    rows = tiny_data.page_rows()
    assert (len(found.corpus), len(found.queries)) == (tiny_data.PAGES, len(rows))
    assert all(isinstance(d.image, StoredImage) and d.text is None for d in found.corpus.values())
    pages = {row["query"]: row["image"] for row in rows}
    for query, document in found.pairs():
        content = found.corpus[document].content()
        assert content.mode == "RGB" and content.tobytes() == pages[found.queries[query]].tobytes()


def test_nothing_is_decoded_while_loading(page_rows, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(Image, "open", refuse)
    for change in ({}, {"id": "image_filename"}):
        assert len(whole(page_rows, **change).corpus) == tiny_data.PAGES


def test_an_id_column_names_the_pages(page_rows):
    found = whole(page_rows, id="image_filename")
    names = {row["query"]: row["image_filename"] for row in tiny_data.page_rows()}
    assert {found.queries[q]: d for q, d in found.pairs()} == names


def test_an_id_that_names_two_pages_is_refused(tmp_path):
    rows = tiny_data.page_rows()[:6]
    table = datasets.Dataset.from_dict(
        {"query": [r["query"] for r in rows], "image": [r["image"] for r in rows], "image_filename": ["same.png"] * 6},
        features=datasets.Features(
            {"query": datasets.Value("string"), "image": datasets.Image(), "image_filename": datasets.Value("string")}
        ),
    )
    table.to_parquet(str(tmp_path / "r.parquet"))
    with pytest.raises(DataError, match=r"row \d: the id 'same\.png' is there before, .* Leave data\.id empty"):
        whole(tmp_path / "r.parquet", id="image_filename")
    assert len(whole(tmp_path / "r.parquet").corpus) == len({r["image_filename"] for r in rows})


def test_images_of_parquet_files_that_datasets_did_not_write(tmp_path):
    files = []
    for number in range(3):
        tiny_data.draw_page(number).save(tmp_path / f"{number}.png")
        files.append((tmp_path / f"{number}.png").read_bytes())
    columns = {
        "struct": [{"bytes": raw, "path": None} for raw in files],
        "binary": files,
        "name": [f"{n}.png" for n in range(3)],
    }
    for name, values in columns.items():
        pq.write_table(pa.table({"query": ["a", "b", "c"], "image": values}), tmp_path / f"{name}.parquet")
        found = whole(tmp_path / f"{name}.parquet")
        contents = [found.corpus[d].content().tobytes() for _, d in found.pairs()]
        assert contents == [tiny_data.draw_page(n).tobytes() for n in range(3)]


def test_image_paths_are_relative_to_the_file_that_names_them(tmp_path):
    for number in range(2):
        (tmp_path / "set" / "pages").mkdir(parents=True, exist_ok=True)
        tiny_data.draw_page(number).save(tmp_path / "set" / "pages" / f"{number}.png")
    rows = [{"query": f"q{n}", "image": f"pages/{n}.png"} for n in (0, 1)]
    rows += [{"query": "text", "text": "only words"}, {"query": "both", "text": "caption", "image": "pages/1.png"}]
    found = whole(jsonl(tmp_path / "set" / "r.jsonl", rows))
    contents = [found.corpus[d].content() for _, d in found.pairs()]
    assert contents[0].tobytes() == tiny_data.draw_page(0).tobytes() and contents[2] == "only words"
    assert contents[3]["text"] == "caption" and contents[3]["image"].size == contents[1].size
    jsonl(tmp_path / "set" / "r.jsonl", [*rows, {"query": "x", "image": "gone.png"}])
    with pytest.raises(DataError, match=r"r\.jsonl:5: no image file .*gone\.png"):
        whole(tmp_path / "set" / "r.jsonl")
    assert whole(tmp_path / "set" / "r.jsonl", image="").queries  # "" = no image column: the texts alone


def test_an_image_folder_with_metadata_as_datasets_reads_it(tmp_path):
    folder = tmp_path / "folder" / "train"
    folder.mkdir(parents=True)
    rows = []
    for number in range(4):
        tiny_data.draw_page(number).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "query": f"page {number}"})
    jsonl(folder / "metadata.jsonl", rows)
    assert check_data(data(tmp_path / "folder")) == []
    found = whole(tmp_path / "folder")
    pages = {found.queries[q]: found.corpus[d].content().tobytes() for q, d in found.pairs()}
    assert pages == {f"page {n}": tiny_data.draw_page(n).tobytes() for n in range(4)}


def test_a_broken_page_is_named_with_its_row_when_it_is_wanted(tmp_path):
    values = [{"bytes": b"no picture", "path": None}]
    pq.write_table(pa.table({"query": ["a"], "image": values}), tmp_path / "r.parquet")
    (document,) = whole(tmp_path / "r.parquet").corpus.values()
    with pytest.raises(DataError, match=r"image-[0-9a-f]+' cannot be decoded \(.*r\.parquet row 0\)"):
        document.content()


# ------------------------------------------------------------------------------------------------ collections


def test_a_beir_folder_gives_its_own_splits_and_holds_out_what_it_lacks(beir_folder):
    assert check_data(data(beir_folder)) == []
    train, dev, test = load(data(beir_folder))
    assert set(test.queries) == {f"q{n}" for n in range(16, 24)} and len(test.corpus) == 24
    assert len(dev.queries) == 3 and not dev.queries.keys() & train.queries.keys()
    assert not dev.corpus.keys() & train.corpus.keys()
    capped = load(data(beir_folder, test_documents=12, dev_documents=4))
    assert len(capped[2].corpus) == 12 and len(capped[1].corpus) == max(4, len({d for _, d in capped[1].pairs()}))
    assert set(load(data(beir_folder, split="test", dev=1))[0].queries) < {f"q{n}" for n in range(16, 24)}


def test_the_limit_counts_pairs_of_a_collection_and_the_query_that_reaches_it_keeps_all_of_its_own(beir_folder):
    whole_train = load(data(beir_folder, dev=0))[0]
    assert [len(whole_train.qrels[f"q{n}"]) for n in range(6)] == [2, 1, 1, 1, 2, 1]
    for limit, queries, pairs in ((1, 1, 2), (2, 1, 2), (3, 2, 3), (4, 3, 4), (6, 5, 7), (7, 5, 7), (8, 6, 8)):
        train = load(data(beir_folder, dev=0, limit=limit))[0]
        assert list(train.queries) == [f"q{n}" for n in range(queries)] and len(train.pairs()) == pairs
        assert train.qrels == {query: whole_train.qrels[query] for query in train.queries}


def test_own_dev_and_test_splits_are_cut_to_the_numbers_asked_for(beir_folder, tmp_path):
    shutil.copytree(beir_folder, tmp_path / "b")
    (tmp_path / "b" / "qrels" / "dev.tsv").write_text("".join(f"q{n}\td{n}\t1\n" for n in range(6)))
    (tmp_path / "b" / "qrels" / "train.tsv").write_text("".join(f"q{n}\td{n}\t1\n" for n in range(6, 16)))
    train, dev, test = load(data(tmp_path / "b", dev=4, dev_documents=9, test_documents=15))
    assert [len(side.queries) for side in (train, dev, test)] == [10, 4, 8]
    assert [len(side.corpus) for side in (train, dev, test)] == [24, 9, 15]
    assert all(side.problems() == [] for side in (train, dev, test)) and len(test.pairs()) == 10


def test_a_written_folder_brings_its_negatives(tmp_path, triples_file):
    made = whole(triples_file)
    write_beir(made, tmp_path / "mine", "train")
    found = whole(tmp_path / "mine", negatives=2)
    assert found.negatives == made.negatives and found.fingerprint() == made.fingerprint()
    (tmp_path / "mine" / "negatives.jsonl").unlink()
    (problem,) = check_data(data(tmp_path / "mine", negatives=2))
    assert problem.key == "data.negatives" and "no negatives.jsonl" in problem.what


def test_pydocs_is_split_by_package_and_a_limit_samples_all_packages(monkeypatch):
    corpus = {f"p{n // 10:02d}/m.py:f{n}": f"p{n // 10:02d}" for n in range(400)}
    made = Collection(
        "pydocs",
        {d: Document(d, f"text of {d}", file=file) for d, file in corpus.items()},
        {f"summary of {d}": d for d in corpus},
        {f"summary of {d}": {d: 1} for d in corpus},
    )
    monkeypatch.setattr(pydocs, "read_pydocs", lambda: made)
    block = data("pydocs", dev=20, test=30, dev_documents=40, test_documents=60)
    assert check_data(block) == []
    train, dev, test = load(block)
    assert (len(dev.queries), len(test.queries), len(test.corpus)) == (20, 30, 60) and len(dev.corpus) == 40
    packages = [{d.file for d in side.corpus.values()} for side in (train, dev, test)]
    assert not packages[0] & packages[1] and not packages[0] & packages[2] and not packages[1] & packages[2]
    sample = whole("pydocs", limit=100)
    assert len(sample.pairs()) == len(sample.corpus) == 100 and len({d.file for d in sample.corpus.values()}) > 25
    (problem,) = check_data(data("pydocs", negatives=1))
    assert problem.key == "data.negatives"


# ------------------------------------------------------------------------------------------------ problems


@pytest.mark.parametrize(
    ("change", "key", "what", "fix"),
    [
        ({"query": "qeury"}, "data.query", "there is no column 'qeury'", "write data.query: query"),
        ({"document": "positives"}, "data.document", "it has query, positive, source", "write data.document: positive"),
        ({"image": "page"}, "data.image", "there is no column 'page'", "one of these"),
        ({"scores": "score"}, "data.scores", "there is no column 'score'", "write data.scores: source"),
        ({"id": "sorce"}, "data.id", "there is no column 'sorce'", "write data.id: source"),
        ({"document": ""}, "data.document", "no column holds the documents", "name the column"),
        ({"negatives": 2}, "data.negatives", "is 2, but", "write data.negatives: 0"),
        ({"path": "no/such/place"}, "data.path", "there is no file or folder 'no/such/place'", "name pydocs"),
        ({"path": "pydoc"}, "data.path", "there is no file or folder 'pydoc'", "name pydocs"),
        ({"path": "nobody/nothing"}, "data.path", "as a Hub dataset it cannot be read", "check the name"),
        ({"format": "beir"}, "data.path", "is a file, and a BEIR collection is a folder", "name its folder"),
    ],
)
def test_each_problem_has_its_key_and_its_fix_and_loading_says_the_same(tmp_path, change, key, what, fix):
    block = data(**({"path": jsonl(tmp_path / "rows.jsonl", ROWS)} | change))
    (problem,) = check_data(block)
    assert problem.key == key and what in problem.what and fix in problem.fix
    with pytest.raises(DataError) as error:
        load(block)
    assert key in str(error.value) and problem.what in str(error.value)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"notes.docx": "x"}, "has no data files"),
        ({"a.jsonl": "{broken"}, "a.jsonl:1: not JSON"),
        ({"a.parquet": "no parquet"}, "not a readable parquet file"),
        ({"a.csv": "query,text\na,b,c\n"}, "a.csv:2: more fields than the header"),
        ({"a.jsonl": '{"query": "q", "text": "t"}', "b.csv": "query,text\n"}, None),
        ({"a.jsonl": '{"query": "q", "text": "t"}', "b.parquet": ""}, "cannot be read as one table"),
    ],
)
def test_folders_that_hold_no_readable_table_are_a_problem(tmp_path, files, told):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    problems = check_data(data(tmp_path))
    assert (told is None and not problems) or told in f"{problems[0].what} {problems[0].fix}"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"query": "a", "text": 5}], r"r\.jsonl:1: text holds int; it must be a text"),
        ([{"query": ["a", "b"], "text": "x"}], r"r\.jsonl:1: query holds 2 texts"),
        ([{"query": "a", "text": "x"}, {"query": "b", "text": {"k": 1}}], r"r\.jsonl:2: text holds dict"),
        ([{"query": "", "text": "x"}], "no row has a query and a document"),
        ([{"query": "a", "image": 3}], r"r\.jsonl:1: the image is int"),
    ],
)
def test_cells_of_a_wrong_kind_are_refused_with_their_row(tmp_path, rows, told):
    with pytest.raises(DataError, match=told):
        whole(jsonl(tmp_path / "r.jsonl", rows))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"query": "a", "text": "x", "n": 1}, {"query": "b", "text": "y", "n": 1}], "the id '1' is there before"),
        ([{"query": "a", "text": "x", "n": None}], "n is empty; a row needs an id"),
        ([{"query": "a", "text": ["x", "y"], "n": 1}], "2 documents share one id"),
    ],
)
def test_ids_that_do_not_name_one_document_are_refused(tmp_path, rows, told):
    with pytest.raises(DataError, match=told):
        whole(jsonl(tmp_path / "r.jsonl", rows), id="n")


def test_negatives_that_are_all_empty_are_found_out_when_loading(tmp_path):
    path = jsonl(tmp_path / "r.jsonl", [{**row, "negative": ""} for row in ROWS])
    assert check_data(data(path, negatives=1)) == []
    with pytest.raises(DataError, match=r"data\.negatives: is 1, but no query of .* has a negative"):
        load(data(path, negatives=1))


# ------------------------------------------------------------------------------------------------ the Hub


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """owner/name leads to a local folder, through the functions of `datasets` that reading a Hub dataset calls."""
    (tmp_path / "owner").mkdir()

    def local(name):
        real = getattr(datasets, name)

        def ask(path, *args, revision=None, **kwargs):
            return real(str(tmp_path / path), *args, **kwargs)

        monkeypatch.setattr(datasets, name, ask)

    for name in ("get_dataset_config_names", "get_dataset_split_names", "load_dataset_builder", "load_dataset"):
        local(name)
    monkeypatch.chdir(tmp_path / "owner")  # where owner/name is no folder
    return tmp_path / "owner"


def test_a_hub_table_with_its_own_test_split(fake_hub):
    jsonl(fake_hub / "rows" / "train.jsonl", ROWS[:12])
    jsonl(fake_hub / "rows" / "test.jsonl", ROWS[12:])
    assert check_data(data("owner/rows")) == []
    train, dev, test = load(data("owner/rows"))
    assert (len(train.queries), len(dev.queries)) == (9, 3) and texts(test) == expected(ROWS[12:])
    (problem,) = check_data(data("owner/rows", split="dev"))
    assert problem.key == "data.split" and "there is test, train" in problem.what


def test_the_column_of_images_is_known_before_reading_wherever_the_data_lies(fake_hub, page_rows, beir_folder):
    assert image_column(data(page_rows)) == "image" and image_column(data(page_rows, image="")) is None
    assert image_column(data(beir_folder)) is None and image_column(data("pydocs")) is None
    parts = {
        "corpus": {"corpus-id": 1, "image": "a.png"},
        "queries": {"query-id": 1, "query": "one"},
        "qrels": {"query-id": 1, "corpus-id": 1, "score": 1},
    }
    configs, info = ["configs:"], ["dataset_info:"]
    for name, row in parts.items():
        jsonl(fake_hub / "pages" / name / "train.jsonl", [row])
        configs += [f"- config_name: {name}", "  data_files:", "  - split: train", f"    path: {name}/train.jsonl"]
        info += [f"- config_name: {name}", "  features:"]
        info += [f"  - {{name: {key}, dtype: {'string' if isinstance(v, str) else 'int64'}}}" for key, v in row.items()]
    card = fake_hub / "pages" / "README.md"
    card.write_text("\n".join(["---", *configs, *info, "---", ""]))
    assert image_column(data("owner/pages")) == "image"
    assert image_column(data("owner/pages", image="")) is None
    card.write_text("\n".join(["---", *configs, "---", ""]))
    assert image_column(data("owner/pages")) is None  # not described: reading tells


def test_a_hub_retrieval_set_is_known_by_its_configurations(fake_hub):
    folder = fake_hub / "pages"
    card = ["---", "configs:"]
    parts = {
        ("corpus", "corpus"): [{"_id": f"d{n}", "title": "", "text": f"text {n}"} for n in range(8)],
        ("queries", "queries"): [{"_id": f"q{n}", "text": f"query {n}"} for n in range(8)],
        ("default", "train"): [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1.0} for n in range(5)],
        ("default", "test"): [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1.0} for n in range(5, 8)],
    }
    for config in ("corpus", "queries", "default"):
        card += [f"- config_name: {config}", "  data_files:"]
        for (name, split), rows in parts.items():
            if name == config:
                jsonl(folder / name / f"{split}.jsonl", rows)
                card += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))
    assert check_data(data("owner/pages", dev=1)) == []
    train, dev, test = load(data("owner/pages", dev=1))
    assert test.qrels == {f"q{n}": {f"d{n}": 1} for n in range(5, 8)} and len(test.corpus) == 8
    assert len(train.queries) == 4 and len(dev.queries) == 1
    assert hub.configs("owner/pages", None) == ["corpus", "queries", "default"]
    (problem,) = check_data(data("owner/pages", subset="querys"))
    assert problem.key == "data.subset" and problem.fix == "write data.subset: queries"
