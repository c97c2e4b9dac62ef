"""Scores counted as tiles go by are those of every pair taken one by one, in one process or several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from word_encoder import WordEncoder, words_collection

from smart_train.config.schema import HybridBlock
from smart_train.evaluation import scoring
from smart_train.evaluation.encode import encode
from smart_train.evaluation.retrieval import evaluate_encoded
from smart_train.evaluation.score_histograms import BINS, ScoreHistogram, ScoreObserver
from smart_train.losses.similarity import scores

HYBRID = HybridBlock(0.7, 1.9, "standardised", 0.2, 0.1, 0.3, 0.2)


@pytest.mark.parametrize("tokens", [4096, 7])
def test_bins_and_relevant_scores_are_those_of_all_pairs(monkeypatch, tokens):
    monkeypatch.setattr(scoring, "QUERY_TOKENS", tokens)
    some = words_collection(50, 14)
    some.qrels["q1"]["gone"] = 1  # judged, and not in the corpus
    encoder = WordEncoder(HYBRID)
    encoded = encode(encoder, some, batch_size=4)
    observer = ScoreObserver(some.qrels, HYBRID)
    evaluate_encoded(encoded, some.qrels, HYBRID, k=[5], bootstrap=5, observer=observer)
    documents = type(encoded.queries).cat(encoded.documents).to(torch.float32)
    for mode in ("pooled", "late", "hybrid"):
        every = scores(encoded.queries, documents, mode, HYBRID)
        answers = torch.zeros_like(every, dtype=torch.bool)
        for row, query in enumerate(encoded.query_ids):
            for document in some.qrels[query]:
                if document in encoded.document_ids:
                    answers[row, encoded.document_ids.index(document)] = True
        spread = observer.histograms[mode]
        assert sorted(spread.relevant.tolist()) == pytest.approx(sorted(every[answers].tolist()), abs=1e-5)
        others = every[~answers].numpy().astype(np.float64)
        assert int(spread.others.sum()) == len(others)
        edges = np.linspace(spread.low, spread.high, BINS + 1)
        assert abs(np.histogram(others, edges)[0] - spread.others.numpy()).sum() <= 4  # on an edge, by rounding
        above = (every[answers].numpy()[:, None] > others[None]).mean()
        assert spread.separation() == pytest.approx(above, abs=0.01)


def test_the_share_above_counts_half_within_a_bin_and_is_none_without_pairs():
    others = torch.zeros(10, dtype=torch.int64)
    others[2], others[5] = 3, 1
    assert ScoreHistogram(0.0, 10.0, others, torch.tensor([5.5])).separation() == pytest.approx((3 + 0.5) / 4)
    assert ScoreHistogram(0.0, 10.0, others, torch.tensor([])).separation() is None
    scores = torch.rand(999, generator=torch.Generator().manual_seed(0)) * 10
    many = torch.arange(400) ** 3 % 97
    found = {ScoreHistogram(0.0, 10.0, many, scores[order]).separation() for order in (slice(None), scores.argsort())}
    assert len(found) == 1, "the order of a store changes no digit"
    assert ScoreHistogram(0.0, 10.0, torch.zeros(10, dtype=torch.int64), torch.tensor([1.0])).separation() is None


def test_rankings_are_kept_as_deep_as_asked_and_looking_takes_no_part_in_the_speed():
    some = words_collection(50, 4)
    encoder = WordEncoder()
    observer = ScoreObserver(some.qrels, encoder.late.hybrid, top=30)
    encoded = encode(encoder, some)
    found = evaluate_encoded(encoded, some.qrels, encoder.late.hybrid, k=[5], bootstrap=5, observer=observer)
    plain = evaluate_encoded(encode(encoder, some), some.qrels, encoder.late.hybrid, k=[5], bootstrap=5)
    assert found.per_query == plain.per_query
    assert {len(row) for rows in observer.rankings.values() for row in rows.values()} == {30}
    assert observer.seconds > 0 and found.seconds["scores"] >= 0
    blind = ScoreObserver(some.qrels, encoder.late.hybrid, top=30, count=False)
    encoded = encode(encoder, some)
    again = evaluate_encoded(encoded, some.qrels, encoder.late.hybrid, k=[5], bootstrap=5, observer=blind)
    assert again.per_query == plain.per_query and blind.histograms == {}
    assert {len(row) for rows in blind.rankings.values() for row in rows.values()} == {30}
