"""Evaluation shared by ranks that are threads here: what one process finds, whoever has which rows, and never a hang.

Every exchange and, where ranks run together, every forward is a meeting of all threads that must agree on what it is.
"""

from __future__ import annotations

import logging
import math
import pickle
import random
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from smart_train.config.schema import HybridBlock, LateBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError, RankError
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation import encode as encoding
from smart_train.evaluation import encode as forwards
from smart_train.evaluation import scoring
from smart_train.evaluation.calibration import calibrate
from smart_train.evaluation.retrieval import Evaluation, evaluate
from smart_train.evaluation.sharding import portions, rows_of_rank

TIMEOUT = 20.0  # seconds until a meeting that somebody does not come to is a failure


class Place:
    """Where threads meet; a meeting of different kinds is what hangs or aborts real collectives."""

    def __init__(self, world: int) -> None:
        self.barrier = threading.Barrier(world)
        self.brought: list[tuple[str, bytes]] = [("", b"")] * world
        self.mixed: list[list[str]] = []  # meetings to which ranks came for different things
        self.sizes: list[int] = []  # of what each rank brought to each exchange

    def meet(self, rank: int, kind: str, value: Any) -> list[Any]:
        self.brought[rank] = kind, pickle.dumps(value)
        self.barrier.wait(TIMEOUT)
        brought = list(self.brought)
        self.barrier.wait(TIMEOUT)  # nobody brings anew before all have taken
        if len({kind for kind, _ in brought}) > 1:
            self.mixed.append([kind for kind, _ in brought])
            self.barrier.abort()
        if kind == "exchange":
            self.sizes.append(len(brought[rank][1]))
        return [pickle.loads(value) for _, value in brought]


class Thread(ProcessGroup):
    """The process group of one rank, which is a thread."""

    def __init__(self, rank: int, world_size: int, lockstep: bool, place: Place) -> None:
        super().__init__(lockstep, rank, world_size)
        self.place = place

    def all_gather_object(self, value: Any) -> list[Any]:
        return self.place.meet(self.rank, "exchange", value)


def on_ranks(world: int, function: Callable[[Thread], Any], together: bool = False) -> list[Any]:
    """What ``function`` returned or raised on each rank; a rank that ends early breaks the meetings of the others."""
    place, found = Place(world), [None] * world

    def one(rank: int) -> None:
        try:
            found[rank] = function(Thread(rank, world, together, place))
        except Exception as error:
            found[rank] = error
            place.barrier.abort() if not isinstance(error, EvaluationError | RankError) else None

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT)
        assert not thread.is_alive()
    assert place.mixed == []
    return found


@dataclass
class Page:
    text: str | None = None
    image: str | None = None
    title: str | None = None

    def content(self) -> Any:
        if self.image == "broken":
            raise OSError("this page is torn")
        if self.image is None:
            return self.text
        return {"image": self.image} | ({} if self.text is None else {"text": self.text})


@dataclass
class Collection:
    corpus: dict[str, Page]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)


def words(content: Any) -> list[str]:
    return " ".join(content.values()).split() if isinstance(content, dict) else content.split()


def word_vector(word: str) -> torch.Tensor:
    """One of 16 unit vectors whose products are quarters: sums are exact in any order, and ties abound."""
    bits = sum(word.encode()) * 7 % 16
    return torch.tensor([0.5 if bits >> at & 1 else -0.5 for at in range(4)])


class Stub:
    """Tokens = the words' vectors, pooled = the first one; one forward a batch, noted by its kind and rows."""

    def __init__(self, group: Thread | None = None, hybrid: HybridBlock | None = None) -> None:
        self.late = LateBlock(hybrid=hybrid or HybridBlock(late=2.0))
        self.group = group
        self.forwards: list[tuple[str, int]] = []
        self.seen: list[str] = []

    def _encode(self, role: str, contents: list[Any], batch_size: int, progress: Any) -> Embeddings:
        starts: Any = range(0, len(contents), batch_size)
        found = []
        for start in progress(starts) if progress else starts:
            batch = contents[start : start + batch_size]
            self.preprocess(role, batch)
            kind = {"text" if isinstance(content, str) else "+".join(sorted(content)) for content in batch}
            self.forward(f"{role}: {' and '.join(sorted(kind))}", len(batch))
            found += [torch.stack([word_vector(word) for word in words(content)]) for content in batch]
            self.seen += [" ".join(words(content)) for content in batch if role == "document"]
        lengths = torch.tensor([len(row) for row in found])
        return Embeddings(torch.stack([row[0] for row in found]), Tokens(torch.cat(found), lengths))

    def preprocess(self, role: str, batch: list[Any]) -> None:
        pass

    def forward(self, kind: str, rows: int) -> None:
        self.forwards.append((kind, rows))
        if self.group is not None and self.group.lockstep:
            self.group.place.meet(self.group.rank, kind, None)

    def encode_queries(self, contents: list[Any], batch_size: int = 32, progress: Any = None) -> Embeddings:
        return self._encode("query", contents, batch_size, progress)

    def encode_documents(
        self, contents: list[Any], batch_size: int = 32, progress: Any = None, dtype: torch.dtype = torch.float32
    ) -> Embeddings:
        found = self._encode("document", contents, batch_size, progress)
        return Embeddings(found.pooled, found.tokens.to(dtype))


def drawn(documents: int, queries: int, seed: int, images: float = 0.3) -> Collection:
    """Texts of unequal length, images, images with a text; queries of 1, 2 or 4 words, so that means are exact."""
    draw = random.Random(seed)

    def some(most: int) -> str:
        return " ".join(f"w{draw.randrange(40)}" for _ in range(draw.randint(1, most)))

    corpus = {}
    for at in range(documents):
        shown = some(4) if draw.random() < images else None
        corpus[f"d{at}"] = Page(None if shown and draw.random() < 0.5 else some(9), shown)
    asked = {
        f"q{at}": " ".join(f"w{draw.randrange(40)}" for _ in range(draw.choice([1, 2, 4]))) for at in range(queries)
    }
    qrels = {query: {f"d{draw.randrange(documents)}": draw.randint(1, 2)} for query in asked}
    if draw.random() < 0.5:  # a query that stands in the corpus, and one that nothing answers
        corpus["q0"] = Page(asked["q0"])
        asked["unanswered"] = "w1"
    return Collection(corpus, asked, qrels)


def outcome(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except EvaluationError as error:
        return str(error)


def without_seconds(found: Any) -> Any:
    return replace(found, seconds={}) if isinstance(found, Evaluation) else found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 4), st.integers(1, 14), st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 10**6)
)
@example(3, 1, 2, 1, True, 0)  # one document
@example(3, 1, 2, 1, False, 0)
@example(4, 14, 1, 2, True, 1)  # one query
@example(4, 9, 6, 1, True, 5)
def test_every_rank_has_the_evaluation_of_one_process(monkeypatch, world, documents, queries, batch, together, seed):
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 2)
    monkeypatch.setattr(scoring, "QUERY_TOKENS", 5)  # blocks of a few queries, each with a meeting
    some = drawn(documents, queries, seed)
    options = {"k": [1, 3], "batch_size": batch, "bootstrap": 20}
    whole = evaluate(Stub(), some, **options)
    stubs: dict[int, Stub] = {}

    def one(group: Thread) -> Evaluation:
        stubs[group.rank] = Stub(group)
        return evaluate(stubs[group.rank], some, group=group, **options)

    found = on_ranks(world, one, together)
    assert [without_seconds(each) for each in found] == [without_seconds(whole)] * world
    assert all(each.seconds == found[0].seconds for each in found)
    seen = [text for stub in stubs.values() for text in stub.seen]
    given = [" ".join(words(page.content())) for page in some.corpus.values()]
    if together:
        assert all(stub.forwards == stubs[0].forwards for stub in stubs.values())
        assert not any(" and " in kind for kind, _ in stubs[0].forwards)  # a batch of two kinds is two forwards
        assert set(seen) == set(given)
    else:
        assert sorted(seen) == sorted(given)  # each once


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 4), st.integers(1, 14), st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 10**6))
def test_every_rank_has_the_calibration_of_one_process(monkeypatch, world, documents, queries, together, kept, seed):
    monkeypatch.setattr("smart_train.evaluation.calibration.KEPT", 1 << 25 if kept else 0)
    monkeypatch.setattr(scoring, "QUERY_TOKENS", 5)
    some, hybrid = drawn(documents, queries, seed), HybridBlock(scaling="standardised")
    whole = outcome(lambda: calibrate(Stub(hybrid=hybrid), some, cut=2, batch_size=2))
    ranks = on_ranks(
        world,
        lambda group: outcome(lambda: calibrate(Stub(group, hybrid), some, cut=2, batch_size=2, group=group)),
        together,
    )
    assert all(each == ranks[0] for each in ranks)
    if isinstance(whole, str):  # a single document, say: there is nothing to standardise
        assert ranks[0] == whole
        return
    block, figures = ranks[0]
    assert figures == whole[1] and block.late == whole[0].late
    for name in ("pooled_mean", "pooled_std", "late_mean", "late_std"):
        assert getattr(block, name) == pytest.approx(getattr(whole[0], name), abs=1e-9)


class Diverged(Stub):
    def encode_documents(self, contents: list[Any], **options: Any) -> Embeddings:
        found = super().encode_documents(contents, **options)
        for row, content in enumerate(contents):
            if words(content) == ["bad"]:
                found.pooled[row] = float("nan")
        return found


class Refusing(Stub):
    def preprocess(self, role: str, batch: list[Any]) -> None:
        if any("bad" in words(content) for content in batch):
            raise ValueError("such a row is refused")


def with_bad(page: Page) -> Collection:
    some = drawn(15, 5, 3, images=0.0)
    some.corpus["bad"] = page
    return some


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("measure", [evaluate, calibrate])
@pytest.mark.parametrize("place", [0, 7, 15])
def test_embeddings_that_are_not_finite_are_an_error_by_id_on_every_rank(monkeypatch, place, measure, together):
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 1)
    some = with_bad(Page("bad"))
    entries = [entry for entry in some.corpus.items() if entry[0] != "bad"]
    some.corpus = dict([*entries[:place], ("bad", Page("bad")), *entries[place:]])
    found = on_ranks(3, lambda group: measure(Diverged(group), some, batch_size=1, group=group), together)
    for error in found:
        assert isinstance(error, EvaluationError) and "document 'bad' is not finite" in str(error)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("measure", [evaluate, calibrate])
@pytest.mark.parametrize(
    ("page", "said"),
    [(Page(image="broken"), "OSError: this page is torn"), (Page("bad"), "ValueError: such a row is refused")],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_what_else_fails_on_one_rank_is_raised_on_every_rank(monkeypatch, batch, page, said, measure, together):
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 4)
    some = with_bad(page)
    found = on_ranks(3, lambda group: told(measure, Refusing(group), some, batch, group), together)
    own = [error for error in found if not error.startswith("RankError")]
    assert own and all(error == said for error in own)
    others = [error for error in found if error.startswith("RankError")]
    assert len(own) + len(others) == 3
    assert all(error.startswith("RankError: rank ") and error.endswith(f" failed: {said}") for error in others)


def told(measure: Callable[..., Any], stub: Stub, some: Collection, batch: int, group: Thread) -> str:
    """The error as text, so that a rank that failed ends as the others do."""
    with pytest.raises((OSError, ValueError, RankError)) as raised:
        measure(stub, some, batch_size=batch, group=group)
    return f"{raised.type.__name__}: {raised.value}"


@pytest.mark.parametrize("together", [False, True])
def test_a_query_that_fails_on_one_rank_is_raised_on_every_rank(together):
    some = drawn(5, 6, 3)
    some.queries["q4"] = "bad"
    found = on_ranks(2, lambda group: told(evaluate, Refusing(group), some, 1, group), together)
    said = "ValueError: such a row is refused"
    assert sorted(found)[1] == said and sorted(found)[0].endswith(f"failed: {said}")


def test_a_forward_that_fails_while_the_others_are_in_it_is_raised_at_once_and_not_waited_for():
    class Full(Stub):
        def forward(self, kind: str, rows: int) -> None:
            if self.group.rank == 1 and len(self.forwards) == 2:
                raise torch.OutOfMemoryError("no memory left")
            super().forward(kind, rows)

    begun = time.monotonic()
    found = on_ranks(2, lambda group: evaluate(Full(group), drawn(9, 3, 1), batch_size=1, group=group), together=True)
    assert isinstance(found[1], torch.OutOfMemoryError)
    assert isinstance(found[0], threading.BrokenBarrierError)  # as when a launcher ends it
    assert time.monotonic() - begun < TIMEOUT


def test_ranks_with_different_collections_are_an_error_on_every_rank():
    some, less = drawn(9, 3, 1), drawn(9, 3, 1)
    del less.corpus["d8"]
    found = on_ranks(3, lambda group: outcome(lambda: evaluate(Stub(), less if group.rank == 2 else some, group=group)))
    assert len(set(found)) == 1 and found[0].startswith("rank 2 evaluates another collection than rank 0")
    none = replace(some, qrels={})
    found = on_ranks(2, lambda group: outcome(lambda: evaluate(Stub(), none if group.rank else some, group=group)))
    assert len(set(found)) == 1 and "none of the" in found[0]


def test_one_rank_warns_and_one_rank_shows_a_bar(monkeypatch, caplog):
    some = drawn(9, 3, 1)
    some.queries["nobody"] = "w1"
    shown = []

    class Bar:
        def __init__(self, total: int, desc: str, **options: Any) -> None:
            shown.append((threading.current_thread(), desc))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: Any) -> None:
            pass

        def update(self) -> None:
            pass

    monkeypatch.setattr(forwards, "tqdm", Bar)
    threads = {}

    def one(group: Thread) -> None:
        threads[group.rank] = threading.current_thread()
        evaluate(Stub(), some, progress=True, bootstrap=5, group=group)

    with caplog.at_level(logging.WARNING):
        on_ranks(3, one)
    assert len([record for record in caplog.records if "no document judged relevant" in record.message]) == 1
    assert shown == [(threads[0], "encoding queries"), (threads[0], "encoding documents")]


def test_seconds_are_those_of_the_slowest_rank_and_waiting_is_none_of_them(monkeypatch):
    here = threading.local()
    monkeypatch.setattr(time, "perf_counter", lambda: getattr(here, "now", 0.0))

    class Waiting(Thread):
        def all_gather_object(self, value: Any) -> list[Any]:
            here.now = max(self.place.meet(self.rank, "exchange", getattr(here, "now", 0.0)))
            return super().all_gather_object(value)

    class Slow(Stub):
        def forward(self, kind: str, rows: int) -> None:
            per_row = 1.0 if kind.startswith("query") else (10.0 if self.group.rank == 1 else 2.0)
            here.now = getattr(here, "now", 0.0) + per_row * rows

    def one(group: Thread) -> Evaluation:
        group = Waiting(group.rank, group.world_size, False, group.place)
        return evaluate(Slow(group), some, bootstrap=5, group=group)

    some = Collection({f"d{i}": Page(f"w{i}") for i in range(8)}, {f"q{i}": "w1" for i in range(5)})
    some.qrels = {query: {"d1": 1} for query in some.queries}
    for found in on_ranks(2, one):
        assert found.seconds == {"queries": 3.0, "documents": 40.0, "scores": 0.0}


class Watched(Stub):
    """Knows how many portions of documents were alive at most when it was asked for another one."""

    def __init__(self, group: Thread | None = None) -> None:
        super().__init__(group)
        self.given: list[weakref.ref] = []
        self.alive = 0

    def encode_documents(self, contents: list[Any], **options: Any) -> Embeddings:
        self.alive = max(self.alive, sum(tokens() is not None for tokens in self.given))
        found = super().encode_documents(contents, **options)
        self.given.append(weakref.ref(found.tokens.values))
        return found


@pytest.mark.parametrize("together", [False, True])
def test_documents_are_let_go_and_what_crosses_does_not_grow_with_the_corpus(monkeypatch, together):
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 2)
    monkeypatch.setattr(scoring, "NOISE", 0.0)
    monkeypatch.setitem(globals(), "word_vector", angle)  # distinct cosines, or all that tie would be kept
    small, large = (let_go(documents, together) for documents in (64, 512))
    assert small == large


def let_go(documents: int, together: bool) -> int:
    """Evaluates so many documents on two ranks; the most bytes that a rank brought to an exchange."""
    corpus = {f"d{i}": Page(f"w{i}") for i in range(documents)}
    some = Collection(corpus, {f"q{i}": f"w{1000 + i}" for i in range(4)}, {f"q{i}": {"d1": 1} for i in range(4)})
    watched: list[Watched] = []

    def one(group: Thread) -> list[int]:
        watched.append(Watched(group))
        found = evaluate(watched[-1], some, batch_size=4, bootstrap=5, k=[3], group=group)
        assert found.documents == documents
        return group.place.sizes

    sizes = on_ranks(2, one, together)[0]
    assert all(len(stub.given) == documents // 2 // 8 and stub.alive <= 1 for stub in watched)
    return max(sizes)


def angle(word: str) -> torch.Tensor:
    turn = 0.003 * int(word[1:])
    return torch.tensor([math.cos(turn), math.sin(turn), 0.0, 0.0])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(0, 60), st.booleans(), st.integers(0, 10**6))
def test_shares_are_whole_and_alike_in_number_and_length(world, documents, together, seed):
    corpus = drawn(documents, 1, seed).corpus if documents else {}
    ranks = [Thread(rank, world, together, Place(world)) for rank in range(world)]
    shares = [list(portions(corpus, one, 6, 2)) for one in ranks]
    ids = [[id for part in share for id in part.ids] for share in shares]
    assert sorted(id for own in ids for id in own) == sorted(corpus)
    for kind in (True, False):
        counts = [sum((corpus[id].image is None) == kind for id in own) for own in ids]
        assert max(counts) - min(counts) <= (1 if kind or not together else 2)
    texts = [[len(corpus[id].text) for id in own if corpus[id].image is None] for own in ids]
    assert all(lengths == sorted(lengths, reverse=True) for lengths in texts)
    longest = max((length for lengths in texts for length in lengths), default=0)
    assert max(map(sum, texts)) - min(map(sum, texts)) <= longest
    if together:
        assert len({tuple(part.rows for part in share) for share in shares}) == 1
        assert all(part.rows - len(part.ids) in (0, 1) for share in shares for part in share)
    else:
        assert all(part.rows == len(part.ids) > 0 for share in shares for part in share)


def test_rows_are_dealt_in_turn():
    ranks = [Thread(rank, 3, False, Place(3)) for rank in range(3)]
    assert [rows_of_rank("abcdefg", one) for one in ranks] == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert rows_of_rank("abcdefg", ranks[0], 2) == ["c", "f"]


def test_an_exchange_that_breaks_leaves_the_error_that_began_it_on_top():
    class Broken(Thread):
        def all_gather_object(self, value: Any) -> list[Any]:
            raise ConnectionError("closed by peer")

    group = Broken(0, 2, False, Place(2))
    with pytest.raises(KeyError, match="the first") as raised, group.propagate_failures():
        raise KeyError("the first")
    assert raised.value.__notes__ == ["The other ranks could not be told: ConnectionError: closed by peer"]
