"""Readings beside evaluations of an encoder of each layer; what is chosen, how sure that is, and what has no say."""

from __future__ import annotations

import numpy as np
import pytest

from smart_train.config.schema import DataBlock, HybridBlock, LateBlock
from smart_train.data.load import dev_and_test
from smart_train.evaluation.calibration import ENOUGH, calibrate_encoded
from smart_train.evaluation.encode import encode
from smart_train.evaluation.metrics import interval, paired
from smart_train.evaluation.retrieval import evaluate_encoded
from smart_train.models.encoder import SmartEncoder
from smart_train.probing.every_layer import every_layer
from smart_train.probing.layer_probe import Configuration, Probe, _choose, _decide, chance, probe
from smart_train.probing.layer_scores import LayerScores, layer_scores

WEIGHTS = (0.5, 4.0)


def scored(base, data, folder) -> tuple[LayerScores, list[int]]:
    encoder = SmartEncoder(str(base), device="cpu")
    with every_layer(encoder) as layers:
        found = layer_scores(encoder, {"dev": data.dev, "test": data.test}, len(layers), folder / "scores", {})
    return found, layers


@pytest.fixture(scope="module")
def text(beir_folder):
    return dev_and_test(DataBlock(path=str(beir_folder), dev=0, test=0), "train")


@pytest.fixture(scope="module")
def text_scores(tiny_bert, text, tmp_path_factory) -> tuple[LayerScores, list[int]]:
    return scored(tiny_bert, text, tmp_path_factory.mktemp("probe"))


def check_readings(base, data, found: Probe) -> None:
    """Every reading's values, query by query, are those of an encoder of that layer alone."""
    for layer in found.layers:
        encoder = SmartEncoder(str(base), late=LateBlock(layer=layer), device="cpu")
        encoded = {name: encode(encoder, getattr(data, name)) for name in ("dev", "test")}
        fitted, figures = calibrate_encoded(encoded["dev"], data.dev.qrels, HybridBlock(), grid=WEIGHTS)
        own = found.of_layer(layer)
        assert [one.mode for one in own] == ["late"] + ["hybrid"] * 4
        for one in own:
            for name in ("pooled_mean", "pooled_std", "late_mean", "late_std"):
                assert getattr(one.hybrid, name) == pytest.approx(getattr(fitted, name), rel=1e-5, abs=1e-6)
            for name, rows in encoded.items():
                plain = evaluate_encoded(rows, getattr(data, name).qrels, one.hybrid, k=[10], bootstrap=100)
                values = dict(zip(sorted(rows.query_ids), one.values[name].tolist(), strict=True))
                assert values == pytest.approx(plain.per_query[one.mode]["ndcg@10"], abs=1e-9)
                assert getattr(one, name) == pytest.approx(interval(plain.per_query[one.mode]["ndcg@10"], 100))
        raw = [one.dev["value"] for one in own if one.mode == "hybrid" and one.hybrid.scaling == "none"]
        assert raw == pytest.approx([figure["value"] for figure in figures])
    first = found.configurations[0]
    pooled = evaluate_encoded(encoded["test"], data.test.qrels, HybridBlock(), k=[10], bootstrap=100)
    assert first.mode == "pooled" and first.layer is None
    assert first.test == pytest.approx(pooled.metrics["pooled"]["ndcg@10"])


def test_every_reading_is_what_an_encoder_of_that_layer_gives(tiny_bert, text, text_scores):
    found = probe(*text_scores, weights=WEIGHTS, bootstrap=100)
    assert found.layers == [0, 1, 2, -1] and len(found.configurations) == 1 + 4 * 5
    assert found.sizes == {"dev": {"queries": 8, "documents": 24}, "test": {"queries": 8, "documents": 24}}
    check_readings(tiny_bert, text, found)
    assert len({round(one.test["value"], 6) for one in found.configurations}) > 5  # they do differ


def test_page_images_are_probed_alike(tiny_qwen3vl, page_rows, tmp_path):
    data = dev_and_test(DataBlock(path=str(page_rows), dev=0, test=0))
    assert "no file's queries in both" not in data.origin  # rows have no files: pages stay together
    found = probe(*scored(tiny_qwen3vl, data, tmp_path), weights=WEIGHTS, bootstrap=100)
    assert found.sizes["dev"]["queries"] + found.sizes["test"]["queries"] == 32
    check_readings(tiny_qwen3vl, data, found)


def test_diagnostics_are_of_the_pooled_vectors_then_of_each_layer(tiny_bert, text, text_scores):
    scores, layers = text_scores
    found = probe(scores, layers, weights=WEIGHTS, bootstrap=50)
    assert [told["layer"] for told in found.diagnostics] == [None, *layers]
    for layer, told in zip([-1, *layers], found.diagnostics, strict=True):
        encoder = SmartEncoder(str(tiny_bert), late=LateBlock(layer=layer), device="cpu")
        encoded = encode(encoder, text.dev)
        mode = "pooled" if told["layer"] is None else "late"
        plain = evaluate_encoded(encoded, text.dev.qrels, HybridBlock(), k=[10], bootstrap=10)
        assert plain.documents == 24
        pairs = [(q, d) for q, judged in text.dev.qrels.items() for d, grade in judged.items() if grade > 0]
        queries = encoder.encode_queries([text.dev.queries[q] for q, _ in pairs])
        documents = encoder.encode_documents([text.dev.corpus[d].content() for _, d in pairs])
        cosines = encoder.score(queries, documents, mode).diagonal().double().numpy()
        assert told["alignment"] == pytest.approx(float((2 - 2 * cosines).mean()), abs=2e-3)  # documents in float16
        assert told["uniformity"] < 0 and told["hubness"]["largest"] <= 8
    assert len({round(told["uniformity"], 6) for told in found.diagnostics}) == 5


def squeezed(scores: LayerScores) -> LayerScores:
    """The same order, as a model gives it whose cosines all lie in a narrow band: gte-small's are about 0.7 to 0.9."""
    for side in scores.splits.values():
        side.scores = np.array(side.scores)
        side.scores[0] = 0.80 + 0.05 * side.scores[0]
        side.scores[1:] = 0.60 + 0.40 * side.scores[1:]
    return scores


def test_standardised_readings_are_the_same_for_a_model_with_narrow_cosines(tiny_bert, text, text_scores, tmp_path):
    scores, layers = text_scores
    wide = probe(scores, layers, bootstrap=50)
    narrow = probe(squeezed(scored(tiny_bert, text, tmp_path)[0]), layers, bootstrap=50)
    raw_differ = 0
    for a, b in zip(wide.configurations, narrow.configurations, strict=True):
        same = np.allclose(a.values["test"], b.values["test"]) and np.allclose(a.values["dev"], b.values["dev"])
        if a.mode == "hybrid" and a.hybrid.scaling == "none":
            raw_differ += not same
        else:
            assert same, a.describe()
    assert raw_differ > 4  # a raw weight does not carry over


def test_the_test_split_has_no_say(text_scores):
    scores, layers = text_scores
    before = probe(scores, layers, bootstrap=50)
    side = scores.splits["test"]
    qrels, side.qrels = side.qrels, {query: {"d1": 1} for query in side.query_ids}
    try:
        after = probe(scores, layers, bootstrap=50)
    finally:
        side.qrels = qrels
    assert (before.best, before.candidate, before.chosen, before.p) == (
        after.best,
        after.candidate,
        after.chosen,
        after.p,
    )
    assert [one.hybrid for one in before.configurations] == [one.hybrid for one in after.configurations]
    assert before.gains["dev"] == after.gains["dev"] and before.gains["test"] != after.gains["test"]


def test_a_layer_whose_scores_do_not_vary_has_no_standardised_reading_and_is_told(tiny_bert, text, tmp_path, caplog):
    scores, layers = scored(tiny_bert, text, tmp_path)
    scores.splits["dev"].scores[2] = 0.5
    found = probe(scores, layers, weights=WEIGHTS, bootstrap=50)
    assert found.flat == [1] and "layers [1]: a score is the same for all pairs of dev" in caplog.text
    assert [one.hybrid.scaling for one in found.of_layer(1)] == ["none"] * 3
    assert len(found.of_layer(2)) == 5


# Choosing, on readings that are made up ------------------------------------------------------------------------------


def made(layer, mode: str, values: np.ndarray, weight: float = 1.0, scaling: str = "none") -> Configuration:
    span = {"value": float(values.mean()), "low": 0.0, "high": 1.0}
    hybrid = HybridBlock(late=weight, scaling=scaling)  # type: ignore[arg-type]
    return Configuration(layer, mode, hybrid, span, span, {"dev": values, "test": values})


POOLED = np.array([0.2, 0.4, 0.6, 0.8] * 10)


@pytest.mark.parametrize(
    ("better", "simpler"),
    [
        ((0, "hybrid", 0.3, 1.0, "none"), (-1, "hybrid", 0.3 - ENOUGH / 2, 8.0, "standardised")),
        ((-1, "hybrid", 0.3, 1.0, "standardised"), (-1, "hybrid", 0.3 - ENOUGH / 2, 8.0, "none")),
        ((-1, "hybrid", 0.3, 4.0, "none"), (-1, "hybrid", 0.3 - ENOUGH / 2, 2.0, "none")),
        ((-1, "late", 0.3, 1.0, "none"), (-1, "hybrid", 0.3 - ENOUGH / 2, 8.0, "standardised")),
        ((0, "late", 0.3, 1.0, "none"), (1, "late", 0.3 - ENOUGH / 2, 1.0, "none")),
        ((1, "hybrid", ENOUGH / 2, 1.0, "none"), (None, "pooled", 0.0, 1.0, "none")),
    ],
)
def test_within_a_tenth_of_a_point_the_simpler_reading_is_chosen_and_beyond_it_the_better(better, simpler):
    def reading(layer, mode, gain, weight, scaling):
        return made(layer, mode, POOLED + gain, weight, scaling)

    for readings in ([reading(*better), reading(*simpler)], [reading(*simpler), reading(*better)]):
        assert readings[_choose(readings, [0, 1, -1])].hybrid == reading(*simpler).hybrid
        assert readings[_choose(readings, [0, 1, -1])].layer == simpler[0]
    much = (*better[:2], better[2] + 2 * ENOUGH, *better[3:])
    readings = [reading(*simpler), reading(*much)]
    assert _choose(readings, [0, 1, -1]) == 1


def test_a_gain_beyond_noise_is_recommended_and_one_within_it_is_not():
    rng = np.random.default_rng(0)
    sure = made(-1, "hybrid", POOLED + 0.1 + rng.normal(0, 0.05, 40))
    unsure = made(-1, "hybrid", POOLED + 0.02 + np.tile([0.3, -0.3], 20))
    pooled = made(None, "pooled", POOLED)
    found = _decide([pooled, sure], [0, -1], 1000, 0)
    assert (found["best"], found["candidate"], found["chosen"]) == (1, 1, 1) and found["p"] == 1 / 1001
    found = _decide([pooled, unsure], [0, -1], 1000, 0)
    assert (found["candidate"], found["chosen"]) == (1, 0) and found["p"] > 0.05


def test_the_chance_is_that_of_a_plain_loop():
    rng = np.random.default_rng(3)
    pooled, values = rng.random(9), rng.random((4, 9))
    gains, draws = values - pooled, np.random.default_rng(5)
    chosen = int(gains.mean(1).argmax())
    gains = [[float(g) / (sum(float(h) ** 2 for h in row) / 9) ** 0.5 for g in row] for row in gains]
    at_least = 0
    for _ in range(3):
        for signs in draws.integers(0, 2, (100, 9), dtype=np.int8):
            best = max(sum(g * (1 if s else -1) for g, s in zip(row, signs, strict=True)) / 9 for row in gains)
            at_least += best >= sum(gains[chosen]) / 9 - 1e-12
    assert chance(values, pooled, chosen, draws=300, seed=5) == (at_least + 1) / 301
    assert chance(values, pooled, -1) == 1.0


def test_readings_that_scatter_wildly_do_not_hide_one_that_gains_steadily():
    rng = np.random.default_rng(1)
    pooled = rng.random(100)
    steady = pooled + 0.03 + rng.normal(0, 0.03, 100)
    wild = pooled + rng.normal(-0.1, 0.5, (30, 100))
    assert chance(np.vstack([steady, wild]), pooled, 0, draws=500) < 0.01


def test_who_looks_at_many_readings_is_seldom_fooled_by_the_best_of_them():
    """60 readings that are all noise around pooled: the best one's own p is small nearly always, this one is not."""
    rng = np.random.default_rng(7)
    fooled = naive = 0
    for trial in range(60):
        pooled = rng.random(50)
        values = pooled + rng.normal(0, 0.1, (60, 50))
        best = int(values.mean(1).argmax())
        fooled += chance(values, pooled, best, draws=200, seed=trial) < 0.05
        sides = ({str(i): float(v) for i, v in enumerate(side)} for side in (values[best], pooled))
        naive += paired(*sides, bootstrap=200, seed=trial)["p"] < 0.05
    assert fooled <= 8 and naive >= 40  # 3 expected at 5 %; nearly all of the naive ones
