"""Errors that this package foresees. All are subclasses of SmartTrainError."""

from __future__ import annotations


class SmartTrainError(Exception):
    """Base class of every error that this package raises on purpose.

    status: the exit status of a command that ends with it (2 = the request is wrong, 1 = the work failed)
    """

    status = 1


class BaseNotFound(SmartTrainError, ValueError):
    """A base that is not there or cannot be used. what: the reason; fix: what to do."""

    def __init__(self, what: str, fix: str) -> None:
        self.what, self.fix = what, fix
        super().__init__(f"{what}; {fix}")


class AdapterError(SmartTrainError, ValueError):
    """An adapter that does not fit its base or its file, with what was expected and what was found."""


class RankError(SmartTrainError, RuntimeError):
    """Another rank failed, with anything but an EvaluationError; the message has the rank and its error."""


class Preempted(SmartTrainError):
    """A signal ended the training, after a checkpoint; the message says how to go on."""


class DataError(SmartTrainError, ValueError):
    """Something is wrong with the data; the message names the file, line or id, and what to do."""


class Unreachable(DataError):
    """A dataset that cannot be described or fetched; says what `datasets` said."""


class CheckpointError(SmartTrainError, RuntimeError):
    """A checkpoint that could not be written or cannot be gone on from; what holds still, and what to do."""


class TrainingStopped(SmartTrainError, RuntimeError):
    """Training would go on wrongly; the message says what was seen and what to do."""


class NothingToResume(SmartTrainError, RuntimeError):
    """A run that was to be gone on with is not there."""


class EvaluationError(SmartTrainError, ValueError):
    """Something that can't be measured; the message names the query, document or line, and what to do."""


class PublishError(SmartTrainError, ValueError):
    """What can't be published, or wasn't, and what to do; everything on this machine is as it was."""


class ExportError(SmartTrainError, ValueError):
    """What can't be exported, or did not equal the adapter, and what can be done; nothing was left behind."""


class PatchGridError(SmartTrainError, ValueError):
    """The places of a model's image tokens are not known."""


class HeatmapError(SmartTrainError, ValueError):
    """What was asked for has no heatmap; the message says why."""


class LaunchError(SmartTrainError, ValueError):
    """A launch file that cannot be read; says which, why, and what to do."""


class UsageError(SmartTrainError, ValueError):
    """What was asked for does not work; the message says what does."""


class ExtensionError(SmartTrainError, ValueError):
    """An extension does not exist, cannot be imported, refuses its options, or is named by a download.

    what: what is wrong; fix: what to do
    """

    status = 2

    def __init__(self, what: str, fix: str) -> None:
        self.what, self.fix = what, fix
        super().__init__(f"{what}; {fix}")


class LossError(SmartTrainError, ValueError):
    """A loss that cannot work: a term, an option or a schedule is wrong; the message has a line for each."""

    status = 2


class ExtensionResultError(ExtensionError):
    """An extension returned something that its protocol does not allow."""

    status = 1
