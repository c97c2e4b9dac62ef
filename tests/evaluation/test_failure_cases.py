"""The worst queries: which they are, and what is shown of them."""

from __future__ import annotations

from dataclasses import replace

from smart_train.evaluation.report.failure_cases import failure_cases


def test_the_worst_queries_are_those_with_the_lowest_figure_and_show_answer_and_finds(outcome, shown_collection):
    found = failure_cases(outcome, shown_collection.corpus, 4)
    values = outcome.evaluation.per_query["hybrid"]["ndcg@10"]
    assert found and [one.values["hybrid"] for one in found] == sorted(values.values())[: len(found)]
    assert all(one.values["hybrid"] < 1 for one in found)
    for one in found:
        assert {sheet.id for sheet in one.wanted} == set(shown_collection.qrels[one.query])
        assert [sheet.id for sheet in one.found] == [id for id, _ in outcome.observer.rankings["hybrid"][one.query][:3]]
        assert [sheet.rank for sheet in one.found] == [1, 2, 3]
        order = [id for id, _ in outcome.observer.rankings["late"][one.query]]
        at = order.index(one.wanted[0].id) + 1 if one.wanted[0].id in order else None
        assert one.ranks["late"] == at


def test_a_query_as_long_as_a_document_is_shown_by_its_beginning(outcome, shown_collection):
    hard = failure_cases(outcome, shown_collection.corpus, 1)[0].query
    told = replace(outcome, queries={**outcome.queries, hard: "many\n\nwords " * 10_000})
    text = failure_cases(told, shown_collection.corpus, 1)[0].text
    assert text.startswith("many words many") and text.endswith(" ...") and len(text) < 500
