"""Which pairs share a batch: every pair once an epoch, no document twice, one source, and the same for whoever asks."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import tiny_data
import torch

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.data.batch_sampler import SMALL, PairBatchSampler, pair_groups
from smart_train.data.collection import Collection, Document
from smart_train.data.load import load

Pairs = list[tuple[str, str]]


def collection(files: dict[str, int], each: int = 1, source: bool = False) -> tuple[Collection, Pairs]:
    """Files with so many documents, each of which answers ``each`` queries; lengths from 1 to 97 characters."""
    corpus, qrels = {}, {}
    for file, count in files.items():
        for n in range(count):
            name = f"{file}-{n}"
            text = f"{name} {'x' * (37 * len(corpus) % 97)}"
            corpus[name] = Document(name, text, file=None if source else file, source=file if source else None)
            qrels |= {f"{name}?{q}": {name: 1} for q in range(each)}
    made = Collection("made", corpus, {q: q for q in qrels}, qrels)
    return made, made.pairs()


def documents(batch: list[int], pairs: Pairs) -> list[str]:
    return [pairs[place][1] for place in batch]


def plans(batches: PairBatchSampler, epochs: int) -> list[list[list[int]]]:
    return [batches.plan(epoch) for epoch in range(epochs)]


# -- every pair, once


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_without_dropping_an_epoch_has_every_pair_once(ranks):
    made, pairs = collection({"a": 23}, each=3)
    batches = PairBatchSampler(pair_groups(made, pairs), 8, ranks, drop_last=False)
    for plan in plans(batches, 3):
        assert sorted(sum(plan, [])) == list(range(69))
        assert {len(batch) for batch in plan} == {7, 8}
        assert all(len(set(documents(batch, pairs))) == len(batch) for batch in plan)
    assert len(batches) == ranks * 9


def test_full_batches_leave_out_as_few_pairs_as_they_must_and_others_each_time():
    made, pairs = collection({"a": 23}, each=3)
    batches = PairBatchSampler(pair_groups(made, pairs), 8, 2)
    seen = [set(sum(plan, [])) for plan in plans(batches, 12)]
    assert all(len(one) == 64 for one in seen) and all(len(batch) == 8 for batch in batches.plan(0))
    assert set.union(*seen) == set(range(69)) and len({frozenset(one) for one in seen}) > 6
    assert "5 of 69 pairs wait for another epoch each time" in " ".join(batches.summary())


def test_pairs_of_a_document_that_is_in_every_batch_already_are_counted():
    """One document has 21 of 60 pairs: 39 others and 5 of its own fill 5 batches of 8, and no sixth."""
    made, pairs = collection({"a": 40})
    for n in range(20):
        made.queries[f"more{n}"], made.qrels[f"more{n}"] = "more", {"a-0": 1}
    pairs = made.pairs()
    batches = PairBatchSampler(pair_groups(made, pairs), 8)
    plan = batches.plan(0)
    assert [len(set(documents(batch, pairs))) for batch in plan] == [8] * 5
    assert "20 of 60 pairs wait" in " ".join(batches.summary())
    whole = PairBatchSampler(pair_groups(made, pairs), 8, drop_last=False).plan(0)
    assert sorted(sum(whole, [])) == list(range(60)) and len(whole) == 21, "as many batches as it has pairs"


def test_every_batch_has_a_row_for_every_rank_and_a_second_one():
    """5 pairs of one document and 3 others: without dropping at most 3 batches of 2, 1 of 4."""
    made, pairs = collection({"a": 4})
    for n in range(4):
        made.queries[f"more{n}"], made.qrels[f"more{n}"] = "more", {"a-0": 1}
    pairs = made.pairs()
    for size, ranks, expected in ((2, 1, [2, 2, 2]), (4, 4, [4])):
        batches = PairBatchSampler(pair_groups(made, pairs), size, ranks, drop_last=False)
        assert [len(batch) for batch in batches.plan(0)] == expected
        assert f"{8 - sum(expected)} of 8 pairs wait" in " ".join(batches.summary())


# -- no document twice


def test_copies_of_a_document_never_meet():
    """By text, by the hash of a page, by the file of an image; of what is not known to be a copy nothing is assumed."""
    corpus = {
        "t1": Document("t1", "the same"),
        "t2": Document("t2", "the same"),
        "h1": Document("h1", "masked", image="1.png", hash="ab"),
        "h2": Document("h2", image="2.png", hash="ab"),
        "p1": Document("p1", image="3.png"),
        "p2": Document("p2", image="3.png"),
        "o1": Document("o1", "the same", image="4.png"),
        "o2": Document("o2", image=object()),
        "o3": Document("o3", image=object()),
    }
    pairs = [(f"q{n}", name) for n, name in enumerate(corpus)]
    found = pair_groups(Collection("made", corpus, {}, {}), pairs).documents.tolist()
    assert found == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    for seed in range(20):
        plan = PairBatchSampler(
            pair_groups(Collection("made", corpus, {}, {}), pairs), 6, seed=seed, drop_last=False
        ).plan(0)
        assert len(plan) == 2 and all(len({found[place] for place in batch}) == len(batch) for batch in plan)


# -- the same for whoever asks


def test_an_order_is_of_its_seed_and_epoch_alone():
    made, pairs = collection({"a": 30, "b": 40}, each=2)
    first = PairBatchSampler(pair_groups(made, pairs, "file"), 8, 2, seed=3)
    expected = plans(first, 3)
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    again = PairBatchSampler(pair_groups(made, pairs, "file"), 8, 2, seed=3)
    assert [again.plan(epoch) for epoch in (2, 0, 1)] == [expected[epoch] for epoch in (2, 0, 1)]
    assert expected[0] != expected[1] != expected[2]
    assert PairBatchSampler(pair_groups(made, pairs, "file"), 8, 2, seed=4).plan(0) != expected[0]
    again.set_epoch(2)
    assert list(again) == list(again), "asking does not move it"


def test_ranks_share_the_batch_that_one_rank_would_have():
    made, pairs = collection({"a": 64})
    one, four = (PairBatchSampler(pair_groups(made, pairs), 16, ranks, seed=1) for ranks in (1, 4))
    rows = list(four)
    assert len(rows) == len(four) == 4 * len(one)
    assert [sorted(sum(rows[i : i + 4], [])) for i in range(0, 16, 4)] == [sorted(batch) for batch in one]
    assert {len(batch) for batch in rows} == {4}
    work = np.array([[pair_groups(made, pairs).lengths[row].sum() for row in rows[i : i + 4]] for i in range(0, 16, 4)])
    assert (work.max(1) / work.min(1)).max() < 1.6, "long documents are spread over the ranks"


# -- sources


def test_a_batch_is_of_one_source_and_small_sources_share():
    made, pairs = collection({"a": 40, "b": 24, "c": 5, "d": 6})
    batches = PairBatchSampler(pair_groups(made, pairs, "file"), 8, drop_last=False)
    for plan in plans(batches, 3):
        kinds = Counter(frozenset(name.split("-")[0] for name in documents(batch, pairs)) for batch in plan)
        assert kinds[frozenset("a")] == 5 and kinds[frozenset("b")] == 3 and sum(kinds.values()) == 10
        assert all(one <= {"c", "d"} for one in kinds if one not in ({"a"}, {"b"}))
        assert sorted(sum(plan, [])) == list(range(75))
    assert f"{SMALL} 2 of 2 batches" in " ".join(batches.summary())


def test_rows_may_name_their_source():
    made, pairs = collection({"a": 16, "b": 16}, source=True)
    plan = PairBatchSampler(pair_groups(made, pairs, "origin"), 8).plan(0)
    assert all(len({name[0] for name in documents(batch, pairs)}) == 1 for batch in plan) and len(plan) == 4
    mixed = PairBatchSampler(pair_groups(made, pairs), 8).plan(0)
    assert any(len({name[0] for name in documents(batch, pairs)}) == 2 for batch in mixed)


def test_a_column_of_a_table_names_the_source(tmp_path):
    rows = [{"query": f"q{n}", "positive": f"text {n}", "origin": "even" if n % 2 == 0 else n % 3} for n in range(6)]
    path = tiny_data.write_lines(tmp_path / "rows.jsonl", rows)
    train, _, _ = load(DataBlock(path=str(path), source="origin", dev=0, test=0))
    found = pair_groups(train, train.pairs(), "origin").sources
    assert {name: places.tolist() for name, places in found.items()} == {
        "even": [0, 2, 4],
        "1": [1],
        "0": [3],
        "2": [5],
    }


@pytest.mark.parametrize(
    ("weights", "temperature", "expected"),
    [
        ({}, 1.0, {"a": 16, "b": 4}),
        ({}, 2.0, {"a": 13, "b": 7}),  # 4 : 2
        ({}, 1e9, {"a": 10, "b": 10}),
        ({"b": 4.0}, 1.0, {"a": 10, "b": 10}),
        ({"a": 0.0}, 1.0, {"b": 4}),
    ],
)
def test_sources_are_drawn_by_weight_and_temperature(weights, temperature, expected):
    made, pairs = collection({"a": 128, "b": 32})
    batches = PairBatchSampler(pair_groups(made, pairs, "file", weights, temperature), 8)
    for plan in plans(batches, 3):
        assert Counter(documents(batch, pairs)[0][0] for batch in plan) == expected
    assert len(batches) == sum(expected.values())


def test_a_source_drawn_more_or_less_often_still_goes_through_all_its_pairs():
    """a has 16 batches a round and gives 10 an epoch, b has 4 and gives 10: after 8 epochs 5 and 20 whole rounds."""
    made, pairs = collection({"a": 128, "b": 32})
    batches = PairBatchSampler(pair_groups(made, pairs, "file", {"b": 4.0}), 8)
    seen = Counter(place for plan in plans(batches, 8) for batch in plan for place in batch)
    assert {seen[place] for place in range(128)} == {5} and {seen[place] for place in range(128, 160)} == {20}


# -- lengths


def test_a_window_puts_documents_of_like_length_together():
    made, pairs = collection({"a": 97}, each=2)
    wide, narrow = (PairBatchSampler(pair_groups(made, pairs, window=window), 8, drop_last=False) for window in (1, 8))

    def spread(batches: PairBatchSampler) -> float:
        lengths = pair_groups(made, pairs).lengths
        return float(np.mean([np.ptp(lengths[batch]) for batch in batches.plan(0)]))

    assert spread(narrow) < 0.4 * spread(wide)
    for plan in plans(narrow, 2):
        assert sorted(sum(plan, [])) == list(range(194))
        assert all(len(set(documents(batch, pairs))) == len(batch) for batch in plan)
    means = [pair_groups(made, pairs).lengths[batch].mean() for batch in narrow.plan(0)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.5, "short batches are not all first"


# -- what cannot be


def test_what_cannot_be_planned_is_told():
    made, pairs = collection({"a": 6, "b": 40})
    with pytest.raises(ValueError, match="46 training pairs do not fill one batch of 64"):
        PairBatchSampler(pair_groups(made, pairs), 64)
    with pytest.raises(ValueError, match="9 pairs cannot be shared evenly by 2 ranks"):
        PairBatchSampler(pair_groups(made, pairs), 9, 2)
    with pytest.raises(ValueError, match="no source 'bb'.*write b$"):
        pair_groups(made, pairs, "file", {"bb": 2.0})
    with pytest.raises(ValueError, match="data.source_weights: a do not fill a batch of 8 pairs"):
        PairBatchSampler(pair_groups(made, pairs, "file", {"a": 2.0}), 8)
    with pytest.raises(DataError, match="no document has a source.*origin"):
        pair_groups(made, pairs, "origin")
    one, twin = collection({"a": 1}, each=5)
    with pytest.raises(ValueError, match="no document comes twice"):
        PairBatchSampler(pair_groups(one, twin), 2, drop_last=False)
