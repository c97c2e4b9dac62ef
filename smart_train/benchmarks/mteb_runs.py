"""Run MTEB's tasks with an encoder: all modes from one encoding, results in MTEB's own files.

OUTPUT/results/MODEL/REVISION/experiments/mode_MODE/TASK.json    MTEB's results, as `mteb` reads them
OUTPUT/benchmark.json                                            metrics of all tasks and modes, and what failed
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smart_train.benchmarks.benchmark_encoder import encoder_hash
from smart_train.benchmarks.benchmark_table import align
from smart_train.benchmarks.mteb_models import MtebModel, mteb_models
from smart_train.core.atomic_io import replacing
from smart_train.core.errors import EvaluationError
from smart_train.core.hub import limit_waiting
from smart_train.evaluation.scoring import MODES

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder

logger = logging.getLogger(__name__)

OTHER_METRICS = ("ndcg_at_5", "ndcg_at_10", "recall_at_10", "hit_rate_at_1")  # stored beside a task's main score


@dataclass
class MtebRun:
    """The results of a run.

    tasks: task -> mode -> {"main": name of the main score, "main_score", "ndcg_at_10" ...}, shares of 1
    failed: task -> error
    skipped: task -> modes in which it cannot be run
    """

    model: str
    revision: str
    tasks: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def table(self) -> str:
        """Return a line a task, with its main score in each mode; below, the mean where all tasks have the mode."""
        modes = [mode for mode in MODES if any(mode in row for row in self.tasks.values())]
        lines = [["task", "metric", *modes]]
        for name, row in self.tasks.items():
            main = next(iter(row.values()))["main"]
            lines.append([name, main, *(f"{row[mode]['main_score']:.4f}" if mode in row else "-" for mode in modes)])
        if len(self.tasks) > 1:
            lines.append([f"mean of {len(self.tasks)}", "", *map(self._mean, modes)])
        return align(lines)

    def _mean(self, mode: str) -> str:
        if any(mode not in row for row in self.tasks.values()):
            return "-"
        return f"{sum(row[mode]['main_score'] for row in self.tasks.values()) / len(self.tasks):.4f}"


def find_tasks(names: Iterable[str]) -> list[Any]:
    """Return MTEB's tasks by name, and those of its benchmarks (NanoBEIR, BEIR, "ViDoRe(v3)"), each once.

    Raises EvaluationError for a name that is neither, with similar names.
    """
    limit_waiting()  # before their data are downloaded
    tasks: dict[str, Any] = {}
    for name in names:
        tasks |= {task.metadata.name: task for task in _tasks_of(name)}
    return list(tasks.values())


def _tasks_of(name: str) -> Sequence[Any]:
    import mteb

    for find in (lambda: mteb.get_benchmark(name).tasks, lambda: [mteb.get_task(name)]):
        try:
            return find()
        except KeyError:
            continue
    known = [*(one.name for one in mteb.get_benchmarks()), *(task.metadata.name for task in mteb.get_tasks())]
    near = get_close_matches(name, known, 3) or [one for one in known if name.lower() in one.lower()][:3]
    fix = f"did you mean {' or '.join(near)}?" if near else "mteb.get_benchmarks() lists all"
    raise EvaluationError(f"MTEB has no task or benchmark {name!r}; {fix}")


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
) -> MtebRun:
    """Evaluate each task in each mode and store the results; see ``mteb_models`` for name, revision and task_prompts.

    workers: processes that decode images
    A task whose results are stored (same model, revision and mode) is not run again. A task that fails, because its
    data are missing for example, is logged, and the others are run.
    """
    from mteb.cache import ResultCache

    output = Path(output)
    models = mteb_models(encoder, name=name, revision=revision, modes=modes, task_prompts=task_prompts)
    meta = next(iter(models.values())).mteb_model_meta
    run, cache = MtebRun(meta.name, meta.revision), ResultCache(output)
    options = {"batch_size": batch_size, "show_progress_bar": progress}
    for task in tasks:
        task_name = task.metadata.name
        fitting = {mode: model for mode, model in models.items() if _can_run(task, mode)}
        if len(fitting) < len(models):
            run.skipped[task_name] = [mode for mode in models if mode not in fitting]
            logger.info("%s compares single vectors: it is run in the mode pooled only", task_name)
        try:
            run.tasks[task_name] = _run_task(task, fitting, cache, options, workers)
        except Exception as error:  # of MTEB, of datasets, of the network: the other tasks can still be run
            run.failed[task_name] = f"{type(error).__name__}: {error}"
            logger.warning("%s failed and has no result (%s)", task_name, run.failed[task_name])
        output.mkdir(parents=True, exist_ok=True)
        with replacing(output / "benchmark.json") as part:
            part.write_text(json.dumps(asdict(run), indent=2) + "\n", encoding="utf8")
    return run


def _parts(task: Any) -> list[Any]:
    """Return the tasks that an aggregate is the mean of; else the task."""
    from mteb.abstasks.aggregated_task import AbsTaskAggregate

    return list(task.metadata.tasks) if isinstance(task, AbsTaskAggregate) else [task]


def _can_run(task: Any, mode: str) -> bool:
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    return mode == "pooled" or all(isinstance(part, AbsTaskRetrieval) for part in _parts(task))


def _run_task(
    task: Any, models: Mapping[str, MtebModel], cache: Any, options: Any, workers: int | None
) -> dict[str, dict[str, Any]]:
    """Return {mode: metrics}. The data are loaded once, and not at all where every result is stored."""
    import mteb

    def evaluate(part: Any, mode: str) -> Any:
        found = mteb.evaluate(
            models[mode],
            part,
            cache=cache,
            co2_tracker=False,
            encode_kwargs={**options},
            num_proc=workers,
            show_progress_bar=options["show_progress_bar"],
        )
        if not found.task_results:
            reasons = "; ".join(map(str, found.exceptions or [])) or "it gives no reason"
            raise EvaluationError(f"MTEB returned no result ({reasons})")
        return found.task_results[0]

    shared = next(iter(models.values())).shared
    for part in _parts(task):
        missing = [mode for mode, model in models.items() if _is_missing(part, model, cache)]
        if not missing:
            continue
        _check_modalities(part, next(iter(models.values())).mteb_model_meta)
        loaded = part.data_loaded
        if not loaded:
            part.load_data(num_proc=workers)
        try:
            vectors = None
            if len(part.hf_subsets) > 1:  # a folder for each encoder: two may run with one output folder at a time
                vectors = cache.cache_path / f"vectors-{encoder_hash(shared.encoder)}"
            with shared.sharing(missing, vectors):
                for mode in missing:
                    evaluate(part, mode)
        finally:
            if not loaded and part.data_loaded:
                part.unload_data()
    return {mode: _metrics(task, evaluate(task, mode)) for mode in models}


def _check_modalities(task: Any, meta: Any) -> None:
    """Raise EvaluationError, before data are fetched, where queries or documents show nothing that can be read."""
    from mteb.types import PromptType

    for kind in (PromptType.query, PromptType.document):
        shown = task.metadata.get_modalities(kind)
        if not set(shown) & set(meta.modalities):
            raise EvaluationError(f"its {kind.value} side is {', '.join(shown)}; {meta.name} reads {meta.modalities}")


def _is_missing(task: Any, model: MtebModel, cache: Any) -> bool:
    stored = cache.load_task_result(task.metadata.name, model.mteb_model_meta)
    return stored is None or bool(stored.get_missing_evaluations(task))


def _metrics(task: Any, result: Any) -> dict[str, Any]:
    """Return the means over the task's splits and subsets (languages), as MTEB takes them."""
    metrics: dict[str, Any] = {"main": task.metadata.main_score, "main_score": float(result.get_score())}
    rows = [row for rows in result.scores.values() for row in rows]
    for name in OTHER_METRICS:
        if all(name in row for row in rows):
            metrics[name] = float(result.get_score(getter=lambda row, name=name: row[name]))
    return metrics
