"""The selection of negatives beside plain loops over a whole score matrix: who never may, thresholds, ranks, draws."""

from __future__ import annotations

from random import Random

import pytest
from PIL import Image

from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document
from smart_train.mining.selection import (
    ExcludedDocuments,
    MiningOptions,
    distinct_candidates,
    held_out_documents,
    select_negatives,
)

DOCUMENTS = 60


def collection(seed: int = 0) -> Collection:
    """60 documents on pages of 4 files, every tenth a copy of the one five places before; 12 queries with 1 to 3
    answers, two of them in the same words, one answer missing in the corpus."""
    draw = Random(seed)
    corpus = {}
    for n in range(DOCUMENTS):
        text = f"passage {n - 5}" if n % 10 == 9 else f"passage {n}"
        file = None if n % 7 == 6 else f"file {n % 4}"
        corpus[f"d{n}"] = Document(f"d{n}", text, file=file, page=None if n % 11 == 10 else n // 4)
    queries = {f"q{n}": f"question {n}" for n in range(12)} | {"q11": "question  3 "}
    qrels: dict[str, dict[str, int]] = {}
    for query in queries:
        judged = draw.sample(range(DOCUMENTS), 4)
        qrels[query] = {f"d{judged[0]}": 0} | {f"d{n}": 1 for n in judged[1 : 2 + draw.randrange(3)]}
    qrels["q5"]["gone"] = 1
    return Collection("loops", corpus, queries, qrels)


def never(c: Collection, query: str, window: int | None) -> set[str]:
    """By four loops, from the words of the docstring."""
    answers = set()
    for other, text in c.queries.items():
        if text.split() == c.queries[query].split():
            answers |= {d for d, grade in c.qrels[other].items() if grade > 0 and d in c.corpus}
    found = set(answers)
    for answer in answers:
        for name, document in c.corpus.items():
            a = c.corpus[answer]
            if document.text == a.text:
                found.add(name)
            known = None not in (document.file, a.file, document.page, a.page)
            if window is not None and known and document.file == a.file and abs(document.page - a.page) <= window:
                found.add(name)
    return found


@pytest.mark.parametrize("window", [None, 0, 1, 3, 10**9])
def test_what_never_may_be_a_negative_is_what_loops_find(window):
    c = collection()
    rule = ExcludedDocuments(c, window)
    sizes = set()
    for query in c.queries:
        found = rule.of(query)
        assert found.keys() == never(c, query, window), query
        assert {d for d, why in found.items() if why == "answer"} == rule.positives(query) & c.corpus.keys()
        sizes.add(len(found))
    assert len(sizes) > 1
    assert rule.positives("q3") == rule.positives("q11") == c.relevant("q3") | c.relevant("q11")
    assert "gone" in rule.positives("q5") and "gone" not in rule.of("q5")


def test_each_reason_is_the_first_that_holds():
    corpus = {
        "a": Document("a", "the answer", file="f", page=3),
        "copy": Document("copy", "the answer", file="f", page=4),
        "near": Document("near", "next page", file="f", page=4),
        "far": Document("far", "far page", file="f", page=6),
        "other": Document("other", "another file", file="g", page=3),
    }
    c = Collection("one", corpus, {"q": "which"}, {"q": {"a": 1, "far": 0}})
    assert ExcludedDocuments(c, 1).of("q") == {"a": "answer", "copy": "duplicate", "near": "window"}
    assert ExcludedDocuments(c).of("q") == {"a": "answer", "copy": "duplicate"}


def reference(ranked, positive, options, contents, answers):
    """What passes and what was dropped, one rule after another over whole lists."""
    unique = []
    for document, score in ranked:
        shown = contents.get(document, 0)
        if shown == 0 or (shown not in answers and shown not in [contents.get(d, 0) for d, _ in unique]):
            unique.append((document, score))
    inside = unique[options.range[0] : options.range[1]]
    low = []
    for document, score in inside:
        relative = options.max_relative is None or (
            score < options.max_relative * positive
            if positive > 0
            else positive - score > (1 - options.max_relative) * -positive
        )
        if relative and (options.margin is None or positive - score > options.margin):
            low.append((document, score))
    return low[options.skip_top :]


SETTINGS = [
    MiningOptions(),
    MiningOptions(k=3),
    MiningOptions(k=100, max_relative=None),
    MiningOptions(k=5, max_relative=0.5),
    MiningOptions(k=5, max_relative=None, margin=0.25),
    MiningOptions(k=5, max_relative=0.8, margin=0.1, skip_top=2),
    MiningOptions(k=4, max_relative=None, range=(5, 15)),
    MiningOptions(k=4, max_relative=0.9, range=(3, 30), skip_top=4),
    MiningOptions(k=6, max_relative=0.9, sampling="random", range=(2, 40)),
    MiningOptions(k=50, max_relative=0.7, sampling="random", skip_top=5),
]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_the_selection_is_that_of_loops(number):
    options = SETTINGS[number]
    draw = Random(number)
    lengths = set()
    for trial in range(40):
        ranked = sorted(((f"d{n}", draw.uniform(-0.5, 1.0)) for n in range(50)), key=lambda pair: -pair[1])
        positive = draw.uniform(-0.4, 1.1)
        contents = {f"d{n}": draw.choice([0, *range(1, 60)]) for n in range(50)}
        answers = {1, 2, 0}
        passed = reference(ranked, positive, options, contents, answers - {0})
        candidates, copies = distinct_candidates(ranked, options, lambda d, c=contents: c[d], answers)
        found = select_negatives(f"q{trial}", candidates, positive, options)
        expected = passed[: options.k]
        if options.sampling == "random":
            assert set(found.documents) <= set(passed) and found.documents == sorted(
                found.documents, key=lambda pair: -pair[1]
            )
            assert len(found.documents) == len(expected)
        else:
            assert found.documents == expected
        assert found.dropped["more"] == len(passed) - len(found.documents)
        seen = min(options.range[1], len(ranked) - copies)
        assert found.dropped.total() + len(found.documents) == seen
        lengths.add(len(found.documents))
    assert number in (1, 2, 6) or len(lengths) > 1  # queries get unequal numbers


def test_a_draw_depends_on_the_seed_and_the_query_alone_and_reaches_the_whole_range():
    ranked = [(f"d{n}", 0.8 - n / 100) for n in range(40)]
    options = MiningOptions(k=5, sampling="random", range=(0, 30))
    first = {q: select_negatives(q, ranked, 1.0, options).documents for q in ("q", "r")}
    assert select_negatives("q", ranked, 1.0, options).documents == first["q"] != first["r"]
    assert (
        select_negatives("q", ranked, 1.0, MiningOptions(k=5, sampling="random", range=(0, 30), seed=1)).documents
        != first["q"]
    )
    drawn = {d for n in range(200) for d, _ in select_negatives(f"q{n}", ranked, 1.0, options).documents}
    assert drawn == {f"d{n}" for n in range(30)}


def test_the_threshold_is_below_the_answer_whatever_its_sign():
    options = MiningOptions(k=9, max_relative=0.9)
    for positive in (2.0, 0.5, 0.0, -0.5):
        near, at, below = positive + 1e-9, positive - 0.1 * abs(positive), positive - 0.1 * abs(positive) - 1e-6
        found = select_negatives(
            "q", [("above", positive + 1), ("near", near), ("at", at), ("below", below)], positive, options
        )
        assert [d for d, _ in found.documents] == ["below"], positive


def test_no_more_is_read_of_the_ranking_than_the_range_needs():
    read = []

    def ranking():
        for n in range(100):
            read.append(n)
            yield f"d{n}", 0.1

    distinct_candidates(ranking(), MiningOptions(range=(0, 7)))
    assert len(read) == 7


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"k": 0}, "k is 0"),
        ({"mode": "dense"}, "mode is 'dense'"),
        ({"sampling": "best"}, "sampling is 'best'"),
        ({"max_relative": 0.0}, "max_relative is 0.0"),
        ({"max_relative": 1.2}, "max_relative is 1.2"),
        ({"max_relative": float("nan")}, "max_relative is nan"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"range": (5, 5)}, "range is 5 5"),
        ({"range": (-1, 5)}, "range is -1 5"),
        ({"skip_top": -1}, "skip_top is -1"),
        ({"window": -1}, "window is -1"),
    ],
)
def test_values_that_mean_nothing_are_named(wrong, said):
    with pytest.raises(DataError, match=said):
        MiningOptions(**wrong)


def test_what_another_split_is_measured_on_is_held_out_with_its_files():
    def page(name, file=None, image=None):
        return Document(name, None if image else name, image, file=file, page=0)

    corpus = {
        d.id: d
        for d in (
            page("train", "shared"),
            page("tested", "shared"),
            page("rest of shared", "shared"),
            page("answer", "held"),
            page("rest of held", "held", Image.new("RGB", (4, 4))),
            page("free", "third"),
            page("loose"),
            page("judged 0"),
            page("both"),
        )
    }
    train = Collection("train", corpus, {"q": "q"}, {"q": {"train": 1, "both": 2, "loose": 0}})
    test = Collection(
        "test", corpus, {"r": "r"}, {"r": {"answer": 1, "tested": 1, "judged 0": 0, "both": 1, "gone": 1}}
    )
    assert held_out_documents(train, [test]) == {"answer", "rest of held", "tested", "judged 0"}
    assert held_out_documents(train, [Collection("none", {}, {}, {})]) == set()
