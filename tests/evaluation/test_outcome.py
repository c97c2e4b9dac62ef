"""What an outcome says of itself: columns, ranks, differences, speeds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smart_train.evaluation.metrics import paired
from smart_train.evaluation.report.outcome import Outcome


def test_columns_hold_the_modes_and_bm25_with_ndcg_first(outcome):
    assert list(outcome.columns()) == list(outcome.values("ndcg@1")) == ["pooled", "late", "hybrid", "bm25"]
    assert outcome.metric == "ndcg@10"
    assert outcome.metric_names() == [
        f"{name}@{cut}" for name in ("ndcg", "recall", "mrr", "success") for cut in (1, 10)
    ]


def test_differences_are_paired_within_and_against_the_baseline(outcome):
    values = outcome.values("ndcg@10")
    inner = outcome.mode_differences()
    assert list(inner)[-1] == "base hybrid - bm25" and len(inner) == 4
    assert inner["base late - base pooled"] == paired(values["late"], values["pooled"], 50, 0)
    assert outcome.baseline_differences()["base late - before (base) late"] == outcome.differences["late"]["ndcg@10"]
    alone = Outcome("base", outcome.evaluation, outcome.observer, outcome.queries, outcome.qrels)
    assert alone.baseline_differences() == {} and "baseline" not in alone.evaluation_json()


def test_the_first_relevant_document_has_its_rank_from_one_or_none(outcome):
    for query, judged in outcome.qrels.items():
        for column, rankings in outcome.rankings().items():
            order = [id for id, _ in rankings[query]]
            places = [order.index(id) + 1 for id in judged if id in order]
            assert outcome.first_relevant(column, query) == (min(places) if places else None)


def test_speeds_count_what_was_done_and_not_what_was_stored(outcome):
    seconds = {"queries": 2.0, "documents": 5.0, "scores": 8.0}
    one = replace(outcome.evaluation, seconds=seconds, queries=20, documents=60, stored=10, tokens_per_document=7.0)
    speed = Outcome("base", one, outcome.observer, outcome.queries, outcome.qrels).speed()
    assert speed["documents_encoded"] == pytest.approx(50 / 5) and speed["document_tokens_encoded"] == pytest.approx(70)
    assert speed["queries_encoded"] == pytest.approx(10) and speed["queries_scored"] == pytest.approx(2.5)
    assert speed["queries"] == pytest.approx(20 / 10) and speed["pairs_scored"] == pytest.approx(150)
    stored = replace(one, stored=60, seconds={**seconds, "documents": 0.0})
    assert Outcome("base", stored, outcome.observer, {}, {}).speed()["documents_encoded"] is None
