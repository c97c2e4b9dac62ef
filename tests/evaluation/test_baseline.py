"""A baseline is compared query by query, or refused with what differs."""

from __future__ import annotations

import json
import re

import pytest
from word_encoder import WordEncoder, words_collection

from smart_train.config.schema import HybridBlock
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.baseline import Baseline, check_baseline, compare, read_baseline, table_hashes
from smart_train.evaluation.metrics import paired
from smart_train.evaluation.report.metrics_json import write_metrics
from smart_train.evaluation.retrieval import evaluate


@pytest.fixture(scope="module")
def some():
    return words_collection(40, 10)


@pytest.fixture(scope="module")
def two(some):
    encoders = [WordEncoder(HybridBlock(late=weight)) for weight in (0.1, 4.0)]
    return [evaluate(encoder, some, k=[1, 5], bootstrap=50) for encoder in encoders]


@pytest.fixture
def folder(tmp_path, some, two):
    facts = {"data": {"hashes": table_hashes(some)}}
    write_metrics(tmp_path / "before" / "metrics.json", {"base": two[0], "trained": two[1]}, **facts)
    return tmp_path / "before"


def test_differences_are_paired_over_the_queries_for_every_mode_and_cut(folder, some, two):
    baseline = read_baseline(folder, "base")
    check_baseline(baseline, two[1].per_query["pooled"]["ndcg@5"], table_hashes(some), [1, 5])
    found = compare(two[1], baseline)
    for mode in ("pooled", "late", "hybrid"):
        for metric in ("ndcg@1", "ndcg@5"):
            ours, theirs = two[1].per_query[mode][metric], two[0].per_query[mode][metric]
            assert found[mode][metric] == paired(ours, theirs, 50, 0)
    assert found["pooled"]["ndcg@5"]["value"] == 0.0 and found["pooled"]["ndcg@5"]["p"] == 1.0
    assert (baseline.folder, baseline.name) == ("before", "before (base)")
    assert read_baseline(folder).row == "trained"  # the last


def test_what_cannot_be_compared_is_told(folder, some, two, tmp_path):
    queries = two[1].per_query["pooled"]["ndcg@5"]
    fewer = {query: value for query, value in queries.items() if query not in ("q3", "q4")} | {"zz": 0.0}
    told = re.escape("before (trained) was measured on other queries: 2 are only there, 1 only here, such as 'q3'")
    with pytest.raises(EvaluationError, match=told):
        check_baseline(read_baseline(folder), fewer, table_hashes(some), [5])
    changed = words_collection(40, 10)
    changed.qrels["q1"] = {"d0": 2}
    del changed.corpus["d39"]
    with pytest.raises(EvaluationError, match="its judgements, the documents that were ranked differ"):
        check_baseline(read_baseline(folder), queries, table_hashes(changed), [5])
    with pytest.raises(EvaluationError, match="no row 'best'; it has base, trained"):
        read_baseline(folder, "best")
    with pytest.raises(EvaluationError, match=r"no evaluation.json; name the folder of an evaluation or of a run"):
        read_baseline(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"rows": {"base": {}}}')
    with pytest.raises(EvaluationError, match="no evaluation can be read"):
        read_baseline(tmp_path)
    seven = Baseline("x", "base", {mode: {"ndcg@7": queries} for mode in ("pooled", "late", "hybrid")})
    with pytest.raises(EvaluationError, match=r"x \(base\) has ndcg@7; add one of its cut-offs to evaluation.k"):
        check_baseline(seven, queries, table_hashes(some), [1, 5])


def test_an_evaluation_that_wrote_no_hashes_down_is_compared_by_its_query_ids(folder, some, two):
    content = json.loads((folder / "evaluation.json").read_text())
    del content["data"]
    (folder / "evaluation.json").write_text(json.dumps(content))
    baseline = read_baseline(folder)
    assert baseline.tables == {}
    check_baseline(baseline, two[1].per_query["pooled"]["ndcg@5"], table_hashes(some), [5, 10])


def test_hashes_do_not_depend_on_the_order_and_follow_every_part(some):
    turned = words_collection(40, 10)
    turned.corpus = dict(reversed(turned.corpus.items()))
    turned.queries = dict(reversed(turned.queries.items()))
    turned.qrels = dict(reversed(turned.qrels.items()))
    assert table_hashes(turned) == table_hashes(some)
    turned.queries["q0"] += " "
    assert {name for name in table_hashes(some) if table_hashes(some)[name] != table_hashes(turned)[name]} == {
        "queries"
    }
