"""docs/metrics.md names every key of log.jsonl and metrics.json, and no other."""

from __future__ import annotations

import json
import re

import pytest
import torch
from pages import ROOT
from tiny_data import write_triples

from smart_train import Embeddings, SmartEncoder, SmartTrainer, Tokens, TrainingArguments, losses

PAGE = (ROOT / "docs/metrics.md").read_text(encoding="utf8")
WORDS = {
    "MODE": "(?:pooled|late|hybrid)",
    "K": r"\d+",
    "TERM": "(?:pooled|late|hybrid|self_distillation|teacher|diversity|overlap)",
    "METRIC": "[a-z_]+",
    "NAME": r"\w+",
}
RARE = {  # keys that only special runs write -> the constant in the sources that writes them
    "gather/MiB": '"gather/MiB"',
    "mining/lost": '"mining/lost"',
    "dev/constant": '"eval_constant"',
    "dev/NAME_MODE/ndcg@K": "eval_NAME_pooled/ndcg@10",
}


def keys(section: str) -> list[str]:
    """The keys in the first column of a section's table; in the second of the one on metrics.json."""
    column = 0 if section == "log.jsonl" else 1
    body = PAGE.split(f"## {section}")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ")]
    found = [key for row in rows for key in re.findall(r"`([^`]+)`", row[column])]
    return [*found, *(["dev/NAME_MODE/ndcg@K"] if section == "log.jsonl" else [])]


def pattern(key: str) -> re.Pattern[str]:
    made = re.escape(key)
    for word, values in WORDS.items():
        made = re.sub(rf"(?<![A-Za-z]){word}(?![A-Za-z])", lambda _, values=values: values, made)
    return re.compile(made)


def unknown(found: set[str], section: str) -> set[str]:
    known = [pattern(key) for key in keys(section)]
    return {key for key in found if not any(one.fullmatch(key) for one in known)}


def every_term() -> losses.Joint:
    return losses.Joint(
        losses.Pooled(false_negatives=0.95),
        losses.Late(temperature=0.02),
        losses.Hybrid(weight=0.5),
        losses.SelfDistillation(preset="bge_m3"),
        losses.Diversity(weight=0.1),
        losses.Overlap(weight=0.1),
    )


def test_what_a_loss_logs_is_named():
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=1)
    views = Embeddings(unit[:3], Tokens(unit, torch.tensor([2, 2, 2])))
    labels = losses.Labels(torch.eye(3, dtype=torch.bool), positives=torch.arange(3).repeat(2, 1).T)
    parts = every_term()(views, views, labels).parts
    assert {"loss/overlap", "accuracy/late", "self_distillation/late"} <= set(parts)
    assert not unknown(set(parts), "log.jsonl")


def test_a_key_that_is_not_named_would_be_noticed():
    assert unknown({"speed/rows_per_second", "loss/late", "dev/late/ndcg@10"}, "log.jsonl") == {"speed/rows_per_second"}


def test_keys_that_the_sources_spell_out_are_named():
    names = re.compile(r'"((?:speed|memory|gather|mining|best|batch)/[A-Za-z_]+)"')
    found = {name for path in (ROOT / "smart_train/training").rglob("*.py") for name in names.findall(path.read_text())}
    assert {"speed/padding", "memory/gib", "gather/MiB", "best/step", "mining/lost", "batch/skipped"} <= found
    assert not unknown(found, "log.jsonl")


@pytest.mark.slow
def test_a_run_writes_the_keys_of_the_page_and_no_others(tiny_bert, tmp_path):
    rows = [json.loads(line) for line in write_triples(tmp_path / "triples.jsonl").read_text().splitlines()]
    arguments = TrainingArguments(
        tmp_path / "run", max_steps=4, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2, use_cpu=True
    )
    arguments.logging_steps = 2
    trainer = SmartTrainer(
        SmartEncoder(str(tiny_bert), lora={"r": 4}),
        arguments,
        rows,
        eval_dataset=rows[:6],
        loss=every_term(),
        objective={"skip_nonfinite": 1},
        mining={"rounds": 1, "max_relative": None},
    )
    trainer.train()
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    found = {key for line in lines for key in json.loads(line)}
    assert not unknown(found, "log.jsonl")
    silent = [key for key in keys("log.jsonl") if not any(pattern(key).fullmatch(one) for one in found)]
    sources = "".join(path.read_text() for path in (ROOT / "smart_train/training").rglob("*.py"))
    assert all(RARE[key] in sources for key in silent), silent
