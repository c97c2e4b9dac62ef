"""SmartTrainer: transformers.Trainer whose step is one forward, two views and the joint loss; or the same with
gradient caching, chunk after chunk.

Knows: the encoder's forward, a step's loss, transformers.Trainer.
Does not know: files of data, prompts, recipes, metrics (a function ranks the dev split).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback

from smart_train.blocks import AdapterBlock, ObjectiveBlock
from smart_train.data.batches import Kin
from smart_train.embeddings import Batch, Embeddings, Features
from smart_train.model.encoder import SmartEncoder
from smart_train.objective.losses import Loss
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.best import Best, check_choice
from smart_train.training.checkpoints import CheckpointedTrainer
from smart_train.training.checks import FirstStep, Skips, TrainingStopped, check_cached, check_trainable
from smart_train.training.engines import Engine, in_order
from smart_train.training.faults import Faults, Skipped
from smart_train.training.gradcache import cached_backward
from smart_train.training.inputs import Inputs, Moved, Rows, held
from smart_train.training.loading import planned, train_loader
from smart_train.training.logs import JsonLog, Means, asked
from smart_train.training.progress import Progress
from smart_train.training.speed import Speed
from smart_train.training.step import Step, token_dtype
from smart_train.training.trackers import take_over
from smart_train.training.whole import full

logger = logging.getLogger(__name__)

# Pairs a rank, up to which a cached step keeps the last chunk's graph: of many chunks it is a small saving, and beside
# the loss of a large batch its activations are not.  One number for every rank, as they must agree on their forwards.
KEPT = 128


class SmartTrainer(CheckpointedTrainer):
    """transformers.Trainer over (query id, document id) pairs.

    encoder: with its adapter added; objective: the loss; pairs: the training pairs; collate: rows -> Batch, run in data
    workers, and its chunks are the forwards; rank_dev: ranks the dev split with the encoder and returns
    {"pooled/ndcg@10": ...}; log: the JSONL file that every logged line goes to.
    cached: gradient caching (training/gradcache.py), where memory follows a chunk and not the batch; None = where
    ``objective.batch`` is given.  A frozen backbone gets one pass: it keeps no activations, only the states that the
    head reads.
    kin: which pairs may share a batch (data/batches.py); None = Trainer's own order, by chance alone.
    patience: evaluations that do not beat the best one, after which training ends (training/best.py); None = never.
    about: the recipe, for the trackers of ``report_to`` (training/trackers.py).
    Raises ValueError where ``objective.batch`` is not what the ranks draw together, TrainingStopped for what can't be
    trained.
    """

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
        cached: bool | None = None,
        kin: Kin | None = None,
        patience: int | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise TrainingStopped(
                f"one process sees {args.n_gpu} GPUs, and torch's DataParallel would take a batch's rows apart; write "
                f"accelerate launch --multi_gpu --num_processes {args.n_gpu} ..., or set CUDA_VISIBLE_DEVICES=0"
            )
        adapter = encoder.adapter or AdapterBlock(kind="frozen")
        self.rank_dev, self.kin = rank_dev, kin
        self.counts = check_trainable(encoder, adapter)
        wanted = objective.batch is not None if cached is None else cached
        self.cached = wanted and adapter.kind != "frozen"
        check_cached(args, objective.batch, self.cached)
        check_choice(args, rank_dev is not None, patience)
        self.means, self.speed, self.skips = Means(), Speed(encoder), Skips()
        self.faults = Faults(objective.skip_nonfinite, self.skips)
        super().__init__(
            model=encoder,
            args=args,
            train_dataset=pairs,
            eval_dataset=pairs,  # only its presence counts: Trainer refuses eval_strategy without; rank_dev ranks
            data_collator=Inputs(collate, hold=wanted),
            callbacks=[
                FirstStep(encoder, self.skips),
                self.speed,
                *([JsonLog(log)] if log is not None else []),
                Best(self.log, patience),
                *(callbacks or []),
            ],
        )
        for theirs in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            self.remove_callback(theirs)
        self.add_callback(Progress())
        take_over(self, about, log.parent if log is not None else Path(str(args.output_dir)))
        self.add_callback(self.faults)  # last: it ends a training that was saved
        self.current_gradient_accumulation_steps = 1  # Trainer sets it in its loop; a step may run outside of one
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs: accumulation divides it
        # After the processes have joined: the groups that gather together are made here.
        widths = encoder.settings.matryoshka, encoder.late.matryoshka
        dtype = token_dtype(objective.similarity, args.device, args.bf16)
        self.step = Step(objective, encoder.late.hybrid, *widths, dtype=dtype)
        self.engine = Engine(self.accelerator, encoder)

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.kin is None:
            return super().get_train_dataloader()
        batches = planned(self.kin, self.args, self._train_batch_size)  # which auto_find_batch_size may have changed
        return train_loader(self.train_dataset, batches, self.data_collator, self.args, self.accelerator)

    # -- the step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self.step.progress = self.state.global_step / max(1, self.state.max_steps)
        one = self._cached_step if self.cached else super().training_step
        try:
            loss = one(model, inputs, num_items_in_batch)
        except Skipped:
            loss = torch.full((), torch.nan, device=self.args.device)  # Trainer leaves it out of its mean
        if self.step.gather.world > 1:
            self.means.add({"gather/MiB": self.step.gather.taken() / 2**20})
        return loss

    def _cached_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """What Trainer.training_step does, with several forwards and backwards."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers have two modes, too
            self.optimizer.train()  # type: ignore[union-attr]
        loss = self.cached_loss(model, held(inputs["batch"]))
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return loss.total / self.current_gradient_accumulation_steps

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        batch = held(inputs["batch"])
        loss = self.batch_loss(model, batch)
        return (loss.total, None) if return_outputs else loss.total

    def batch_loss(self, model: nn.Module, batch: Batch) -> Loss:
        """One forward for every chunk of both sides (one call, so that DDP and ZeRO see one forward a step)."""
        chunks, labels = self._parts(batch)
        plan = self.engine.plan(chunks, cached=False)
        both = model(Moved([chunks[number] for number in plan], self.args.device))
        both = in_order(both, plan, chunks)
        return self._seen(self.step.loss(both, labels), labels, both)

    def cached_loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The same loss, detached, and its gradient (a share of the accumulation's) in the weights: every chunk runs
        twice, but only one's activations exist at a time.  See training/gradcache.py."""
        chunks, labels = self._parts(batch)
        steps, plan, calls = self.current_gradient_accumulation_steps, self.engine.plan(chunks, cached=True), count()

        def forward(chunk: Features) -> Embeddings:
            if next(calls) >= len(plan):
                chunk = chunk | {"cut": 0}  # rows at their limit were counted the first time
            both: Embeddings = model(chunk)
            return both

        return cached_backward(
            forward,
            Moved(chunks, self.args.device),
            lambda both: self._seen(self.step.loss(both, labels), labels, both),
            lambda surrogate, last: self.engine.backward(surrogate / steps),
            plan,
            partial(self.engine.around, model),
            keep=self.args.train_batch_size <= KEPT and not (self.engine.deepspeed or self.engine.fsdp),
        )

    def _parts(self, batch: Batch) -> tuple[list[Features], Batch]:
        """The chunks where they are, and everything else on the device."""
        return [*batch.queries, *batch.documents], replace(batch, queries=[], documents=[]).to(self.args.device)

    def _seen(self, loss: Loss, batch: Batch, both: Embeddings) -> Loss:
        """Notes what the log will say; stops, or leaves the step out, where a rank's loss is no finite number."""
        skips = {"batch/skipped": 0.0} if self.faults.skip else {}
        try:
            self.faults.look(loss, batch, both, self.state.global_step + 1)
        except Skipped:
            self.means.add({"batch/skipped": 1.0})
            raise
        counts = {f"batch/{n}": v for n, v in asked(batch.notes).items() if isinstance(v, int | float)}
        self.means.add({**loss.parts, **counts, **skips})
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self.skips.now:
            return torch.zeros(())
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16:  # its scaler looks for itself, and leaves out steps until it has found its scale
            self.faults.look_at_gradient(norm, self.state.global_step + 1, self.engine.deepspeed)
        return norm

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
        common norm of it would scale the backbone's steps down to nothing.  (DeepSpeed clips inside its engine, by one
        norm, and the log says so.)"""
        if self.skips.now:  # nothing to clip, nor to unscale
            return torch.zeros(())
        head = list(self.encoder.head.parameters())
        others = [p for n, p in self.encoder.named_parameters() if p.requires_grad and not n.startswith("head.")]
        if not head or not others or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        limit = float(self.args.max_grad_norm or 0.0)
        norms = [full(nn.utils.clip_grad_norm_(parameters, limit)) for parameters in (head, others)]
        return torch.stack(norms).norm()

    # -- what is seen

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one step, as Trainer takes them from the loader."""
        with self.speed.waiting():
            samples, items = super().get_batch_samples(*args, **kwargs)
        self.speed.drawn(held(inputs["batch"]) for inputs in samples)
        return samples, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.means.take(self.accelerator))
            logs.update(self.speed.take(self.accelerator, self.state))
        super().log(logs, start_time)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Ranks the dev split; names are eval_pooled/ndcg@10 and so on, usable as metric_for_best_model; eval_seconds
        is what it took."""
        if self.rank_dev is None:
            return {}
        if callable(getattr(self.optimizer, "eval", None)):  # what is ranked is what save_model saves
            self.optimizer.eval()  # type: ignore[union-attr]
        begun = time.monotonic()
        ranked = self.rank_dev(self.encoder) | {"seconds": round(time.monotonic() - begun, 2)}
        found = {f"{metric_key_prefix}_{name}": value for name, value in ranked.items()}
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found
