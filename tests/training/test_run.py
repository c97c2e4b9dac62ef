"""A recipe's run in this process: figures that a plain count agrees with, a folder that is moved and never
overwritten, a resume that is the uninterrupted run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from smart_train.checks.recipe import check
from smart_train.config.recipe import read
from smart_train.config.schema import DataBlock, HybridBlock
from smart_train.evaluation.baseline import read_baseline, table_hashes
from smart_train.evaluation.evaluator import read_data as held_out
from smart_train.models.encoder import SmartEncoder
from smart_train.training.run import run


@pytest.fixture
def start(tmp_path, tiny_qwen3, beir_folder):
    """start(key=value ...) runs a plain YAML recipe (no boot line) and returns its folder and what run() returned."""
    recipe = {
        "name": "tiny",
        "output": str(tmp_path / "run"),
        "model": {"base": str(tiny_qwen3)},
        "adapter": {"r": 4},
        "data": {"path": str(beir_folder), "dev": 4},
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
        },
        "evaluation": {"bootstrap": 50, "k": [10]},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def begin(*overrides: str) -> tuple[Path, dict]:
        recipe = read(path, list(overrides))
        check(recipe)
        return tmp_path / "run", run(recipe)

    return begin


def ndcg(encoder: SmartEncoder, beir: Path, mode: str) -> float:
    """nDCG@10 with linear gain, counted by hand over the whole corpus."""
    corpus = [json.loads(line) for line in (beir / "corpus.jsonl").read_text().splitlines()]
    texts = [f"{row['title']} {row['text']}" for row in corpus]
    queries = {row["_id"]: row["text"] for row in map(json.loads, (beir / "queries.jsonl").read_text().splitlines())}
    wanted: dict[str, set[str]] = {}
    for line in (beir / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, _ = line.split("\t")
        wanted.setdefault(query, set()).add(document)
    scores = encoder.score([queries[q] for q in wanted], texts, mode=mode)
    values = []
    for row, relevant in zip(scores, wanted.values(), strict=True):
        best = [corpus[at]["_id"] for at in row.argsort(descending=True)[:10].tolist()]
        gained = sum(1 / math.log2(rank + 2) for rank, document in enumerate(best) if document in relevant)
        values.append(gained / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(relevant)))))
    return sum(values) / len(values)


def test_the_table_holds_what_a_plain_count_finds(start, tiny_qwen3, beir_folder):
    """Base and trained row, all three scores, the hybrid with the weights calibrated on dev."""
    output, returned = start()
    figures = json.loads((output / "metrics.json").read_text())
    assert figures == returned
    rows = json.loads((output / "evaluation.json").read_text())["rows"]
    base = SmartEncoder(str(tiny_qwen3), device="cpu")
    base.late.hybrid = HybridBlock(**rows["base"]["hybrid"])
    trained = SmartEncoder.from_pretrained(output / "adapter", device="cpu")
    for row, encoder in (("base", base), ("trained", trained)):
        for mode in ("pooled", "late", "hybrid"):
            found = figures[row][mode]["ndcg@10"]["value"]
            assert found == pytest.approx(ndcg(encoder, beir_folder, mode), abs=1e-6), (row, mode)
    # And as a baseline it is held against the same data, which its recipe names.
    same = held_out(DataBlock(path=str(beir_folder), dev=4), "test", held_out=True).collection
    assert read_baseline(output).tables == table_hashes(same)


def test_the_calibrated_hybrid_is_stored_with_the_adapter(start):
    output, _ = start("late.hybrid.scaling=standardised")
    rows = json.loads((output / "evaluation.json").read_text())["rows"]
    stored = SmartEncoder.from_pretrained(output / "adapter", device="cpu").late.hybrid
    assert stored == HybridBlock(**rows["trained"]["hybrid"])
    assert stored.scaling == "standardised" and 0 < stored.pooled_std < 1 and stored.late_mean > 0


def test_a_late_weight_of_the_recipe_that_calibration_replaces_is_told(start, caplog):
    short = ("training.max_steps=1", "evaluation.before=false")
    told = "replaces late.hybrid.late"
    with caplog.at_level("INFO"):
        output, _ = start(*short)
    assert told not in caplog.text  # the recipe named none
    chosen = SmartEncoder.from_pretrained(output / "adapter", device="cpu").late.hybrid.late
    with caplog.at_level("INFO"):
        start(*short, "late.hybrid.late=3.5")  # no weight of the grid
    line = f"trained: the calibrated weight {chosen:g} {told}: 3.5; evaluation.calibrate: false keeps it"
    assert caplog.text.count(told) == 1 and line in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        start(*short, f"late.hybrid.late={chosen}")
    assert told not in caplog.text


def test_without_calibration_the_weights_are_the_recipes(start):
    output, _ = start("evaluation.calibrate=false", "late.hybrid.late=3.0")
    stored = SmartEncoder.from_pretrained(output / "adapter", device="cpu").late.hybrid
    assert stored == HybridBlock(late=3.0)


def test_a_run_that_logged_no_loss_ends_without_a_chart_and_says_so(start, caplog):
    quiet = ("training.logging_first_step=false", "evaluation.during=false")
    with caplog.at_level("INFO", logger="smart_train"):
        folder, metrics = start("training.max_steps=1", "training.logging_steps=50", *quiet)
    assert metrics["trained"] and (folder / "metrics.json").is_file() and (folder / "adapter").is_dir()
    assert not (folder / "curve.png").exists()
    [line] = [record for record in caplog.records if record.getMessage().startswith("no chart: ")]
    assert line.levelname == "WARNING" and "log.jsonl: nothing to draw" in line.getMessage()


def test_an_earlier_run_is_moved_aside_and_kept(start, tmp_path):
    output, first = start()
    again, _ = start("training.max_steps=1")
    assert again == output
    assert json.loads((tmp_path / "run.1" / "metrics.json").read_text()) == first
    steps = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert max(steps) == 1


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(start):
    keep = ("training.max_steps=4", "training.save_strategy=steps", "training.save_steps=2")
    output, whole = start(*keep)
    expected = load_file(output / "adapter" / "adapter_model.safetensors")
    checkpoint = output / "checkpoints" / "checkpoint-2"
    output, resumed = start(*keep, f"training.resume_from_checkpoint={checkpoint}")
    found = load_file(output / "adapter" / "adapter_model.safetensors")
    assert not output.with_name("run.1").exists()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)
    assert resumed["trained"] == whole["trained"]


def test_the_run_says_what_it_was_made_of(start, beir_folder):
    output, _ = start("adapter.r=2")
    recipe = yaml.safe_load((output / "recipe.yaml").read_text())
    assert recipe["adapter"]["r"] == 2 and recipe["data"]["path"] == str(beir_folder)
    text = (output / "versions.json").read_text()
    assert "transformers" in text and len([w for w in json.dumps(json.loads(text)).split('"') if len(w) == 64]) >= 3


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(start):
    tensors = []
    for seed in (1, 1, 2):
        output, _ = start(f"training.seed={seed}", "evaluation.before=false", "evaluation.after=false")
        tensors.append(load_file(output / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert any(not torch.equal(tensors[0][name], tensors[2][name]) for name in tensors[0])


def test_negatives_are_mined_with_what_is_being_trained(start, caplog):
    """Before the first step and after the first of two: two rounds on the disk, none of a query's own answers in them,
    and the batches have as many negatives as asked for."""
    output, _ = start("mining.rounds=1", "mining.start=true", "mining.max_relative=null", "data.negatives=2")
    rounds = {file.stem: json.loads(file.read_text()) for file in (output / "negatives").glob("step-*.json")}
    assert sorted(rounds) == ["step-0", "step-1"] and rounds["step-0"] != rounds["step-1"]
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert sum("mining/negatives" in line for line in lines) == 2  # each round is mined once
    drawn = [line["batch/negatives"] for line in lines if "loss/late" in line]
    assert drawn and all(count == 2 * 4 for count in drawn)


def test_a_batch_in_chunks_is_the_batch_in_one_pass(start):
    """objective.batch with chunks of rows and of tokens: the same adapter as per_device_train_batch_size."""
    plain, _ = start("training.per_device_train_batch_size=6", "data.length_groups=1")
    expected = load_file(plain / "adapter" / "adapter_model.safetensors")
    for chunks in (["objective.chunk_rows=2"], ["objective.chunk_tokens=40"]):
        cached, _ = start("training.per_device_train_batch_size=null", "objective.batch=6", *chunks)
        found = load_file(cached / "adapter" / "adapter_model.safetensors")
        assert found.keys() == expected.keys()
        # Adam's first steps turn rounding of gradients near zero into steps, so directions are compared, not bits
        ours, theirs = (torch.cat([t.flatten() for _, t in sorted(side.items())]) for side in (found, expected))
        assert torch.cosine_similarity(ours, theirs, dim=0) > 0.999
