"""Tables as people have them are read for what they are, or refused with what to write: nothing is misread silently."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma

import pyarrow as pa
import pytest
from pyarrow import parquet

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.load import check_data
from smart_train.data.readers.base import find_reader

ROW = {"query": "q", "positive": "p", "negatives": ["n"]}
READ = {"q": ({"p": 1}, ["n"], [])}


def lines(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(folder, name: str, content, **block) -> DataBlock:
    raw = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(raw)
    return DataBlock(path=str(folder / name), **block)


def read(data: DataBlock) -> dict:
    """query -> (text of its documents -> grade, texts of its negatives, scores of all)."""
    found = find_reader(data).read("train")
    texts = {id: one.text for id, one in found.corpus.items()}
    return {
        text: (
            {texts[d]: grade for d, grade in found.qrels[query].items()},
            [texts[d] for d in found.negatives.get(query, ())],
            [*found.teacher.get(query, {}).values()],
        )
        for query, text in found.queries.items()
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "\ufeffquery;positive;negative\r\nq;p;n\r\n"),
        ("t.csv", "query,positive,negative\nq,p,n\n".encode("utf-16")),
        ("t.tsv", "query\tpositive\tnegative\nq\tp\tn\n".encode("utf-16")),
        ("t.csv", "Query , POSITIVE,Negative\nq,p,n\n"),
        ("t.csv", 'query, positive, negative\nq, "p", "n"\n'),
        ("t.csv", "query,positive,negative,\nq,p,n,\n"),
        ("t.csv", "query,positive,negative\rq,p,n\r"),
        ("t.csv", "query,positive,neg_1,neg_2\nq,p,n,nan\n"),
        ("t.csv", "query,positive,hard_negative_1\nq,p,n\n"),
        ("t.jsonl", lines(ROW).encode("utf-16")),
        ("t.jsonl", lines({"Query": "q", "Positive": "p", "NEGATIVES": ["n", "", None]})),
        ("t.jsonl", lines(ROW | {"negatives": '["n"]'})),
        ("t.jsonl", lines(ROW | {"positive": "['p']"})),
        ("t.jsonl", json.dumps([ROW])),
        ("t.jsonl", "\n" + lines(ROW, ROW).rstrip() + "\r\n\r\n"),
        ("t.json", json.dumps({"data": [ROW]})),
        ("t.json", json.dumps({"version": 2, "info": "made", "data": [ROW]}, indent=1)),
        ("t.json", json.dumps(ROW, indent=1)),
        ("t.json", lines(ROW)),
        ("t.ndjson", lines(ROW)),
        ("t.jsonl.gz", gzip.compress(lines(ROW).encode())),
        ("t.jsonl.bz2", bz2.compress(lines(ROW).encode())),
        ("t.jsonl.xz", lzma.compress(lines(ROW).encode())),
        ("t.jsonl.zst", pa.compress(lines(ROW).encode(), "zstd", asbytes=True)),
        ("t.csv.bz2", bz2.compress(b"query,positive,negative\nq,p,n\n")),
    ],
)
def test_it_is_read_as_what_it_is(tmp_path, name, content):
    assert read(written(tmp_path, name, content)) == READ


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"positive": pa.array(["p"]).dictionary_encode(), "negatives": pa.array([["n"]])}, READ),
        ({"positive": pa.array([[{"text": "p", "title": None}]]), "negatives": pa.array(['["n"]'])}, READ),
        ({"Positive": ["p"], "Negative": ["n"], "Label": [True]}, READ),
        ({"positive": ["p"], "negative": ["None"], "label": [2.0]}, {"q": ({"p": 2}, [], [])}),
    ],
)
def test_parquet(tmp_path, columns, expected):
    parquet.write_table(pa.table({"query": ["q"], **columns}), tmp_path / "t.parquet")
    assert read(DataBlock(path=str(tmp_path / "t.parquet"))) == expected


@pytest.mark.parametrize("label", ["Label", "RELEVANCE", "score ", "labels"])
@pytest.mark.parametrize(
    ("yes", "no"), [(1, 0), (True, False), ("1", "0"), ("true", "false"), (1.0, 0.0), ("3.0", "0.0")]
)
def test_a_label_of_any_kind_and_case_is_honoured(tmp_path, label, yes, no):
    rows = [{"query": "q", "positive": "p", label: yes}, {"query": "q", "positive": "n", label: no}]
    assert read(written(tmp_path, "t.jsonl", lines(*rows))) == {
        "q": ({"p": int(float(yes == "3.0" and 3 or 1))}, ["n"], [])
    }


@pytest.mark.parametrize(
    ("pos", "neg", "pos_scores", "neg_scores", "expected"),
    [
        (["p"], ["n", "m"], [0.9], [0.1, 0.2], [0.9, 0.1, 0.2]),
        (["p", "o"], ["n"], [0.9, 0.8], [0.1], [0.9, 0.8, 0.1]),
        ("p", ["n"], 0.9, [0.1], [0.9, 0.1]),
        (["p", ""], ["n"], [0.9], [0.1], [0.9, 0.1]),
        (["p"], ["n"], None, None, []),
    ],
)
def test_scores_beside_pos_and_neg_are_a_teachers(tmp_path, caplog, pos, neg, pos_scores, neg_scores, expected):
    caplog.set_level(logging.INFO)
    row = {"query": "q", "pos": pos, "neg": neg, "pos_scores": pos_scores, "neg_scores": neg_scores, "prompt": "Find: "}
    assert read(written(tmp_path, "t.jsonl", lines(row)))["q"][2] == expected
    assert "teacher's scores = pos_scores, teacher's scores of negatives = neg_scores" in caplog.text
    assert "write it as model.query_prompt" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.csv", "query,positive\n".encode("utf-16-le"), "UTF-16 without its mark"),
        ("t.csv", b"PK\x03\x04rest", "a zip archive or an Excel file"),
        ("t.jsonl", b"PAR1rest", "a Parquet file; call it .parquet"),
        ("t.jsonl", gzip.compress(b"{}"), "a gzip file; end its name in .gz"),
        ("t.csv", "%PDF-1.7 ", "a PDF; smart-train ingest reads it"),
        ("t.jsonl.xz", lzma.compress(lines(ROW).encode())[:-20], "the xz file is cut off or damaged"),
        ("t.jsonl.bz2", bz2.compress(lines(ROW).encode())[:-20], "the bz2 file is cut off or damaged"),
        (
            "t.jsonl.zst",
            pa.compress(lines(ROW).encode(), "zstd", asbytes=True)[:-9],
            "the zst file is cut off or damaged",
        ),
        ("t.tsv", "what is it\tan answer\nwho\tanother\n", "write a first line with the names of the columns"),
        ("t.csv", 'query,positive\nq,p\nr,"open\ns,t\n', "t.csv:3: a field that begins with a quote does not end"),
        ("t.csv", 'query,positive\nq,p\nr,"a" b\ns,t\n', "t.csv:3: a field that begins with a quote does not end"),
        ("t.tsv", 'query\tpositive\nq\t"open\nr\tclosed"\n', "holds further rows"),
        ("t.csv", "query,positive\nq,p,\n", "end the header as the rows end"),
        ("t.csv", "query,positive,query \nq,p,r\n", "the column 'query' is there 2 times"),
        ("t.jsonl", '["q", "p"]\n["r", "s"]\n', "one object per line, or all in one list"),
        ("t.json", '[["q", "p"]]', "entry 1 must be a JSON object, with the names of the columns"),
        ("t.json", json.dumps(ROW, indent=1) * 2, "one object per line, or all in one list"),
        ("t.jsonl", lines(ROW) + '{"query": "r", "posi', "t.jsonl:2: not JSON"),
        ("t.jsonl", lines(ROW | {"label": -1}), "a label is a whole number from 0"),
        ("t.jsonl", lines(ROW | {"label": "yes"}), "which is no label"),
        ("t.jsonl", lines(ROW | {"negatives": [["n"]]}), "negatives holds list"),
        ("t.jsonl", '{"query":"q","positive":"p","negatives":["n"],"scores":[1.0,NaN]}\n', "must be a finite number"),
        ("t.jsonl", lines({"query": "q", "positive_document_ids": ["1"]}), "name the folder of both"),
        ("t.jsonl", "", "it has no rows"),
        ("t.csv", "query,positive\n", "it has no rows"),
    ],
)
def test_it_is_refused_with_what_to_write(tmp_path, name, content, says):
    data = written(tmp_path, name, content)
    problems = check_data(data)
    found = " ".join(f"{one.what}; {one.fix}" for one in problems)
    if not problems:
        with pytest.raises(DataError) as error:
            read(data)
        found = str(error.value)
    assert says in found


def test_columns_that_may_be_negatives_are_told(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    read(written(tmp_path, "t.jsonl", lines({"query": "q", "positive": "p", "negative_docs": ["n"]})))
    assert "negative_docs may be negatives: call them negatives" in caplog.text


def test_tables_of_pages_and_candidate_pools_say_what_they_read(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "a.txt").write_text("a page")
    find_reader(written(tmp_path, "t.csv", "Query,File,Relevance,by\nq,a.txt,1,me\n")).read("train")
    assert "columns read: query = Query, file = File, label = Relevance; not read: by" in caplog.text
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "x_cand_pool.jsonl").write_text(lines({"did": "1", "txt": "p", "img_path": None, "modality": "text"}))
    row = {"qid": "q", "query_txt": "q", "pos_cand_list": ["1"], "neg_cand_list": ["1", "7"], "task_id": 0}
    (pool / "x_train.jsonl").write_text(lines(row))
    find_reader(DataBlock(path=str(pool))).read("train")
    assert "columns read: id = did, text = txt, image = img_path; not read: modality" in caplog.text
    assert "documents = pos_cand_list, negatives = neg_cand_list; not read: task_id" in caplog.text
    assert "1 negatives name no candidate and are left out" in caplog.text
    assert "1 negatives are also positives of their query and are left out" in caplog.text
