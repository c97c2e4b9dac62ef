"""The folder a run writes to: an earlier run moved out of the way, or gone on with."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import yaml

from smart_train.config.recipe import plain
from smart_train.config.schema import Recipe
from smart_train.core.errors import NothingToResume

logger = logging.getLogger(__name__)

KEY = "training.resume_from_checkpoint"
# Keys that change no weight: where a run writes, what it tells, how fast it reads.
FREE: tuple[str, ...] = ("output", "name", "where", "publish", "evaluation.batch_size", "evaluation.bootstrap", KEY)
FREE += tuple(
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
FREE += tuple(f"training.dataloader_{name}" for name in ("num_workers", "prefetch_factor", "persistent_workers"))


def make_room(output: Path, recipe: Recipe) -> None:
    """Moves an earlier run out of the way (NAME.1, NAME.2 ...), so that nothing made is lost.

    One that is gone on with stays where it is.  Where the checkpoint lies in another run's folder, which may have been
    moved, its log goes on in this one.  Raises NothingToResume.
    """
    run = resumed_run(recipe, output)
    if run is not None:
        _check_there(run, output, recipe)
        _tell_changes(run, recipe)
    if run is None or run.resolve() != output.resolve():
        _move_aside(output)
    output.mkdir(parents=True, exist_ok=True)
    if run is not None and run.resolve() != output.resolve() and (run / "log.jsonl").is_file():
        shutil.copyfile(run / "log.jsonl", output / "log.jsonl")


def resumed_run(recipe: Recipe, output: Path) -> Path | None:
    """The folder of the run that is gone on with; None where a run starts anew."""
    wanted = recipe.training.get("resume_from_checkpoint")
    if not wanted:
        return None
    return output if str(wanted).lower() == "true" else Path(wanted).resolve().parent.parent


def _check_there(run: Path, output: Path, recipe: Recipe) -> None:
    wanted = recipe.training["resume_from_checkpoint"]
    if run == output and not (output / "checkpoints").is_dir():
        raise NothingToResume(
            f"{KEY} is {wanted}, but {output} has no checkpoints (output: {output}); correct output, or the name it "
            "comes from, or leave the key out to start anew"
        )
    if run != output and not Path(wanted).is_dir():
        raise NothingToResume(f"{KEY}: there is no folder {wanted}; name a checkpoint, or write true for the newest")


def _move_aside(output: Path) -> None:
    if not output.exists() or not any(output.iterdir()):
        return
    number = 1
    while (moved := output.with_name(f"{output.name}.{number}")).exists():
        number += 1
    output.rename(moved)
    begun = [folder.name for folder in (moved / "checkpoints").glob("checkpoint-*")]
    unfinished = begun and not (moved / "adapter" / "verified.json").is_file()
    hint = f"; it was not finished: {KEY}={moved}/checkpoints/{_newest(begun)}" if unfinished else ""
    logger.info("%s holds an earlier run: moved to %s%s", output, moved, hint)


def _newest(names: list[str]) -> str:
    return max(names, key=lambda name: int("".join(filter(str.isdigit, name)) or 0))


def _tell_changes(run: Path, recipe: Recipe) -> None:
    """Each key that the run was begun with otherwise: it goes on as another run than it was."""
    for key, was, now in changes(run / "recipe.yaml", recipe):
        logger.warning(
            "%s is %s, and the run was begun with %s: what follows is not what that run would be", key, now, was
        )


def tell_other_data(run: Path | None, fingerprints: dict[str, str]) -> None:
    """The same keys may read other rows by now.  fingerprints: split -> fingerprint of its data."""
    file = run / "versions.json" if run is not None else None
    if file is None or not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf8")).get("data") or {}
    other = [name for name, found in fingerprints.items() if before.get(name, found) != found]
    if other:
        logger.warning("the data of %s are not those that the run was begun with: %s", ", ".join(other), run)


def changes(stored: Path, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, what the stored recipe has, what this one has) of every key that differs and may change a result."""
    if not stored.is_file():
        return []
    ours = yaml.safe_load(yaml.safe_dump(plain(recipe)))
    before, now = (_flat(side) for side in (yaml.safe_load(stored.read_text(encoding="utf8")), ours))
    free = [key for key in before.keys() | now.keys() if any(key == one or key.startswith(f"{one}.") for one in FREE)]
    keys = [key for key in {**before, **now} if key not in free]
    return [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]


def _flat(values: dict[str, Any], inside: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{inside}{name}"
        found |= _flat(value, f"{key}.") if isinstance(value, dict) and value else {key: value}
    return found
