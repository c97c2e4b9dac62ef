"""Runs MTEB's tasks with an encoder: every mode from one encoding, results in MTEB's own files, what is there skipped.

OUTPUT/results/MODEL/REVISION/experiments/mode_MODE/TASK.json    MTEB's results, as `mteb` reads them
OUTPUT/benchmark.json                                            the figures of all tasks and modes, what failed
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smart_train.benchmarks.mteb_models import MtebModel, digest, mteb_models
from smart_train.core.atomic_io import replacing
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.scoring import MODES

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder

logger = logging.getLogger(__name__)

ALSO = ("ndcg_at_5", "ndcg_at_10", "recall_at_10", "hit_rate_at_1")  # told beside a task's main score, where it has it


@dataclass
class Ran:
    """What a run gave.

    tasks: task -> mode -> {"main": name of the main score, "main_score", "ndcg_at_10" ...}, shares of 1
    failed: task -> why it has no figures
    skipped: task -> modes that it cannot be run in
    """

    model: str
    revision: str
    tasks: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)


def find_tasks(names: Iterable[str]) -> list[Any]:
    """MTEB's tasks by name, and those of its benchmarks by theirs (NanoBEIR, BEIR, "ViDoRe(v3)"), each once.

    Raises EvaluationError for a name that is neither, with the nearest that are.
    """
    import mteb

    benchmarks = {one.name: one for one in mteb.get_benchmarks()}
    benchmarks |= {alias: one for one in benchmarks.values() for alias in one.aliases}
    found: dict[str, Any] = {}
    for name in names:
        if name in benchmarks:
            found |= {task.metadata.name: task for task in benchmarks[name].tasks}
            continue
        try:
            task = mteb.get_task(name)
        except KeyError:
            there = [*benchmarks, *(task.metadata.name for task in mteb.get_tasks())]
            near = get_close_matches(name, there, 3) or [one for one in there if name.lower() in one.lower()][:3]
            fix = f"did you mean {' or '.join(near)}?" if near else "mteb.get_benchmarks() lists what there is"
            raise EvaluationError(f"MTEB has no task or benchmark {name!r}; {fix}") from None
        found[task.metadata.name] = task
    return list(found.values())


def run_tasks(
    encoder: SmartEncoder,
    tasks: Sequence[Any],
    output: str | Path,
    *,
    modes: Sequence[str] = MODES,
    name: str | None = None,
    revision: str | None = None,
    task_prompts: str | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    progress: bool = False,
) -> Ran:
    """Evaluates and files each task in each mode; see ``mteb_models`` for name, revision and task_prompts.

    A task whose results are there (same model, revision and mode) is not run again.  One that fails, for want of its
    data say, is told and the others go on.  workers: processes that decode images
    """
    from mteb.cache import ResultCache

    output = Path(output)
    models = mteb_models(encoder, name=name, revision=revision, modes=modes, task_prompts=task_prompts)
    meta = next(iter(models.values())).mteb_model_meta
    ran, cache = Ran(meta.name, meta.revision), ResultCache(output)
    options = {"batch_size": batch_size, "show_progress_bar": progress}
    for task in tasks:
        own = task.metadata.name
        fit = {mode: model for mode, model in models.items() if _fits(task, mode)}
        if len(fit) < len(models):
            ran.skipped[own] = [mode for mode in models if mode not in fit]
            logger.info("%s compares single vectors: it is run in the mode pooled alone", own)
        try:
            ran.tasks[own] = _run(task, fit, cache, options, workers)
        except Exception as error:  # of MTEB, of datasets, of the network: whatever it is, the other tasks can be run
            ran.failed[own] = f"{type(error).__name__}: {error}"
            logger.warning("%s failed and has no figures (%s)", own, ran.failed[own])
        _write(output, ran)
    return ran


def _parts(task: Any) -> list[Any]:
    """The tasks that an aggregate is the mean of; else the task."""
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    return list(task.metadata.tasks) if isinstance(task, AbsTaskAggregate) else [task]


def _fits(task: Any, mode: str) -> bool:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    return mode == "pooled" or all(isinstance(part, AbsTaskRetrieval) for part in _parts(task))


def _run(
    task: Any, models: Mapping[str, MtebModel], cache: Any, options: Any, workers: int | None
) -> dict[str, dict[str, Any]]:
    """{mode: figures}; the data are loaded once, and left out where every result is there."""
    import mteb

    def evaluated(one: Any, mode: str) -> Any:
        found = mteb.evaluate(
            models[mode],
            one,
            cache=cache,
            co2_tracker=False,
            encode_kwargs={**options},
            num_proc=workers,
            show_progress_bar=options["show_progress_bar"],
        )
        if not found.task_results:
            raise EvaluationError(f"MTEB gave no result ({'; '.join(map(str, found.exceptions or [])) or 'no reason'})")
        return found.task_results[0]

    for part in _parts(task):
        missing = [mode for mode, model in models.items() if _missing(part, model, cache)]
        if not missing:
            continue
        _check_sides(part, next(iter(models.values())).mteb_model_meta)
        loaded = part.data_loaded
        if not loaded:
            part.load_data(num_proc=workers)
        try:
            searches = next(iter(models.values())).searches
            # Its own for each encoder: runs of two of them may have one output folder at the same time.
            folder = cache.cache_path / f"vectors-{digest(searches.encoder)}" if len(part.hf_subsets) > 1 else None
            with searches.sharing(missing, folder):
                for mode in missing:
                    evaluated(part, mode)
        finally:
            if not loaded and part.data_loaded:
                part.unload_data()
    return {mode: _figures(task, evaluated(task, mode)) for mode in models}


def _check_sides(task: Any, meta: Any) -> None:
    """Raises EvaluationError, before the data are fetched, where a side of the task shows nothing that can be read."""
    from mteb.types import PromptType

    for kind in (PromptType.query, PromptType.document):
        shown = task.metadata.get_modalities(kind)
        if not set(shown) & set(meta.modalities):
            raise EvaluationError(f"its {kind.value} side is {', '.join(shown)}; {meta.name} reads {meta.modalities}")


def _missing(task: Any, model: MtebModel, cache: Any) -> bool:
    there = cache.load_task_result(task.metadata.name, model.mteb_model_meta)
    return there is None or bool(there.get_missing_evaluations(task))


def _figures(task: Any, result: Any) -> dict[str, Any]:
    """Means over the task's splits and subsets (languages), as MTEB takes them."""
    figures: dict[str, Any] = {"main": task.metadata.main_score, "main_score": float(result.get_score())}
    rows = [row for rows in result.scores.values() for row in rows]
    for name in ALSO:
        if all(name in row for row in rows):
            figures[name] = float(result.get_score(getter=lambda row, name=name: row[name]))
    return figures


def _write(output: Path, ran: Ran) -> None:
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "benchmark.json") as part:
        part.write_text(json.dumps(asdict(ran), indent=2) + "\n", encoding="utf8")


def table(ran: Ran) -> str:
    """Task, its main score's name, and a column a mode; the mean below, where every task has the mode."""
    modes = [mode for mode in MODES if any(mode in row for row in ran.tasks.values())]
    lines = [["task", "measure", *modes]]
    for name, row in ran.tasks.items():
        main = next(iter(row.values()))["main"]
        lines.append([name, main, *(f"{row[mode]['main_score']:.4f}" if mode in row else "-" for mode in modes)])
    if len(ran.tasks) > 1:
        means = ["-" if any(mode not in row for row in ran.tasks.values()) else _mean(ran, mode) for mode in modes]
        lines.append([f"mean of {len(ran.tasks)}", "", *means])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _mean(ran: Ran, mode: str) -> str:
    values = [row[mode]["main_score"] for row in ran.tasks.values()]
    return f"{sum(values) / len(values):.4f}"
