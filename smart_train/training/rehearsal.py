"""Rehearse a training before anything slow: build its optimizer, scheduler and loader, and take one step of a stand-in.

The stand-in is a BERT of one layer with a head, trained by transformers' Trainer with the run's own arguments.  It
costs a twentieth of a second whatever the base, takes no memory, and fails for no reason that the base would not have,
since both share the block ``training`` alone.  What belongs to the base itself shows later, and costs no figure: rows
that were measured are kept (see measured_rows.py).
"""

from __future__ import annotations

import copy
import logging
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, Trainer
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.optimization import get_scheduler
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from smart_train.config.training_fields import HONOURED
from smart_train.core.errors import SettingError, SmartTrainError
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.dataloader import loader_options
from smart_train.training.engine import uses_engine
from smart_train.training.optimizer import weight_groups

logger = logging.getLogger(__name__)

ROWS = 2  # of the stand-in's batch
Stage = Callable[[SmartTrainingArguments], None]
TOGETHER = ("fsdp",)  # names that begin so are one setting: taken back together


def rehearse(args: SmartTrainingArguments, steps: int, given: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Build what ``args`` describe and take one step; leaves random states, arguments and files as they were.

    steps: of the whole run; given: the recipe's block ``training``, one key of which is to blame
    Raises SettingError that names the key.  Under DeepSpeed and FSDP no step is taken: an engine starts once a process.
    """
    stages: list[Stage] = [_trackers, _loader, lambda one: _schedule(one, steps)]
    stages += [] if uses_engine(args) else [_one_step]
    for stage in stages:
        try:
            with untouched_random_states():
                stage(args)
        except SmartTrainError:
            raise
        except Exception as error:  # of transformers, accelerate, torch or an optimizer's package: theirs to choose
            with tempfile.TemporaryDirectory() as folder:
                usual = SmartTrainingArguments(folder, use_cpu=args.use_cpu)

            def without(name: str, stage: Stage = stage, usual: SmartTrainingArguments = usual) -> None:
                stage(_without(args, usual, name))

            raise refused(error, given, without) from error
    check_optimizer_options(args, given)


def check_optimizer_options(args: SmartTrainingArguments, given: Mapping[str, Any]) -> None:
    """Raise SettingError for a key of optimizer or schedule that changes neither of them: Adam's averages beside
    ``optim: sgd``, a misspelt name in ``optim_args``, a warm-up of a constant rate."""
    with tempfile.TemporaryDirectory() as folder, untouched_random_states():
        usual = SmartTrainingArguments(folder, use_cpu=args.use_cpu, warmup_steps=0)
        names = [name for name in (*HONOURED["optimizer"], "lr_scheduler_kwargs", "warmup_steps") if name in given]
        for name in names:
            less = _without(args, usual, name)
            if getattr(less, name) != getattr(args, name) and _described(less) == _described(args):
                beside = "optim" if name in HONOURED["optimizer"] else "lr_scheduler_type"
                value = getattr(args, beside)
                what = f"is {given[name]!r}, which changes nothing beside {beside}: {getattr(value, 'value', value)}"
                raise SettingError(f"training.{name}", what, f"remove it, or write another {beside}")


def _described(args: SmartTrainingArguments, steps: int = 1000) -> list[Any]:
    """Return all that an optimizer and a schedule are made of, for a run of so many steps."""
    optimizer = stand_in_optimizer(args, StandIn())
    scheduler: Any = _scheduler(args, optimizer, steps)
    rates = [[rate(step) for step in (*range(10), 250, 500, 999)] for rate in getattr(scheduler, "lr_lambdas", ())]
    settings = {k: v for k, v in vars(scheduler).items() if isinstance(v, int | float | str | list)}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    return [type(optimizer), type(scheduler), groups, repr(settings), rates]


def warn_of_warmup(args: SmartTrainingArguments, steps: int) -> None:
    """Warn where the warm-up is longer than the run, as in a short trial of a recipe: its rate is never reached."""
    if args.warmup_steps > steps and args.process_index == 0:
        what = (
            "training.warmup_steps is %g, and the run has %d steps: the learning rate ends at %.0f %% of learning_rate"
        )
        logger.warning(what, args.warmup_steps, steps, 100 * steps / args.warmup_steps)


# -- what is built


def _trackers(args: SmartTrainingArguments) -> None:
    for cls in get_reporting_integration_callbacks(args.report_to):
        cls()


def _loader(args: SmartTrainingArguments) -> None:
    DataLoader(range(ROWS), **loader_options(args))  # type: ignore[arg-type]


def _schedule(args: SmartTrainingArguments, steps: int) -> None:
    """Make optimizer and scheduler, and ask for the learning rate at points of the whole run."""
    model = StandIn()
    optimizer = stand_in_optimizer(args, model)
    scheduler: Any = _scheduler(args, optimizer, steps)
    for rate in getattr(scheduler, "lr_lambdas", ()):
        for step in {0, 1, steps // 2, max(0, steps - 1), steps}:
            if not 0 <= float(abs(rate(step))) < float("inf"):
                raise SettingError("training.lr_scheduler_kwargs", f"give no rate at step {step}", "correct them")


def _scheduler(args: SmartTrainingArguments, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]
    )


def stand_in_optimizer(args: SmartTrainingArguments, model: StandIn) -> torch.optim.Optimizer:
    """Return the optimizer of ``args`` over the stand-in's weights."""
    decayed = {name for name, weight in model.named_parameters() if weight.dim() > 1}
    groups = weight_groups(model, model.head, args, decayed)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    optimizer: torch.optim.Optimizer = cls(groups, **options)
    return optimizer


def _one_step(args: SmartTrainingArguments) -> None:
    """Train the stand-in for one step, without a log, a checkpoint or a tracker."""
    with tempfile.TemporaryDirectory() as folder, _fresh_accelerator():
        trainer = _Rehearsal(
            StandIn(), _of_one_step(args, folder), train_dataset=[{"rows": torch.arange(4)}] * 2 * ROWS
        )
        for theirs in list(trainer.callback_handler.callbacks):
            if not type(theirs).__name__.startswith("DefaultFlow"):
                trainer.remove_callback(type(theirs))
        trainer.accelerator.free_memory = lambda *objects: objects  # its collection of garbage takes half a second
        trainer.train()


def _of_one_step(args: SmartTrainingArguments, folder: str) -> SmartTrainingArguments:
    one = copy.copy(args)
    changed: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": 1,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "logging_strategy": IntervalStrategy.NO,
        "logging_first_step": False,
        "save_strategy": SaveStrategy.NO,
        "eval_strategy": IntervalStrategy.NO,
        "eval_on_start": False,
        "load_best_model_at_end": False,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        "dataloader_prefetch_factor": None,
        "dataloader_multiprocessing_context": None,
    }
    for name, value in changed.items():
        setattr(one, name, value)
    return one


class StandIn(nn.Module):
    """A BERT of one layer and width 8, and a head, with the switches that Trainer calls on an encoder."""

    accepts_loss_kwargs = False

    def __init__(self) -> None:
        super().__init__()
        sizes: dict[str, Any] = {
            "vocab_size": 8,
            "hidden_size": 8,
            "intermediate_size": 8,
            "max_position_embeddings": 8,
        }
        self.backbone = BertModel(
            BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=1, use_cache=False), False
        )
        self.head = nn.Linear(8, 8)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        self.backbone.activation_checkpointing_enable(**options)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return {"loss": self.head(self.backbone(rows).last_hidden_state).square().mean()}


class _Rehearsal(Trainer):
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = stand_in_optimizer(self.args, self.accelerator.unwrap_model(self.model))  # type: ignore[arg-type]
        return self.optimizer


# -- which key is to blame


def refused(error: Exception, given: Mapping[str, Any], without: Callable[[str], Any] | None) -> SettingError:
    """Return a SettingError for an error of transformers or below, with the key without which there is none.

    given: the block ``training``; without: does again what failed, without one of its keys; None where it cannot be
        done twice
    """
    text = " ".join(str(error).split()).rstrip(".;") or type(error).__name__
    fix = "correct it, or remove it; transformers.TrainingArguments says what it takes"
    detail = ("_args", "_kwargs", "_config")
    order = sorted(given, key=lambda name: (name not in text, not name.endswith(detail)))  # the likely ones first
    for name in order if without else ():
        try:
            with untouched_random_states():
                without(name)  # type: ignore[misc]
        except Exception:  # it is not this one, or not this one alone
            continue
        return SettingError(f"training.{name}", f"is {given[name]!r}, and training cannot begin with it: {text}", fix)
    return SettingError("training", f"training cannot begin with it: {type(error).__name__}: {text}", fix)


def _without(args: SmartTrainingArguments, usual: SmartTrainingArguments, name: str) -> SmartTrainingArguments:
    """Return a copy of the arguments with a key, or the keys that are one setting with it, at its default."""
    other = copy.copy(args)
    stem = next((stem for stem in TOGETHER if name.startswith(stem)), None)
    for each in [each for each in vars(usual) if stem and each.startswith(stem)] or [name]:
        if hasattr(usual, each) and each not in ("output_dir", "use_cpu"):
            setattr(other, each, getattr(usual, each))
    return other


# -- left as it was


@contextmanager
def untouched_random_states() -> Iterator[None]:
    """Restore the random states of Python, numpy and torch (every device) after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _fresh_accelerator() -> Iterator[None]:
    """Have an Accelerator made within the block, and the next one after it, as the first of the process: accelerate
    keeps precision and accumulation in states that all share.  The process group stays."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    try:
        yield
    finally:
        AcceleratorState._reset_state()
        GradientState._reset_state()
