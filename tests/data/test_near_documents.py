"""Near copies: what counts as one, that nothing is missed, and that everyone takes a group for one document."""

from __future__ import annotations

import logging
import random

import numpy as np
import pytest
import tiny_data
from on_disk import convert_small_data

import smart_train.data.near_documents as near_documents_module
from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.batch_sampler import pair_groups
from smart_train.data.collection import Collection, Document, RetrievalDataset
from smart_train.data.document_keys import DocumentKeys
from smart_train.data.identity import shared_documents
from smart_train.data.load import dev_and_test, load
from smart_train.data.near_documents import mark_near, near_groups
from smart_train.data.near_duplicates import words
from smart_train.data.readers.base import find_reader
from smart_train.data.split import halves, split
from smart_train.data.validate import validate
from smart_train.losses.false_negatives import relevance_mask
from smart_train.mining.selection import ExcludedDocuments, held_out_documents

COAST = "to reach the old harbour take the road along the coast and turn left at the second bridge"


def texts(seed: int, count: int, vocabulary: int = 400) -> dict[str, str]:
    """Texts of which a third are made of another: a word changed, an end cut off, or more text around it."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        text = [f"w{draw.randrange(vocabulary)}" for _ in range(draw.randint(3, 40))]
        if found and draw.random() < 0.35:
            base = list(draw.choice(found))
            base[draw.randrange(len(base))] = "changed"
            text = draw.choice((base, base[: draw.randint(3, len(base))], [*text, *base, *text]))
        found.append(text)
    return {f"d{n}": " ".join(text) for n, text in enumerate(found)}


def every_pair(held: dict[str, str], share: float) -> list[list[str]]:
    """The definition: all pairs compared with Python's sets, and the connected components of these."""
    runs = {}
    for id, text in held.items():
        found = words(text)
        if len(found) >= 8:
            runs[id] = {tuple(found[n : n + 4]) for n in range(len(found) - 3)}
    parent = {id: id for id in runs}

    def find(id: str) -> str:
        return id if parent[id] == id else find(parent[id])

    for one, mine in runs.items():
        for other, theirs in runs.items():
            if one != other and len(mine & theirs) >= share * len(mine) - 1e-9:
                parent[find(one)] = find(other)
    groups: dict[str, list[str]] = {}
    for id in runs:
        groups.setdefault(find(id), []).append(id)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("vocabulary", [3, 400])
def test_groups_are_those_that_comparing_every_pair_finds(share, vocabulary):
    held = texts(int(share * 10), 120, vocabulary)
    found = near_groups(held.items(), share)
    assert sorted(map(sorted, found.ids)) == every_pair(held, share) != []
    assert found.cut == 0


@pytest.mark.parametrize(
    ("other", "near"),
    [
        (COAST.upper() + "!", True),
        (COAST.replace("second", "third"), True),
        ("Directions. " + COAST + ". There is a mill beside it, and the last bus leaves at nine in the evening.", True),
        (" ".join(COAST.split()[:9]), True),  # a part of it
        (" ".join(COAST.split()[:6]), False),  # of too few words
        (" ".join(reversed(COAST.split())), False),
        (COAST.replace("road", "path").replace("left", "right").replace("harbour", "mill"), False),
        ("", False),
    ],
)
def test_what_counts_as_a_near_copy(other, near):
    assert bool(near_groups([("a", COAST), ("b", other)]).ids) is near
    assert bool(near_groups([("b", other), ("a", COAST)]).ids) is near


def test_languages_without_spaces_are_compared_too():
    page = "東京の人口は何人ですか、大阪の面積はどのくらいですか"
    assert near_groups([("a", page), ("b", page + "。京都")]).ids == [["a", "b"]]


def test_groups_and_their_hashes_depend_on_no_order():
    held = list(texts(3, 200).items())
    found = near_groups(held).hashes()
    random.Random(1).shuffle(held)
    assert near_groups(held).hashes() == found and 0 not in found.values()
    assert len({*found.values()}) < len(found) / 1.9


def test_many_texts_of_one_template_are_joined_in_bounded_time(monkeypatch, caplog):
    looked: list[int] = []
    compare = near_documents_module._Index._compare

    def counted(index, row):
        unique = np.unique
        monkeypatch.setattr(np, "unique", lambda *a, **k: looked.append(len(a[0])) or unique(*a, **k))
        compare(index, row)
        monkeypatch.setattr(np, "unique", unique)

    monkeypatch.setattr(near_documents_module._Index, "_compare", counted)
    licence = " ".join(f"clause{n}" for n in range(40))
    made = Collection(
        "licences", {f"d{n}": Document(f"d{n}", f"{licence} owner{n} year{n}") for n in range(1200)}, {}, {}
    )
    found = mark_near("licences", [made])
    assert [len(group) for group in found.ids] == [1200]
    assert max(looked) <= near_documents_module.POSTINGS * 16
    assert "licences: 1200 documents count as one, since each is a near copy of another of them (d0, d1" in caplog.text


def test_more_text_than_fits_is_refused_before_it_is_compared(monkeypatch):
    made = Collection("large", {"a": Document("a", COAST)}, {}, {})
    monkeypatch.setattr(near_documents_module, "MOST_TEXT", 20)
    monkeypatch.setattr(near_documents_module, "near_groups", None)
    with pytest.raises(DataError, match="data.near_duplicates: large has 89 characters .* up to 20; write keep"):
        mark_near("large", [made])


def answers(count: int = 40) -> Collection:
    """Every second question is answered by a near copy of the answer before it."""
    draw = random.Random(5)
    corpus, queries, qrels = {}, {}, {}
    for n in range(count):
        text = " ".join(f"w{draw.randrange(10_000)}" for _ in range(20))
        if n % 2:
            text = f"{corpus[f'd{n - 1}'].text} and more"
        corpus[f"d{n}"], queries[f"q{n}"], qrels[f"q{n}"] = Document(f"d{n}", text), f"Question {n}", {f"d{n}": 1}
    return Collection("answers", corpus, queries, qrels)


def rows_of(data: Collection) -> list[dict]:
    return [{"query": data.queries[q], "positive": data.corpus[d].text} for q, d in data.pairs()]


def test_near_copies_are_one_document_for_splits_batches_the_loss_and_mining():
    data = answers()
    keys = DocumentKeys(data)
    assert keys.copies_of_positives("q0", ["d1", "d2"]) == set() and ExcludedDocuments(data).of("q0") == {
        "d0": "answer"
    }
    mark_near("answers", [data])
    for part in split(data, 8, 8):
        assert {int(d[1:]) // 2 for _, d in part.pairs()} == {int(d[1:]) // 2 for d in part.corpus}
    pairs = [{int(d[1:]) // 2 for _, d in part.pairs()} for part in split(data, 8, 8)]
    assert not pairs[0] & pairs[1] and not pairs[0] & pairs[2] and not pairs[1] & pairs[2]
    left, right, kept = halves(data)
    assert kept == "document" and not {int(q[1:]) // 2 for q in left} & {int(q[1:]) // 2 for q in right}
    assert pair_groups(data, data.pairs()).documents.tolist() == [n // 2 for n in range(40)]
    keys = DocumentKeys(data)
    documents = keys.of_documents(["d0", "d1", "d2"], [data.corpus[d].text for d in ("d0", "d1", "d2")])
    assert relevance_mask(keys.of_positives(["q0", "q1"]), documents).tolist() == [[True, True, False]] * 2
    assert keys.copies_of_positives("q0", ["d1", "d2"]) == {"d1"}
    assert ExcludedDocuments(data).of("q0") == {"d0": "answer", "d1": "duplicate"}
    train, test = data.select(["q2", "q3"]), data.select(["q0"], ["d0"])
    assert held_out_documents(train, [test]) == {"d0", "d1"}


@pytest.mark.parametrize("stored", [False, True])
def test_a_recipe_asks_for_it(tmp_path, monkeypatch, caplog, stored):
    caplog.set_level(logging.INFO)
    data = answers()
    tiny_data.write_lines(tmp_path / "rows.jsonl", rows_of(data))
    if stored:
        convert_small_data(monkeypatch, tmp_path, shard_rows=25)
    block = DataBlock(path=str(tmp_path / "rows.jsonl"), dev=8, test=8)
    number = {text: n // 2 for n, text in enumerate(d.text for d in data.corpus.values())}

    def sides(parts) -> list[set[int]]:
        return [{number[part.corpus[d].text] for _, d in part.pairs()} for part in parts]

    apart = sides(load(block))
    assert apart[0] & apart[2] and "near copies" not in caplog.text
    block.near_duplicates = "together"
    parts = load(block)
    together = sides(parts)
    assert sum(map(len, together)) == 20 == len(set.union(*together))
    assert "rows.jsonl: 40 of 40 documents of 8 words or more are near copies, in 20 groups" in caplog.text
    documents = pair_groups(parts[0], parts[0].pairs()).documents.tolist()
    assert len({*documents}) == len(together[0]) < len(documents)
    assert sides(load(block)) == together  # of a collection on disk: what was kept beside it
    found = dev_and_test(block)
    assert sides((found.dev, found.test)) == together[1:]
    part = Collection("test", {"x": Document("x", f"{parts[0].corpus[next(iter(parts[0].corpus))].text} too")}, {}, {})
    mark_near("both", [parts[0], part])
    assert shared_documents(parts[0], [part]) == [{"x"}]


def test_own_splits_are_compared_with_each_other(tmp_path, caplog):
    rows = rows_of(answers())
    tiny_data.write_lines(tmp_path / "train.jsonl", rows[::2])
    tiny_data.write_lines(tmp_path / "test.jsonl", rows[1::2])
    load(DataBlock(path=str(tmp_path), dev=0))
    assert "shares" not in caplog.text
    train, _, test = load(DataBlock(path=str(tmp_path), dev=0, near_duplicates="together"))
    assert "/test shares 20 documents and 0 queries with" in caplog.text
    assert held_out_documents(train.select([]), [test]) == set(train.corpus)


def test_a_stored_collection_has_the_groups_of_one_in_memory(tmp_path, monkeypatch):
    rows = [{"query": f"q{n}", "positive": text} for n, text in enumerate(texts(8, 150).values())]
    tiny_data.write_lines(tmp_path / "rows.jsonl", rows)
    data = DataBlock(path=str(tmp_path / "rows.jsonl"))
    here = find_reader(data).read("train")
    convert_small_data(monkeypatch, tmp_path, shard_rows=25)
    stored = find_reader(data).read("train")
    for one in (here, stored):
        mark_near("rows", [one])
    assert here.near == stored.near != {}
    groups = [pair_groups(one, one.pairs()).documents.tolist() for one in (here, stored)]
    assert groups[0] == groups[1] and max(groups[0]) < 149
    for one, other in zip(split(here, 10, 20), split(stored, 10, 20), strict=True):
        assert list(one.queries) == list(other.queries) and one.near == other.near


def test_the_check_counts_them_within_and_across_splits_and_can_merge_them():
    data = answers(8)
    splits = {"train": {q: data.qrels[q] for q in ("q0", "q1", "q2", "q4", "q6")}, "test": {"q3": data.qrels["q3"]}}
    dataset = RetrievalDataset("answers", data.corpus, data.queries, splits)
    found = validate(dataset)
    assert found.findings == [] and found.clean == dataset
    assert found.near == [
        "8 of 8 documents of 8 words or more are near copies, in 4 groups, the largest of 2: d0 ~ d1; d2 ~ d3",
        "2 answers of train are near copies of another: d0 ~ d1",
        "1 answers of test have a near copy among the answers of train: d3 ~ d2",
    ]
    assert validate(dataset, near="ignore").near == []
    merged = validate(dataset, near="merge")
    assert {one.kind: one.ids for one in merged.findings} == {
        "near-duplicate": ["q0 -> d1 ~ d0", "q1 -> d0 ~ d1", "q2 -> d3 ~ d2", "q4 -> d5 ~ d4", "q6 -> d7 ~ d6"]
        + ["q3 -> d2 ~ d3"],
        "leak-page": ["q2 -> d2"],  # trained on, now that both answers count
    }
    assert merged.clean.splits["train"] == {
        "q0": {"d0": 1, "d1": 1}, "q1": {"d0": 1, "d1": 1}, "q4": {"d4": 1, "d5": 1}, "q6": {"d6": 1, "d7": 1}
    }  # fmt: skip
    assert validate(merged.clean, near="merge").findings == []
    assert validate(dataset, near="merge", ignore=["near-duplicate"]).findings == []
