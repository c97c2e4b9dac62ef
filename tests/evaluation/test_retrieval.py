"""Evaluation and calibration of a stub encoder whose embeddings are known, on collections made by hand."""

from __future__ import annotations

import itertools
import logging
import math
import time
import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from smart_train.config.schema import HybridBlock, LateBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.evaluation import calibration, retrieval
from smart_train.evaluation import encode as encoding
from smart_train.evaluation.calibration import calibrate, calibrate_encoded, sample
from smart_train.evaluation.encode import encode
from smart_train.evaluation.ranking import rank_all
from smart_train.evaluation.retrieval import evaluate, evaluate_encoded

WORDS = 16


def word_vector(word: str) -> torch.Tensor:
    """Words with one first letter are near each other, and no two are the same."""
    of_letter, of_word = (
        torch.randn(WORDS, generator=torch.Generator().manual_seed(int.from_bytes(part.encode(), "big") % 10**9))
        for part in (word[0], word)
    )
    vector = of_letter + 0.7 * of_word
    return vector / vector.norm()


class Stub:
    """Pooled = mean of the word vectors, tokens = the word vectors; remembers what it was called with."""

    def __init__(self, hybrid: HybridBlock | None = None) -> None:
        self.late = LateBlock(hybrid=hybrid or HybridBlock())
        self.calls: list[tuple[str, list[Any]]] = []

    def _encode(self, role: str, contents: list[Any], batch_size: int, progress: Any) -> Embeddings:
        self.calls.append((role, list(contents)))
        batches = range(0, len(contents), batch_size)
        for _ in progress(batches) if progress else batches:
            pass
        rows = [torch.stack([word_vector(word) for word in str(content).split()]) for content in contents]
        pooled = torch.stack([row.mean(0) / row.mean(0).norm() for row in rows])
        return Embeddings(pooled, Tokens(torch.cat(rows), torch.tensor([len(row) for row in rows])))

    def encode_queries(self, contents: list[Any], batch_size: int = 32, progress: Any = None) -> Embeddings:
        return self._encode("query", contents, batch_size, progress)

    def encode_documents(
        self, contents: list[Any], batch_size: int = 32, progress: Any = None, dtype: torch.dtype | None = None
    ) -> Embeddings:
        found = self._encode("document", contents, batch_size, progress)
        return Embeddings(found.pooled, found.tokens.to(dtype or torch.float32))


class Picture:
    """Stands for an image; counts how many are open at once."""

    opened = 0
    most = 0

    def __init__(self, words: str) -> None:
        self.words = words
        Picture.opened += 1
        Picture.most = max(Picture.most, Picture.opened)

    def __del__(self) -> None:
        Picture.opened -= 1

    def __str__(self) -> str:
        return self.words


@dataclass
class Page:
    text: str | None = None
    image: str | None = None
    title: str | None = None

    def content(self) -> Any:
        return self.text if self.image is None else Picture(self.image)


@dataclass
class Collection:
    corpus: dict[str, Page]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)


def collection() -> Collection:
    texts = ["apple bear cat", "bear dog", "cat egg apple fig goat", "dog", "egg hat ink", "fig apple", "goat ink jam"]
    queries = {"q0": "apple bear", "q1": "dog bear", "q2": "goat fig egg", "q3": "ink"}
    qrels = {"q0": {"d0": 2, "d5": 1}, "q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d6": 1, "d4": 0}}
    own = [" ".join(f"{word}{i}" for word in text.split()) for i, text in enumerate(texts)]  # no word in two documents
    return Collection({f"d{i}": Page(text) for i, text in enumerate(own)}, queries, qrels)


def ndcg(judged: dict[str, int], order: list[str]) -> float:
    gained = sum(judged.get(document, 0) / math.log2(place + 1) for place, document in enumerate(order, 1))
    ideal = sorted(judged.values(), reverse=True)
    return gained / sum(grade / math.log2(place + 1) for place, grade in enumerate(ideal, 1))


def scores_by_hand(some: Collection, query: str, document: str) -> tuple[float, float]:
    stub = Stub()
    q, x = stub.encode_queries([some.queries[query]]), stub.encode_documents([some.corpus[document].content()])
    late = torch.stack([(x.tokens.values @ token).max() for token in q.tokens.values]).mean()
    return float(q.pooled[0] @ x.pooled[0]), float(late)


def test_an_evaluation_is_what_scoring_pair_by_pair_gives():
    some, hybrid = collection(), HybridBlock(pooled=0.7, late=1.9)
    found = evaluate(Stub(hybrid), some, k=[1, 10], bootstrap=50, progress=True)
    for mode in ("pooled", "late", "hybrid"):
        values = []
        for query, judged in some.qrels.items():
            key = {}
            for document in some.corpus:
                pooled, late = scores_by_hand(some, query, document)
                key[document] = {"pooled": pooled, "late": late, "hybrid": 0.7 * pooled + 1.9 * late}[mode]
            order = sorted(key, key=lambda document: -key[document])
            assert all(key[a] > key[b] + 5e-5 for a, b in itertools.pairwise(order))  # no tie decides
            values.append(ndcg(judged, order))
            assert found.per_query[mode]["ndcg@10"][query] == pytest.approx(values[-1], abs=1e-6)
        assert found.metrics[mode]["ndcg@10"]["value"] == pytest.approx(sum(values) / len(values), abs=1e-6)
        assert set(found.metrics[mode]) == {f"{m}@{k}" for m in ("ndcg", "recall", "mrr", "success") for k in (1, 10)}
        for span in found.metrics[mode].values():
            assert span["low"] <= span["value"] <= span["high"]
    assert (found.queries, found.documents, found.unanswered) == (4, 7, [])
    assert found.hybrid == hybrid


def test_the_size_of_a_document_counts_its_tokens_and_its_pooled_vector_in_half_precision():
    some = collection()
    words = [len(page.text.split()) for page in some.corpus.values()]
    found = evaluate(Stub(), some, bootstrap=10)
    assert found.tokens_per_document == pytest.approx(sum(words) / 7)
    assert found.mb_per_document == pytest.approx(2 * WORDS * (sum(words) + 7) / 7 / 1e6)
    assert set(found.seconds) == {"queries", "documents", "scores"} and min(found.seconds.values()) >= 0


def test_everything_is_encoded_exactly_once_longest_text_first():
    stub = Stub()
    encoded = encode(stub, collection(), batch_size=2)
    given = [content for role, contents in stub.calls if role == "document" for content in contents]
    assert sorted(given) == sorted(page.text for page in collection().corpus.values())
    assert [len(text) for text in given] == sorted(map(len, given), reverse=True)
    assert [role for role, _ in stub.calls].count("query") == 1
    # the ids follow the rows
    documents = Embeddings.cat(encoded.documents)
    for row, document in enumerate(encoded.document_ids):
        again = Stub().encode_documents([collection().corpus[document].text])
        assert torch.equal(documents.pooled[row], again.pooled[0])


def test_few_images_are_decoded_at_a_time_and_texts_are_apart_from_them():
    corpus = {f"d{i}": Page(image=f"apple w{i}") for i in range(23)} | {"t": Page(text="bear dog")}
    some = Collection(corpus, {"q": "apple"}, {"q": {"d3": 1}})
    stub = Stub()
    Picture.most = 0
    original, kept = stub.encode_documents, []

    def forgetful(contents: list[Any], **options: Any) -> Embeddings:
        kept.append({type(content) for content in contents})
        embeddings = original(contents, **options)
        stub.calls.clear()
        return embeddings

    stub.encode_documents = forgetful
    encode(stub, some, batch_size=3)
    assert all(len(kinds) == 1 for kinds in kept)
    # one portion, and the one before it until its name is bound again
    assert 0 < Picture.most <= 2 * encoding.IMAGE_BATCHES * 3
    assert Picture.opened == 0


class Watched(Stub):
    """Knows how many portions of documents were alive at most when it was asked for another one."""

    def __init__(self) -> None:
        super().__init__(HybridBlock(late=2.0))
        self.given: list[weakref.ref] = []
        self.alive = 0

    def encode_documents(self, contents: list[Any], **options: Any) -> Embeddings:
        found = super().encode_documents(contents, **options)
        self.given.append(weakref.ref(found.tokens.values))
        self.alive = max(self.alive, sum(tokens() is not None for tokens in self.given))
        return found


def test_an_evaluation_holds_two_portions_of_documents_at_most_and_figures_are_those_of_all_at_once(monkeypatch):
    some = collection()
    some.corpus |= {f"more{i}": Page(f"elm{i % 5} fig{i} hat") for i in range(40)}
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 2)
    kept, watched = Watched(), Watched()
    encoded = encode(kept, some, batch_size=2)
    assert len(kept.given) == kept.alive == 12  # 47 documents, 4 a portion
    whole = evaluate_encoded(encoded, some.qrels, kept.late.hybrid, bootstrap=10)
    found = evaluate(watched, some, batch_size=2, bootstrap=10)
    assert len(watched.given) == 12 and watched.alive == 2
    assert replace(found, seconds={}) == replace(whole, seconds={})
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 100)
    at_once = evaluate(Stub(HybridBlock(late=2.0)), some, batch_size=2, bootstrap=10)
    assert found.per_query == at_once.per_query
    assert found.tokens_per_document == at_once.tokens_per_document
    assert found.mb_per_document == at_once.mb_per_document


def test_encoding_is_told_apart_from_scoring_though_they_take_turns(monkeypatch):
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 1)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(Stub):
        def _encode(self, role: str, *rest: Any) -> Embeddings:
            now[0] += {"query": 5.0, "document": 1.0}[role]
            return super()._encode(role, *rest)

    measure, scored = retrieval.rank_views, []

    def slow(*rows: Any, **options: Any) -> Any:
        found = measure(*rows, **options)
        now[0] += 100.0
        scored.append(found)
        return found

    monkeypatch.setattr(retrieval, "rank_views", slow)
    found = evaluate(Slow(), collection(), batch_size=2, bootstrap=10)
    assert found.seconds == {"queries": 5.0, "documents": 4.0, "scores": 100.0} and len(scored) == 1


def test_portions_that_are_not_kept_cannot_be_gone_through_twice():
    some = collection()
    encoded = encode(Stub(), some, keep=False)
    evaluate_encoded(encoded, some.qrels, HybridBlock(), bootstrap=10)
    with pytest.raises(EvaluationError, match="0 document embeddings, but 7 document ids"):
        evaluate_encoded(encoded, some.qrels, HybridBlock(), bootstrap=10)


def test_queries_without_a_relevant_document_are_counted_and_reported(caplog):
    some = collection()
    some.queries |= {"irrelevant": "apple", "unjudged": "bear"}
    some.qrels |= {"irrelevant": {"d0": 0}}
    with caplog.at_level(logging.WARNING):
        found = evaluate(Stub(), some, bootstrap=10)
    assert found.unanswered == ["irrelevant", "unjudged"]
    assert found.queries == 4 and set(found.per_query["late"]["ndcg@10"]) == {"q0", "q1", "q2", "q3"}
    assert "2 of 6 queries have no document judged relevant" in caplog.text
    assert evaluate(Stub(), collection(), bootstrap=10).metrics == found.metrics


def test_a_query_whose_relevant_documents_the_corpus_lacks_counts_with_0_as_in_beir(caplog):
    some = collection()
    some.queries |= {"lost": "apple"}
    some.qrels |= {"lost": {"gone": 1, "d0": 0}}
    with caplog.at_level(logging.WARNING):
        found = evaluate(Stub(), some, bootstrap=10)
    whole = evaluate(Stub(), collection(), bootstrap=10)
    assert "1 of 5 queries count with 0" in caplog.text and found.unanswered == [] and found.queries == 5
    for mode, measures in found.metrics.items():
        for name, figure in measures.items():
            assert found.per_query[mode][name]["lost"] == 0
            assert figure["value"] == pytest.approx(whole.metrics[mode][name]["value"] * 4 / 5)


def with_queries_in_the_corpus() -> Collection:
    """Queries that are documents too: q0 as it is, q1 below a title, q2 judged, q3 with the id alone."""
    some = collection()
    some.corpus |= {
        "q0": Page("apple\n bear "),
        "q1": Page("Tales dog bear", title="Tales"),
        "q2": Page(some.queries["q2"]),
        "q3": Page("ink jam"),
    }
    some.qrels["q2"]["q2"] = 1
    return some


def test_a_query_that_stands_in_the_corpus_is_left_out_of_its_own_ranking_and_no_other(caplog):
    some = with_queries_in_the_corpus()
    with caplog.at_level(logging.INFO):
        found = evaluate(Stub(), some, k=[1, 3], bootstrap=10)
    assert "2 queries are also documents of the corpus and are left out of their own ranking" in caplog.text
    assert found.themselves == 2 and found.documents == 11
    for query, left_out in (("q0", {"q0"}), ("q1", {"q1"}), ("q2", set()), ("q3", set())):
        pooled = {d: scores_by_hand(some, query, d)[0] for d in some.corpus if d not in left_out}
        order = sorted(pooled, key=lambda document: -pooled[document])
        assert found.per_query["pooled"]["ndcg@3"][query] == pytest.approx(ndcg_at(3, some.qrels[query], order))
        assert found.per_query["pooled"]["success@1"][query] == (some.qrels[query].get(order[0], 0) > 0)


def ndcg_at(cut: int, judged: dict[str, int], order: list[str]) -> float:
    best = sorted(judged, key=lambda document: -judged[document])[:cut]
    return ndcg(judged, order[:cut]) / ndcg(judged, best)


def test_as_many_documents_are_ranked_for_a_query_that_is_left_out_as_for_the_others():
    some = with_queries_in_the_corpus()
    encoded = encode(Stub(), some)
    assert encoded.identical_ids == {"q0", "q1"}
    for top in (1, 3, 10, 11):
        rows = (encoded.queries, encoded.documents, encoded.query_ids, encoded.document_ids)
        whole = rank_all(*rows, top=20)
        found = rank_all(*rows, top=top, block=64, identical_ids=encoded.identical_ids)
        for mode, rankings in found.items():
            for query, ranking in rankings.items():
                expected = [d for d, _ in whole[mode][query] if d != query or query not in encoded.identical_ids][:top]
                assert [document for document, _ in ranking] == expected


def test_calibration_leaves_a_query_out_of_its_own_ranking_too():
    some = with_queries_in_the_corpus()
    encoded = encode(Stub(), some)
    block, figures = calibrate_encoded(encoded, some.qrels, HybridBlock(), cut=1)
    for figure in figures:
        same = evaluate_encoded(encoded, some.qrels, replace(block, late=figure["late"]), k=[1], bootstrap=10)
        assert figure["value"] == pytest.approx(same.metrics["hybrid"]["ndcg@1"]["value"])
    counted = calibrate_encoded(replace(encoded, identical_ids=frozenset()), some.qrels, HybridBlock(), cut=1)[1]
    assert all(figure["value"] > other["value"] for figure, other in zip(figures, counted, strict=True))


def test_a_collection_without_any_answer_is_an_error():
    some = collection()
    some.qrels = {"q0": {"gone": 1}}
    with pytest.raises(EvaluationError, match="none of the 4 queries has a relevant document in the corpus of 7 doc"):
        evaluate(Stub(), some)


def test_a_broken_embedding_stops_evaluation_and_calibration_by_id(monkeypatch):
    class Broken(Stub):
        def encode_documents(self, contents: list[Any], **options: Any) -> Embeddings:
            embeddings = super().encode_documents(contents, **options)
            if "dog3" in contents:
                embeddings.pooled[contents.index("dog3")] = float("nan")
            return embeddings

    for batches in (1, 64):
        monkeypatch.setattr(encoding, "TEXT_BATCHES", batches)
        with pytest.raises(EvaluationError, match="document 'd3' is not finite"):
            evaluate(Broken(), collection(), batch_size=2)
        with pytest.raises(EvaluationError, match="document 'd3' is not finite"):
            calibrate(Broken(), collection(), batch_size=2)


def test_calibration_of_a_large_collection_uses_a_sample_that_keeps_what_is_relevant():
    corpus = {f"d{n}": Page(f"word{n % 9} {n}") for n in range(300)}
    queries = {f"q{n}": f"word{n % 9} {n}" for n in range(60)}
    large = Collection(corpus, queries, {f"q{n}": {f"d{n}": 1, f"d{n + 100}": 0} for n in range(50)})
    assert sample(large, 60, 300) is large
    few = sample(large, 20, 30)
    assert len(few.queries) == 20 and set(few.queries) <= {f"q{n}" for n in range(50)}  # queries with an answer
    assert len(few.corpus) == 30 and {f"d{query[1:]}" for query in few.queries} <= set(few.corpus)
    assert list(few.corpus) == [document for document in corpus if document in few.corpus]
    assert len(sample(large, 60, 5).corpus) == 50  # what is relevant stays
    assert set(sample(large, 60, 5).queries) == set(queries)
    back = Collection(dict(reversed(corpus.items())), dict(reversed(queries.items())), large.qrels)
    assert set(sample(back, 20, 30).corpus) == set(few.corpus) and set(sample(back, 20, 30).queries) == set(few.queries)
    own = Collection(dict(few.corpus), dict(few.queries), large.qrels)
    assert calibrate(Stub(), large, queries=20, documents=30) == calibrate(Stub(), own)


def test_calibration_fits_the_constants_over_all_pairs():
    some = collection()
    pairs = [scores_by_hand(some, query, document) for query in some.queries for document in some.corpus]
    pooled, late = torch.tensor(pairs, dtype=torch.float64).T
    block, _ = calibrate(Stub(HybridBlock(scaling="standardised")), some)
    assert block.scaling == "standardised" and block.pooled == 1.0
    assert block.pooled_mean == pytest.approx(float(pooled.mean()), abs=1e-3)
    assert block.pooled_std == pytest.approx(float(pooled.std(correction=0)), abs=1e-3)
    assert block.late_mean == pytest.approx(float(late.mean()), abs=1e-3)
    assert block.late_std == pytest.approx(float(late.std(correction=0)), abs=1e-3)


@pytest.mark.parametrize("scaling", ["none", "standardised"])
def test_calibration_chooses_the_smallest_weight_that_reaches_the_best_figure(scaling):
    some = collection()
    stub = Stub(HybridBlock(scaling=scaling))
    before = replace(stub.late.hybrid)
    encoded = encode(stub, some)
    grid = [8.0, 0.25, 1.0, 4.0]
    block, figures = calibrate_encoded(encoded, some.qrels, stub.late.hybrid, grid=grid)
    assert [figure["late"] for figure in figures] == sorted(grid)
    for figure in figures:
        same = evaluate_encoded(encoded, some.qrels, replace(block, late=figure["late"]), bootstrap=10)
        assert figure["value"] == pytest.approx(same.metrics["hybrid"]["ndcg@10"]["value"])
    best = max(figure["value"] for figure in figures)
    assert block.late == min(figure["late"] for figure in figures if figure["value"] > best - 0.001)
    assert stub.late.hybrid == before  # a new block, the encoder's own untouched


def test_a_collection_too_large_to_keep_its_scores_is_calibrated_the_same(monkeypatch):
    some = collection()
    encoded = encode(Stub(), some)
    kept = calibrate_encoded(encoded, some.qrels, HybridBlock(scaling="standardised"))
    monkeypatch.setattr(calibration, "KEPT", 0)
    assert calibrate_encoded(encoded, some.qrels, HybridBlock(scaling="standardised")) == kept


def test_calibration_prefers_the_view_that_ranks_better():
    """Pooled vectors that say the opposite of the tokens: more late weight is better, and the other way round."""
    d = torch.eye(4)
    good = Tokens(d, torch.ones(4, dtype=torch.int64))
    bad = d[[1, 2, 3, 0]]
    names, qrels = list("abcd"), {q: {q: 1} for q in "abcd"}
    late_right = encoding.Encoded(Embeddings(bad, good), [Embeddings(d, good)], names, names, [])
    pooled_right = encoding.Encoded(Embeddings(d, Tokens(bad, good.lengths)), [Embeddings(d, good)], names, names, [])
    assert calibrate_encoded(late_right, qrels, HybridBlock(), cut=1)[0].late == 2.0  # the first that outweighs 1
    assert calibrate_encoded(pooled_right, qrels, HybridBlock(), cut=1)[0].late == 0.25


def _needing(weights: list[float]) -> tuple[encoding.Encoded, dict[str, dict[str, int]]]:
    """A query for each weight: its pooled score is 1 for a wrong document, its late score 1 / weight for the right one,
    which is first where the late weight is above the query's."""
    count = len(weights)
    d, one, share = torch.eye(count + 1), torch.ones(count, dtype=torch.int64), 1 / torch.tensor(weights)[:, None]
    tilted = d[:count] * share + d[count] * (1 - share**2).sqrt()  # the last direction is orthogonal to all documents
    names = [f"q{number}" for number in range(count)]
    queries = Embeddings(d[:count].roll(-1, 0), Tokens(tilted, one))
    documents = Embeddings(d[:count], Tokens(d[:count], one))
    return encoding.Encoded(queries, [documents], names, names, []), {name: {name: 1} for name in names}


@pytest.mark.parametrize(
    ("needed", "chosen", "last"),
    [
        ([3, 3], 4, 8),
        ([3, 7], 8, 16),  # at the end of the first grid: the next is tried, and not needed
        ([3, 7, 9], 16, 32),
        ([3, 7, 9, 20, 40], 64, 128),
        ([3, 7, 9, 20, 40, 70, 200], 128, 128),  # the last that is ever tried
    ],
)
def test_the_grid_goes_on_beyond_the_end_at_which_the_best_weight_lies(needed, chosen, last):
    encoded, qrels = _needing(needed)
    block, figures = calibrate_encoded(encoded, qrels, HybridBlock(), cut=1)
    assert block.late == chosen  # the smallest power of two above what is needed
    assert [figure["late"] for figure in figures] == [2.0**power for power in range(-2, int(math.log2(last)) + 1)]
    for figure in figures:
        same = evaluate_encoded(encoded, qrels, replace(block, late=figure["late"]), k=(1,), bootstrap=10)
        share = sum(figure["late"] > one for one in needed) / len(needed)
        assert figure["value"] == pytest.approx(same.metrics["hybrid"]["ndcg@1"]["value"]) == pytest.approx(share)
    own = calibrate_encoded(encoded, qrels, HybridBlock(), cut=1, grid=(1, 2))
    assert [figure["late"] for figure in own[1]] == [1, 2]  # a grid of one's own is what is tried


def test_the_grid_goes_on_downwards_while_the_values_rise():
    """Late scores are 1 for a wrong document: a query is right where its pooled scores differ by more than that."""
    d = torch.eye(4)
    one = torch.ones(4, dtype=torch.int64)
    gaps = torch.tensor([0.02, 0.1, 0.2, 0.9])  # of directions; of the scores 0.014, 0.067, 0.128 and 0.419
    right, wrong = d, d[[1, 2, 3, 0]]
    pooled = torch.nn.functional.normalize(right * (1 + gaps[:, None]) + wrong, dim=1)
    encoded = encoding.Encoded(
        Embeddings(pooled, Tokens(wrong, one)), [Embeddings(d, Tokens(d, one))], list("abcd"), list("abcd"), []
    )
    block, figures = calibrate_encoded(encoded, {q: {q: 1} for q in "abcd"}, HybridBlock(), cut=1)
    values = [(figure["late"], figure["value"]) for figure in figures]
    assert values[:5] == [(1 / 32, 0.75), (1 / 16, 0.75), (1 / 8, 0.5), (0.25, 0.25), (0.5, 0)]  # 1 / 64 is not tried
    assert block.late == 1 / 32


@pytest.mark.parametrize("weight", [calibration.LOWEST, calibration.HIGHEST])
def test_a_weight_at_the_end_of_what_is_tried_is_said(weight):
    assert f"the late weight {weight:g}" in calibration.at_edge(weight)
    assert calibration.at_edge(weight * 1.5) is None


def test_a_collapsed_encoder_cannot_be_calibrated():
    same = Embeddings(torch.eye(3)[[0, 0]], Tokens(torch.eye(3)[[0, 0]], torch.tensor([1, 1])))
    encoded = encoding.Encoded(same, [same], ["a", "b"], ["x", "y"], [])
    with pytest.raises(EvaluationError, match="pooled scores of 4 query-document pairs are all about 1.0"):
        calibrate_encoded(encoded, {"a": {"x": 1}, "b": {"y": 1}}, HybridBlock())
