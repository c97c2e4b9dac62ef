"""Figures of parts of the queries are those of these queries alone."""

from __future__ import annotations

from smart_train.evaluation.metrics import group_of_best_document, groups, interval


def test_groups_are_measured_over_their_own_queries_the_largest_first():
    values = {"pooled": {"a": 0.1, "b": 0.5, "c": 1.0, "d": 0.2}, "bm25": {"a": 0.0, "b": 1.0, "c": 0.3, "d": 0.0}}
    found = groups({"a": "x", "b": "y", "c": "y", "z": "x"}, values, 50, 3)
    assert [(name, group.queries) for name, group in found.items()] == [("y", 2), ("x", 1)]
    assert found["y"].values["pooled"] == interval({"b": 0.5, "c": 1.0}, 50, 3)
    assert found["x"].values["bm25"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert groups({}, values) == {}


def test_a_query_is_at_home_where_its_best_judged_document_is():
    assert (
        group_of_best_document({"a": 1, "b": 2, "c": 2, "d": 0}, {"a": "f1", "c": "f3", "b": "f2", "d": "f4"}) == "f2"
    )
    assert group_of_best_document({"a": 1, "d": 0}, {"d": "f4"}) is None
