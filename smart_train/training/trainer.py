"""SmartTrainer: transformers.Trainer whose step is one forward, two views and the joint loss.

Knows: the encoder's forward, the joint loss, transformers.Trainer.
Does not know: files of data, prompts, recipes, metrics (a function ranks the dev split).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from smart_train.blocks import AdapterBlock, ObjectiveBlock
from smart_train.embeddings import Batch
from smart_train.model.adapters import load_lora_weights
from smart_train.model.encoder import SmartEncoder
from smart_train.model.files import SETTINGS
from smart_train.model.folder import base_identity, check_base, check_processing, load, load_head
from smart_train.objective.losses import Loss, joint_loss
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.checks import FirstStep, TrainingStopped, check_trainable

logger = logging.getLogger(__name__)

Rows = list[tuple[str, str]]


@dataclass
class Inputs:
    """A Batch as Trainer's inputs, a dict; a class, because a spawned data worker gets it pickled."""

    collate: Callable[[Rows], Batch]

    def __call__(self, rows: Rows) -> dict[str, Batch]:
        return {"batch": self.collate(rows)}


class SmartTrainer(Trainer):
    """transformers.Trainer over (query id, document id) pairs.

    encoder: with its adapter added; objective: weights and temperatures; pairs: the training pairs; collate: rows ->
    Batch, run in data workers; rank_dev: ranks the dev split with the encoder and returns {"pooled/ndcg@10": ...};
    log: the JSONL file that every logged line goes to.
    """

    objective: ObjectiveBlock

    def __init__(
        self,
        encoder: SmartEncoder,
        args: SmartTrainingArguments,
        objective: ObjectiveBlock,
        pairs: Dataset[tuple[str, str]],
        collate: Callable[[Rows], Batch],
        rank_dev: Callable[[SmartEncoder], dict[str, float]] | None = None,
        log: Path | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise TrainingStopped(
                f"one process sees {args.n_gpu} GPUs, and torch's DataParallel would take a batch's rows apart; write "
                f"accelerate launch --multi_gpu --num_processes {args.n_gpu} ..., or set CUDA_VISIBLE_DEVICES=0"
            )
        self.objective = objective
        self.rank_dev = rank_dev
        self.counts = check_trainable(encoder, encoder.adapter or AdapterBlock(kind="frozen"))
        self._sums: dict[str, list[Tensor]] = {}
        super().__init__(
            model=encoder,
            args=args,
            train_dataset=pairs,
            eval_dataset=pairs,  # only its presence counts: Trainer refuses eval_strategy without; rank_dev ranks
            data_collator=Inputs(collate),
            callbacks=[FirstStep(encoder), *([JsonLog(log)] if log is not None else []), *(callbacks or [])],
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs: accumulation divides it

    # -- the step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        batch: Batch = inputs["batch"].to(self.args.device)
        loss = self.batch_loss(model, batch)
        for name, value in loss.parts.items():
            self._sums.setdefault(name, []).append(value)
        if not bool(torch.isfinite(loss.total)):
            parts = {name: round(float(value), 4) for name, value in loss.parts.items()}
            raise TrainingStopped(
                f"step {self.state.global_step + 1}: the loss is {loss.total.item()} (parts {parts}; query ids "
                f"{batch.query_ids.tolist()[:8]} ...); lower the learning rate or raise the temperature"
            )
        return (loss.total, None) if return_outputs else loss.total

    def batch_loss(self, model: nn.Module, batch: Batch) -> Loss:
        """One forward for every chunk of both sides (one call, so that DDP and ZeRO see one forward a step)."""
        both = model([*batch.queries, *batch.documents])
        queries, documents = both.split(len(batch.query_ids))
        encoder: SmartEncoder = self.encoder
        return joint_loss(
            queries,
            documents,
            batch.relevance,
            batch.positives,
            self.objective,
            encoder.late.hybrid,
            encoder.settings.matryoshka,
            encoder.late.matryoshka,
        )

    @property
    def encoder(self) -> SmartEncoder:
        found: SmartEncoder = self.accelerator.unwrap_model(self.model)
        return found

    # -- learning rates

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Groups by (head or not) x (decayed or not); the head has its own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        target: Any = self.model if model is None else model
        rate = getattr(self.args, "head_learning_rate", None)
        heads = {id(parameter) for parameter in self.encoder.head.parameters()}
        decayed = set(self.get_decay_parameter_names(target))
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in target.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((id(parameter) in heads and rate is not None, name in decayed), []).append(parameter)
        options = [
            {
                "params": parameters,
                "weight_decay": self.args.weight_decay if decay else 0.0,
                "lr": rate if head else self.args.learning_rate,
            }
            for (head, decay), parameters in groups.items()
        ]
        cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, target)
        self.optimizer = cls(options, **kwargs)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clips the head and everything else each for itself: a fresh head's gradient is many times a LoRA's, and one
        common norm of it would scale the backbone's steps down to nothing.  (DeepSpeed clips inside its engine.)"""
        head = list(self.encoder.head.parameters())
        others = [p for n, p in self.encoder.named_parameters() if p.requires_grad and not n.startswith("head.")]
        if not head or not others or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        limit = float(self.args.max_grad_norm or 0.0)
        norms = [nn.utils.clip_grad_norm_(parameters, limit) for parameters in (head, others)]
        return torch.stack(norms).norm()

    # -- what is seen

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._sums:
            # Every rank logs at the same step, and the parts have one order: the mean over ranks, as "loss" is.
            means = torch.stack([torch.stack(values).float().nanmean() for values in self._sums.values()])
            means = self.accelerator.gather(means.unsqueeze(0)).nanmean(0)
            # No margin where no pair of the interval had a negative.
            logs.update({n: mean for n, mean in zip(self._sums, means.tolist(), strict=True) if mean == mean})
            self._sums = {}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Ranks the dev split; names are eval_pooled/ndcg@10 and so on, usable as metric_for_best_model."""
        if self.rank_dev is None:
            return {}
        found = {f"{metric_key_prefix}_{name}": value for name, value in self.rank_dev(self.encoder).items()}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    # -- files

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """An encoder's folder instead of a state dict; no pickled arguments beside it (the recipe has them)."""
        if self.args.should_save:
            self.encoder.save_pretrained(Path(str(output_dir or self.args.output_dir)), state=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.encoder, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_weights(self.encoder, Path(str(self.state.best_model_checkpoint)))


def load_weights(encoder: SmartEncoder, folder: Path) -> None:
    """The trained tensors of a saved folder into the encoder in memory; base and every key checked (AdapterError)."""
    stored = json.loads((folder / SETTINGS).read_text(encoding="utf8"))
    check_base(stored, base_identity(encoder), folder)
    check_processing(encoder, stored, folder)
    kind = encoder.adapter.kind if encoder.adapter is not None else None
    if kind == "lora":
        load_lora_weights(encoder.backbone, folder)
    elif kind == "full":
        fresh = load(str(folder), trust_remote_code=encoder.settings.trust_remote_code)
        encoder.st.load_state_dict(fresh.st.state_dict())
    load_head(encoder, folder)


class JsonLog(TrainerCallback):
    """Every logged line as JSON, one object a line, with its step and seconds; appended, so that a resume goes on."""

    def __init__(self, path: Path) -> None:
        self.path, self.started = path, time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "seconds": round(time.monotonic() - self.started, 2), **_renamed(logs)}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf8") as stream:
                stream.write(json.dumps(line) + "\n")


def _renamed(logs: dict[str, float]) -> dict[str, float]:
    return {f"dev/{k.removeprefix('eval_')}" if k.startswith("eval_") else k: v for k, v in logs.items()}
