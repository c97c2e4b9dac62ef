"""BEIR folders and their relatives, made here as they are met: read, written, refused with file and line."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document
from smart_train.data.readers.beir import judgements, read_beir
from smart_train.data.store import write_beir
from smart_train.data.tables import PEEK

CORPUS = [
    {"_id": "d1", "title": "Apples", "text": "Apples are red."},
    {"_id": "d2", "title": "", "text": "Bees can fly."},
    {"_id": "d3", "title": "Cats", "text": ""},
]
QUERIES = [{"_id": "q1", "text": "what is red"}, {"_id": "q2", "text": "what flies"}, {"_id": "q9", "text": "unused"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td3\t0\nq2\td2\t1\n"
GRADES = {"q1": {"d1": 2, "d3": 0}, "q2": {"d2": 1}}


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def make(folder: Path, corpus=CORPUS, queries=QUERIES, qrels: str = QRELS, name: str = "test.tsv") -> Path:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(lines(corpus) if isinstance(corpus, list) else corpus, encoding="utf-8")
    (folder / "queries.jsonl").write_text(lines(queries) if isinstance(queries, list) else queries, encoding="utf-8")
    (folder / "qrels" / name).write_text(qrels, encoding="utf-8")
    return folder


def test_a_folder_as_beir_ships_it(tmp_path):
    found = read_beir(make(tmp_path / "fruit"))
    assert found.name == "fruit/test"
    assert {d.id: d.text for d in found.corpus.values()} == {
        "d1": "Apples Apples are red.",
        "d2": "Bees can fly.",
        "d3": "Cats",
    }
    assert found.queries == {"q1": "what is red", "q2": "what flies"}  # q9 is not judged in this split
    assert found.qrels == GRADES and found.negatives == {}


@pytest.mark.parametrize(
    ("qrels", "name"),
    [
        (QRELS, "test.tsv"),
        (QRELS.split("\n", 1)[1], "test.tsv"),
        ("q1 0 d1 2\nq1 0 d3 0\n\nq2 0 d2 1\n", "test.trec"),
        ("q1\tQ0\td1\t2\nq1\tQ0\td3\t0\nq2\tQ0\td2\t1\n", "test.txt"),
        ("qid\titer\tdocid\trel\r\nq1\t0\td1\t2\r\nq1\t0\td3\t0\r\n\r\nq2\t0\td2\t1\r\n", "test.qrels"),
        ("score\tcorpus-id\tquery-id\n2\td1\tq1\n0\td3\tq1\n1\td2\tq2\n", "test.tsv"),
        ("query_id\tpassage\trelevance\nq1\td1\t2.0\nq1\td3\t0\nq2\td2\t1\n", "test.tsv"),
        ("\ufeff" + QRELS, "test.tsv"),
        ('{"query-id": "q1", "corpus-id": "d1", "score": 2}\n'
         '{"query-id": "q1", "corpus-id": "d3", "score": 0}\n{"query-id": "q2", "corpus-id": "d2", "score": 1.0}\n',
         "test.jsonl"),
        ("query-id,corpus-id,score\nq1,d1,2\nq1,d3,0\nq2,d2,1\n", "test.csv"),
    ],
    ids=["header", "plain", "trec", "trec-tabs", "trec-header", "other-order", "other-names", "bom", "jsonl", "csv"],
)  # fmt: skip
def test_judgements_in_every_layout_say_the_same(tmp_path, qrels, name):
    assert read_beir(make(tmp_path, qrels=qrels, name=name)).qrels == GRADES


def test_whole_number_ids_and_blank_lines_are_read_as_text(tmp_path):
    corpus = '{"_id": 7, "title": null, "text": "seven"}\n\n   \n{"_id": 8.0, "text": "eight"}\n\n'
    folder = make(tmp_path, corpus, '\n{"_id": 1, "text": "a number"}\n', "1\t7\t1\n1\t8\t1\n")
    found = read_beir(folder)
    assert list(found.corpus) == ["7", "8"] and found.qrels == {"1": {"7": 1, "8": 1}}


def test_titles_and_texts_that_first_appear_late_in_the_file_are_read(tmp_path):
    corpus = [{"_id": f"e{i}", "text": "early"} for i in range(PEEK)] + CORPUS
    found = read_beir(make(tmp_path, corpus)).corpus
    assert (found["d1"].text, found["d3"].text) == ("Apples Apples are red.", "Cats")


def test_gzipped_parts_and_a_train_split(tmp_path):
    make(tmp_path)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    (tmp_path / "qrels" / "train.tsv.gz").write_bytes(gzip.compress(b"q9\td2\t1\n"))
    assert read_beir(tmp_path).qrels == GRADES
    assert read_beir(tmp_path, "train").queries == {"q9": "unused"}


def test_a_missing_split_lists_those_that_are_there(tmp_path):
    make(tmp_path, name="dev.tsv")
    (tmp_path / "qrels" / "train.tsv").write_text(QRELS)
    with pytest.raises(DataError, match=r"no qrels for the split 'test'; there is dev, train"):
        read_beir(tmp_path)


@pytest.mark.parametrize("part", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_part_is_named(tmp_path, part):
    (make(tmp_path) / part).unlink()
    with pytest.raises(DataError, match=f"no {part}"):
        read_beir(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_beir(tmp_path / "nowhere")


def test_judged_documents_that_are_missing_stay_in_the_qrels_and_are_reported(tmp_path, caplog):
    found = read_beir(make(tmp_path, qrels=QRELS + "q2\tgone\t1\nq2\tlost\t0\nq77\td1\t1\n"))
    assert found.qrels["q2"] == {"d2": 1, "gone": 1, "lost": 0} and "q77" not in found.qrels
    assert found.pairs() == [("q1", "d1"), ("q2", "d2")]
    assert "2 judged documents are missing in the corpus" in caplog.text and "gone, lost" in caplog.text
    assert "1 judged queries have no text and are left out: q77" in caplog.text
    with pytest.raises(DataError, match="2 judged documents missing in the corpus: gone, lost"):
        found.check()


def test_empty_documents_and_double_judgements_are_reported(tmp_path, caplog):
    corpus = [*CORPUS, {"_id": "d4", "title": " ", "text": None}]
    found = read_beir(make(tmp_path, corpus, qrels=QRELS + "q1\td1\t1\nq2\td4\t1\n"))
    assert found.qrels["q1"]["d1"] == 2 and found.corpus["d4"].content() == ""
    assert "1 documents are empty: d4" in caplog.text and "1 pairs are judged twice" in caplog.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"corpus": lines(CORPUS) + "{not json}\n"}, r"corpus\.jsonl:4: not JSON"),
        ({"corpus": lines(CORPUS) + "\n[1, 2]\n"}, r"corpus\.jsonl:5: a row must be a JSON object, this is list"),
        ({"corpus": [*CORPUS, {"text": "no id"}]}, r"corpus\.jsonl:4: _id is None; an id is a text"),
        ({"corpus": [*CORPUS, {"_id": "", "text": "x"}]}, r"corpus\.jsonl:4: _id is ''"),
        ({"corpus": [*CORPUS, {"_id": "d1", "text": "another"}]}, r"corpus\.jsonl:4: the id 'd1' is there before"),
        ({"corpus": [*CORPUS, {"_id": "d5", "text": ["a"]}]}, r"corpus\.jsonl:4: text is list; it must be a text"),
        ({"corpus": [{"_id": "d1", "txt": "a"}]}, r"corpus\.jsonl: no column for documents .*rename 'txt'"),
        ({"corpus": [{"name": "d1", "text": "a"}]}, r"corpus\.jsonl: no column for document ids"),
        ({"corpus": ""}, r"corpus\.jsonl: no column for document ids .*it has no rows"),
        ({"queries": [{"_id": "q1", "question": "a"}]}, r"queries\.jsonl: no column for query texts"),
        ({"queries": [*QUERIES, {"_id": "q1", "text": "b"}]}, r"queries\.jsonl:4: the query id 'q1' is there before"),
        ({"qrels": QRELS + "q1\td1\n"}, r"test\.tsv:5: 'q1\\td1' is not query id, document id, grade"),
        ({"qrels": QRELS + "q1\td1\thigh\n"}, r"test\.tsv:5: the grade is 'high'; it must be a whole number"),
        ({"qrels": QRELS + "q1\td1\t0.5\n"}, r"test\.tsv:5: the grade is '0\.5'"),
        ({"qrels": QRELS + "q1\td1\tnan\n"}, r"test\.tsv:5: the grade is 'nan'"),
        ({"qrels": "q1\td1\thigh\n"}, r"test\.tsv:1: the grade is 'high'"),
        ({"qrels": "{}\n", "name": "test.jsonl"}, r"test\.jsonl: no column for query ids"),
    ],
)
def test_a_malformed_row_is_refused_with_file_and_line(tmp_path, change, told):
    with pytest.raises(DataError, match=told):
        read_beir(make(tmp_path, **change))


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path):
    make(tmp_path)
    file = tmp_path / "corpus.jsonl"
    file.write_bytes(file.read_bytes() + '{"_id": "d4", "text": "café"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"corpus\.jsonl:4: not UTF-8"):
        read_beir(tmp_path)


def test_a_gzip_file_that_is_cut_is_refused(tmp_path):
    make(tmp_path)
    whole = gzip.compress((tmp_path / "corpus.jsonl").read_bytes())
    (tmp_path / "corpus.jsonl").unlink()
    (tmp_path / "corpus.jsonl.gz").write_bytes(whole[:-12])
    with pytest.raises(DataError, match=r"corpus\.jsonl\.gz: the gzip file is cut off or damaged"):
        read_beir(tmp_path)


@pytest.mark.parametrize("layout", ["files", "folders", "hub"])
@pytest.mark.parametrize("style", ["corpus-id", "corpus_id"])
def test_page_sets_as_the_hub_has_them(tmp_path, layout, style):
    """Three configurations corpus (with images), queries and qrels, as Parquet; ids are numbers in some sets."""
    dash = style[6]
    pages = [Image.new("RGB", (20 + n, 30), colour) for n, colour in enumerate(("red", "green", "blue"))]
    corpus = {
        style: [0, 1, 2],
        "image": pages,
        f"doc{dash}id": ["a.pdf", "a.pdf", "b.pdf"],
        "markdown": ["r", "g", "b"],
    }
    corpus[f"page{dash}number{dash}in{dash}doc"] = [3, 4, 0]
    kinds = Features(
        {
            k: ImageColumn() if k == "image" else Value("string" if isinstance(v[0], str) else "int64")
            for k, v in corpus.items()
        }
    )
    tables = {
        "corpus": Dataset.from_dict(corpus, features=kinds),
        "queries": Dataset.from_dict({f"query{dash}id": [10, 11], "query": ["red page?", "blue page?"]}),
        "qrels": Dataset.from_dict({f"query{dash}id": [10, 11, 11], style: [0, 2, 1], "score": [1, 2, 0]}),
    }
    for name, table in tables.items():
        if layout == "files":
            file = tmp_path / ("qrels/test.parquet" if name == "qrels" else f"{name}.parquet")
        elif layout == "folders":
            file = tmp_path / name / "test-00000-of-00001.parquet"
        else:
            file = tmp_path / "data" / name / "test-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(file))
    found = read_beir(tmp_path)
    assert found.queries == {"10": "red page?", "11": "blue page?"}
    assert found.qrels == {"10": {"0": 1}, "11": {"2": 2, "1": 0}}
    first = found.corpus["0"]
    assert (first.text, first.file, first.page) == (None, "a.pdf", 3)
    assert [found.corpus[str(n)].content().getpixel((0, 0)) for n in range(3)] == [
        (255, 0, 0),
        (0, 128, 0),
        (0, 0, 255),
    ]
    text = read_beir(tmp_path, text="markdown").corpus["1"].content()
    assert text["text"] == "g" and text["image"].size == (21, 30)


def test_what_is_written_is_read_again_and_splits_share_a_folder(tmp_path):
    Image.new("RGB", (9, 5), "red").save(tmp_path / "red.png")
    corpus = {
        "a": Document("a", "tab\tand \u2028 line\nbreak", file="x.pdf", page=2),
        "p": Document("p", image=str(tmp_path / "red.png"), file="x.pdf", page=3),
        "m": Document("m", "with a picture", Image.new("RGB", (3, 4), "blue")),
    }
    train = Collection("t", corpus, {"q1": "one"}, {"q1": {"a": 1, "p": 0}}, {"q1": ["m", "p"]})
    train.teacher = {"q1": {"a": 12.5, "m": -0.1}}
    test = Collection("t", {"z": Document("z", "zebra")}, {"q2": "two"}, {"q2": {"z": 3}}, teacher={"q2": {"z": 1.0}})
    write_beir(train, tmp_path / "out", "train")
    alone = read_beir(tmp_path / "out", "train")
    assert alone.fingerprint() == train.fingerprint() and alone.negatives == train.negatives
    assert alone.teacher == train.teacher
    write_beir(test, tmp_path / "out", "test")
    both = read_beir(tmp_path / "out", "train")
    assert list(both.corpus) == ["a", "p", "m", "z"] and both.qrels == train.qrels
    assert both.teacher == train.teacher and read_beir(tmp_path / "out").teacher == test.teacher
    assert both.corpus["p"].content().size == (9, 5) and both.corpus["m"].content()["image"].size == (3, 4)
    assert read_beir(tmp_path / "out").qrels == {"q2": {"z": 3}}
    changed = Collection("t", {"a": Document("a", "another text")}, {}, {})
    with pytest.raises(DataError, match="the id 'a' is there with another content"):
        write_beir(changed, tmp_path / "out", "test")


def test_a_teachers_scores_are_read_for_the_queries_of_the_split(tmp_path, caplog):
    rows = [{"_id": "q1", "scores": {"d1": 3, "gone": 1.5, "d2": -0.5}}, {"_id": "q9", "scores": {"d1": 9}}]
    (make(tmp_path) / "teacher.jsonl").write_text(lines(rows))
    assert read_beir(tmp_path).teacher == {"q1": {"d1": 3.0, "d2": -0.5}}
    assert "1 scores are of documents missing in the corpus and are left out" in caplog.text


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"_id": "q2", "scores": [1.0]}, r"teacher\.jsonl:2: scores must be an object of document id -> score"),
        ({"_id": "q2"}, r"teacher\.jsonl:2: scores must be an object"),
        ({"scores": {"d1": 1.0}}, r"teacher\.jsonl:2: _id is None"),
        ({"_id": "q1", "scores": {"d2": 1.0}}, r"teacher\.jsonl:2: the query 'q1' has a line before"),
        ({"_id": "q2", "scores": {"d1": "high"}}, r"teacher\.jsonl:2: d1: the score is 'high'; it must be a finite"),
        ({"_id": "q2", "scores": {"d1": None}}, r"teacher\.jsonl:2: d1: the score is None"),
        ({"_id": "q2", "scores": {"d1": True}}, r"teacher\.jsonl:2: d1: the score is True"),
        ({"_id": "q2", "scores": {"d1": float("nan")}}, r"teacher\.jsonl:2: d1: the score is nan"),
    ],
)
def test_a_malformed_score_is_refused_with_its_line(tmp_path, row, told):
    (make(tmp_path) / "teacher.jsonl").write_text(lines([{"_id": "q1", "scores": {"d1": 1.0}}, row]))
    with pytest.raises(DataError, match=told):
        read_beir(tmp_path)


def test_titles_are_kept_apart_and_written_again(tmp_path):
    found = read_beir(make(tmp_path / "in"))
    assert {d.id: d.title for d in found.corpus.values()} == {"d1": "Apples", "d2": None, "d3": "Cats"}
    write_beir(found, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "corpus.jsonl").read_text().splitlines()]
    assert rows == CORPUS
    assert read_beir(tmp_path / "out") == replace(found, name="out/test")


def test_an_image_that_is_missing_is_refused_with_its_line(tmp_path):
    with pytest.raises(DataError, match=r"corpus\.jsonl:1: no image file .*gone\.png"):
        read_beir(make(tmp_path, [{"_id": "d1", "image": "gone.png"}]))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("train.tsv", ["q1 Q0 d1 1 14.5 bm25", "q1 Q0 d2 2 13.1 bm25"]),
        ("train.trec", ["q1\tQ0\td1\t1\t14.5\tbm25"]),
        ("train.tsv", ["query-id\tcorpus-id\trank\tscore", "q1\td1\t1\t14"]),
        ("train.csv", ["qid,docid,rank,score", "q1,d1,1,14"]),
        ("train.jsonl", ['{"qid": "q1", "docid": "d1", "rank": 1, "score": 14}']),
    ],
)
def test_a_run_is_no_qrels(tmp_path, name, lines):
    (tmp_path / name).write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"{name}.* a run, the output of a search.*give the qrels"):
        list(judgements(tmp_path / name))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("q1 d1 3 0.5", r"train\.tsv:1: the second of four columns is 'd1', and TREC's is 0"),
        ("q1 0 d1 1 x", r"train\.tsv:1: 5 columns; write query id, document id, grade"),
        ("q1 d1", r"train\.tsv:1: 2 columns"),
    ],
)
def test_qrels_of_other_columns_are_refused_with_their_line(tmp_path, line, told):
    (tmp_path / "train.tsv").write_text(line)
    with pytest.raises(DataError, match=told):
        list(judgements(tmp_path / "train.tsv"))
