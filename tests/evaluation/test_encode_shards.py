"""Shards: the same batches and rankings in however many processes, in memory or stored, killed or not."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Any

import pytest
from word_encoder import WordEncoder, words_collection

from smart_train.core.errors import EvaluationError
from smart_train.data.collection import Collection, Document
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation import sharding
from smart_train.evaluation.encode import encode, encode_shards
from smart_train.evaluation.retrieval import evaluate, evaluate_encoded
from smart_train.evaluation.score_histograms import ScoreObserver
from smart_train.evaluation.vector_store import VectorStore

FACTS = {"base": "words"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(sharding, "TEXT_ROWS", 8)


def ordered(rankings: Any) -> dict[str, dict[str, list[str]]]:
    """Without the scores, whose last bit follows from what is multiplied together."""
    return {mode: {query: [id for id, _ in row] for query, row in rows.items()} for mode, rows in rankings.items()}


def measured(encoder: WordEncoder, some: Collection, store: Any = None, group: Any = None) -> tuple[Any, Any]:
    encoded = encode_shards(encoder, some, batch_size=4, store=store, group=group)
    observer = ScoreObserver(some.qrels, encoder.late.hybrid, top=30)
    found = evaluate_encoded(encoded, some.qrels, encoder.late.hybrid, k=[1, 10], bootstrap=20, observer=observer)
    return replace(found, seconds={}, stored=0), ordered(observer.rankings)


def test_figures_and_rankings_are_exactly_those_in_memory_stored_or_not(tmp_path):
    some = words_collection(61)
    encoder = WordEncoder()
    encoded = encode(encoder, some, batch_size=4)
    observer = ScoreObserver(some.qrels, encoder.late.hybrid, top=30)
    whole = evaluate_encoded(encoded, some.qrels, encoder.late.hybrid, k=[1, 10], bootstrap=20, observer=observer)
    expected = replace(whole, seconds={}), ordered(observer.rankings)
    assert replace(evaluate(encoder, some, k=[1, 10], batch_size=4, bootstrap=20), seconds={}) == expected[0]
    assert measured(WordEncoder(), some) == expected
    fresh, again = WordEncoder(), WordEncoder()
    assert measured(fresh, some, VectorStore(tmp_path / "s", FACTS)) == expected
    assert measured(again, some, VectorStore(tmp_path / "s", FACTS)) == expected
    assert len(fresh.seen) == 61 and again.seen == []


def test_a_pass_killed_in_the_middle_goes_on_and_encodes_nothing_twice(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    some = words_collection(61)
    expected = measured(WordEncoder(), some)

    def die(contents: list[Any]) -> None:
        if len(killed.seen) >= 24:
            raise KeyboardInterrupt

    killed = WordEncoder(before=die)
    with pytest.raises(KeyboardInterrupt):
        measured(killed, some, VectorStore(tmp_path / "s", FACTS))
    assert len(killed.seen) == 24
    rest = WordEncoder()
    assert measured(rest, some, VectorStore(tmp_path / "s", FACTS)) == expected
    assert sorted(killed.seen + rest.seen) == sorted(str(document.text) for document in some.corpus.values())
    assert "24 of 61 documents are stored, 37 are left to encode" in caplog.text


def test_a_corpus_that_grew_or_lost_documents_is_encoded_only_where_it_is_new(tmp_path):
    some = words_collection(40)
    measured(WordEncoder(), some, VectorStore(tmp_path / "s", FACTS))
    changed = words_collection(40)
    gone = next(id for id in changed.corpus if not any(id in row for row in changed.qrels.values()))
    del changed.corpus[gone]
    changed.corpus["new"] = Document("new", "a1 b2 c3")
    changed.corpus["d5"] = Document("d5", "h1 h2 h3 h4")
    encoder = WordEncoder()
    expected = measured(WordEncoder(), changed)
    found = measured(encoder, changed, VectorStore(tmp_path / "s", FACTS))
    assert sorted(encoder.seen) == ["a1 b2 c3", "h1 h2 h3 h4"]
    assert found == expected
    encoded = encode_shards(WordEncoder(), changed, batch_size=4, store=VectorStore(tmp_path / "s", FACTS))
    assert encoded.stored == 40


class Ranks(ProcessGroup):
    """Ranks that are threads and exchange through a barrier."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, board: list[Any]) -> None:
        super().__init__(rank=rank, world_size=world)
        self.barrier, self.board = barrier, board

    def all_gather_object(self, value: Any) -> list[Any]:
        self.board[self.rank] = value
        self.barrier.wait(20)
        found = list(self.board)
        self.barrier.wait(20)
        return found


def on_ranks(world: int, function: Any) -> list[Any]:
    barrier, board, found = threading.Barrier(world), [None] * world, [None] * world

    def one(rank: int) -> None:
        try:
            found[rank] = function(Ranks(rank, world, barrier, board))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    [thread.start() for thread in threads]
    [thread.join(40) for thread in threads]
    return found


@pytest.mark.parametrize(("world", "documents"), [(2, 61), (3, 61), (3, 5)])
def test_ranks_encode_the_batches_that_one_process_encodes_and_find_the_same(tmp_path, world, documents):
    some = words_collection(documents)  # of 5, two ranks have none
    alone = WordEncoder()
    expected = measured(alone, some)
    encoders = [WordEncoder() for _ in range(world)]
    found = on_ranks(world, lambda rank: measured(encoders[rank.rank], some, VectorStore(tmp_path / "s", FACTS), rank))
    assert all(each == expected for each in found), found
    assert sorted(batch for each in encoders for batch in each.batches) == sorted(alone.batches)
    # what several wrote, one reads, and the other way round
    again = WordEncoder()
    assert measured(again, some, VectorStore(tmp_path / "s", FACTS)) == expected and again.seen == []
    more = [WordEncoder() for _ in range(world)]
    found = on_ranks(world, lambda rank: measured(more[rank.rank], some, VectorStore(tmp_path / "s", FACTS), rank))
    assert all(each == expected for each in found) and not any(each.seen for each in more)


def test_a_store_of_another_encoder_is_refused_on_every_rank_before_anything_is_encoded(tmp_path):
    some = words_collection(20)
    measured(WordEncoder(), some, VectorStore(tmp_path / "s", FACTS))
    encoders = [WordEncoder(), WordEncoder()]
    other = {"base": "letters"}
    found = on_ranks(2, lambda rank: measured(encoders[rank.rank], some, VectorStore(tmp_path / "s", other), rank))
    assert all(isinstance(error, EvaluationError) and "base was 'words', is 'letters'" in str(error) for error in found)
    assert not any(encoder.seen for encoder in encoders)


def test_of_a_shard_of_pages_few_are_open_at_a_time():
    sizes: list[int] = []

    class Page(Document):
        def content(self) -> Any:
            return "a1 b2"

    corpus = {f"p{n}": Page(f"p{n}", image="p.png", hash=str(n)) for n in range(20)}
    some = Collection("pages", dict(corpus), {"q": "a1"}, {"q": {"p3": 1}})
    encoder = WordEncoder(before=lambda contents: sizes.append(len(contents)))
    list(encode_shards(encoder, some, batch_size=3).documents)
    assert sizes == [6, 6, 6, 2]


def test_ranks_that_share_weights_are_refused():
    with pytest.raises(ValueError, match="share the weights"):
        encode_shards(WordEncoder(), words_collection(4), group=ProcessGroup(lockstep=True))
