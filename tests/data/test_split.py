"""Whole files on one side, nothing on two, the wanted numbers met."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document
from smart_train.data.split import halves, split


def files(sizes: dict[str, int], extra: int = 0) -> Collection:
    """One query per document; ``extra`` documents of their own that no query asks for."""
    corpus = {
        f"{f}/{n}": Document(f"{f}/{n}", f"text {n} of {f}", file=f) for f, size in sizes.items() for n in range(size)
    }
    qrels = {f"q {d}": {d: 1} for d in corpus}
    corpus |= {f"extra{n}": Document(f"extra{n}", f"nobody asks for {n}") for n in range(extra)}
    return Collection("made", corpus, {q: q for q in qrels}, qrels)


@st.composite
def collections(draw) -> Collection:
    """Documents with and without a file, queries with one to three relevant documents, negatives anywhere."""
    count = draw(st.integers(4, 40))
    names = draw(st.lists(st.sampled_from([None, "f1", "f2", "f3", "f4", "f5", "f6"]), min_size=count, max_size=count))
    corpus = {f"d{n}": Document(f"d{n}", f"text {n}", file=name) for n, name in enumerate(names)}
    ids, queries, qrels, negatives = list(corpus), {}, {}, {}
    for n in range(draw(st.integers(2, 30))):
        many = draw(st.sampled_from([1, 1, 1, 1, 2, 3]))
        chosen = draw(st.lists(st.sampled_from(ids), min_size=many, max_size=many, unique=True))
        queries[f"q{n}"], qrels[f"q{n}"] = f"query {n}", dict.fromkeys(chosen, 1)
        if draw(st.booleans()):
            judged = draw(st.sampled_from(ids))
            qrels[f"q{n}"].setdefault(judged, 0)
        negatives[f"q{n}"] = draw(st.lists(st.sampled_from(ids), max_size=3, unique=True))
    return Collection("drawn", corpus, queries, qrels, negatives)


amounts = st.one_of(st.integers(0, 4), st.floats(0.01, 0.4))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(collections(), amounts, amounts, st.integers(0, 5), st.sampled_from([None, 1, 2, 5, 20]))
def test_no_file_no_document_and_no_query_is_on_two_sides(whole, dev, test, seed, most):
    try:
        sides = split(whole, dev, test, seed, most)
    except DataError:
        event("cannot be held out")
        return
    event("held out")
    homes: dict[str, set[str]] = {}
    for side in sides:
        for document in side.corpus.values():
            homes.setdefault(f"document {document.id}", set()).add(side.name)
            if document.file:
                homes.setdefault(f"file {document.file}", set()).add(side.name)
            assert document is whole.corpus[document.id]
        for query, text in side.queries.items():
            homes.setdefault(f"query {query}", set()).add(side.name)
            assert text == whole.queries[query]
            # a query goes with everything that answers it, and with nothing that lies elsewhere
            assert side.relevant(query) == whole.relevant(query)
            assert {*side.qrels[query], *side.negatives.get(query, ())} <= side.corpus.keys()
    assert {thing: names for thing, names in homes.items() if len(names) > 1} == {}
    train, held = sides[0], sides[1:]
    assert train.queries
    for side, amount in zip(held, (dev, test), strict=True):
        if isinstance(amount, int):
            assert len(side.queries) == amount
        else:
            assert len(side.queries) >= max(1, round(amount * len(whole.queries)))
    answered = {d for q in held[1].queries for d in whole.relevant(q)}
    if most is not None:
        assert len(held[1].corpus) <= max(most, len(answered))


@settings(max_examples=50, deadline=None)
@given(collections(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_sides_do_not_depend_on_the_order_of_the_collection(whole, seed, shuffle):
    def mixed(part: dict) -> dict:
        items = list(part.items())
        shuffle.shuffle(items)
        return dict(items)

    other = Collection(
        whole.name,
        mixed(whole.corpus),
        mixed(whole.queries),
        {q: mixed(row) for q, row in mixed(whole.qrels).items()},
        mixed(whole.negatives),
    )
    try:
        expected = [side.fingerprint() for side in split(whole, 2, 0.2, seed, 5)]
    except DataError:
        with pytest.raises(DataError):
            split(other, 2, 0.2, seed, 5)
        return
    assert [side.fingerprint() for side in split(other, 2, 0.2, seed, 5)] == expected


def test_one_large_file_does_not_become_the_test():
    whole = files({"torch": 3000, **{f"small{n}": 20 + n for n in range(60)}})
    for seed in range(5):
        train, dev, test = split(whole, 200, 300, seed, 800)
        assert (len(dev.queries), len(test.queries), len(test.corpus)) == (200, 300, 800)
        assert "torch" in {d.file for d in train.corpus.values()}
        assert len({d.file for d in test.corpus.values()}) >= 10 and len({d.file for d in dev.corpus.values()}) >= 3
        # with a number, the other queries of the held-out files are trained on nowhere
        assert len(train.queries) == len(train.corpus)
        assert len(train.queries) + len(dev.queries) + len(test.queries) < len(whole.queries)


def test_another_seed_holds_out_other_files_and_the_same_seed_the_same():
    whole = files({f"f{n}": 5 for n in range(40)})
    held = [{d.file for d in split(whole, 0, 20, seed)[2].corpus.values()} for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_a_file_that_is_added_moves_few_others():
    before = files({f"f{n}": 5 for n in range(40)})
    after = files({f"f{n}": 5 for n in range(41)})
    first, second = ({d.file for d in split(c, 0, 50, 3)[2].corpus.values()} for c in (before, after))
    assert len(first & second) >= len(first) - 1


def test_a_share_keeps_every_query_of_the_chosen_files():
    whole = files({f"f{n}": 4 for n in range(50)})
    train, dev, test = split(whole, 0.1, 0.2, 0)
    assert sum(len(side.queries) for side in (train, dev, test)) == 200
    assert 20 <= len(dev.queries) <= 25 and 40 <= len(test.queries) <= 50


def test_relevant_documents_are_ranked_even_beyond_the_number_to_rank():
    whole = files({f"f{n}": 1 for n in range(40)}, extra=40)
    for most in (1, 3, 8):
        test = split(whole, 0, 8, 0, test_documents=most)[2]
        assert len(test.queries) == 8 and set(test.corpus) == {d for _, d in test.pairs()} and len(test.corpus) == 8


def test_a_file_of_more_than_half_of_the_test_is_passed_over():
    whole = files({f"large{n}": 60 for n in range(20)} | {f"small{n}": 5 for n in range(40)})
    for seed in range(5):
        test = split(whole, 0, 100, seed)[2]
        assert all(d.file.startswith("small") for d in test.corpus.values())


def test_documents_that_nobody_asks_for_fill_the_test_before_files_are_spent_on_it():
    whole = files({f"f{n}": 2 for n in range(100)}, extra=500)
    train, _, test = split(whole, 0, 20, 0, test_documents=300)
    assert len(test.corpus) == 300 and len(test.queries) == 20
    assert len(train.queries) == 180


def test_negatives_follow_the_query_that_is_taught_from_them():
    whole = files({f"f{n}": 1 for n in range(40)}, extra=40)
    whole.negatives = {f"q f{n}/0": [f"extra{n}", f"extra{(n + 1) % 40}"] for n in range(40)}
    train, _, test = split(whole, 0, 8, 0)
    assert all(train.negatives[q] == whole.negatives[q] for q in train.queries)
    assert test.queries and all(set(test.negatives[q]) <= test.corpus.keys() for q in test.queries)


def test_negatives_of_another_side_are_taken_out_and_counted(caplog):
    whole = files({f"f{n}": 1 for n in range(40)})
    whole.negatives = {q: [d for d in whole.corpus if not q.endswith(d)] for q in whole.queries}
    train, dev, test = split(whole, 0, 8, 0)
    assert all(len(n) == 31 for n in train.negatives.values()) and all(len(n) == 7 for n in test.negatives.values())
    assert f"{train.name}: dropped {32 * 8} hard negatives that belong to another split" in caplog.text


def test_queries_without_a_relevant_document_are_on_no_side_and_counted(caplog):
    whole = files({f"f{n}": 1 for n in range(20)})
    whole.queries["odd"], whole.qrels["odd"] = "nothing answers this", {"f0/0": 0}
    sides = split(whole, 2, 2, 0)
    assert all("odd" not in side.queries for side in sides) and "1 queries have no relevant document" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "dev", "test", "told"),
    [
        ({"only": 30}, 0, 5, "30 of 30 queries belong together"),
        ({"huge": 90, "tiny": 2}, 0, 5, "90 of 92 queries belong together"),
        ({"a": 2, "b": 2}, 2, 2, "leave none of 4 queries"),
        ({"a": 2, "b": 2}, 0, 1.5, "give a share of the queries"),
        ({"a": 2, "b": 2}, -1, 0, "give a share of the queries"),
        ({"a": 2, "b": 2}, True, 0, "give a share of the queries"),
    ],
)
def test_what_cannot_be_held_out_is_said(sizes, dev, test, told):
    with pytest.raises(DataError, match=told):
        split(files(sizes), dev, test, 0)


def test_queries_over_many_documents_keep_their_files_together():
    whole = files({f"f{n}": 3 for n in range(30)})
    dice = random.Random(0)
    for n in range(10):
        first, second = dice.sample(range(30), 2)
        whole.queries[f"both{n}"] = f"both {n}"
        whole.qrels[f"both{n}"] = {f"f{first}/0": 1, f"f{second}/1": 1}
    sides = split(whole, 0.1, 0.1, 0)
    for n in range(10):
        (home,) = [s for s in sides if any(d in s.corpus for d in whole.qrels[f"both{n}"])]
        assert whole.qrels[f"both{n}"].keys() <= home.corpus.keys()


def test_halves_keep_a_files_queries_together_and_are_alike_in_size():
    some = files({f"f{n}": 2 + n % 3 for n in range(12)})
    left, right, kept = halves(some)
    assert kept == "file" and sorted(left + right) == sorted(some.queries)
    there = [{some.corpus[d].file for q in side for d in some.relevant(q)} for side in (left, right)]
    assert not there[0] & there[1] and abs(len(left) - len(right)) <= 3
    assert halves(some) == (left, right, kept) and halves(some, seed=1) != (left, right, kept)


def test_one_large_file_is_divided_by_its_documents_and_one_answer_to_all_is_an_error():
    some = files({"large": 20, "small": 2})
    left, right, kept = halves(some)
    assert kept == "document" and len(left) == len(right) == 11
    one = Collection("one", {"d": Document("d", "text")}, {"a": "x", "b": "y"}, {"a": {"d": 1}, "b": {"d": 1}})
    with pytest.raises(DataError, match="its 2 queries can't be divided"):
        halves(one)
