"""BM25 against its formula in float64; what it does not find, and why the row is not there."""

from __future__ import annotations

import math
import random
import re

import pytest
from word_encoder import WORDS

from smart_train.evaluation import bm25
from smart_train.evaluation.bm25 import K1, B, evaluate_bm25
from smart_train.evaluation.topk import tie_hash


def formula(query: list[str], document: list[str], corpus: list[list[str]]) -> float:
    """Lucene's: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), tf / (tf + k1 (1 - b + b length / mean length))."""
    mean = sum(map(len, corpus)) / len(corpus)
    total = 0.0
    for word in query:
        n = sum(word in other for other in corpus)
        idf = math.log(1 + (len(corpus) - n + 0.5) / (n + 0.5))
        tf = document.count(word)
        total += idf * tf / (tf + K1 * (1 - B + B * len(document) / mean))
    return total


def test_scores_and_order_are_those_of_the_formula_and_what_shares_no_word_is_not_found():
    rng = random.Random(3)
    texts = {f"d{n}": " ".join(rng.choices(WORDS, k=rng.randint(3, 25))) for n in range(40)}
    queries = {f"q{n}": " ".join(rng.sample(WORDS, 4)) for n in range(9)}
    qrels = {query: {"d1": 1} for query in queries}
    found = evaluate_bm25(texts, queries, qrels, k=[10], bootstrap=10)
    split = {id: text.split() for id, text in texts.items()}
    for query, text in queries.items():
        exact = {id: formula(text.split(), words, list(split.values())) for id, words in split.items()}
        there = {id: score for id, score in exact.items() if score > 0}
        ranking = found.rankings[query]
        assert {id for id, _ in ranking} == set(there)
        assert [score for _, score in ranking] == pytest.approx(sorted(there.values(), reverse=True), abs=1e-4)
        for id, score in ranking:
            assert score == pytest.approx(exact[id], abs=1e-4)
    assert found.documents == 40 and found.without == 0 and found.absent == ""
    assert set(found.metrics) == {f"{name}@10" for name in ("ndcg", "recall", "mrr", "success")}
    assert all(row["low"] <= row["value"] <= row["high"] for row in found.metrics.values())


def test_equal_scores_are_ordered_by_the_hash_of_all_ties_and_not_by_position():
    texts = {f"d{n}": "same words here" for n in range(20)}
    found = evaluate_bm25(texts, {"q": "words"}, {"q": {"d3": 1}}, k=[5], bootstrap=5)
    order = [id for id, _ in found.rankings["q"]]
    assert order == sorted(texts, key=lambda id: tie_hash("q", id))
    back = evaluate_bm25(dict(reversed(texts.items())), {"q": "words"}, {"q": {"d3": 1}}, k=[5], bootstrap=5)
    assert [id for id, _ in back.rankings["q"]] == order


def test_words_are_lower_case_without_stop_words_and_a_query_of_unknown_words_finds_nothing():
    texts = {"a": "The Harbour of ships", "b": "a mountain"}
    queries = {"q": "HARBOUR", "stop": "the of a", "new": "xylophone"}
    found = evaluate_bm25(texts, queries, {query: {"a": 1} for query in queries}, k=[1], bootstrap=5)
    assert [id for id, _ in found.rankings["q"]] == ["a"]
    assert found.rankings["stop"] == found.rankings["new"] == []
    assert found.per_query["ndcg@1"] == {"q": 1.0, "stop": 0.0, "new": 0.0}
    assert re.search("lower case", found.how["tokens"]) and found.how["k1"] == 1.5


def test_documents_without_text_are_counted_and_where_none_has_any_the_row_is_absent_with_the_reason():
    some = evaluate_bm25({"a": "harbour", "p": None, "e": " "}, {"q": "harbour"}, {"q": {"p": 1}}, k=[1], bootstrap=5)
    assert (some.documents, some.without, some.absent) == (1, 2, "")
    none = evaluate_bm25({"p": None}, {"q": "harbour"}, {"q": {"p": 1}}, k=[1])
    assert "without a text layer" in none.absent and none.metrics == {} and none.without == 1
    signs = evaluate_bm25({"p": "? !"}, {"q": "harbour"}, {"q": {"p": 1}}, k=[1])
    assert "no document has a word" in signs.absent
    assert set(some.to_json()) >= {"absent", "metrics", "how", "seconds"} and "rankings" not in some.to_json()


def test_a_query_that_stands_in_the_corpus_does_not_find_itself():
    texts = {"q": "harbour of ships", "a": "harbour"}
    found = evaluate_bm25(texts, {"q": "harbour of ships"}, {"q": {"a": 1}}, k=[1], identical_ids={"q"}, bootstrap=5)
    assert [id for id, _ in found.rankings["q"]] == ["a"]


def test_texts_that_are_split_in_several_blocks_have_the_same_scores(monkeypatch):
    rng = random.Random(5)
    texts = {f"d{n}": " ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for n in range(60)} | {"stop": "the of"}
    queries = {f"q{n}": " ".join(rng.sample(WORDS, 3)) for n in range(5)}
    qrels = {query: {"d1": 1} for query in queries}
    whole = evaluate_bm25(texts, queries, qrels, k=[10], bootstrap=5)
    monkeypatch.setattr(bm25, "TEXTS", 7)
    assert evaluate_bm25(texts, queries, qrels, k=[10], bootstrap=5).rankings == whole.rankings
