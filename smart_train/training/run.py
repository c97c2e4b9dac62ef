"""One recipe -> one run: data, base figures, training, a verified adapter, trained figures, a table and a picture;
published, if the recipe says where.

A run's folder:
    recipe.yaml, versions.json   the resolved recipe; versions and data fingerprints
    facts.json                   counts of the data, what it ran on
    log.jsonl                    every logged line
    checkpoints/                 what training.resume_from_checkpoint needs
    adapter/                     what is loaded and published: see models/saving.py
    metrics.json, evaluation.json, curve.png
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smart_train.checks.mining import data_of
from smart_train.checks.objective import needs_teacher
from smart_train.config.recipe import plain
from smart_train.config.recipe import save as save_recipe
from smart_train.config.schema import LateBlock, Recipe
from smart_train.core.environment import rank, world
from smart_train.data.batch_sampler import Kin, kin
from smart_train.data.collate import Collator, Pairs, Shorter
from smart_train.data.collection import Collection
from smart_train.data.load import load
from smart_train.distributed.process_group import ProcessGroup
from smart_train.evaluation.baseline import hashes
from smart_train.evaluation.calibration import calibrate
from smart_train.evaluation.metrics import Interval
from smart_train.evaluation.report.charts import plot
from smart_train.evaluation.report.metrics_json import differences, write_metrics
from smart_train.evaluation.report.tables import table
from smart_train.evaluation.retrieval import Evaluation, evaluate
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import verify
from smart_train.publishing.publisher import check_access, publish
from smart_train.training.run_dir import make_room, resumed_run, tell_other_data
from smart_train.training.run_metadata import record, tell

if TYPE_CHECKING:
    from smart_train.training.arguments import SmartTrainingArguments
    from smart_train.training.trainer import SmartTrainer

logger = logging.getLogger(__name__)


@dataclass
class Sides:
    """The data of a run."""

    train: Collection
    dev: Collection
    test: Collection

    def fingerprints(self) -> dict[str, str]:
        return {name: getattr(self, name).fingerprint() for name in ("train", "dev", "test")}


def run(recipe: Recipe, source: str | Path) -> dict[str, Any]:
    """Runs a checked recipe and returns what metrics.json holds, on rank 0; {} on others.

    source: the recipe's file, for messages.  Every rank of a launch calls this, and each ranks its share of the
    documents before, during and after the training; rank 0 alone writes.
    Raises what its rooms raise, and Preempted where a signal ended the training; nothing that was written is lost.
    """
    if recipe.publish.repo:
        check_access()  # a missing token is better learnt now than after the training
    main = rank() == 0
    output = Path(recipe.output or f"runs/{recipe.name}")
    if main:
        make_room(output, recipe)
        _tell_threads()
    sides = Sides(*load(data_of(recipe), teacher=needs_teacher(recipe)))
    if main:
        tell(vars(sides))
        tell_other_data(resumed_run(recipe, output), sides.fingerprints())
        save_recipe(recipe, output, sides.fingerprints())
    args = join(recipe, output)
    rows: dict[str, Evaluation] = {}
    if recipe.evaluation.before:
        rows["base"] = _figures(training_free(recipe, str(args.device)), sides, recipe, "base")
    trainer = make_trainer(recipe, sides, output, args)
    if main:
        record(output, recipe, vars(sides), trainer)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    encoder = finish(trainer, sides, recipe, output)
    if recipe.evaluation.after:
        rows["trained"] = _figures(encoder, sides, recipe, "trained", into=output / "adapter" if main else None)
    _leave()
    if not main:
        return {}
    metrics = _report(rows, output, recipe, sides.test)
    if recipe.publish.repo:
        publish(output, recipe.publish.repo, recipe.publish.private, recipe.publish.license)
    return metrics


def join(recipe: Recipe, output: Path) -> SmartTrainingArguments:
    """The training arguments; making them joins the processes, where there are several."""
    from smart_train.training.arguments import training_arguments
    from smart_train.training.batch_size import shared
    from smart_train.training.checks import check_engine
    from smart_train.training.engine import ready

    ready(bool(recipe.training.get("deepspeed")))
    args = training_arguments(shared(recipe.training, recipe.objective), output)
    check_engine(args)
    return args


def _tell_threads() -> None:
    """accelerate launch gives a process one thread where OMP_NUM_THREADS is not set: half a small machine idle."""
    used, cores = torch.get_num_threads(), os.cpu_count() or 1
    if not torch.cuda.is_available() and world() == 1 and used < cores:
        logger.info("using %d of %d CPU cores; OMP_NUM_THREADS=%d before the command uses them all", used, cores, cores)


def training_free(recipe: Recipe, device: str | None = None) -> SmartEncoder:
    """The untouched base: its hidden states as they are (a head that was never trained would only blur them)."""
    own = recipe.late
    late = LateBlock(layer=_one_layer(own.layer), norm=own.norm, keep=own.keep, drop=own.drop)
    late.hybrid = replace(recipe.late.hybrid)
    return SmartEncoder(recipe.model.base, model=recipe.model, late=late, device=device)


def _one_layer(layer: int | list[int]) -> int:
    return layer if isinstance(layer, int) else -1 if -1 in layer else layer[-1]


def _figures(encoder: SmartEncoder, sides: Sides, recipe: Recipe, row: str, into: Path | None = None) -> Evaluation:
    """Calibrates the hybrid on the dev split, then measures on the test split; ``into``: the folder to keep it in."""
    options = recipe.evaluation
    if options.calibrate and sides.dev.queries:
        encoder.late.hybrid, figures = calibrate(
            encoder, sides.dev, batch_size=options.batch_size, group=ProcessGroup()
        )
        chosen = encoder.late.hybrid.late
        logger.info("%s: late weight %g of %s on dev", row, chosen, {f["late"]: round(f["value"], 4) for f in figures})
        given, key = recipe.late.hybrid.late, "late.hybrid.late"
        if key in recipe.where.lines and given != chosen:
            what = "of the recipe gives way to the calibrated"
            logger.info("%s: %s %g %s %g; evaluation.calibrate: false keeps it", row, key, given, what, chosen)
        if into is not None:
            encoder.save_settings(into)
    logger.info("%s: ranking the test split", row)
    return evaluate(
        encoder,
        sides.test,
        k=options.k,
        batch_size=options.batch_size,
        bootstrap=options.bootstrap,
        seed=options.seed,
        progress=rank() == 0,
        group=ProcessGroup(),
    )


def make_trainer(
    recipe: Recipe, sides: Sides, output: Path, args: SmartTrainingArguments | None = None
) -> SmartTrainer:
    """The encoder with its adapter, and the trainer around it; args: of ``join``."""
    from transformers import set_seed

    from smart_train.training.batch_size import check_pages, check_steps, chunk_rows, splitter
    from smart_train.training.engine import check_quantised, is_sharded
    from smart_train.training.trainer import SmartTrainer

    args = args or join(recipe, output)
    check_quantised(args, recipe.model.quantisation)
    set_seed(args.seed)  # LoRA and the head are drawn next, whatever was drawn before; the same on every rank
    late = replace(recipe.late, hybrid=replace(recipe.late.hybrid))
    device = "cpu" if is_sharded(args) else str(args.device)  # an engine that cuts weights up moves its share itself
    encoder = SmartEncoder(recipe.model.base, model=recipe.model, late=late, adapter=recipe.adapter, device=device)
    data = recipe.data
    preprocess = Shorter(encoder.preprocess, data.query_tokens, data.document_tokens)
    collate = Collator(
        sides.train,
        preprocess,
        negatives=data.negatives,
        length_groups=data.length_groups,
        seed=args.seed,
        chunk_rows=chunk_rows(recipe.objective),
        split=splitter(encoder, recipe.objective),
    )
    during = recipe.evaluation.during and bool(sides.dev.queries) and args.eval_strategy != "no"
    pairs = Pairs(sides.train)
    check_steps(args, len(pairs))
    alike = _kin(recipe, sides, pairs, args)
    check_pages(recipe.objective, sides.train.corpus.values(), sides.train.name)
    trainer = SmartTrainer(
        encoder,
        args,
        recipe.objective,
        pairs,
        collate,
        rank_dev=(lambda e: rank_dev(e, sides.dev, recipe, ProcessGroup(trainer.engine.sharded))) if during else None,
        log=output / "log.jsonl",
        kin=alike,
        patience=recipe.evaluation.patience,
        about=plain(recipe),
    )
    _remine(trainer, sides, recipe, output)
    for line in trainer.engine.told():
        logger.info("%s", line)
    logger.info("training %(trainable)s of %(all)s parameters (lora %(lora)s, head %(head)s)", trainer.counts)
    return trainer


def _kin(recipe: Recipe, sides: Sides, pairs: Pairs, args: SmartTrainingArguments) -> Kin:
    """Which pairs may share a batch; tells what comes of it, and raises where not one batch does."""
    from smart_train.training.dataloader import planned

    data = recipe.data
    found = kin(sides.train, pairs.rows, data.source, data.source_weights, data.source_temperature, data.length_window)
    for line in planned(found, args).told():
        if args.process_index == 0:
            logger.info("batches: %s", line)
    return found


def _remine(trainer: SmartTrainer, sides: Sides, recipe: Recipe, output: Path) -> None:
    """Has the training's hard negatives mined anew while it runs, where the recipe says so."""
    options = recipe.mining
    if not options.rounds:
        return
    from smart_train.mining.extensions import MINERS, RERANKERS, load_callable
    from smart_train.mining.folder import round_miner
    from smart_train.mining.selection import MiningOptions
    from smart_train.training.mining_rounds import Remine

    names = ("k", "mode", "max_relative", "margin", "skip_top", "window", "sampling")
    chosen = MiningOptions(**{name: getattr(options, name) for name in names}, range=(options.first, options.last))
    mine = round_miner(
        sides.train,
        [sides.dev, sides.test],
        chosen,
        recipe.evaluation.batch_size,
        miner=None if options.miner is None else load_callable(MINERS, options.miner),
        reranker=None if options.reranker is None else load_callable(RERANKERS, options.reranker),
    )
    folder = output / "negatives"
    earlier = (resumed_run(recipe, output) or output) / "negatives"
    if rank() == 0 and earlier.is_dir() and earlier.resolve() != folder.resolve():
        shutil.copytree(earlier, folder, dirs_exist_ok=True)  # of the run that is gone on with, wherever it was moved
    Remine(trainer, sides.train, mine, folder, rounds=options.rounds, start=options.start)  # it adds itself


def rank_dev(encoder: SmartEncoder, dev: Collection, recipe: Recipe, group: ProcessGroup) -> dict[str, float]:
    """{"pooled/ndcg@10": ...} on the dev split, for the log and the best checkpoint."""
    options = recipe.evaluation
    found = evaluate(encoder, dev, k=options.k, batch_size=options.batch_size, bootstrap=1, group=group)
    return {f"{mode}/{name}": value["value"] for mode, names in found.metrics.items() for name, value in names.items()}


def finish(trainer: SmartTrainer, sides: Sides, recipe: Recipe, output: Path) -> SmartEncoder:
    """Saves the adapter, reloads it in a fresh object and compares; returns the reloaded encoder, on every rank."""
    folder, main, encoder = output / "adapter", trainer.is_world_process_zero(), trainer.encoder
    trainer.save_model(str(folder))
    encoder.late.hybrid = replace(recipe.late.hybrid)
    if main or trainer.engine.sharded:
        verify(encoder, folder, *_samples(sides), main=main, half=trainer.engine.half)
    cut = {role: sum(found[role] for found in ProcessGroup().exchange(encoder.cut_rows)) for role in encoder.cut_rows}
    if main and any(cut.values()):
        logger.info("rows that reached their length limit and may have been cut: %s", cut)
    trainer.accelerator.wait_for_everyone()
    device, model = str(trainer.args.device), recipe.model
    trainer.release()
    del encoder
    gc.collect()
    return SmartEncoder.from_pretrained(
        folder,
        device=device,
        attention=model.attention,
        trust_remote_code=model.trust_remote_code,
        trust_extensions=recipe.late.extensions,
    )


def _samples(sides: Sides, count: int = 8) -> tuple[list[Any], list[Any]]:
    side = sides.dev if sides.dev.queries else sides.train
    documents = list(side.corpus.values())[:count]
    return list(side.queries.values())[:count], [document.content() for document in documents]


def _leave() -> None:
    """Leaves the process group; without it one run in six aborts after it has finished."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _report(
    rows: dict[str, Evaluation], output: Path, recipe: Recipe, tested: Collection
) -> dict[str, dict[str, dict[str, Interval]]]:
    if rows:
        found = differences(rows)
        write_metrics(output / "metrics.json", rows, differences=found, data={"hashes": hashes(tested)})
        logger.info("\n%s\n", table({row: one.metrics for row, one in rows.items()}, found))
        logger.info("figures: %s", output / "metrics.json")
    log = output / "log.jsonl"
    if log.is_file():
        plot(log, output / "curve.png", title=recipe.name)
        logger.info("picture: %s", output / "curve.png")
    logger.info("adapter: %s", output / "adapter")
    return {row: one.metrics for row, one in rows.items()}
