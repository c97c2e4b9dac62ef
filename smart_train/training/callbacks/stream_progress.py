"""Remember where a stream is read, so that a resumed run goes on from there, and log what was read in each pass."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from smart_train.data.streaming import NOTE, Place, StreamedBatches

logger = logging.getLogger(__name__)


class StreamProgress(TrainerCallback, ExportableState):
    """Keeps the place of the last batch that was trained on; a checkpoint stores it, whatever workers read ahead."""

    def __init__(self, batches: StreamedBatches, main: bool) -> None:
        self.batches, self.main = batches, main
        self._place: dict[str, Any] | None = None
        self._number = -1
        self._key = batches.key()

    def taken(self, notes: dict[str, Any]) -> None:
        """Take over the place of a batch, moved out of its notes, and log the passes that ended."""
        if NOTE in notes:
            self._number, self._place, lines = notes.pop(NOTE)
            for line in lines if self.main else ():
                logger.info("%s", line)

    @property
    def place(self) -> dict[str, Any] | None:
        return self._place and {**self._place, "key": self._key}

    @place.setter
    def place(self, stored: Mapping[str, Any] | None) -> None:
        """Begin where a checkpoint was; from the first row on where the place is of other data, seed or buffer."""
        if stored is None:
            return
        values = {name: value for name, value in stored.items() if name != "key"}
        if stored["key"] == self._key:
            self.batches.start, self._place = Place(**values), values
        elif self.main:
            what = "the streamed data, the seed or data.shuffle_buffer differ from the checkpoint's"
            logger.warning("%s: its batches are not gone on with; rows are read anew up to the same batch", what)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"place": self.place}}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.batches.close()
        if self._place is not None and self._number >= 0 and self.main:
            place = Place(**self._place)
            taken = (self._number + 1) * self.batches.size - place.pairs + place.counts["pairs"]
            name, seen = self.batches.stream.name, place.counts["rows"]
            logger.info("%s: training ended after %d pairs of pass %d", name, taken, place.epoch + 1)
            for line in self.batches.report(place.epoch, place.counts)[1:]:
                logger.info("%s (of its first %d rows)", line, seen)
