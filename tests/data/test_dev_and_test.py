"""Which queries are chosen on and which reported on: the data's own splits, halves, or what a recipe holds out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.load import dev_and_test, load


def block(path: Path | str, **limits) -> DataBlock:
    return DataBlock(path=str(path), **{"dev": 0, "test": 0, **limits})


@pytest.fixture
def three(tmp_path, beir_folder) -> Path:
    """The tiny collection with a dev split of its own: q8 to q15; the test split repeats one of its queries."""
    folder = shutil.copytree(beir_folder, tmp_path / "three")
    lines = (folder / "qrels" / "train.tsv").read_text().splitlines()
    dev = [line for line in lines[1:] if int(line.split("\t")[0][1:]) >= 8]
    (folder / "qrels" / "validation.tsv").write_text("\n".join([lines[0], *dev]) + "\n")
    return folder


def test_own_splits_are_read_as_they_are(three):
    found = dev_and_test(block(three))
    assert sorted(found.dev.queries) == sorted(f"q{n}" for n in range(8, 16))
    assert sorted(found.test.queries) == sorted(f"q{n}" for n in range(16, 24))
    assert len(found.dev.corpus) == len(found.test.corpus) == 24
    assert found.origin == "the data's own splits validation and test"


def test_splits_can_be_named(three):
    found = dev_and_test(block(three), test="validation", dev="test")
    assert sorted(found.test.queries) == sorted(f"q{n}" for n in range(8, 16)) and "test and validation" in found.origin
    with pytest.raises(DataError, match="has no split 'tset'; there is test, train, validation"):
        dev_and_test(block(three), test="tset")
    with pytest.raises(DataError, match="'test' can't be chosen on and reported on"):
        dev_and_test(block(three), test="test", dev="test")


def test_a_query_of_both_splits_is_reported_on_and_not_chosen_on(three):
    test = three / "qrels" / "test.tsv"
    test.write_text(test.read_text() + "q9\td9\t1\n")
    found = dev_and_test(block(three))
    assert "q9" in found.test.queries and "q9" not in found.dev.queries
    assert not found.dev.queries.keys() & found.test.queries.keys()
    assert "1 queries of validation are in test as well, and are left out of it" in found.origin
    row = '{"_id": "q99", "text": "what stands beside the violin"}\n'  # q8 in the same words, under another id
    queries = three / "queries.jsonl"
    queries.write_text(queries.read_text() + row)
    test.write_text(test.read_text() + "q99\td8\t1\n")
    assert "2 queries of validation" in dev_and_test(block(three)).origin


def test_without_a_dev_split_queries_are_halved_and_both_halves_search_all_documents(beir_folder):
    found = dev_and_test(block(beir_folder))
    assert found.origin == "there is no dev split: the queries of test in two halves, no document's queries in both"
    assert len(found.dev.queries) == len(found.test.queries) == 4
    assert not found.dev.queries.keys() & found.test.queries.keys()
    assert len(found.dev.corpus) == len(found.test.corpus) == 24
    answers = [{d for q in side.queries for d in side.relevant(q)} for side in (found.dev, found.test)]
    assert not answers[0] & answers[1]


def test_a_single_file_of_rows_is_halved(page_rows):
    found = dev_and_test(block(page_rows))
    assert (
        len(found.dev.queries) + len(found.test.queries) == 32
        and min(map(len, (found.dev.queries, found.test.queries))) >= 15
    )
    assert all(document.image is not None for document in found.dev.corpus.values())


def test_amounts_make_data_without_splits_what_a_recipe_holds_out(page_rows):
    found = dev_and_test(block(page_rows, dev=6, test=8))
    _, dev, test = load(DataBlock(path=str(page_rows), dev=6, test=8))
    assert (found.dev.queries, found.test.queries) == (dev.queries, test.queries)
    assert "as a recipe with these values holds them out" in found.origin
    with pytest.raises(DataError, match="say how much to hold out for both"):
        dev_and_test(block(page_rows, dev=6))


def test_a_recipes_block_holds_out_what_its_run_does(page_rows, three):
    recipe = DataBlock(path=str(page_rows), dev=6, test=8, negatives=3)  # of negatives that a run would mine
    found = dev_and_test(recipe, recipe=True)
    _, dev, test = load(DataBlock(path=str(page_rows), dev=6, test=8))
    assert (found.dev.queries, found.test.queries) == (dev.queries, test.queries)
    with pytest.raises(DataError, match=r"no query is held out for dev; raise data\.dev"):
        dev_and_test(DataBlock(path=str(three), dev=0), recipe=True)


def test_amounts_limit_own_splits_and_what_answers_stays(three):
    found = dev_and_test(block(three, dev=3, test=0.5, dev_documents=5, test_documents=6))
    assert (len(found.dev.queries), len(found.test.queries)) == (3, 4)
    for side, most in ((found.dev, 5), (found.test, 6)):
        assert {d for q in side.queries for d in side.relevant(q)} <= side.corpus.keys()
        assert len(side.corpus) == most
    whole = dev_and_test(block(three))
    assert found.dev.queries.items() <= whole.dev.queries.items()


def test_judged_documents_that_the_corpus_never_had_still_count(three):
    test = three / "qrels" / "test.tsv"
    test.write_text(test.read_text() + "q16\tlost\t1\n")
    found = dev_and_test(block(three, test_documents=10))
    assert "lost" in found.test.relevant("q16") and len(found.test.corpus) == 10


def test_data_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="there is no file or folder"):
        dev_and_test(block(tmp_path / "no"))
