"""What a run writes while it trains, and reads when it goes on: an encoder's folder with the training's state beside.

Knows: transformers' checkpoints, the encoder's folder, engines.  Does not know: losses, data, recipes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from smart_train.model.adapters import load_lora_weights
from smart_train.model.encoder import SmartEncoder
from smart_train.model.files import SETTINGS
from smart_train.model.folder import base_identity, check_base, check_processing, load, load_head
from smart_train.training.engines import Engine
from smart_train.training.whole import whole


class CheckpointedTrainer(Trainer):
    """transformers.Trainer that saves an encoder's folder instead of a state dict, and nothing of the frozen base."""

    engine: Engine

    @property
    def encoder(self) -> SmartEncoder:
        found: SmartEncoder = self.accelerator.unwrap_model(self.model)
        return found

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Every rank must call it: where an engine shards the weights, they are collected from all."""
        folder = str(output_dir or self.args.output_dir)
        if not self.engine.sharded:
            self._save(folder)
            return
        with whole(self.encoder, keep=self.args.should_save) as state:
            self._save(folder, state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """No pickled arguments beside it: the recipe has them."""
        if self.args.should_save:
            self.encoder.save_pretrained(Path(str(output_dir or self.args.output_dir)), state=state_dict)

    def release(self) -> None:
        """Lets go of weights, optimizer and engine; the trainer is of no use afterwards."""
        del self.model, self.model_wrapped
        self.callback_handler.model = self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.optimizer = self.lr_scheduler = None  # type: ignore[assignment]
        self.__dict__.pop("deepspeed", None)
        self.accelerator.free_memory()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.encoder, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_weights(self.encoder, Path(str(self.state.best_model_checkpoint)))


def load_weights(encoder: SmartEncoder, folder: Path) -> None:
    """The trained tensors of a saved folder into the encoder in memory; base and every key checked (AdapterError)."""
    stored: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf8"))
    check_base(stored, base_identity(encoder), folder)
    check_processing(encoder, stored, folder)
    kind = encoder.adapter.kind if encoder.adapter is not None else None
    if kind == "lora":
        load_lora_weights(encoder.backbone, folder)
    elif kind == "full":
        fresh = load(str(folder), trust_remote_code=encoder.settings.trust_remote_code)
        encoder.st.load_state_dict(fresh.st.state_dict())
    load_head(encoder, folder)
