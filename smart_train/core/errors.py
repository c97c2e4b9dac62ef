"""Define the errors that this package raises on purpose; all are subclasses of SmartTrainError.

A command prints such an error as one sentence and exits with the error's ``status``. Any other exception is a bug and
keeps its traceback.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Union

__all__ = [
    "AdapterError",
    "BaseNotFound",
    "CheckpointError",
    "DataError",
    "EvaluationError",
    "ExtensionError",
    "ExtensionResultError",
    "FolderInUse",
    "HeatmapError",
    "LaunchError",
    "LossError",
    "Message",
    "MissingPackage",
    "NothingToResume",
    "OutputFault",
    "Preempted",
    "PublishError",
    "RankError",
    "RanksDiffer",
    "SavedElsewhere",
    "Setting",
    "SettingError",
    "SmartTrainError",
    "TrainingStopped",
    "Unreachable",
    "UsageError",
    "border",
    "checks",
    "error_chain",
    "written",
]


@dataclass(frozen=True)
class Setting:
    """A setting that a message names, so that each front end can name it in its own way.

    key: its dotted key in a recipe
    value: what to set it to; None where the message only names the setting
    python: how the Python function that raises the error spells it; None where it takes the recipe's blocks

    >>> str(Setting("model.dtype")), str(Setting("model.trust_remote_code", True))
    ('model.dtype', 'write model.trust_remote_code: true')
    >>> str(Setting("model.base", "FOLDER", python="pass base=FOLDER"))
    'pass base=FOLDER'
    """

    key: str
    value: str | int | float | bool | None = None
    python: str | None = None

    def __str__(self) -> str:
        if self.python is not None:
            return self.python
        if self.value is None:
            return self.key
        return f"write {self.key}: {self.value if isinstance(self.value, str) else json.dumps(self.value)}"


Message = Union[str, Setting, tuple["Message", ...]]  # noqa: UP007 - evaluated at import, and recursive


def written(message: Message, name: Callable[[Setting], str] = str) -> str:
    """Return a message as text. name: how the front end names a setting; default: as a recipe does."""
    if isinstance(message, tuple):
        return "".join(written(part, name) for part in message)
    return name(message) if isinstance(message, Setting) else message


class SmartTrainError(Exception):
    """Base class of every error that this package raises on purpose.

    status: exit status of a command that ends with it. 2: the request is wrong and nothing slow has run. 1: the work
        failed. A command sets it to 2 on errors of its checks.
    on_every_rank: every rank raises the same error, so that one of them is enough to report it

    >>> error = SmartTrainError("the scores are not finite; ", Setting("model.dtype", "float32"))
    >>> str(error)
    'the scores are not finite; write model.dtype: float32'
    >>> error.text(lambda setting: f"give --dtype {setting.value}")
    'the scores are not finite; give --dtype float32'
    """

    status = 1
    on_every_rank = False

    def __init__(self, *message: Message) -> None:
        super().__init__(*message)
        self.message: Message = message

    def text(self, name: Callable[[Setting], str] = str) -> str:
        """Return the message. name: how the front end names a setting; default: as a recipe does."""
        return written(self.message, name)

    def __str__(self) -> str:
        return self.text()


class _WhatAndFix(SmartTrainError, ValueError):
    """what: what is wrong; fix: what to do."""

    status = 2

    def __init__(self, what: Message, fix: Message) -> None:
        super().__init__(what, fix)
        self.what, self.fix = what, fix
        self.message = (what, "; ", fix)


class UsageError(SmartTrainError, ValueError):
    """An argument of a command or function is wrong, or arguments do not go together."""

    status = 2


class MissingPackage(SmartTrainError, ImportError):
    """An optional package is needed and not installed; the message says how to install it."""

    status = 2


class SettingError(SmartTrainError, ValueError):
    """A value of a setting does not work.

    setting: its dotted key in a recipe; what: what is wrong; fix: what to do
    """

    status = 2

    def __init__(self, setting: str, what: Message, fix: Message) -> None:
        super().__init__(setting, what, fix)
        self.setting, self.what, self.fix = setting, what, fix
        self.message = (Setting(setting), ": ", what, "; ", fix)


class BaseNotFound(_WhatAndFix):
    """The base model does not exist, cannot be downloaded, or cannot be used."""


class ExtensionError(_WhatAndFix):
    """An extension does not exist, cannot be imported, refuses its options, or is named by a download."""


class ExtensionResultError(ExtensionError):
    """An extension returned something that its protocol does not allow."""

    status = 1


class LossError(SmartTrainError, ValueError):
    """A term, an option or a schedule of the loss does not work; the message has a line for each."""

    status = 2


class AdapterError(SmartTrainError, ValueError):
    """An adapter's files are damaged, or do not fit its base."""


class DataError(SmartTrainError, ValueError):
    """The data are wrong; the message names the file, and the line, row or id."""


class Unreachable(DataError):
    """A dataset on the Hub cannot be described or downloaded."""


class CheckpointError(SmartTrainError, RuntimeError):
    """A checkpoint cannot be written, or training cannot resume from it."""


class OutputFault(SmartTrainError, RuntimeError):
    """The disk took no more of what was to be written; the message says which file, and what is kept."""


class SavedElsewhere(SmartTrainError, RuntimeError):
    """The trained adapter is saved and verified, but not in the run's folder, which could not be written."""

    on_every_rank = True


class NothingToResume(SmartTrainError, RuntimeError):
    """The recipe resumes a run that does not exist."""

    status = 2


class FolderInUse(SmartTrainError, RuntimeError):
    """Another process is writing to the folder that this one was to write to."""

    status = 2


class TrainingStopped(SmartTrainError, RuntimeError):
    """Training cannot continue with correct results."""


class Preempted(SmartTrainError):
    """A signal ended the training after a checkpoint was saved; the same command resumes it."""

    status = 75  # EX_TEMPFAIL of sysexits.h: try again later


class RankError(SmartTrainError, RuntimeError):
    """Another rank failed; the message has its number and its error."""


class RanksDiffer(SmartTrainError, ValueError):
    """The ranks of one run do not run the same model and recipe."""

    on_every_rank = True


class EvaluationError(SmartTrainError, ValueError):
    """Something cannot be measured; the message names the query, document or line."""


class PublishError(SmartTrainError, ValueError):
    """An adapter cannot be exported, merged or published. The local files are unchanged."""


class HeatmapError(SmartTrainError, ValueError):
    """No heatmap can be drawn for this query and document."""


class LaunchError(SmartTrainError, ValueError):
    """A launch file of accelerate cannot be read."""

    status = 2


def error_chain(error: BaseException) -> list[BaseException]:
    """Return the error and its causes: transformers and others wrap what the Hub's client raises."""
    found: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in found:
        found.append(step)
        step = step.__cause__ or step.__context__
    return found


@contextmanager
def border(place: object, what: str, error: Callable[[str], SmartTrainError] = DataError) -> Iterator[None]:
    """Turn what a library raises about a file, in whatever class, into ours; put it around that library's call alone.

    place: the file or folder that is read; what: "not a readable parquet file", for example

    >>> with border("rows.parquet", "not a readable parquet file"):
    ...     raise OSError("no more data to read")
    Traceback (most recent call last):
    smart_train.core.errors.DataError: rows.parquet: not a readable parquet file (no more data to read)
    """
    try:
        yield
    except SmartTrainError:
        raise
    except Exception as found:
        text = " ".join(str(found).split())[:300] or type(found).__name__
        raise error(f"{place}: {what} ({text})") from found


@contextmanager
def checks() -> Iterator[None]:
    """Mark checks that run before the work: an error inside gets exit status 2, since the request is wrong.

    >>> with checks():
    ...     raise DataError("data.jsonl, line 3: no query; add one")
    Traceback (most recent call last):
    smart_train.core.errors.DataError: data.jsonl, line 3: no query; add one
    """
    try:
        yield
    except SmartTrainError as error:
        error.status = 2
        raise
