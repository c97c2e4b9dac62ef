"""Check that the launch agrees with the recipe: DeepSpeed's settings, precision, and which engine.

DeepSpeed takes over batch sizes, clipping and precision: a number in its file that differs from the recipe's would win
silently, or end the run after the model has been loaded.  "auto" leaves each to the recipe.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_train.checks.bounds import Problems
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem
from smart_train.core.bounded_json import load_json
from smart_train.core.environment import world
from smart_train.core.extras import how_to_install, installed

FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"  # set by `accelerate launch` for its processes
LAUNCHED = "the launch file's deepspeed_config"
STAGES = (0, 1, 2, 3)
LAUNCHERS = ("accelerate", "accelerate_cli", "accelerate.commands.accelerate_cli")


@dataclass(frozen=True)
class Settings:
    """DeepSpeed's settings and where they are: a file, the recipe itself, or the file accelerate was launched with."""

    values: dict[str, Any]
    place: str | None = None  # None = in the recipe

    def problem(self, key: str, what: str, fix: str) -> Problem:
        return Problem(key if self.place else f"training.deepspeed.{key}", what, fix, self.place)

    def at(self, key: str) -> Any:
        """Return the value at a dotted key; None where there is none."""
        value: Any = self.values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


def check_launch(recipe: Recipe) -> Problems:
    """Compare the recipe with this process's environment, which holds what a launch file sets."""
    yield from _precision(recipe.training)
    if lost_processes():
        what = "accelerate was asked for several processes and started one, which would train alone"
        fix = (
            "on CPUs, launch with --config_file launch/cpu.yaml (then --num_processes N) and training.use_cpu=true; "
            "for one process, give --num_processes 1"
        )
        yield Problem("", what, fix, "the launch")
    own = recipe.training.get("deepspeed")
    launched = _on("ACCELERATE_USE_DEEPSPEED")
    if own and launched and os.environ.get(FILE) != own:
        what = f"is given, but accelerate was launched with {os.environ.get(FILE) or LAUNCHED}, which would be ignored"
        yield Problem("training.deepspeed", what, "keep one of the two")
    if own and _on("ACCELERATE_USE_FSDP"):
        what = "is given, but accelerate was launched with FSDP, and only one engine can hold the weights"
        yield Problem("training.deepspeed", what, "remove it, or launch with a file of launch/ for DeepSpeed")
    if (own or launched) and not installed("deepspeed"):
        what = "DeepSpeed is asked for, and the package deepspeed is not installed"
        key, place = ("training.deepspeed", None) if own else ("", LAUNCHED)
        yield Problem(key, what, how_to_install("deepspeed"), place, here=True)
    settings = _settings(own) if own else _launched() if launched else None
    if isinstance(settings, Problem):
        yield settings
    elif settings is not None:
        for one in CHECKS:
            yield from one(recipe, settings)


def lost_processes() -> bool:
    """Return whether accelerate was asked for several processes and started one, without a warning.

    Its launcher for a CPU (--cpu, MULTI_CPU, or no GPU in the machine) starts one process whatever --num_processes or
    --num_machines says.  It then sets MASTER_ADDR, as for several, but no world size, which every launcher that starts
    several sets (torchrun and deepspeed; MPI by names of its own).  A cluster may export MASTER_ADDR as well, so what
    the launcher was asked for is read from its command line; where none can be seen, MASTER_ADDR decides.
    """
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if not launched or any(name in os.environ for name in sizes):
        return False
    asked = _asked_processes()
    return asked is None or asked > 1


def _asked_processes() -> int | None:
    """Return how many processes (or machines) the `accelerate launch` that started this process was asked for."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    words = _launcher_words()
    if words is None:
        return None
    try:
        given = launch_command_parser().parse_args(words)
        file = given.config_file or (default_config_file if os.path.isfile(default_config_file) else None)
        stored = load_config_from_file(file) if file else None
    except (SystemExit, Exception):  # of another version's command line, or a file that is gone since
        return None
    counts = [getattr(given, n) or getattr(stored, n, None) or 1 for n in ("num_processes", "num_machines")]
    return max(int(count) for count in counts)


def _launcher_words() -> list[str] | None:
    """Return the arguments of the nearest `accelerate launch` that this process descends from; None where none is."""
    import psutil

    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            with suppress(psutil.Error):
                words = process.cmdline()
                for at, word in enumerate(words[:4]):  # python -m accelerate.commands.launch WORDS
                    name = os.path.basename(word).removesuffix(".exe").removesuffix(".py")
                    if name in ("accelerate-launch", "accelerate.commands.launch"):
                        return words[at + 1 :]
                    if name in LAUNCHERS and words[at + 1 : at + 2] == ["launch"]:
                        return words[at + 2 :]
    return None


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


def _precision(training: dict[str, Any]) -> Problems:
    """accelerate's mixed_precision wins where the recipe gives none, and loses silently where the recipe gives one."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    ours = next((name for name in ("fp16", "bf16") if training.get(name)), "no")
    if launched not in ("no", ours):
        what = f"the launch file's mixed_precision is {launched}, but the recipe's is {ours}"
        fix = "remove mixed_precision from the launch file, and write the precision here (training.bf16: true)"
        yield Problem("training.bf16", what, fix)


# -- DeepSpeed's settings


def _settings(given: Any) -> Settings | None:
    """Read training.deepspeed; None for a file that is missing or not JSON, which checks/training.py reports."""
    if isinstance(given, dict):
        return Settings(given)
    try:
        if str(given).startswith("{"):
            return Settings(load_json(given))
        return Settings(load_json(Path(given).read_text(encoding="utf8")), str(given))
    except (OSError, ValueError):
        return None


def _launched() -> Settings | Problem:
    """Read the settings of `accelerate launch`: a file it names, or single values in environment variables."""
    file = os.environ.get(FILE)
    if file is None:
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        values: dict[str, Any] = {"zero_optimization": {"stage": _number(stage)}}
        for key in ("gradient_clipping", "gradient_accumulation_steps"):
            values[key] = _number(os.environ.get(f"ACCELERATE_{key.upper()}", "auto"))
        return Settings(values, LAUNCHED)
    try:
        return Settings(load_json(Path(file).read_text(encoding="utf8")), file)
    except OSError:
        fix = "run the command from the folder above launch/, or write the whole path there"
        return Problem("deepspeed_config_file", f"there is no file {file} in {Path.cwd()}", fix, "the launch file")
    except ValueError as error:
        return Problem("", f"this is not JSON ({error})", "correct that file", file)


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


# -- what is compared


def _stage(recipe: Recipe, settings: Settings) -> Problems:
    stage = settings.at("zero_optimization.stage")
    if stage not in STAGES:
        what = "is not given" if stage is None else f"is {stage!r}, which is no stage"
        yield settings.problem("zero_optimization.stage", what, "write 2 to share gradients and moments, 3 weights too")


def _sizes(recipe: Recipe, settings: Settings) -> Problems:
    """Batch, accumulation and clipping must be the recipe's."""
    training = recipe.training
    per_device = training.get("per_device_train_batch_size", 8)
    share = recipe.objective.batch // world() if recipe.objective.batch else per_device
    steps = training.get("gradient_accumulation_steps", 1)
    limit = training.get("max_grad_norm", 1.0) or 0.0
    name = "objective.batch's share" if recipe.objective.batch else "training.per_device_train_batch_size"
    wanted = {
        "train_micro_batch_size_per_gpu": (share, name),
        "gradient_accumulation_steps": (steps, "training.gradient_accumulation_steps"),
        "train_batch_size": (share * steps * world(), "the recipe's batch x accumulation x processes"),
        "gradient_clipping": (limit, "training.max_grad_norm"),
    }
    absent = {"gradient_accumulation_steps": 1, "gradient_clipping": 0.0}  # what DeepSpeed does without the key
    for key, (ours, whose) in wanted.items():
        given = settings.at(key)
        theirs = absent.get(key, ours) if given is None else given
        if theirs == "auto" or (isinstance(theirs, int | float) and math.isclose(theirs, ours)):
            continue
        what = "is not given, which is no clipping" if key == "gradient_clipping" and given is None else f"is {theirs}"
        yield settings.problem(key, f"{what}, but {whose} is {ours:g}", 'write "auto": the recipe then decides')


def _halves(recipe: Recipe, settings: Settings) -> Problems:
    for name in ("bf16", "fp16"):
        given, ours = settings.at(f"{name}.enabled"), bool(recipe.training.get(name))
        if given not in (None, "auto", ours):
            what = f"is {json.dumps(given)}, but training.{name} is {json.dumps(ours)}"
            yield settings.problem(f"{name}.enabled", what, 'write "auto": the recipe then decides')


def _optimizer(recipe: Recipe, settings: Settings) -> Problems:
    for key, ours in (("optimizer", "optim, learning_rate, head_learning_rate"), ("scheduler", "lr_scheduler_type")):
        if settings.at(key) is not None:
            what = f"would replace what the recipe's training block sets ({ours})"
            yield settings.problem(key, what, "remove it there")


CHECKS: list[Callable[[Recipe, Settings], Problems]] = [_stage, _sizes, _halves, _optimizer]
