"""Run a recipe: load data, evaluate the base, train, save and verify the adapter, evaluate it, report, publish.

A run's folder:
    recipe.yaml, versions.json   the resolved recipe; versions and data fingerprints
    facts.json                   counts of the data, the machine it ran on
    measured.json                the base's figures, and what they depend on
    log.jsonl                    every logged line
    owner.json                   the process that writes here, while it runs
    checkpoints/                 what training.resume_from_checkpoint needs
    adapter/                     what is loaded and published: see models/saving.py
    metrics.json, evaluation.json, curve.png
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from smart_train.checks.mining import data_of
from smart_train.checks.objective import needs_teacher
from smart_train.checks.recipe import check
from smart_train.checks.unused import unused_keys
from smart_train.config.recipe import plain, read
from smart_train.config.recipe import save as save_recipe
from smart_train.config.schema import LateBlock, Recipe
from smart_train.config.training_arguments import make_callbacks
from smart_train.config.training_fields import without_effect
from smart_train.core.environment import rank, world
from smart_train.core.errors import EvaluationError, SavedElsewhere, SettingError, SmartTrainError
from smart_train.core.terminal_log import show_log
from smart_train.data.batch_sampler import PairGroups, pair_groups
from smart_train.data.collate import Pairs
from smart_train.data.collection import Collection
from smart_train.data.load import load, load_streamed
from smart_train.data.streaming import RowStream
from smart_train.distributed.process_group import ProcessGroup, leave_process_group
from smart_train.evaluation.baseline import table_hashes
from smart_train.evaluation.calibration import calibrate
from smart_train.evaluation.metrics import Interval
from smart_train.evaluation.report.charts import plot_training_log
from smart_train.evaluation.report.metric_tables import table
from smart_train.evaluation.report.metrics_json import differences, write_metrics
from smart_train.evaluation.retrieval import Evaluation, evaluate
from smart_train.losses.joint import Joint
from smart_train.models.encoder import SmartEncoder
from smart_train.publishing.publisher import check_access, publish
from smart_train.training.arguments import SmartTrainingArguments, learning_rates, training_arguments
from smart_train.training.batch_size import check_batch, check_pages, check_steps, check_stream, with_batch_share
from smart_train.training.callbacks.early_stopping import check_best_is_measured
from smart_train.training.dataloader import check_accelerator, plan_batches, stream_batches
from smart_train.training.engine import check_launched, check_quantised, is_sharded, prepare_deepspeed
from smart_train.training.measured_rows import MeasuredRows, dependencies
from smart_train.training.optimizer import steps_of
from smart_train.training.rehearsal import refused, rehearse, warn_of_warmup
from smart_train.training.run_dir import owned_run_dir, resumed_run, warn_of_other_data
from smart_train.training.run_metadata import log_counts, write_run_metadata
from smart_train.training.trainer import SmartTrainer

logger = logging.getLogger(__name__)


@dataclass
class Splits:
    """The data of a run."""

    train: Collection | RowStream
    dev: Collection
    test: Collection

    def fingerprints(self) -> dict[str, str]:
        return {name: split.fingerprint() for name, split in vars(self).items()}


def train(recipe: Recipe | str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Check and run a recipe; return what metrics.json holds, on rank 0; {} on other ranks.

    recipe: a YAML file, or a Recipe; overrides: ``key=value`` words, as on the command line
    Raises RecipeError with every mistake, before a model is loaded; and what ``run`` raises.

    >>> train("recipes/quickstart.yaml", ["training.max_steps=10"])  # doctest: +SKIP
    """
    show_log()
    recipe = recipe if isinstance(recipe, Recipe) else read(recipe, overrides)
    check(recipe)
    return run(recipe)


def run(recipe: Recipe) -> dict[str, Any]:
    """Run a checked recipe; return what metrics.json holds, on rank 0; {} on other ranks.

    Every rank of a launch calls it, and ranks its share of the documents before, during and after training; rank 0
    alone writes, and owns the folder until the run ends.  Raises Preempted where a signal ended the training; nothing
    that was written is lost.
    """
    if recipe.publish.repo:
        check_access()  # before training, so that a missing token does not stop the run at its end
    output = Path(recipe.output or f"runs/{recipe.name}")
    with owned_run_dir(output, recipe) if rank() == 0 else nullcontext():
        return _run(recipe, output)


def _run(recipe: Recipe, output: Path) -> dict[str, Any]:
    main = rank() == 0
    if main:
        _log_idle_cores()
    if recipe.data.streaming:
        splits = Splits(*load_streamed(recipe.data))
    else:
        splits = Splits(*load(data_of(recipe), teacher=needs_teacher(recipe)))
    if main:
        log_counts(vars(splits))
        warn_of_other_data(resumed_run(recipe, output), splits.fingerprints())
        save_recipe(recipe, output, splits.fingerprints())
    args = make_arguments(recipe, output)
    plan = prepare(recipe, splits, args)
    rows: dict[str, Evaluation] = {}
    if recipe.evaluation.before:
        rows["base"] = _base_row(recipe, splits, output, args)
    trainer = make_trainer(recipe, splits, output, args, plan)
    if main:
        write_run_metadata(output, recipe, vars(splits), trainer)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    lost = trainer.checkpoints.lost
    encoder, adapter = save_and_reload(trainer, recipe, output)
    if recipe.evaluation.after:
        rows["trained"] = _evaluate_row("trained", encoder, splits, recipe, adapter if main else None)
    leave_process_group()
    metrics = _report(rows, output, recipe, splits.test, adapter, lost) if main else {}
    if adapter != output / "adapter":
        raise SavedElsewhere(
            f"{output} could not be written, and the adapter is in {adapter}, verified; free space, then move it to "
            f"{output / 'adapter'}; it was not published"
        )
    if not main:
        return {}
    if recipe.publish.repo:
        publish(output, recipe.publish.repo, recipe.publish.private, recipe.publish.license)
    return metrics


def _log_idle_cores() -> None:
    """accelerate launch gives a process one thread where OMP_NUM_THREADS is not set: half a small machine idles."""
    used, cores = torch.get_num_threads(), os.cpu_count() or 1
    if not torch.cuda.is_available() and world() == 1 and used < cores:
        logger.info("using %d of %d CPU cores; set OMP_NUM_THREADS=%d to use all of them", used, cores, cores)


def make_arguments(recipe: Recipe, output: Path) -> SmartTrainingArguments:
    """Make the training arguments.  This joins the processes, where there are several."""
    prepare_deepspeed(bool(recipe.training.get("deepspeed")))
    block = with_batch_share(recipe.training, recipe.objective)
    head = recipe.late.head.type != "none" or isinstance(recipe.late.layer, list)
    rates = learning_rates(recipe.adapter.kind, head, block)
    for name, rate in rates.items() if rank() == 0 else ():
        logger.info("training.%s is not given: %g, the default of adapter.kind %s", name, rate, recipe.adapter.kind)
    try:
        args = training_arguments({**block, **rates}, output)
    except SmartTrainError:
        raise
    except Exception as error:  # of transformers, accelerate or torch, beyond what checks/training.py could try
        less = {name: {k: v for k, v in block.items() if k != name} for name in recipe.training}
        again = (lambda name: training_arguments(less[name], output)) if world() == 1 else None
        raise refused(error, recipe.training, again) from error
    check_launched(args)
    return args


@dataclass
class Plan:
    """What a trainer is made of besides the encoder and the data."""

    pair_groups: PairGroups | None  # None while streaming: no batch is planned before
    callbacks: list[TrainerCallback]


def prepare(recipe: Recipe, splits: Splits, args: SmartTrainingArguments) -> Plan:
    """Build and try everything of the training that needs no model, so that it fails before anything slow.

    Raises SettingError or TrainingStopped with the key.
    """
    objective, frozen = recipe.objective, recipe.adapter.kind == "frozen"
    check_quantised(args, recipe.model.quantisation)
    check_batch(args, objective.batch, objective.batch is not None and not frozen)
    check_pages(objective, splits.train)
    check_best_is_measured(args, _ranks_dev(recipe, splits, args), recipe.evaluation.patience)
    if isinstance(splits.train, RowStream):
        check_stream(args, splits.train)
        stream_batches(splits.train, args)[0]  # so that rows which cannot be read are told before anything is slow
        groups, steps = None, args.max_steps
    else:
        groups = _pair_groups(recipe, splits.train, args)
        steps = steps_of(args, len(plan_batches(groups, args)))
    warn_of_warmup(args, steps)
    idle = [*unused_keys(recipe), *((f"training.{n}", why) for n, why in without_effect(args, recipe.training))]
    for key, why in idle if args.process_index == 0 else ():
        logger.info("%s changes nothing in this run: %s", key, why)
    check_accelerator(args)
    rehearse(args, steps, recipe.training)
    try:
        return Plan(groups, make_callbacks(recipe.training))
    except SmartTrainError:
        raise
    except Exception as error:  # code of somebody else
        what = f"one of them fails with {type(error).__name__}: {error}"
        raise SettingError("training.callbacks", what, "correct it, or its options") from error


def _ranks_dev(recipe: Recipe, splits: Splits, args: SmartTrainingArguments) -> bool:
    return recipe.evaluation.during and bool(splits.dev.queries) and args.eval_strategy != "no"


# -- the encoder before training, and its evaluation


def untrained_encoder(recipe: Recipe, device: str | None = None) -> SmartEncoder:
    """Return the base as it is.  It gets no head: one that was never trained would only blur the hidden states."""
    return SmartEncoder(recipe.model.base, model=recipe.model, late=_untrained_late(recipe.late), device=device)


def _untrained_late(own: LateBlock) -> LateBlock:
    layer = own.layer if isinstance(own.layer, int) else -1 if -1 in own.layer else own.layer[-1]
    return LateBlock(layer=layer, norm=own.norm, keep=own.keep, drop=own.drop, hybrid=replace(own.hybrid))


def _base_row(recipe: Recipe, splits: Splits, output: Path, args: SmartTrainingArguments) -> Evaluation:
    """Measure the base, or take the figures that an earlier start of this run made of it."""
    late, device = _untrained_late(recipe.late), args.device
    ranked = {"dev": splits.dev, "test": splits.test}
    main = rank() == 0
    depends_on = dependencies(recipe.model, late, recipe.evaluation, ranked, device) if main else None
    measured = MeasuredRows(output, depends_on, main)
    row = measured.base()
    if row is None:
        base = untrained_encoder(recipe, str(device))
        row = _evaluate_row("base", base, splits, recipe, measured=measured)
    measured.keep("base", row)
    return row


def _evaluate_row(
    row: str,
    encoder: SmartEncoder,
    splits: Splits,
    recipe: Recipe,
    save_to: Path | None = None,
    measured: MeasuredRows | None = None,
) -> Evaluation:
    """Calibrate the hybrid score on the dev split, then rank the test split.

    save_to: the encoder's folder, which gets the calibrated weight; measured: keeps the calibration, or has it already
    """
    options = recipe.evaluation
    kept = measured.calibration() if measured is not None else None
    if kept is not None:
        encoder.late.hybrid = kept
    elif options.calibrate and splits.dev.queries:
        group = ProcessGroup()
        encoder.late.hybrid, tried = calibrate(
            encoder,
            splits.dev,
            batch_size=options.batch_size,
            group=group,
            queries=options.calibration_queries,
            documents=options.calibration_documents,
        )
        weight, values = encoder.late.hybrid.late, {one["late"]: round(one["value"], 4) for one in tried}
        logger.info("%s: the late weight of the hybrid score is %g, from nDCG on dev %s", row, weight, values)
        written, key = recipe.late.hybrid.late, "late.hybrid.late"
        if key in recipe.where.lines and written != weight:
            what = "%s: the calibrated weight %g replaces %s: %g; evaluation.calibrate: false keeps it"
            logger.info(what, row, weight, key, written)
        if measured is not None:
            measured.keep("calibration", encoder.late.hybrid)
        if save_to is not None:
            encoder.save_settings(save_to)
    logger.info("%s: ranking the test split", row)
    return evaluate(
        encoder,
        splits.test,
        k=options.k,
        batch_size=options.batch_size,
        bootstrap=options.bootstrap,
        seed=options.seed,
        progress=rank() == 0,
        group=ProcessGroup(),
    )


# -- training


def make_trainer(
    recipe: Recipe,
    splits: Splits,
    output: Path,
    args: SmartTrainingArguments | None = None,
    plan: Plan | None = None,
) -> SmartTrainer:
    """Make the encoder with its adapter, and its trainer.  args: of ``make_arguments``; plan: of ``prepare``."""
    args = args or make_arguments(recipe, output)
    plan = plan or prepare(recipe, splits, args)
    set_seed(args.seed)  # LoRA and the head are drawn next, whatever was drawn before; the same on every rank
    late = replace(recipe.late, hybrid=replace(recipe.late.hybrid))
    device = "cpu" if is_sharded(args) else str(args.device)  # an engine that shards weights moves its share itself
    encoder = SmartEncoder(recipe.model.base, model=recipe.model, late=late, adapter=recipe.adapter, device=device)
    data, evaluation = recipe.data, recipe.evaluation
    trainer = SmartTrainer(
        encoder,
        args,
        splits.train,
        splits.dev if _ranks_dev(recipe, splits, args) else None,
        Joint.from_recipe(recipe.objective),
        plan.callbacks,
        objective=recipe.objective,
        negatives=data.negatives,
        query_tokens=data.query_tokens,
        document_tokens=data.document_tokens,
        length_groups=data.length_groups,
        pair_groups=plan.pair_groups,
        eval_k=evaluation.k,
        eval_batch_size=evaluation.batch_size,
        patience=evaluation.patience,
        run_dir=output,
        tracker_config=plain(recipe),
    )
    trainer.nonfinite.from_recipe = True
    if recipe.mining.rounds and not isinstance(splits.train, RowStream):
        _add_mining_rounds(trainer, splits, recipe, output)
    for line in trainer.engine.describe():
        logger.info("%s", line)
    counts = trainer.parameter_counts
    logger.info("training %(trainable)s of %(all)s parameters (LoRA %(lora)s, head %(head)s)", counts)
    return trainer


def _pair_groups(recipe: Recipe, collection: Collection, args: SmartTrainingArguments) -> PairGroups:
    """Return which pairs may share a batch, and log what follows; raise where that leaves not one batch."""
    data, pairs = recipe.data, Pairs(collection)
    check_steps(args, len(pairs))
    groups = pair_groups(
        collection,
        pairs.rows,
        data.source,
        data.source_weights,
        data.source_temperature,
        data.length_window,
    )
    for line in plan_batches(groups, args).summary():
        if args.process_index == 0:
            logger.info("batches: %s", line)
    return groups


def _add_mining_rounds(trainer: SmartTrainer, splits: Splits, recipe: Recipe, output: Path) -> None:
    """Mine hard negatives anew during training."""
    folder = output / "negatives"
    earlier = (resumed_run(recipe, output) or output) / "negatives"
    if rank() == 0 and earlier.is_dir() and earlier.resolve() != folder.resolve():
        shutil.copytree(earlier, folder, dirs_exist_ok=True)  # of the resumed run, wherever it was moved
    trainer.add_mining_rounds(recipe.mining, [splits.dev, splits.test], folder, recipe.evaluation.batch_size)


def save_and_reload(trainer: SmartTrainer, recipe: Recipe, output: Path) -> tuple[SmartEncoder, Path]:
    """Save the adapter, reload it in a fresh object and compare its vectors.

    Returns (the reloaded encoder, its folder), which is another one where OUTPUT could not be written
    (training/final_save.py).
    """
    main, encoder = trainer.is_world_process_zero(), trainer.encoder
    folder = trainer.save_verified(output / "adapter")
    every = ProcessGroup().exchange(encoder.cut_rows)
    cut = {role: sum(rows[role] for rows in every) for role in encoder.cut_rows}
    if main and any(cut.values()):
        logger.info("texts that reached their length limit and may have been cut: %s", cut)
    trainer.accelerator.wait_for_everyone()
    device, model = str(trainer.args.device), recipe.model
    trainer.release()
    del encoder
    gc.collect()
    reloaded = SmartEncoder.from_pretrained(
        folder,
        device=device,
        attention=model.attention,
        trust_remote_code=model.trust_remote_code,
        trust_extensions=recipe.late.extensions,
    )
    return reloaded, folder


# -- the end


def _report(
    rows: dict[str, Evaluation], output: Path, recipe: Recipe, test: Collection, adapter: Path, lost: list[int]
) -> dict[str, dict[str, dict[str, Interval]]]:
    """Log the table, and write metrics.json and curve.png beside the adapter.  lost: steps of lost checkpoints."""
    results, log = adapter.parent, output / "log.jsonl"
    if lost:
        logger.warning("%d checkpoints could not be written, of the steps %s", len(lost), lost)
    if rows:
        compared = differences(rows)
        logger.info("\n%s\n", table({row: one.metrics for row, one in rows.items()}, compared))
        about = {"data": {"hashes": table_hashes(test)}, **({"lost_checkpoints": lost} if lost else {})}
        write_metrics(results / "metrics.json", rows, differences=compared, **about)
        logger.info("metrics: %s", results / "metrics.json")
    if log.is_file():
        try:
            plot_training_log(log, results / "curve.png", title=recipe.name)
            logger.info("chart: %s", results / "curve.png")
        except (EvaluationError, OSError) as error:  # the run is saved and measured: a picture does not fail it
            logger.warning("no chart: %s", error)
    logger.info("adapter: %s", adapter)
    return {row: one.metrics for row, one in rows.items()}
