"""SmartTrainer: transformers.Trainer whose step is one forward, two views and the joint loss."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import TrainOutput

from smart_train.config.schema import AdapterBlock, MiningBlock, ObjectiveBlock
from smart_train.config.training_arguments import check_idle
from smart_train.config.typed_values import make_block
from smart_train.core.embeddings import Batch, Embeddings, Features
from smart_train.core.errors import CheckpointError, FolderInUse, SettingError, TrainingStopped, UsageError
from smart_train.core.folder_lock import own
from smart_train.core.terminal_log import show_log
from smart_train.data.batch_sampler import PairGroups, pair_groups
from smart_train.data.collate import Collator, Pairs, TruncatingPreprocess
from smart_train.data.collection import Collection
from smart_train.data.readers.python_rows import NamedRows, read_named, read_together
from smart_train.data.streaming import BatchNumbers, RowStream, StreamCollator, StreamedBatches, as_stream
from smart_train.distributed.process_group import CollectError, ProcessGroup
from smart_train.distributed.signals import interruptible
from smart_train.evaluation.retrieval import evaluate
from smart_train.losses.base import loss_modules
from smart_train.losses.joint import Joint, Loss
from smart_train.models.encoder import SmartEncoder
from smart_train.models.preprocessing import Role
from smart_train.models.verification import DOCUMENTS, QUERIES, verify
from smart_train.training.arguments import SmartTrainingArguments, defaults_in_use, learning_rates
from smart_train.training.batch_size import check_batch, check_pages, check_steps, check_stream, chunk_rows, splitter
from smart_train.training.callbacks.early_stopping import EarlyStopping, check_best_is_measured, check_best_is_named
from smart_train.training.callbacks.first_step import FirstStepCheck, check_trainable
from smart_train.training.callbacks.logging import JsonLogger, MetricMeans, batch_counts
from smart_train.training.callbacks.progress import ProgressReporter
from smart_train.training.callbacks.speed import SpeedMeter
from smart_train.training.callbacks.stream_progress import StreamProgress
from smart_train.training.callbacks.trackers import replace_trackers
from smart_train.training.checkpoint import CheckpointManager, python_error
from smart_train.training.dataloader import (
    ChunksOnDevice,
    EpochOfPairs,
    TrainerInputs,
    batch_of,
    plan_batches,
    stream_batches,
    train_loader,
    worker_errors,
)
from smart_train.training.engine import Engine, full_state_dict, full_tensor, restore_order
from smart_train.training.final_save import save_trained
from smart_train.training.gradcache import cached_backward
from smart_train.training.loss_step import LossStep, token_dtype
from smart_train.training.mining_rounds import MiningRounds, miner_of
from smart_train.training.nonfinite import NonfiniteGuard, SkipBatch
from smart_train.training.optimizer import same_options, weight_groups
from smart_train.training.weights import train_in_float32

logger = logging.getLogger(__name__)

# Most pairs a rank for which a cached step keeps the last chunk's graph.  With many chunks it saves little, and beside
# the loss of a large batch there is no room for its activations.  One number, since ranks must agree on their forwards.
KEEP_LAST_GRAPH = 128

Evaluator = Callable[[SmartEncoder], dict[str, float]]


def _check_model(model: SmartEncoder, args: SmartTrainingArguments) -> AdapterBlock:
    """Return what of the encoder is trained; raise TrainingStopped where that is nothing, or cannot be here."""
    check_idle(args)
    if args.n_gpu > 1:
        raise TrainingStopped(
            f"one process sees {args.n_gpu} GPUs, and torch's DataParallel would take a batch's rows apart; write "
            f"accelerate launch --multi_gpu --num_processes {args.n_gpu} ..., or set CUDA_VISIBLE_DEVICES=0"
        )
    if model.adapter is None and not list(model.head.parameters()):
        raise TrainingStopped(
            "the encoder has neither an adapter nor a late head, so there is nothing to train; make it with "
            'SmartEncoder(base, lora={"r": 32}), or with adapter={"kind": "full"}'
        )
    return model.adapter or AdapterBlock(kind="frozen")


def _report_limits(model: SmartEncoder, query_tokens: int | None, document_tokens: int | None) -> None:
    """Warn where texts of the training are to be longer than the encoder reads."""
    limits: dict[Role, int | None] = {"query": query_tokens, "document": document_tokens}
    for role, limit in limits.items():
        reads = model.reading_limit(role)
        if limit is not None and reads is not None and limit > reads:
            logger.warning(
                "%s_tokens for training is %d, and the encoder reads %d; texts are cut at %d; to read more, set "
                "model.%s_tokens: %d",
                *(role, limit, reads, reads, role, limit),
            )


def _pair_groups(
    rows: NamedRows,
    pairs: Pairs,
    args: SmartTrainingArguments,
    mixed: bool,
    weights: Mapping[str, float] | None,
    temperature: float,
) -> PairGroups:
    """Return which pairs may share a batch, and log what follows.

    Raises SettingError for weights of data sets that are not there, and where not one batch can be filled.
    """
    unknown = (weights or {}).keys() - rows.sources.keys()
    if unknown:
        what = f"names {', '.join(sorted(unknown))}, and the train data sets are {', '.join(rows.sources) or 'one'}"
        raise SettingError("source_weights", what, "name the keys of train_dataset")
    groups = pair_groups(rows.collection, pairs.rows)
    if rows.sources and not mixed:
        sources = {name: np.array(places, dtype=np.int64) for name, places in rows.sources.items()}
        groups = replace(groups, sources=sources, weights=dict(weights or {}), temperature=temperature)
    if args.process_index == 0:
        if rows.sources:
            sizes = ", ".join(f"{name} ({len(places):,} pairs)" for name, places in rows.sources.items())
            how = "a batch mixes them" if mixed else "a batch is of one of them; mix_datasets=True mixes them"
            logger.info("train data sets: %s; %s", sizes, how)
        for line in plan_batches(groups, args).summary():
            logger.info("batches: %s", line)
    return groups


@dataclass
class TrainData:
    """What a trainer draws its batches of.

    dataset: pairs, batches of a stream, or the items of the caller's own collator
    collection: of the pairs; None for a stream and for items of the caller's. stream: None for anything else
    negatives: hard negatives of a row; pair_groups: which pairs may share a batch; None where that is not planned
    """

    dataset: Any
    collection: Collection | None = None
    stream: RowStream | None = None
    negatives: int = 0
    pair_groups: PairGroups | None = None


def _read_train_data(
    train_dataset: Any,
    columns: Mapping[str, str] | None,
    args: SmartTrainingArguments,
    objective: ObjectiveBlock,
    pair_groups: PairGroups | None,
    *sources: Any,
) -> TrainData:
    """Read train data in any form, or open its stream, and check that batches can be made of it.

    sources: how several data sets are drawn, the last arguments of ``_pair_groups``
    """
    stream = as_stream(train_dataset, columns)
    if stream is not None:
        if pair_groups is not None:
            raise UsageError("pair_groups needs all pairs, and train_dataset is a stream; leave it out")
        check_stream(args, stream)
        check_pages(objective, stream)
        return TrainData(stream_batches(stream, args), None, stream, stream.data.negatives)
    rows = read_together(train_dataset, "train_dataset", columns)
    pairs = Pairs(rows.collection)
    check_steps(args, len(pairs))
    check_pages(objective, rows.collection)
    if pair_groups is None:
        pair_groups = _pair_groups(rows, pairs, args, *sources)
    return TrainData(pairs, rows.collection, None, rows.negatives, pair_groups)


def _make_collator(
    data: TrainData, preprocess: TruncatingPreprocess, args: SmartTrainingArguments, **options: Any
) -> Callable[[Any], Batch]:
    """Return what makes batches of the items of train data.  options: of ``Collator``"""
    if data.stream is None:
        assert data.collection is not None  # only the caller's own items have neither, and a collator
        return Collator(data.collection, preprocess, seed=args.seed, **options)
    empty = Collection(data.stream.name, {}, {}, {})  # filled for each batch
    return StreamCollator(data.stream, args.world_size, Collator(empty, preprocess, seed=args.seed, **options))


class SmartTrainer(Trainer):
    """Train a SmartEncoder on pairs of a query and a relevant document.

    Progress is shown as a bar on a terminal and in a notebook, else as lines; log.jsonl in ``run_dir`` has every value.
    Ctrl-C finishes the step, saves a checkpoint and raises Preempted, which says how to resume.

    Args:
        model: the encoder, with its adapter.
        args: ``smart_train.TrainingArguments``; None = its defaults, with checkpoints in ``trainer_output``.
        train_dataset: a ``datasets.Dataset``, a ``pandas.DataFrame``, a list of dicts, or a Collection: query, positive
            and negatives by column name, else by position, with labels or scores as sentence-transformers has them
            (data/readers/python_rows.py). Or a dict of such data sets by name; a batch is of one of them. Or rows that
            are read while training: a ``smart_train.RowStream`` or a ``datasets.IterableDataset``, with ``max_steps``.
        eval_dataset: the same, ranked at every evaluation; the metrics are ``eval_pooled/ndcg@10``,
            ``eval_late/recall@1`` ..., of a dict of data sets ``eval_NAME_pooled/ndcg@10``.
        loss: ``losses.Joint``; None = the loss that ``objective`` describes.
        callbacks: of transformers, added to this trainer's own.
        columns: which column is what, where the names do not say it: {"query": "title", "document": "body"}; also
            "image", "id", "scores", "label"; "" for none. For both data sets.
        mix_datasets: of several train data sets, pairs of all of them share a batch; False = a batch is of one.
        source_weights, source_temperature: of several, how often each is drawn; by default every pair once an epoch
            (data/batch_sampler.py).
        mining: mine hard negatives during training, as a recipe's block ``mining``: {"rounds": 2, "start": True}. The
            answers of ``eval_dataset`` are never mined.
        objective: batch size over all GPUs, chunks, gathering and false negatives, as a recipe's block ``objective``;
            None = its defaults.
        negatives: hard negatives per query in a batch; None = as many as a row has, and 0 for a Collection.
        query_tokens, document_tokens: longest texts while training; None = the encoder's own limits.
        length_groups: documents of a batch are encoded in so many groups of like length, for less padding.
        data_collator: rows of ``train_dataset`` -> Batch, in place of the one that is made of the options above;
            ``train_dataset`` may then be any torch Dataset.
        eval_k, eval_batch_size: cut-offs of the metrics of ``eval_dataset``, rows of a forward while it is ranked.
        evaluator: ranks in place of ``eval_dataset``: encoder -> {"pooled/ndcg@10": value, ...}.
        gradient_caching: memory follows a chunk instead of the batch (training/gradcache.py); None = where the loss
            gives a batch size.  A frozen backbone keeps no activations and gets one plain pass.
        pair_groups: which pairs may share a batch (data/batch_sampler.py); None = no document twice in a batch.
        patience: evaluations without a new best, after which training ends; None = never.
        run_dir: folder of log.jsonl, of the trackers' files, and of stopped.json; None = ``args.output_dir``.
        tracker_config: stored by the trackers of ``report_to`` with the run; "name" in it names the run.

    Raises:
        ValueError: a batch that the processes or the data cannot fill.
        DataError: a dataset whose columns are not clear.
        TrainingStopped: something that cannot be trained.

    >>> from smart_train import SmartEncoder, SmartTrainer, TrainingArguments  # doctest: +SKIP
    >>> model = SmartEncoder("sentence-transformers/all-MiniLM-L6-v2", lora={"r": 32})  # doctest: +SKIP
    >>> pairs = [{"query": "what is a zebra", "positive": "a striped animal"}, ...]  # doctest: +SKIP
    >>> trainer = SmartTrainer(model, TrainingArguments("runs/mine", max_steps=100), pairs)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    >>> trainer.save_verified("runs/mine/adapter")  # doctest: +SKIP
    """

    args: SmartTrainingArguments

    def __init__(
        self,
        model: SmartEncoder,
        args: SmartTrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        loss: Joint | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        mix_datasets: bool = False,
        source_weights: Mapping[str, float] | None = None,
        source_temperature: float = 1.0,
        mining: MiningBlock | Mapping[str, Any] | None = None,
        objective: ObjectiveBlock | Mapping[str, Any] | None = None,
        negatives: int | None = None,
        query_tokens: int | None = None,
        document_tokens: int | None = None,
        length_groups: int = 4,
        data_collator: Callable[[Any], Batch] | None = None,
        eval_k: Sequence[int] = (1, 5, 10),
        eval_batch_size: int = 32,
        evaluator: Evaluator | None = None,
        gradient_caching: bool | None = None,
        pair_groups: PairGroups | None = None,
        patience: int | None = None,
        run_dir: str | Path | None = None,
        tracker_config: Mapping[str, Any] | None = None,
    ) -> None:
        show_log()
        args = args or SmartTrainingArguments("trainer_output")
        objective = make_block(ObjectiveBlock, objective, "objective")
        mining = make_block(MiningBlock, mining, "mining")
        adapter = _check_model(model, args)
        rates = learning_rates(adapter.kind, bool(list(model.head.parameters())), vars(args))
        for name, rate in rates.items():
            setattr(args, name, rate)
        self.parameter_counts = check_trainable(model, adapter)
        train_in_float32(model)
        wants_caching = objective.batch is not None if gradient_caching is None else gradient_caching
        self.gradient_caching = wants_caching and adapter.kind != "frozen"
        check_batch(args, objective.batch, self.gradient_caching)

        given = {} if eval_dataset is None else read_named(eval_dataset, "eval_dataset", columns)
        self.eval_collections = {name: collection for name, (collection, _) in given.items()}
        self.evaluator = evaluator or self._make_evaluator(eval_k, eval_batch_size)
        check_best_is_measured(args, self.evaluator is not None, patience)
        check_best_is_named(args, self.eval_collections, patience)
        if data_collator is None:
            groups = (pair_groups, mix_datasets, source_weights, source_temperature)
            data = _read_train_data(train_dataset, columns, args, objective, *groups)
            _report_limits(model, query_tokens, document_tokens)
            per_query = (data.negatives or int(mining.rounds > 0)) if negatives is None else negatives
            data_collator = _make_collator(
                data,
                TruncatingPreprocess(model.preprocess, query_tokens, document_tokens),
                args,
                negatives=per_query,
                length_groups=length_groups,
                chunk_rows=chunk_rows(objective),
                split=splitter(model, objective),
            )
        else:
            own = Pairs(train_dataset) if isinstance(train_dataset, Collection) else train_dataset
            data = TrainData(own, pair_groups=pair_groups)
        self.train_collection, self.stream, self.pair_groups = data.collection, data.stream, data.pair_groups
        dataset = data.dataset
        self.stream_progress = StreamProgress(dataset, args.process_index == 0) if data.stream else None

        self.run_dir = Path(str(run_dir or args.output_dir))
        self.means, self.speed = MetricMeans(), SpeedMeter(model)
        self.nonfinite = NonfiniteGuard(objective.skip_nonfinite, self.run_dir)
        self.early_stopping = EarlyStopping(self.log, patience)
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            eval_dataset=dataset,  # Trainer refuses eval_strategy without one; the evaluator is what ranks
            data_collator=TrainerInputs(data_collator, on_host=wants_caching),
            callbacks=[
                EpochOfPairs(dataset),
                FirstStepCheck(model, self.nonfinite.skipped),
                self.speed,
                JsonLogger(self.run_dir / "log.jsonl"),
                self.early_stopping,
                *([self.stream_progress] if self.stream_progress else []),
                *(callbacks or []),
            ],
        )
        self._replace_callbacks(tracker_config)
        self.current_gradient_accumulation_steps = 1  # Trainer sets it in its loop; a step may run outside of one
        self.model_accepts_loss_kwargs = False  # the loss is a mean over pairs, so accumulation divides it
        # These need the process group, which exists only now.
        self.engine = Engine(self.accelerator, model)
        self.checkpoints = CheckpointManager(
            self, self.engine, self.means, self.run_dir / "log.jsonl", lambda: bool(self.nonfinite.signal)
        )
        self.callback_handler.callbacks.insert(0, self.checkpoints)  # first: it cuts the log before others write to it
        dtype = token_dtype(objective.similarity, args.device, args.bf16)
        self.step = LossStep(
            objective, model.late.hybrid, model.settings.matryoshka, model.late.matryoshka, dtype=dtype, joint=loss
        )
        self._check_fitted(model)
        if mining.rounds or mining.start:
            self.add_mining_rounds(mining, list(self.eval_collections.values()))
        if self.is_world_process_zero():
            logger.info("defaults in use: %s", ", ".join(defaults_in_use(args, adapter.kind, rates)) or "none")
        for module in loss_modules(self.step.terms.terms):
            module.to(args.device)

    def __repr__(self) -> str:
        """Return the trainer in a line: what it trains, on what, for how long.

        >>> SmartTrainer(model, arguments, pairs)  # doctest: +SKIP
        SmartTrainer(LoRA of sentence-transformers/all-MiniLM-L6-v2, 1000 pairs, 100 steps of 8 pairs, Joint(...))
        """
        encoder, args = self.encoder, self.args
        kinds = {"lora": "LoRA of ", "full": "all weights of "}
        kind = kinds.get(encoder.adapter.kind if encoder.adapter else "", "the head of ")
        rows: Any = self.train_dataset
        count = f"{len(rows)} pairs" if hasattr(rows, "__len__") else "pairs"
        length = f"{args.max_steps} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
        size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        return f"SmartTrainer({kind}{encoder.settings.base}, {count}, {length} of {size} pairs, {self.step.terms!r})"

    def _replace_callbacks(self, tracker_config: Mapping[str, Any] | None) -> None:
        """Put this package's progress and trackers in the place of transformers'."""
        for theirs in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            self.remove_callback(theirs)
        self.progress = ProgressReporter()
        self.add_callback(self.progress)
        replace_trackers(self, tracker_config, self.run_dir)
        self.add_callback(self.nonfinite)  # last: it ends a training that was saved

    def add_mining_rounds(
        self,
        options: MiningBlock | Mapping[str, Any],
        others: Sequence[Collection] = (),
        folder: str | Path | None = None,
        batch_size: int = 32,
    ) -> None:
        """Mine hard negatives anew during training, ``options.rounds`` times, with the weights of that moment.

        options: as a recipe's block ``mining``; others: collections whose answers must not become negatives
        folder: keeps every round's negatives; None = ``negatives`` in the run's folder
        Raises UsageError where the train data were given in another form than rows or a Collection.

        >>> trainer.add_mining_rounds({"rounds": 2, "k": 8, "max_relative": 0.95})  # doctest: +SKIP
        """
        collection = self.train_collection
        if collection is None:
            raise UsageError("mining needs the train data as rows or a Collection, without a data_collator of your own")
        block = make_block(MiningBlock, options, "mining")
        mine = miner_of(block, collection, others, batch_size)
        at = Path(str(folder or self.run_dir / "negatives"))
        MiningRounds(self, collection, mine, at, rounds=block.rounds, start=block.start)  # adds itself

    def _check_fitted(self, model: SmartEncoder) -> None:
        """Raise SettingError where standardised hybrid scores are trained or chosen by before they have constants."""
        hybrid, metric = model.late.hybrid, str(self.args.metric_for_best_model or "")
        fitted = hybrid.scaling != "standardised" or (hybrid.pooled_std, hybrid.late_std) != (1, 1)
        used = "scores.hybrid" in self.step.terms.reads or "hybrid/" in metric
        if used and not fitted:
            what = "is standardised, but its constants are not fitted, and training uses the hybrid score"
            raise SettingError(
                "late.hybrid.scaling", what, "fit them first (evaluation.calibration.calibrate), or write none"
            )

    @property
    def encoder(self) -> SmartEncoder:
        """Return the encoder, without the engine's wrappers."""
        encoder: SmartEncoder = self.accelerator.unwrap_model(self.model)
        return encoder

    def get_train_dataloader(self) -> DataLoader[Any]:
        if isinstance(self.train_dataset, StreamedBatches):
            dataset = self.train_dataset.resized(self._train_batch_size * self.args.world_size)
            count = self.args.max_steps * self.args.gradient_accumulation_steps
            numbers = BatchNumbers(count, self.args.world_size)
            return train_loader(dataset, numbers, self.data_collator, self.args, self.accelerator)
        if self.pair_groups is None:
            return super().get_train_dataloader()
        batches = plan_batches(self.pair_groups, self.args, self._train_batch_size)  # auto_find_batch_size changes it
        return train_loader(self.train_dataset, batches, self.data_collator, self.args, self.accelerator)

    # -- a step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        self.step.progress = self.state.global_step / max(1, self.state.max_steps)
        make_step = self._cached_step if self.gradient_caching else super().training_step
        try:
            loss = make_step(model, inputs, num_items_in_batch)
        except SkipBatch:
            loss = torch.full((), torch.nan, device=self.args.device)  # Trainer leaves it out of its mean
        if self.step.gather.world > 1:
            self.means.add({"gather/MiB": self.step.gather.take_bytes() / 2**20})
        return loss

    def _cached_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Do the same as Trainer.training_step, with several forwards and backwards."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers have two modes as well
            self.optimizer.train()  # type: ignore[union-attr]
        loss = self.cached_loss(model, batch_of(inputs))
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
        loss = self.batch_loss(model, batch_of(inputs))
        return (loss.total, None) if return_outputs else loss.total

    def batch_loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Compute a batch's loss with one graph: one call of the model for all chunks, so that DDP and ZeRO see one
        forward a step."""
        chunks, labels = self._chunks_and_labels(batch)
        plan = self.engine.plan(chunks, cached=False)
        embeddings = model(ChunksOnDevice([chunks[number] for number in plan], self.args.device))
        embeddings = restore_order(embeddings, plan, chunks)
        return self._checked(self.step.loss(embeddings, labels), labels, embeddings)

    def cached_loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Compute the same loss, detached, and add its gradient (a share of the accumulation's) to the weights.

        Every chunk runs twice, but only one chunk's activations exist at a time.  See training/gradcache.py.
        """
        chunks, labels = self._chunks_and_labels(batch)
        plan, calls = self.engine.plan(chunks, cached=True), count()

        def forward(chunk: Features) -> Embeddings:
            if next(calls) >= len(plan):
                chunk = chunk | {"cut": 0}  # rows at their length limit were counted the first time
            embeddings: Embeddings = model(chunk)
            return embeddings

        return cached_backward(
            forward,
            ChunksOnDevice(chunks, self.args.device),
            lambda embeddings: self._checked(self.step.loss(embeddings, labels), labels, embeddings),
            lambda surrogate, last: self.engine.backward(surrogate / self.current_gradient_accumulation_steps),
            plan,
            partial(self.engine.around, model),
            keep=self.args.train_batch_size <= KEEP_LAST_GRAPH and not (self.engine.deepspeed or self.engine.fsdp),
        )

    def _chunks_and_labels(self, batch: Batch) -> tuple[list[Features], Batch]:
        """Return the chunks where they are, and everything else on the device."""
        return [*batch.queries, *batch.documents], replace(batch, queries=[], documents=[]).to(self.args.device)

    def _checked(self, loss: Loss, batch: Batch, embeddings: Embeddings) -> Loss:
        """Record the loss for the log; stop, or skip the step, where a rank's loss is not finite."""
        skipped = {"batch/skipped": 0.0} if self.nonfinite.limit else {}
        try:
            self.nonfinite.check_loss(loss, batch, embeddings, self.state.global_step + 1)
        except SkipBatch:
            self.means.add({"batch/skipped": 1.0})
            raise
        counts = {f"batch/{n}": v for n, v in batch_counts(batch.notes).items() if isinstance(v, int | float)}
        self.means.add({**loss.parts, **counts, **skipped})
        return loss

    # -- gradients and learning rates

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, with groups (head or not) x (decayed or not): the head has its own learning rate."""
        if self.optimizer is not None:
            return self.optimizer
        target: Any = self.model if model is None else model
        groups = weight_groups(target, self.encoder.head, self.args, self.get_decay_parameter_names(target))
        cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, target)
        self.optimizer = cls(groups, **kwargs)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the head and everything else separately.

        A fresh head's gradient is many times larger than a LoRA's; one common norm would scale the backbone's steps
        down to nothing.  (DeepSpeed clips inside its engine, by one norm, and the log says so.)
        """
        if self.nonfinite.skipped.current:  # nothing to clip or unscale
            return torch.zeros(())
        head = list(self.encoder.head.parameters())
        others = [p for n, p in self.encoder.named_parameters() if p.requires_grad and not n.startswith("head.")]
        if not head or not others or self.is_deepspeed_enabled:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()
        limit = float(self.args.max_grad_norm or 0.0)
        norms = [full_tensor(nn.utils.clip_grad_norm_(parameters, limit)) for parameters in (head, others)]
        return torch.stack(norms).norm()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self.nonfinite.skipped.current:
            return torch.zeros(())
        norm = super()._get_grad_norm(model, grad_norm)
        if not self.args.fp16:  # its scaler checks gradients itself, and skips steps until it has found its scale
            self.nonfinite.check_gradient(norm, self.state.global_step + 1, self.engine.deepspeed)
        return norm

    # -- log and evaluate

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """Take the batches of one step from the loader, as Trainer does, and measure it."""
        with self.speed.waiting(), worker_errors():
            samples, items = super().get_batch_samples(*args, **kwargs)
        self.speed.count(batch_of(inputs) for inputs in samples)
        if self.stream_progress is not None:
            for inputs in samples:
                self.stream_progress.taken(batch_of(inputs).notes)
        return samples, items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.means.take(self.accelerator))
            logs.update(self.speed.take(self.accelerator, self.state))
        super().log(logs, start_time)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Rank the dev split and return its metrics, for example {"eval_pooled/ndcg@10": 0.61}.

        ``metric_for_best_model`` takes their names; eval_seconds is what the ranking took.
        """
        if self.evaluator is None:
            return {}
        if callable(getattr(self.optimizer, "eval", None)):  # rank the weights that save_model saves
            self.optimizer.eval()  # type: ignore[union-attr]
        begun = time.monotonic()
        ranked = self.evaluator(self.encoder) | {"seconds": round(time.monotonic() - begun, 2)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in ranked.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _make_evaluator(self, k: Sequence[int], batch_size: int) -> Evaluator | None:
        if not self.eval_collections:
            return None

        def rank(encoder: SmartEncoder) -> dict[str, float]:
            group, values = ProcessGroup(lockstep=self.engine.sharded), dict[str, float]()
            for name, dev in self.eval_collections.items():
                ranked = evaluate(encoder, dev, k=k, batch_size=batch_size, bootstrap=1, group=group)
                for mode, metrics in ranked.metrics.items():
                    prefix = f"{name}_{mode}" if name else mode
                    values |= {f"{prefix}/{metric}": value["value"] for metric, value in metrics.items()}
            return values

        return rank

    # -- save and resume: see training/checkpoint.py

    def save_verified(self, folder: str | Path) -> Path:
        """Save the trained encoder, reload it in a fresh object, and compare their vectors; return where it is saved.

        Every rank must call it. Where the disk does not take the weights, they are saved elsewhere or wait for room
        (training/final_save.py). ``verified.json`` in the folder is what publishing asks for.
        Raises AdapterError where the reloaded encoder, or plain sentence-transformers, gives other vectors.
        """
        saved = save_trained(self, Path(folder).expanduser())
        main = self.is_world_process_zero()
        if main or self.engine.sharded:
            verify(self.encoder, saved, *self._reference_inputs(), main=main, half=self.engine.half)
        return saved

    def _reference_inputs(self, count: int = 8) -> tuple[list[Any], list[Any]]:
        """Return a few queries and documents, whose vectors must be equal after reloading."""
        ranked = [one for one in self.eval_collections.values() if one.queries]
        split = ranked[0] if ranked else self.train_collection
        if split is None and self.stream is not None:
            split = self.stream.head(count)
        if split is None:  # a dataset and collator of the caller's
            return list(QUERIES), list(DOCUMENTS)
        documents = [document.content() for document in islice(split.corpus.values(), count)]
        return list(islice(split.queries.values(), count)), documents

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **options: Any) -> TrainOutput:
        """Train, as Trainer does.

        resume_from_checkpoint: True = the newest complete checkpoint of the output folder; or a checkpoint's path;
            None = as the training arguments say
        Raises CheckpointError where there is none to resume from, AdapterError where it is of another adapter,
        FolderInUse where another trainer is training into the output folder, and Preempted where Ctrl-C or SIGTERM
        ended the training, after a checkpoint was saved.
        """
        if resume_from_checkpoint is None:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        with self._owning_output(), interruptible(), closing(self.progress):
            try:
                folder = self.checkpoints.begin(resume_from_checkpoint)
                return super().train(str(folder) if folder is not None else None, *args, **options)
            except CheckpointError as error:
                if self.nonfinite.from_recipe:
                    raise
                raise python_error(error) from error.__cause__

    @contextmanager
    def _owning_output(self) -> Iterator[None]:
        """Own the output folder while training (rank 0 does; a recipe's run owns it already); every rank must call it.

        Raises FolderInUse, on every rank.
        """
        owner = own(self.args.output_dir if self.is_world_process_zero() else None)
        try:
            ProcessGroup().collect(owner.__enter__)
        except CollectError as error:
            raise error.__cause__ or FolderInUse(str(error)) from None
        with ExitStack() as stack:
            stack.push(owner)
            yield

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the encoder's folder.  Every rank must call it: sharded weights are collected from all of them."""
        folder = str(output_dir or self.args.output_dir)
        if callable(getattr(self.optimizer, "eval", None)):  # schedule-free optimizers have the averaged weights there
            self.optimizer.eval()  # type: ignore[union-attr]
        if not self.engine.sharded:
            self._save(folder)
            return
        with full_state_dict(self.encoder, keep=self.args.should_save) as state:
            self._save(folder, state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save without Trainer's pickled arguments."""
        if self.args.should_save:
            self.encoder.save_pretrained(Path(str(output_dir or self.args.output_dir)), state=state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.checkpoints.save_or_count()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.checkpoints.save_sharded_optimizer(Path(output_dir)):
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.checkpoints.load_sharded_optimizer(Path(checkpoint)):
            with same_options(self.optimizer, checkpoint):
                super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.checkpoints.load_weights(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self.checkpoints.load_best()

    def _init_training_state(self, *args: Any, **options: Any) -> tuple[int, int]:
        epoch_and_batch = super()._init_training_state(*args, **options)
        self.checkpoints.restore_trainer_state()
        return epoch_and_batch

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if resume_from_checkpoint is None or not self.engine.deepspeed:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.checkpoints.load_deepspeed(Path(resume_from_checkpoint))
        return prepared

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        """Make no further step where the resumed run was at its end: Trainer would look after one more step only."""
        at_end = self.state.global_step >= self.state.max_steps
        if self.checkpoints.resumed_from and (at_end or self.early_stopping.out_of_patience(self.args, self.state)):
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **options)

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        with self.checkpoints.around_step_end():
            super()._maybe_log_save_evaluate(*args, **options)

    def _finalize_training(self, *args: Any, **options: Any) -> TrainOutput:
        with self.checkpoints.around_end():
            return super()._finalize_training(*args, **options)

    def release(self) -> None:
        """Free weights, optimizer and engine.  The trainer cannot be used afterwards."""
        del self.model, self.model_wrapped
        self.callback_handler.model = self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.optimizer = self.lr_scheduler = None  # type: ignore[assignment]
        self.__dict__.pop("deepspeed", None)
        self.accelerator.free_memory()
