"""An outcome to show: known embeddings, BM25, a baseline, parts; its names would break HTML that does not escape."""

from __future__ import annotations

import pytest
from word_encoder import WordEncoder, words_collection

from smart_train.config.schema import HybridBlock
from smart_train.evaluation.baseline import Baseline, compare
from smart_train.evaluation.bm25 import evaluate_bm25
from smart_train.evaluation.encode import encode
from smart_train.evaluation.metrics import groups
from smart_train.evaluation.report.outcome import Outcome
from smart_train.evaluation.retrieval import evaluate, evaluate_encoded
from smart_train.evaluation.score_histograms import ScoreObserver

NASTY = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture(scope="session")
def shown_collection():
    found = words_collection(60, 20)
    found.queries["q0"] = found.queries["q1"]  # so that one of them is answered badly
    return found


@pytest.fixture(scope="session")
def outcome(shown_collection) -> Outcome:
    encoder = WordEncoder()
    encoded = encode(encoder, shown_collection)
    observer = ScoreObserver(shown_collection.qrels, encoder.late.hybrid, top=25)
    one = evaluate_encoded(
        encoded, shown_collection.qrels, encoder.late.hybrid, k=[1, 10], bootstrap=50, observer=observer
    )
    before = evaluate(WordEncoder(HybridBlock(late=0.0)), shown_collection, k=[1, 10], bootstrap=50)
    baseline = Baseline("before", "base", before.per_query)
    texts = {id: document.text for id, document in shown_collection.corpus.items()}
    words = evaluate_bm25(texts, shown_collection.queries, shown_collection.qrels, k=[1, 10], bootstrap=50)
    found = Outcome(
        "base", one, observer, {**shown_collection.queries, "q2": NASTY}, shown_collection.qrels, bm25=words
    )
    found.baseline, found.differences = baseline, compare(one, baseline)
    found.kinds = {query: f"kind {n % 2}" for n, query in enumerate(shown_collection.queries)}
    found.files = {query: NASTY if n % 3 else "plain.pdf" for n, query in enumerate(shown_collection.queries)}
    values = found.values("ndcg@10")
    found.groups = {"kind": groups(found.kinds, values, 50), "file": groups(found.files, values, 50)}
    found.about = {"data": {"name": "words/test"}, "model": {"base": "letters"}, "date": "today"}
    return found


@pytest.fixture
def nasty() -> str:
    return NASTY
