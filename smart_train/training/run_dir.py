"""Prepare the folder that a run writes to: move an earlier run out of the way, or resume it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from smart_train.config.recipe import plain, stored
from smart_train.config.schema import Recipe
from smart_train.core.bounded_json import load_json
from smart_train.core.errors import NothingToResume, SettingError
from smart_train.core.folder_lock import NAME as LOCK
from smart_train.core.folder_lock import FolderLock
from smart_train.training.arguments import RATES

logger = logging.getLogger(__name__)

KEY = "training.resume_from_checkpoint"
# Keys that change no weight: where a run writes, what it logs, how fast it reads.
NO_EFFECT: tuple[str, ...] = (
    "output",
    "name",
    "where",
    "publish",
    "evaluation.batch_size",
    "evaluation.bootstrap",
    KEY,
)
NO_EFFECT += tuple(
    f"training.{name}"
    for name in (
        "disable_tqdm",
        "report_to",
        "run_name",
        "save_total_limit",
        "ddp_timeout",
        "log_level",
        "logging_steps",
    )
)
NO_EFFECT += tuple(f"training.dataloader_{name}" for name in ("num_workers", "prefetch_factor", "persistent_workers"))


# Keys that a checkpoint's optimizer and schedule hold: loading them would keep the old value, whatever is written.
HELD: dict[str, Any] = {name: None for name in ("head_learning_rate", "optim_args", "lr_scheduler_kwargs")}
HELD |= {"learning_rate": None, "weight_decay": 0.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
HELD |= {"optim": "adamw_torch_fused", "lr_scheduler_type": "cosine"}  # defaults, of a key that is not written


@contextmanager
def owned_run_dir(output: Path, recipe: Recipe) -> Iterator[None]:
    """Own OUTPUT within the block (see core/folder_lock.py), and move an earlier run in it to OUTPUT.1, OUTPUT.2 ...,
    so that nothing is overwritten.

    A run that is resumed stays where it is.  Where the checkpoint is in another run's folder, which may have been
    moved, a copy of its log is continued in OUTPUT.

    Raises:
        NothingToResume: there is no such run or checkpoint.
        FolderInUse: another run is writing to OUTPUT; nothing was moved.
        SettingError: OUTPUT cannot be written, or a key differs from the resumed run's that its checkpoint holds.
    """
    run = resumed_run(recipe, output)
    if run is not None:
        _check_exists(run, output, recipe)
        _check_held(run, recipe)
    with FolderLock(output) as lock, lock.holding():
        if run is not None:
            _warn_of_changes(run, recipe)
        if run is None or run.resolve() != output.resolve():
            _move_aside(lock)
            if run is not None and (run / "log.jsonl").is_file():
                shutil.copyfile(run / "log.jsonl", output / "log.jsonl")
        yield


def resumed_run(recipe: Recipe, output: Path) -> Path | None:
    """Return the folder of the run that is resumed; None where a run starts anew."""
    wanted = recipe.training.get("resume_from_checkpoint")
    if not wanted:
        return None
    return output if str(wanted).lower() == "true" else Path(wanted).resolve().parent.parent


def _check_exists(run: Path, output: Path, recipe: Recipe) -> None:
    wanted = recipe.training["resume_from_checkpoint"]
    if run == output and not (output / "checkpoints").is_dir():
        raise NothingToResume(
            f"{KEY} is {wanted}, but there is no run to resume in {output}: it has no checkpoints; correct output (or "
            f"name, which it comes from), or remove {KEY} to start a new run"
        )
    if run != output and not Path(wanted).is_dir():
        raise NothingToResume(
            f"{KEY}: there is no folder {wanted}; name a checkpoint, or write true for the newest one"
        )


def _move_aside(lock: FolderLock) -> None:
    output = lock.folder
    if all(path.name == LOCK for path in output.iterdir()):
        return
    number = 1
    while (moved := output.with_name(f"{output.name}.{number}")).exists():
        number += 1
    lock.move_folder(moved)
    begun = [folder.name for folder in (moved / "checkpoints").glob("checkpoint-*")]
    unfinished = begun and not (moved / "adapter" / "verified.json").is_file()
    hint = f"; it was not finished, resume it with {KEY}={moved}/checkpoints/{_newest(begun)}" if unfinished else ""
    logger.info("moved an earlier run from %s to %s%s", output, moved, hint)


def _newest(names: list[str]) -> str:
    return max(names, key=lambda name: int("".join(filter(str.isdigit, name)) or 0))


def _check_held(run: Path, recipe: Recipe) -> None:
    for key, was, now in changes(run / "recipe.yaml", recipe):
        name = key.removeprefix("training.")
        if key == name or name.split(".")[0] not in HELD:
            continue
        default = RATES[recipe.adapter.kind] if name == "learning_rate" else HELD.get(name)
        was, now = (default if value is None else value for value in (was, now))
        if was != now:
            what = f"is {now}, but the run was started with {was}, which its checkpoint's optimizer and schedule hold"
            raise SettingError(key, what, f"write {was}, or start a new run: remove {KEY}")


def _warn_of_changes(run: Path, recipe: Recipe) -> None:
    """Warn of each key whose value differs from the one that the run was started with."""
    for key, was, now in changes(run / "recipe.yaml", recipe):
        logger.warning(
            "%s is %s, but the run was started with %s: the result will differ from that run's", key, now, was
        )


def warn_of_other_data(run: Path | None, fingerprints: dict[str, str]) -> None:
    """Warn where the data have changed since the run was started.  fingerprints: split -> fingerprint of its data."""
    file = run / "versions.json" if run is not None else None
    if file is None or not file.is_file():
        return
    before = load_json(file.read_text(encoding="utf8")).get("data") or {}
    other = [name for name, found in fingerprints.items() if before.get(name, found) != found]
    if other:
        logger.warning("the data of %s have changed since the run in %s was started", ", ".join(other), run)


def changes(file: Path, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """Return (key, value of the stored recipe, value of this one) of every key that differs and may change a result."""
    if not file.is_file():
        return []
    ours = yaml.safe_load(yaml.safe_dump(plain(recipe)))
    before, now = (_flat(values) for values in (stored(file), ours))
    ignored = [
        key for key in before.keys() | now.keys() if any(key == one or key.startswith(f"{one}.") for one in NO_EFFECT)
    ]
    keys = [key for key in {**before, **now} if key not in ignored]
    return [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]


def _flat(values: dict[str, Any], inside: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{inside}{name}"
        found |= _flat(value, f"{key}.") if isinstance(value, dict) and value else {key: value}
    return found
