"""Every field of transformers' TrainingArguments is honoured, refused, or told where a run has no use for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback

from smart_train.config.recipe import read
from smart_train.config.training_arguments import check_idle
from smart_train.config.training_fields import HONOURED, IDLE, REFUSED, SET_BY_OTHERS, page, without_effect
from smart_train.config.typed_values import RecipeError
from smart_train.core.errors import SettingError
from smart_train.data.batch_sampler import PairGroups
from smart_train.training import rehearsal
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.callbacks import trackers
from smart_train.training.dataloader import plan_batches, train_loader
from smart_train.training.optimizer import steps_of
from smart_train.training.trainer import SmartTrainer

ROOT = Path(__file__).parents[2]
FIELDS = [field.name for field in dataclasses.fields(SmartTrainingArguments)]
EFFECTIVE = {name: text for fields in HONOURED.values() for name, text in fields.items()}


def arguments(tmp_path: Path, cls: type = SmartTrainingArguments, **block: Any) -> Any:
    return cls(**{"output_dir": str(tmp_path / "out"), "use_cpu": True, "disable_tqdm": True, **block})


def test_the_table_has_every_field_of_training_arguments_once():
    """A new version of transformers that brings another field fails here until it is classified."""
    assert sorted([*EFFECTIVE, *REFUSED]) == sorted(FIELDS)
    assert sum(map(len, HONOURED.values())) == len(EFFECTIVE)
    assert set(IDLE) <= set(EFFECTIVE) and set(REFUSED) >= SET_BY_OTHERS


def test_the_page_shows_the_table():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf8")
    assert text == page(text), "run python -m smart_train.config.training_fields docs/training.md"


# -- honoured: each changes something that is built


def optimizer_and_schedule(args: Any, tmp_path: Path) -> Any:
    return rehearsal._described(args)


def length(args: Any, tmp_path: Path) -> Any:
    return steps_of(args, 12)


def decisions(args: Any, tmp_path: Path) -> Any:
    """What is logged, ranked and saved after each of twelve steps, six an epoch."""
    flow, found = DefaultFlowCallback(), []
    state = TrainerState(max_steps=12, num_train_epochs=2)
    state.compute_steps(args, 12)
    for step in range(1, 13):
        state.global_step, state.epoch, control = step, step / 6, TrainerControl()
        flow.on_step_end(args, state, control)
        if step % 6 == 0:
            flow.on_epoch_end(args, state, control)
        found.append((control.should_log, control.should_evaluate, control.should_save))
    return found


def batches(args: Any, tmp_path: Path) -> Any:
    """The loader of planned batches and its first batch."""
    numbers = np.arange(30)
    groups = PairGroups(numbers, {"all": numbers}, np.zeros(30, dtype=np.int64))
    loader: Any = train_loader(list(range(30)), plan_batches(groups, args), list, args, Accelerator(cpu=True))
    names = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "in_order")
    context = getattr(loader.multiprocessing_context, "_name", None)
    plan = list(loader.batch_sampler)
    return [getattr(loader, name, None) for name in names], context, plan


def trainer(args: Any, tmp_path: Path) -> Any:
    """What transformers makes of the arguments before the first step."""
    with rehearsal._fresh_accelerator(), rehearsal.untouched_random_states():
        made = rehearsal._Rehearsal(rehearsal.StandIn(), args)
        accelerator = made.accelerator
        ddp = [vars(handler) for handler in made._build_accelerator_args()["kwargs_handlers"]]
        return [
            accelerator.mixed_precision,
            accelerator.gradient_accumulation_steps,
            accelerator.dataloader_config.non_blocking,
            made._memory_tracker.skip_memory_metrics,
            repr(ddp),
            args.ddp_timeout_delta,
            args.get_process_log_level(),
            args.should_save,
            args.dataloader_pin_memory,
            repr(args.fsdp_plugin_args),
            torch.initial_seed(),
        ]


def deterministic(args: Any, tmp_path: Path) -> Any:
    with rehearsal._fresh_accelerator(), rehearsal.untouched_random_states():
        rehearsal._Rehearsal(rehearsal.StandIn(), args)
        used = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
        return used


def step(args: Any, tmp_path: Path) -> Any:
    """What one step of a stand-in does: calls, and weights after it."""
    called, patched = [], pytest.MonkeyPatch()
    with patched.context() as patch, rehearsal.untouched_random_states():
        patch.setattr("transformers.trainer.clear_device_cache", lambda: called.append("cache"))
        patch.setattr("transformers.trainer.DebugUnderflowOverflow", lambda model: called.append("debug"))
        enable, clip = rehearsal.StandIn.activation_checkpointing_enable, torch.nn.utils.clip_grad_norm_
        patch.setattr(
            rehearsal.StandIn,
            "activation_checkpointing_enable",
            lambda self, **options: called.append(repr(options)) or enable(self, **options),
        )
        patch.setattr(
            "torch.nn.utils.clip_grad_norm_",
            lambda parameters, norm, *rest, **more: (
                called.append(f"clip {norm}") or clip(parameters, norm, *rest, **more)
            ),
        )
        rehearsal._one_step(args)
    return called


def survives(args: Any, tmp_path: Path) -> bool:
    """Whether a step goes on after its batch did not fit."""

    class TooLarge(rehearsal.StandIn):
        def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
            if len(rows) > 1:
                raise RuntimeError("CUDA out of memory.")
            return super().forward(rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "StandIn", TooLarge)
        try:
            rehearsal._one_step(args)
        except RuntimeError:
            return False
    return True


def resumed(args: Any, tmp_path: Path) -> Any:
    state = TrainerState(global_step=4, train_batch_size=8)
    state.save_to_json(str(tmp_path / "trainer_state.json"))
    with rehearsal._fresh_accelerator(), rehearsal.untouched_random_states():
        made = rehearsal._Rehearsal(rehearsal.StandIn(), args)
        return made._init_training_state(9, 3, 3, str(tmp_path), None)


def tracker(args: Any, tmp_path: Path) -> Any:
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trackers, "TrackioTracker", lambda project, **options: made.append((project, options)) or Silent()
        )
        trackers.Trackers(["trackio"], {}, tmp_path)._start("trackio", args)
    return made


class Silent:
    def start(self) -> None:
        pass


class Other(SmartTrainingArguments):
    """The first rank of a second machine."""

    process_index = 8
    local_process_index = 0


class Replica(SmartTrainingArguments):
    """The second rank of a machine."""

    process_index = 1
    local_process_index = 1


Probe = Callable[[Any, Path], Any]
SHOWN: dict[str, tuple[Probe, dict[str, Any], dict[str, Any]]] = {  # field -> (probe, beside what, another value)
    "learning_rate": (optimizer_and_schedule, {}, {"learning_rate": 1e-3}),
    "head_learning_rate": (optimizer_and_schedule, {}, {"head_learning_rate": 1e-3}),
    "optim": (optimizer_and_schedule, {}, {"optim": "sgd"}),
    "optim_args": (optimizer_and_schedule, {"optim": "sgd"}, {"optim_args": "momentum=0.9"}),
    "weight_decay": (optimizer_and_schedule, {}, {"weight_decay": 0.1}),
    "adam_beta1": (optimizer_and_schedule, {}, {"adam_beta1": 0.8}),
    "adam_beta2": (optimizer_and_schedule, {}, {"adam_beta2": 0.99}),
    "adam_epsilon": (optimizer_and_schedule, {}, {"adam_epsilon": 1e-6}),
    "lr_scheduler_type": (optimizer_and_schedule, {}, {"lr_scheduler_type": "linear"}),
    "lr_scheduler_kwargs": (optimizer_and_schedule, {}, {"lr_scheduler_kwargs": {"num_cycles": 2.5}}),
    "warmup_steps": (optimizer_and_schedule, {}, {"warmup_steps": 5}),
    "max_steps": (length, {}, {"max_steps": 4}),
    "num_train_epochs": (length, {}, {"num_train_epochs": 2}),
    "gradient_accumulation_steps": (length, {}, {"gradient_accumulation_steps": 3}),
    "per_device_train_batch_size": (batches, {}, {"per_device_train_batch_size": 4}),
    "seed": (batches, {}, {"seed": 1}),
    "data_seed": (batches, {}, {"data_seed": 1}),
    "dataloader_drop_last": (batches, {}, {"dataloader_drop_last": False}),
    "dataloader_num_workers": (batches, {}, {"dataloader_num_workers": 2}),
    "dataloader_pin_memory": (batches, {"use_cpu": False}, {"dataloader_pin_memory": False}),
    "dataloader_persistent_workers": (
        batches,
        {"dataloader_num_workers": 2},
        {"dataloader_persistent_workers": True},
    ),
    "dataloader_prefetch_factor": (batches, {"dataloader_num_workers": 2}, {"dataloader_prefetch_factor": 7}),
    "dataloader_multiprocessing_context": (
        batches,
        {"dataloader_num_workers": 2},
        {"dataloader_multiprocessing_context": "spawn"},
    ),
    "dataloader_in_order": (batches, {"dataloader_num_workers": 2}, {"dataloader_in_order": False}),
    "accelerator_config": (trainer, {}, {"accelerator_config": {"non_blocking": True}}),
    "bf16": (trainer, {}, {"bf16": True}),
    "fp16": (lambda args, _: args.mixed_precision, {}, {"fp16": True}),
    "skip_memory_metrics": (trainer, {}, {"skip_memory_metrics": False}),
    "use_cpu": (trainer, {"use_cpu": False}, {"use_cpu": True}),
    "log_level": (trainer, {"log_level": "warning"}, {"log_level": "error"}),
    "log_level_replica": (trainer, {"cls": Replica}, {"log_level_replica": "error"}),
    "log_on_each_node": (trainer, {"cls": Other, "log_level": "error"}, {"log_on_each_node": False}),
    "save_on_each_node": (trainer, {"cls": Other}, {"save_on_each_node": True}),
    "ddp_find_unused_parameters": (trainer, {}, {"ddp_find_unused_parameters": False}),
    "ddp_bucket_cap_mb": (trainer, {}, {"ddp_bucket_cap_mb": 7}),
    "ddp_broadcast_buffers": (trainer, {}, {"ddp_broadcast_buffers": False}),
    "ddp_static_graph": (trainer, {}, {"ddp_static_graph": True}),
    "ddp_timeout": (trainer, {}, {"ddp_timeout": 7}),
    "fsdp_config": (lambda args, _: args.fsdp_config, {}, {"fsdp_config": {"fsdp_version": 2}}),
    "full_determinism": (deterministic, {}, {"full_determinism": True}),
    "max_grad_norm": (step, {}, {"max_grad_norm": 0.5}),
    "torch_empty_cache_steps": (step, {}, {"torch_empty_cache_steps": 1}),
    "debug": (step, {}, {"debug": "underflow_overflow"}),
    "activation_checkpointing": (step, {}, {"activation_checkpointing": True}),
    "activation_checkpointing_kwargs": (
        step,
        {"activation_checkpointing": True},
        {"activation_checkpointing_kwargs": {"use_reentrant": True}},
    ),
    "auto_find_batch_size": (survives, {}, {"auto_find_batch_size": True}),
    "logging_strategy": (decisions, {}, {"logging_strategy": "epoch"}),
    "logging_steps": (decisions, {}, {"logging_steps": 2}),
    "logging_first_step": (decisions, {}, {"logging_first_step": False}),
    "eval_strategy": (decisions, {}, {"eval_strategy": "epoch"}),
    "eval_steps": (decisions, {"eval_strategy": "steps", "eval_steps": 3}, {"eval_steps": 2}),
    "eval_delay": (decisions, {"eval_strategy": "steps", "eval_steps": 2}, {"eval_delay": 5}),
    "save_strategy": (decisions, {}, {"save_strategy": "epoch"}),
    "save_steps": (decisions, {}, {"save_steps": 2}),
    "ignore_data_skip": (resumed, {}, {"ignore_data_skip": True}),
    "run_name": (tracker, {}, {"run_name": "mine"}),
    "project": (tracker, {}, {"project": "mine"}),
    "trackio_space_id": (tracker, {}, {"trackio_space_id": "me/mine"}),
    "trackio_bucket_id": (tracker, {}, {"trackio_bucket_id": "me/mine"}),
}
TESTED = {  # field -> the file of the tests that show what it does in a whole training
    "report_to": "training/test_trackers.py",
    "disable_tqdm": "training/test_progress.py",
    "eval_on_start": "training/test_early_stopping.py",
    "save_total_limit": "training/test_checkpoints.py",
    "save_only_model": "training/test_checkpoints.py",
    "load_best_model_at_end": "training/test_early_stopping.py",
    "metric_for_best_model": "training/test_early_stopping.py",
    "greater_is_better": "training/test_trainer.py",
    "resume_from_checkpoint": "training/test_resume.py",
    "ddp_backend": "training/test_rehearsal.py",
    "fsdp": "training/test_rehearsal.py",
    "deepspeed": "training/test_launch_files.py",
}


@pytest.mark.parametrize("name", [name for name in EFFECTIVE if name not in TESTED and name != "tf32"])
def test_an_honoured_field_changes_what_is_built(name, tmp_path):
    probe, beside, other = SHOWN[name]
    plain, changed = (probe(arguments(tmp_path, **block), tmp_path) for block in (beside, {**beside, **other}))
    again = probe(arguments(tmp_path, **beside), tmp_path)
    assert plain == again, "the probe itself is steady"
    assert plain != changed


def test_tf32_is_for_a_gpu_that_has_it(tmp_path):
    if torch.cuda.is_available():
        arguments(tmp_path, tf32=True)
        assert torch.backends.cuda.matmul.allow_tf32
    else:
        with pytest.raises(ValueError, match="tf32"):
            arguments(tmp_path, tf32=True)


def test_the_other_fields_are_in_tests_of_whole_trainings():
    for name, file in TESTED.items():
        assert name in (ROOT / "tests" / file).read_text(encoding="utf8"), name


# -- refused


@pytest.mark.parametrize("name", REFUSED)
def test_a_recipe_that_sets_a_refused_field_is_told_what_to_write(name, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"training:\n  max_steps: 2\n  {name}: true\n")
    with pytest.raises(RecipeError) as refused:
        read(file)
    assert f"recipe.yaml, line 3: training.{name}" in str(refused.value) and REFUSED[name] in str(refused.value)


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in SET_BY_OTHERS])
def test_arguments_in_python_are_refused_too(name, tmp_path):
    args = arguments(tmp_path)
    check_idle(args)
    setattr(args, name, not getattr(args, name) if isinstance(getattr(args, name), bool) else "another")
    with pytest.raises(SettingError, match=rf"training.{name}: is .*, which changes nothing; "):
        check_idle(args)


def test_arguments_that_transformers_sets_itself_are_no_ones_wish(tmp_path):
    check_idle(arguments(tmp_path, eval_strategy="steps", eval_steps=5, activation_checkpointing=True))
    check_idle(arguments(tmp_path, cls=TrainingArguments))


def test_the_trainer_refuses_them_before_it_looks_at_the_model(tmp_path):
    with pytest.raises(SettingError, match="label_smoothing_factor: is 0.1, which changes nothing; remove it"):
        SmartTrainer(None, arguments(tmp_path, label_smoothing_factor=0.1))


# -- without effect in a run

NOTHING = {
    "num_train_epochs": {"max_steps": 5, "num_train_epochs": 2},
    "activation_checkpointing_kwargs": {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    "save_total_limit": {"save_strategy": "no", "save_total_limit": 3},
    "logging_steps": {"logging_strategy": "epoch", "logging_steps": 3},
    "eval_delay": {"eval_delay": 3},
    "eval_on_start": {"eval_on_start": True},
    "run_name": {"run_name": "mine"},
    "ddp_bucket_cap_mb": {"ddp_bucket_cap_mb": 7},
    "fsdp_config": {"fsdp_config": {"fsdp_version": 2}},
    "dataloader_in_order": {"dataloader_in_order": False},
    "greater_is_better": {"greater_is_better": True},
    "ignore_data_skip": {"ignore_data_skip": True},
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_key_that_a_run_has_no_use_for_is_named_with_the_reason(name, tmp_path):
    block = NOTHING[name]
    found = dict(without_effect(arguments(tmp_path, **block), block))
    assert list(found) == [name] and found[name] == IDLE[name][1]


def test_a_key_that_the_run_uses_is_not_named(tmp_path):
    block = {"num_train_epochs": 2, "eval_strategy": "steps", "eval_steps": 2, "eval_delay": 2, "save_total_limit": 1}
    block |= {"activation_checkpointing": True, "activation_checkpointing_kwargs": {}, "logging_steps": 3}
    assert not list(without_effect(arguments(tmp_path, **block), block))


BESIDE = {
    "adam_beta1": {"optim": "sgd", "adam_beta1": 0.8},
    "adam_epsilon": {"optim": "adafactor", "adam_epsilon": 1e-6},
    "optim_args": {"optim_args": "nonsense=1"},
    "optim_args, misspelt": {"optim": "sgd", "optim_args": "momentom=0.9"},
    "warmup_steps": {"lr_scheduler_type": "constant", "warmup_steps": 3},
    "lr_scheduler_kwargs": {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"num_cycles": 2}},
}


@pytest.mark.parametrize("case", BESIDE)
def test_a_key_that_optimizer_and_schedule_ignore_is_refused(case, tmp_path):
    with pytest.raises(SettingError, match=rf"training.{case.split(',')[0]}: is .* which changes nothing beside"):
        rehearsal.rehearse(arguments(tmp_path, **BESIDE[case]), 10, BESIDE[case])


def test_a_default_that_is_written_out_is_no_fault(tmp_path):
    block = json.loads('{"optim": "sgd", "adam_beta1": 0.9, "lr_scheduler_type": "constant", "warmup_steps": 0}')
    rehearsal.rehearse(arguments(tmp_path, **block), 10, block)
