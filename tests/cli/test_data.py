"""``smart-train data``: what is printed, what is written, and the exit status."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import tiny_data

from smart_train.cli import data
from smart_train.cli.main import main
from smart_train.core.errors import DataError, UsageError
from smart_train.data.readers.beir import read_beir


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    data.add(parser.add_subparsers())
    options = parser.parse_args(["data", *map(str, arguments)])
    return int(options.run(options) or 0)


@pytest.fixture
def folder(tmp_path, beir_folder) -> Path:
    """The shared collection without its test split's neighbours in train: nothing is wrong with it."""
    found = Path(shutil.copytree(beir_folder, tmp_path / "mine"))
    rows = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(16))]
    (found / "qrels" / "train.tsv").write_text("\n".join(rows) + "\n")
    rows = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(16, 24))]
    (found / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    return found


def test_a_clean_folder_gives_0(folder, capsys):
    assert run("check", folder) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mine: 24 documents (0 with an image), 24 queries; judged in test 8, train 16",
        "Nothing is wrong with it.",
    ]


def spoil(folder: Path) -> None:
    tiny_data.write_lines(folder / "negatives.jsonl", [{"_id": "q0", "negatives": ["d3", "d0", "lost"]}])
    with (folder / "qrels" / "train.tsv").open("a") as stream:
        stream.write("q3\tgone\t1\nq4\td20\t1\n")


def test_what_is_found_is_counted_named_and_gives_3(folder, capsys):
    spoil(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert run("check", folder) == 3
    out = capsys.readouterr().out
    for line in ("1  corpus-id", "gone", "1  negative-id", "q0 -> lost", "1  leak-page (train and test)", "q4 -> d20"):
        assert line in out
    told = "Would drop: 1 of 24 queries, 1 of 16 train queries, 3 of 26 judgements, 2 of 3 negatives."
    assert told in out and f"smart-train data check {folder} --fix OUT" in out
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_fix_writes_what_is_left_and_that_is_clean(folder, tmp_path, capsys):
    spoil(folder)
    assert run("check", folder, "--fix", tmp_path / "out") == 0
    assert "What is left is written" in capsys.readouterr().out
    assert run("check", tmp_path / "out") == 0
    train = read_beir(tmp_path / "out", "train")
    assert len(train.queries) == 15 and train.negatives == {"q0": ["d3"]}
    with pytest.raises(UsageError, match="not empty; name a new folder"):
        run("check", folder, "--fix", tmp_path / "out")


def test_kinds_and_thresholds_are_arguments(folder):
    spoil(folder)
    given = ["--ignore", "corpus-id", "--ignore", "negative-id", "--ignore", "negative-relevant"]
    assert run("check", folder, *given) == 3
    assert run("check", folder, *given, "--ignore", "leak-page") == 0
    assert run("check", folder, *given, "--ignore", "leak-page", "--similar", 0.5) == 3  # one template, another topic
    for wrong in (["--ignore", "leaks"], ["--similar", 0], ["--jobs", 0]):
        with pytest.raises(UsageError, match=wrong[0]):
            run("check", folder, *wrong)


def test_a_split_that_would_vanish_is_not_written(folder, tmp_path):
    (folder / "qrels" / "train.tsv").write_text("q16\td16\t1\n")
    with pytest.raises(DataError, match="nothing would be left of train"):
        run("check", folder, "--fix", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pages_and_rows_are_checked_too(tmp_path, page_rows, capsys):
    assert run("check", page_rows, "--jobs", 2) == 0
    assert "24 documents (24 with an image), 32 queries" in capsys.readouterr().out
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    rows = [{"question": "what is it", "image": "cut.png"}, {"question": "what is this", "image": "whole.png"}]
    tiny_data.draw_page(1).save(tmp_path / "whole.png")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert run("check", tmp_path / "train.jsonl") == 3
    assert "1  image: images cannot be decoded" in capsys.readouterr().out
    assert run("check", tmp_path / "train.jsonl", "--no-images") == 0
    assert run("check", tmp_path / "train.jsonl", "--fix", tmp_path / "out") == 0
    assert [d.content() for d in read_beir(tmp_path / "out", "train").corpus.values()] == [tiny_data.draw_page(1)]


def test_check_says_what_it_took_for_what_and_how_to_ignore_a_label(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    rows = [{"query": f"q{n}", "positive": f"d{n} of {n % 3}", "score": n % 2, "lang": "en"} for n in range(6)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    main(["data", "check", str(file)])
    assert "columns read: query = query, document = positive, label = score; not read: lang" in caplog.text
    assert (
        "3 documents have score 0" in caplog.text and "3 queries have no document with a score above 0" in caplog.text
    )
    file.write_text(json.dumps(rows[0] | {"score": 0.5}))
    assert main(["data", "check", str(file)]) in (1, 2)
    assert 'give --label "" to take every row' in capsys.readouterr().err
    assert main(["data", "check", str(file), "--label", ""]) == 0


def faulty_rows(folder: Path) -> tuple[Path, list[str]]:
    texts = [f"text {n}" if n != 3 else "" for n in range(6)]
    rows = [{"query": f"what is {n}", "positive": text, "did": n, "negatives": [n + 1]} for n, text in enumerate(texts)]
    tiny_data.write_lines(folder / "rows.jsonl", rows)
    told = ["1 rows without a document are left out", "2 negatives name no document that was read"]
    return folder / "rows.jsonl", [*told, "--id=did"]


def faulty_pages(folder: Path) -> tuple[Path, list[str]]:
    pages = [{"_id": f"d{n}", "text": f"page {n}", "file": "a.pdf", "page": n} for n in range(4)]
    tiny_data.write_lines(folder / "corpus.jsonl", pages)
    (folder / "asked.csv").write_text("query,file,page\nwhere is it,a.pdf,1\nwho is it,b.pdf,1\n")
    return folder / "asked.csv", [
        "1 rows have no query, or name a page that is not there",
        "asked.csv:3 (b.pdf, page 1)",
    ]


def faulty_pool(folder: Path) -> tuple[Path, list[str]]:
    made = [(f"9:{n}", f"what is {n}", "a.png" if n == 2 else None) for n in range(4)]
    rows = [
        {"qid": id, "query_txt": text, "query_img_path": image, "pos_cand_list": [id], "neg_cand_list": ["8:1"]}
        for id, text, image in made
    ]
    tiny_data.write_lines(folder / "query" / "train" / "x_train.jsonl", rows)
    tiny_data.write_lines(folder / "cand_pool" / "x.jsonl", [{"did": id, "txt": f"text of {id}"} for id, *_ in made])
    return folder, ["1 queries are images or have one", "3 negatives name no candidate"]


@pytest.mark.parametrize("make", [faulty_rows, faulty_pages, faulty_pool])
def test_what_a_reader_leaves_out_of_the_source_is_a_finding(tmp_path, capsys, make):
    path, (*lines, last) = make(tmp_path)
    arguments = [last] if last.startswith("--") else []
    assert run("check", path, *arguments) == 3
    out = capsys.readouterr().out
    for line in ("source: warnings of the reader", *lines, *([] if arguments else [last])):
        assert line in out
    assert run("check", path, *arguments, "--fix", tmp_path / "out") == 0
    assert run("check", tmp_path / "out") == 0


def test_ids_of_a_retrieval_folder_are_compared_by_value_as_in_training(tmp_path, capsys):
    for name in ("corpus", "queries"):
        tiny_data.write_lines(tmp_path / f"{name}.jsonl", [{"_id": n, "text": f"{name} {n}"} for n in range(4)])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("".join(f"{n}.0\t{n}.0\t1\n" for n in range(3)))
    tiny_data.write_lines(tmp_path / "negatives.jsonl", [{"_id": "0.0", "negatives": ["3.0", "77.0"]}])
    tiny_data.write_lines(tmp_path / "teacher.jsonl", [{"_id": "0.0", "scores": {"3.0": 0.5}}])
    assert run("check", tmp_path) == 3
    out = capsys.readouterr().out
    assert "1  negative-id" in out and "0 -> 77.0" in out and "query-id" not in out and "teacher-id" not in out
    tiny_data.write_lines(tmp_path / "teacher.jsonl", [{"_id": "0", "scores": {"3": n}} for n in range(2)])
    with pytest.raises(DataError, match=r"teacher.jsonl:2: the query '0' has a line before"):
        run("check", tmp_path)


@pytest.mark.slow
def test_docstrings_are_checked_as_any_data(capsys):
    assert run("check", "pydocs", "--similar", 1) in (0, 3)
    assert capsys.readouterr().out.startswith("pydocs: ")


def test_near_copies_are_counted_and_become_answers_where_that_is_asked(tmp_path, capsys):
    text = "to reach the old harbour take the road along the coast and turn left"
    rows = [{"query": f"q{n}", "positive": words} for n, words in enumerate([text, f"{text} twice", "something else"])]
    tiny_data.write_lines(tmp_path / "train.jsonl", rows)
    assert run("check", tmp_path / "train.jsonl") == 0
    printed = capsys.readouterr().out
    assert "2 of 2 documents of 8 words or more are near copies, in 1 groups, the largest of 2: text-" in printed
    assert printed.endswith("Nothing else was found.\n") and "data.near_duplicates: together" in printed
    assert run("check", tmp_path / "train.jsonl", "--near-duplicates", "ignore") == 0
    assert capsys.readouterr().out.endswith("queries; judged in train 3\nNothing is wrong with it.\n")
    assert run("check", tmp_path / "train.jsonl", "--near-duplicates", "merge", "--fix", tmp_path / "out") == 0
    assert "2  near-duplicate: documents are near copies of an answer" in capsys.readouterr().out
    assert sorted(len(row) for row in read_beir(tmp_path / "out", "train").qrels.values()) == [1, 2, 2]
