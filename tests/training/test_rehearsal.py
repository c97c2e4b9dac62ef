"""Settings that training cannot begin with are refused by name before the base is loaded; the rehearsal that finds them
changes nothing of the run."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from smart_train.checks.recipe import check
from smart_train.cli.main import main
from smart_train.config.recipe import read
from smart_train.core.errors import SmartTrainError
from smart_train.training import run as run_module
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.optimizer import steps_of
from smart_train.training.rehearsal import rehearse, warn_of_warmup

OPTIMIZER = {
    "optim": ["training.optim=adamw_bnb_8bit"],
    "optim, low rank": ["training.optim=galore_adamw"],
    "optim, in the backward": ["training.optim=lomo"],
    "optim_args": ["training.optim_args=nonsense"],
    "optim_args, value": ["training.optim=sgd", "training.optim_args=momentum=lots"],
    "adam_beta1": ["training.adam_beta1=2.0"],
    "adam_epsilon": ["training.adam_epsilon=-1.0"],
}
SCHEDULER = {
    "lr_scheduler_kwargs": ["training.lr_scheduler_kwargs={nonsense: 1}"],
    "lr_scheduler_kwargs, value": [
        "training.lr_scheduler_type=polynomial",
        "training.lr_scheduler_kwargs={lr_end: 1.0}",
    ],
    "lr_scheduler_type": ["training.lr_scheduler_type=warmup_stable_decay"],
    "lr_scheduler_type, unknown": ["training.lr_scheduler_type=nonsense"],
    "warmup_steps": ["training.warmup_steps=-1"],
}
LOADER = {
    "dataloader_persistent_workers": ["training.dataloader_persistent_workers=true"],
    "dataloader_prefetch_factor": ["training.dataloader_prefetch_factor=2"],
    "dataloader_multiprocessing_context": ["training.dataloader_multiprocessing_context=fork"],
    "accelerator_config": ["training.accelerator_config={split_batches: true}"],
    "accelerator_config, dispatch": ["training.accelerator_config={dispatch_batches: true}"],
    "per_device_train_batch_size": ["training.per_device_train_batch_size=1000"],
}
STEP = {
    "accelerator_config, unknown": ["training.accelerator_config={nonsense: true}"],
    "accelerator_config, inside": ["training.accelerator_config={gradient_accumulation_kwargs: {nonsense: 1}}"],
    "activation_checkpointing_kwargs": [
        "training.activation_checkpointing=true",
        "training.activation_checkpointing_kwargs={nonsense: 1}",
    ],
    "torch_compile_backend": ["training.torch_compile_backend=nonsense"],
    "fp16": ["training.fp16=true"],
    "seed": ["training.seed=-1"],
    "log_level": ["training.log_level=nonsense"],
    "fsdp": ["training.fsdp=nonsense"],
    "ddp_backend": ["training.ddp_backend=nonsense"],
    "deepspeed": ["training.deepspeed=missing.json"],
    "report_to": ["training.report_to=comet_ml"],
    "callbacks": ["training.callbacks=['collections:OrderedDict']"],
}
KINDS = {"optimizer": OPTIMIZER, "scheduler": SCHEDULER, "loader": LOADER, "step": STEP}
CASES = [(key, words) for kind in KINDS.values() for key, words in kind.items()]


@pytest.fixture(scope="module")
def recipe_file(tiny_bert, triples_file, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsed")
    recipe = {
        "output": str(folder / "run"),
        "model": {"base": str(tiny_bert)},
        "adapter": {"r": 4},
        "data": {"path": str(triples_file), "dev": 3, "test": 3},
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.01,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
        },
        "evaluation": {"bootstrap": 10, "k": [10]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.fixture
def no_model(monkeypatch):
    """Whoever loads a model fails the test."""

    def load(*args, **options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(run_module, "SmartEncoder", load)


@pytest.mark.parametrize(("key", "words"), CASES, ids=[key for key, _ in CASES])
def test_a_setting_that_training_cannot_begin_with_is_refused_by_name_before_a_model_is_loaded(
    recipe_file, no_model, key, words
):
    with pytest.raises(SmartTrainError) as refused:
        recipe = read(recipe_file, words)
        check(recipe)
        run_module.run(recipe)
    assert refused.value.status == 2
    named = key.split(",")[0] if "batch_size" in key else f"training.{key.split(',')[0]}: "
    assert named in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_ends_with_status_2_and_one_sentence(recipe_file, no_model, capsys, kind):
    key, words = next(iter(KINDS[kind].items()))
    assert main(["train", str(recipe_file), *words]) == 2
    printed = capsys.readouterr().err
    assert f"training.{key.split(',')[0]}: " in printed and "Traceback" not in printed


def test_data_of_one_document_are_refused_before_a_model_is_loaded(recipe_file, no_model, tmp_path):
    rows = "\n".join(f'{{"query": "number {n}", "positive": "the same text"}}' for n in range(24))
    (tmp_path / "rows.jsonl").write_text(rows)
    words = [f"data.path={tmp_path}/rows.jsonl", "data.dev=0", "data.test=0", "evaluation.after=false"]
    with pytest.raises(SmartTrainError, match="in which no document comes twice") as refused:
        run_module.run(read(recipe_file, [*words, "evaluation.before=false"]))
    assert refused.value.status == 2


@pytest.mark.parametrize(("steps", "told"), [(99, True), (100, False), (101, False)])
def test_a_warmup_that_is_longer_than_the_run_is_told(tmp_path, caplog, steps, told):
    args = SmartTrainingArguments(str(tmp_path), use_cpu=True, warmup_steps=100)
    warn_of_warmup(args, steps)
    assert ("training.warmup_steps is 100, and the run has 99 steps" in caplog.text) == told


# -- it changes nothing


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"optim": "adafactor", "lr_scheduler_type": "linear", "warmup_steps": 0.5},
        {"gradient_accumulation_steps": 4, "dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        {"activation_checkpointing": True, "bf16": True, "max_grad_norm": 0.0},
        {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "a"},
        {"full_determinism": False, "seed": 7, "save_strategy": "epoch", "report_to": ["tensorboard"]},
    ],
    ids=lambda block: ", ".join(block) or "defaults",
)
def test_the_rehearsal_draws_no_random_number_writes_no_file_and_changes_no_argument(tmp_path, block):
    args = SmartTrainingArguments(str(tmp_path / "out"), use_cpu=True, max_steps=10, save_steps=1, **block)
    before = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        copy.copy(vars(args)),
    )
    rehearse(args, 10, block)
    after = (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
        copy.copy(vars(args)),
    )
    assert before == after
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_with_and_without_the_rehearsal_saves_the_same_bytes(recipe_file, monkeypatch, tmp_path):
    saved = []
    for name, rehearsal in (("with", rehearse), ("without", lambda *args: None)):
        monkeypatch.setattr(run_module, "rehearse", rehearsal)
        words = ["evaluation.before=false", "evaluation.after=false", "training.max_steps=1"]
        run_module.run(read(recipe_file, [f"output={tmp_path / name}", *words]))
        saved.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert saved[0] == saved[1]


@pytest.mark.parametrize(
    ("block", "batches", "steps"),
    [
        ({"max_steps": 7}, 100, 7),
        ({"num_train_epochs": 3}, 10, 30),
        ({"num_train_epochs": 1.5}, 5, 8),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 4}, 10, 6),
        ({"num_train_epochs": 1, "gradient_accumulation_steps": 8}, 3, 1),
    ],
)
def test_the_steps_of_a_run_are_those_of_transformers(tmp_path, block, batches, steps):
    assert steps_of(SmartTrainingArguments(str(tmp_path), use_cpu=True, **block), batches) == steps
