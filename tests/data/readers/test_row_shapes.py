"""Tables as people have them: nested passages, chat rows, lists as text, other delimiters and types, damage."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data
from PIL import Image

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.collection import Collection
from smart_train.data.load import check_data
from smart_train.data.readers.base import find_reader

Triples = dict[str, tuple[list[str], list[str]]]  # query -> positives, negatives


def read(path: Path, **change) -> Collection:
    return find_reader(DataBlock(path=str(path), **change)).read("train")


def triples(found: Collection) -> Triples:
    def texts(ids) -> list[str]:
        return [str(found.corpus[d].text) for d in ids]

    return {found.queries[q]: (texts(row), texts(found.negatives.get(q, ()))) for q, row in found.qrels.items()}


EXPECTED: Triples = {f"q{n}": ([f"t{n} p{n}"], [f"u{n} n{n}", f"m{n}"]) for n in range(4)}
user = lambda text: {"role": "user", "content": text}  # noqa: E731


def tevatron(n):
    passages = [{"docid": f"{n}a", "title": f"u{n}", "text": f"n{n}"}, {"docid": f"{n}b", "title": "", "text": f"m{n}"}]
    positive = [{"docid": f"{n}", "title": f"t{n}", "text": f"p{n}"}]
    return {"query_id": str(n), "query": f"q{n}", "positive_passages": positive, "negative_passages": passages}


def dpr(n):
    row = tevatron(n)
    easy = {"negative_ctxs": [{"title": "", "text": "an easy one", "passage_id": "9"}]}
    positive, negative = row["positive_passages"], row["negative_passages"]
    return {"dataset": "nq", "question": f"q{n}", "answers": ["x"], "positive_ctxs": positive, **easy} | {
        "hard_negative_ctxs": negative
    }


def swift(n):
    negatives = [[user(f"u{n} n{n}")], [user(f"m{n}")]]
    return {"messages": [user(f"q{n}")], "positive_messages": [[user(f"t{n} p{n}")]], "negative_messages": negatives}


def swift_before(n):
    return {"query": f"q{n}", "response": f"t{n} p{n}", "rejected_response": [f"u{n} n{n}", f"m{n}"]}


def chat(n):
    answer = {"role": "assistant", "content": f"t{n} p{n}"}
    return {"messages": [{"role": "system", "content": "find"}, user(f"q{n}"), answer]} | {
        "negatives": [f"u{n} n{n}", f"m{n}"]
    }


def sharegpt(n):
    turns = [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": f"t{n} p{n}"}]
    return {"conversations": turns, "negative": f"u{n} n{n}", "negatives": [f"m{n}"]}


SHAPES = [tevatron, dpr, swift, swift_before, chat, sharegpt]


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda f: f.__name__)
def test_nested_passages_and_chat_rows_are_read(tmp_path, shape, kind):
    rows = [shape(n) for n in range(4)]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows, indent=1) if kind == "json" else "\n".join(map(json.dumps, rows)))
    assert check_data(DataBlock(path=str(path), negatives=1)) == []
    assert {q: (p, sorted(n)) for q, (p, n) in triples(read(path)).items()} == {
        q: (p, sorted(n)) for q, (p, n) in EXPECTED.items()
    }


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [user("a"), user("b")], "positive": "x"}, r":1: messages has 2 messages of the user"),
        ({"messages": [user("a"), {"role": "tool", "content": "b"}], "positive": "x"}, r"message of 'tool'"),
        ({"messages": [user("<image>a")], "positive": "x"}, r"not text alone; write pages as rows"),
        ({"messages": [user("a")], "positive_messages": [[user("b"), user("c")]]}, r"conversation of 2 messages"),
        ({"query": "a", "positive_passages": [{"docid": "1", "body": "x"}]}, r":1: positive_passages holds dict"),
        ({"query": "a", "pos": ["x", 7]}, r":1: pos holds int \(value 2 of 2\); it must be a text"),
        ({"query": "a", "pos": "x", "neg": [["y"], 0.5]}, r":1: neg holds list \(value 1 of 2\)"),
    ],
)
def test_what_is_not_clear_is_refused_with_its_row(tmp_path, row, told):
    with pytest.raises(DataError, match=told):
        read(tiny_data.write_lines(tmp_path / "r.jsonl", [row]))


PLAIN = [{"query": f"q{n}", "positive": f"p{n}, and more", "negatives": [f"a{n}", f"b'{n}"]} for n in range(5)]
PLAIN_READ: Triples = {row["query"]: ([row["positive"]], row["negatives"]) for row in PLAIN}


@pytest.mark.parametrize("printed", [str, json.dumps, lambda v: json.dumps(v, indent=1), lambda v: str([*v, ""])])
def test_csv_cells_with_a_printed_list_are_lists(tmp_path, printed):
    frame = pandas.DataFrame([row | {"negatives": printed(row["negatives"])} for row in PLAIN])
    frame.to_csv(tmp_path / "r.csv")
    assert triples(read(tmp_path / "r.csv")) == PLAIN_READ


def test_a_csv_may_hold_lists_of_documents_and_of_scores(tmp_path):
    with (tmp_path / "r.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["query", "positive", "negative", "scores"], ["a", "['x', 'y']", "n", "[0.5, 1, 2]"]])
        writer.writerows([["b", "[sic] as it is", "[]", "0.25"], ["c", "[1]", "", ""]])
    found = read(tmp_path / "r.csv")
    assert triples(found) == {"a": (["x", "y"], ["n"]), "b": (["[sic] as it is"], []), "c": (["[1]"], [])}
    assert [sorted(row.values()) for row in found.teacher.values()] == [[0.5, 1.0, 2.0], [0.25]]


def test_a_list_as_numpy_prints_it_is_refused(tmp_path):
    (tmp_path / "r.csv").write_text("query,positive,negatives\na,x,\"['y' 'z']\"\n")
    with pytest.raises(DataError, match=r"r\.csv:2: negatives is a list as numpy prints it, without commas"):
        read(tmp_path / "r.csv")


@pytest.mark.parametrize("name", ["r.csv", "r.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("first", ["", "sep"])
def test_a_csv_is_read_by_the_delimiter_of_its_header(tmp_path, name, delimiter, first):
    frame = pandas.DataFrame([{"query": f"q; {n}", "positive": f"p, {n}\tx", "negative": f"n|{n}"} for n in range(5)])
    body = frame.to_csv(index=False, sep=delimiter)
    (tmp_path / name).write_text(f"sep={delimiter}\n{body}" if first else body, newline="")
    assert triples(read(tmp_path / name)) == {
        row["query"]: ([row["positive"]], [row["negative"]]) for row in frame.to_dict("records")
    }


def test_too_many_fields_are_told_with_the_delimiter(tmp_path):
    (tmp_path / "r.csv").write_text("query;positive\na;b\nc;d;e\n")
    with pytest.raises(
        DataError, match=r"r\.csv:3: more fields than the header has \(2, separated by ';'\); quote them"
    ):
        read(tmp_path / "r.csv")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, kind):
    path = tmp_path / f"r.{kind}"
    if kind == "parquet":
        names = ["query", "positive", "negative", "negative"]
        pq.write_table(pa.Table.from_arrays([pa.array([x]) for x in "abcd"], names=names), path)
    elif kind == "jsonl":
        path.write_text('{"query": "a", "positive": "b", "negative": "c", "negative": "d"}\n')
    else:
        mark = "," if kind == "csv" else "\t"
        path.write_text(f"query{mark}positive{mark}negative{mark}negative\na{mark}b{mark}c{mark}d\n")
    problems = check_data(DataBlock(path=str(path)))
    told = str(problems[0].what) if problems else ""
    if not problems:
        with pytest.raises(DataError) as error:
            read(path)
        told = str(error.value)
    assert "the column 'negative' is there 2 times" in told and "negative_1" in told


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("line", [1, 3, 5])
def test_a_byte_that_is_not_utf8_is_reported_at_its_own_line(tmp_path, packed, line):
    rows = [json.dumps({"query": "a \ufffd", "positive": f"p{n}"}, ensure_ascii=False).encode() for n in range(6)]
    rows[line - 1] = rows[line - 1].replace(b"p", b"\xe9", 1) if line > 1 else b'{"query": "\xe9"}'
    raw = b"\n".join(rows)
    path = tmp_path / ("r.jsonl.gz" if packed else "r.jsonl")
    path.write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.raises(DataError, match=rf"r\.jsonl(\.gz)?:{line}: not UTF-8 text \(byte \d+ of the line is 0xe9\)"):
        read(path)


def test_a_damaged_gzip_is_one_sentence(tmp_path):
    raw = gzip.compress("\n".join(json.dumps(row) for row in PLAIN * 50).encode())
    whole = zlib.crc32(raw)
    for at in (12, len(raw) // 2, len(raw) - 6):
        spoilt = bytearray(raw)
        spoilt[at : at + 4] = b"\xff\xff\xff\xff"
        (tmp_path / "r.jsonl.gz").write_bytes(bytes(spoilt))
        assert zlib.crc32(bytes(spoilt)) != whole
        with pytest.raises(DataError, match=r"r\.jsonl\.gz(:\d+)?: (the gzip file is cut off or damaged|not )"):
            read(tmp_path / "r.jsonl.gz")


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_may_hold_any_type_of_text(tmp_path, kind):
    rows = {"query": ["a", "b"], "positive": ["x", "y"], "negative": ["n", None]}
    table = pa.table({name: pa.array(values).cast(kind) for name, values in rows.items()})
    pq.write_table(table, tmp_path / "r.parquet")
    assert triples(read(tmp_path / "r.parquet")) == {"a": (["x"], ["n"]), "b": (["y"], [])}


@pytest.mark.parametrize("images", [False, True])
def test_shards_may_differ_in_columns_that_nobody_reads(tmp_path, images):
    for n, meta in enumerate([pa.array([1]), pa.array(["text"]), pa.array([{"a": 1}]), pa.array([[2.5]])]):
        kind = pa.large_string() if n % 2 else pa.string()
        columns = {"query": pa.array([f"q{n}"], kind), "positive": pa.array([f"p{n}"], kind), "meta": meta}
        if images:
            columns["image"] = pa.array([{"bytes": _png(n), "path": None}])
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / "data" / f"train-0000{n}-of-00004.parquet")
    found = read(tmp_path)
    assert triples(found) == {f"q{n}": ([f"p{n}"], []) for n in range(4)}
    assert all((document.image is not None) == images for document in found.corpus.values())


def test_shards_that_differ_in_a_column_that_is_read_are_refused_with_it(tmp_path):
    for n, texts in enumerate([pa.array(["p"]), pa.array([1])]):
        pq.write_table(pa.table({"query": ["q"], "positive": texts}), tmp_path / f"part-{n}.parquet")
    with pytest.raises(
        DataError, match=r"part-1\.parquet: the column 'positive' is int64 here and large_string in part-0"
    ):
        read(tmp_path)


def _png(number: int) -> bytes:
    import io

    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def test_struct_images_may_have_relative_paths_and_rows_without_any(tmp_path):
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "1.png").write_bytes(_png(1))
    cells = [{"bytes": _png(0), "path": "pages/9.png"}, {"bytes": None, "path": "pages/1.png"}, None]
    cells += [{"bytes": None, "path": None}, {"bytes": b"", "path": None}]
    table = pa.table({"query": ["a", "b", "c", "d", "e"], "image": cells})
    pq.write_table(table, tmp_path / "r.parquet")
    found = read(tmp_path / "r.parquet")
    assert {found.queries[q]: found.corpus[d].content().getpixel((0, 0))[0] for q, d in found.pairs()} == {
        "a": 0,
        "b": 1,
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_image_may_be_an_object_with_a_path_alone(tmp_path, kind):
    (tmp_path / "1.png").write_bytes(_png(1))
    rows = [{"query": "a", "image": {"path": "1.png"}}]
    file = tmp_path / f"r.{kind}"
    if kind == "jsonl":
        tiny_data.write_lines(file, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    ((_, document),) = (found := read(file)).pairs()
    assert found.corpus[document].content().getpixel((0, 0)) == (1, 0, 0)


@pytest.mark.parametrize("path", ["gone.png", "a\0b.png", "../outside.png", "x" * 400])
def test_paths_of_struct_images_that_lead_nowhere_are_named_with_their_row(tmp_path, path):
    (tmp_path / "set").mkdir()
    table = pa.table({"query": ["a"], "image": [{"bytes": None, "path": path}]})
    pq.write_table(table, tmp_path / "set" / "r.parquet")
    with pytest.raises(DataError, match=r"r\.parquet: row 0: "):
        read(tmp_path / "set" / "r.parquet")
