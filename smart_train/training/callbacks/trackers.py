"""Log to wandb, TensorBoard and trackio: the lines of log.jsonl under the same names, and the recipe.

accelerate's trackers write.  transformers' own callbacks for the three are removed, since they give every name a prefix
of their own (train/loss/late, eval/hybrid/ndcg@10).  Its other integrations stay as they are.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from smart_train.training.callbacks.logging import rename_logs

logger = logging.getLogger(__name__)

OWN = ("wandb", "tensorboard", "trackio")


def replace_trackers(trainer: Trainer, config: Mapping[str, Any] | None, folder: Path) -> None:
    """Replace transformers' callbacks for wandb, TensorBoard and trackio, where ``report_to`` names them.

    config: stored with the run by the tracker; "name" in it names the run (a recipe, as nested dicts)
    folder: for the trackers' files
    """
    names = [name for name in OWN if name in (trainer.args.report_to or ())]
    for name in names:
        trainer.remove_callback(INTEGRATION_TO_CALLBACK[name])
    if names:
        trainer.add_callback(Trackers(names, config or {}, folder))


class Trackers(TrainerCallback):
    """Writes every logged line to trackers, on rank 0.  What the services read from the environment (WANDB_PROJECT,
    WANDB_MODE, WANDB_RUN_ID, WANDB_DIR, TENSORBOARD_LOGGING_DIR, TRACKIO_DIR ...) overrides what is given here."""

    def __init__(self, names: list[str], config: Mapping[str, Any], folder: Path) -> None:
        self.names, self.config, self.folder = names, dict(config), folder
        self.open: list[GeneralTracker] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and not self.open:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.open = [self._start(name, args) for name in self.names]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        for tracker in list(self.open):
            self._try(tracker, partial(tracker.log, rename_logs(logs or {}), step=state.global_step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for tracker in list(self.open):
            self._try(tracker, tracker.finish)
        self.open = []

    def _try(self, tracker: GeneralTracker, action: Callable[[], Any]) -> None:
        """A tracker whose disk or service fails is left alone from then on: log.jsonl has the same lines."""
        try:
            action()
        except OSError as error:
            self.open.remove(tracker)
            logger.warning("%s failed and gets no further lines (%s)", tracker.name, error)

    def _start(self, name: str, args: TrainingArguments) -> GeneralTracker:
        run = str(args.run_name or self.config.get("name") or self.folder.name)
        tracker: GeneralTracker
        if name == "tensorboard":
            place = os.environ.get("TENSORBOARD_LOGGING_DIR") or self.folder / "tensorboard"
            tracker = TensorBoardTracker(run, logging_dir=place)
            tracker.start()
            tracker.tracker.add_text("recipe", f"```json\n{json.dumps(self.config, indent=1, default=str)}\n```")
            return tracker
        if name == "wandb":
            place = os.environ.get("WANDB_DIR") or str(self.folder)
            project = os.environ.get("WANDB_PROJECT") or args.project
            tracker = WandBTracker(project, name=run, config=self.config, dir=place)
        else:
            options = {"space_id": args.trackio_space_id, "bucket_id": args.trackio_bucket_id, "resume": "allow"}
            tracker = TrackioTracker(args.project, name=run, config=self.config, **options)
        tracker.start()
        return tracker
