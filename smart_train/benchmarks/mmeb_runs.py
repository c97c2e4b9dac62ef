"""Run MMEB-V2 with an encoder: all modes from one encoding, a result file a task, means of groups and of all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from smart_train.benchmarks.benchmark_encoder import encoder_hash, prompted
from smart_train.benchmarks.benchmark_table import align
from smart_train.benchmarks.mmeb_data import READERS, MmebFolder, Query, TaskData
from smart_train.benchmarks.mmeb_tasks import GROUPS, TASKS, MmebTask
from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_json import load_json
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import EvaluationError
from smart_train.core.modality import modality
from smart_train.evaluation.encode import IMAGE_BATCHES, TEXT_BATCHES
from smart_train.evaluation.metrics import Ranking, interval, measure
from smart_train.evaluation.ranking import rank_candidates, rank_views
from smart_train.evaluation.scoring import MODES, view

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder

logger = logging.getLogger(__name__)

CUTS = (1, 5, 10)
ROWS_AT_ONCE = 4096  # queries of a text or an image: 170 tokens of width 2048 are 1.4 MB
FRAMES_AT_ONCE = 512  # of queries that are videos: 300 tokens each are 1.2 GB


def run_mmeb(
    encoder: SmartEncoder,
    tasks: Iterable[MmebTask],
    folder: MmebFolder,
    output: str | Path,
    *,
    modes: Sequence[str] = MODES,
    instructions: bool = True,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate each task, store the results in ``output/tasks``, and return what ``output/mmeb.json`` holds.

    instructions: see ``evaluate_task``
    A task whose file is there is not run again. A task that fails, because its rows are missing for example, is logged,
    and the others are run.
    Raises OtherSettings where a file there was measured with other settings or weights; it is never replaced.
    """
    output = Path(output)
    settings = {
        "encoder": encoder_hash(encoder),
        "frames": folder.frames,
        "video": folder.video,
        "instructions": instructions,
        "modes": list(modes),
    }
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for task in tasks:
        file = output / "tasks" / f"{task.name}.json"
        try:
            stored = _stored(file, settings)
            if stored is None:
                data = READERS[task.kind](task, folder)
                for note in data.notes:
                    logger.warning("%s: %s", task.name, note)
                options = {"modes": modes, "instructions": instructions, "batch_size": batch_size}
                found = evaluate_task(encoder, task, data, progress=progress, **options)  # type: ignore[arg-type]
                for role, rows in found["cut"].items():
                    if rows:
                        logger.warning("%s: %d %s texts fill the encoder's limit and were cut", task.name, rows, role)
                stored = {"task": task.name, "group": task.group, "measure": task.metric, **found}
                stored |= {"notes": data.notes, "settings": settings}
                _write(file, stored)
            done[task.name] = stored
        except OtherSettings:
            raise
        except Exception as error:  # of a reader, of the encoder: the other tasks can still be run
            failed[task.name] = f"{type(error).__name__}: {error}"
            logger.warning("%s failed and has no result (%s)", task.name, failed[task.name])
        _write(output / "mmeb.json", summary(done, failed, modes))
    return summary(done, failed, modes)


class OtherSettings(EvaluationError):
    """Stored results were measured with other settings or weights."""

    status = 2


def _stored(file: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    stored: dict[str, Any] = load_json(file.read_text(encoding="utf-8"))
    other = [key for key, value in settings.items() if stored["settings"].get(key) != value]
    if other:
        changes = ", ".join(f"{key} {stored['settings'].get(key)!r}, now {settings[key]!r}" for key in other)
        raise OtherSettings(f"{file} was measured with other settings ({changes}); choose another output folder")
    return stored


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, f".{os.getpid()}") as part:  # several processes may share the tasks, and the folder
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def summary(done: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str], modes: Sequence[str]) -> dict[str, Any]:
    """Return {"tasks": {task: {"measure", mode: value}}, "means": {group: {"tasks", "of", mode: mean}}, "failed"}.

    "tasks" of "of" says how many tasks of the group a mean is of: only that of all is comparable to the leaderboard.
    """
    tasks = {
        name: {"measure": one["measure"], **{mode: one["modes"][mode][one["measure"]]["value"] for mode in modes}}
        for name, one in done.items()
    }
    means: dict[str, dict[str, Any]] = {}
    for group in (*GROUPS, "all"):
        own = [name for name in tasks if group in ("all", TASKS[name].group)]
        if own:
            of = sum(group in ("all", task.group) for task in TASKS.values())
            values = {mode: sum(tasks[name][mode] for name in own) / len(own) for mode in modes}
            means[group] = {"tasks": len(own), "of": of, **values}
    return {"tasks": tasks, "means": means, "failed": dict(failed)}


def mmeb_table(results: Mapping[str, Any]) -> str:
    """Return a table of tasks and means, in points of 100, as on the leaderboard."""
    rows = list(results["tasks"].items())
    modes = [mode for mode in MODES if any(mode in row for _, row in rows)]
    lines = [["task", "metric", *modes]]
    lines += [[name, row["measure"], *(f"{100 * row[mode]:.2f}" for mode in modes)] for name, row in rows]
    for group, mean in results["means"].items():
        label = f"{group}, {mean['tasks']} of {mean['of']} tasks"
        lines.append([label, "mean", *(f"{100 * mean[mode]:.2f}" for mode in modes)])
    return align(lines)


# ------------------------------------------------------------------------------------- one task


def evaluate_task(
    encoder: SmartEncoder,
    task: MmebTask,
    data: TaskData,
    *,
    modes: Sequence[str] = MODES,
    instructions: bool = True,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, Any]:
    """Return {"modes": {mode: {metric: interval}}, "per_query": {mode: {query: value}}, "queries", "documents", "cut"}.

    instructions: True = the benchmark's before queries and none before documents, as the reference measures; False =
        the encoder's own prompts
    hit@k is whether one of the first k documents is an answer.
    Raises EvaluationError where the encoder cannot take what the task shows.
    """
    _check(encoder, task, data)
    views = {mode: view(mode, encoder.late.hybrid) for mode in modes}
    before, shown = dict(encoder.cut_rows), task.name if progress else None
    rankings: dict[str, dict[str, Ranking]] = {mode: {} for mode in modes}
    for block in _blocks(data.queries):
        names = [query.id for query in block]
        queries = _queries(encoder, block, instructions, batch_size, progress)
        candidates = {query.id: query.candidates or () for query in block} if task.own_candidates else None
        wanted = data.documents
        if candidates is not None:
            wanted = {id: wanted[id] for own in candidates.values() for id in own}
        documents, ids = _documents(encoder, wanted, instructions, batch_size, shown)
        if candidates is not None:
            found = rank_candidates(queries, documents, names, ids, candidates, views, device=encoder.device)
        else:
            found = rank_views(queries, documents, names, ids, views, top=max(CUTS), device=encoder.device)
        for mode in modes:
            rankings[mode] |= found[mode]
    return _metrics(task, data, rankings) | {
        "queries": len(data.queries),
        "documents": len(data.documents),
        "cut": {role: encoder.cut_rows[role] - before[role] for role in encoder.cut_rows},
    }


def _metrics(task: MmebTask, data: TaskData, rankings: Mapping[str, Mapping[str, Ranking]]) -> dict[str, Any]:
    qrels = {query.id: query.answers for query in data.queries}
    found = {mode: measure(qrels, ranked, CUTS) for mode, ranked in rankings.items()}
    # MMEB-V2 names success@k hit@k; the main metric of its tasks is looked up under that name.
    names = {f"hit@{cut}": f"success@{cut}" for cut in CUTS} | {f"ndcg@{cut}": f"ndcg@{cut}" for cut in CUTS}
    return {
        "modes": {
            mode: {name: interval(values[ours]) for name, ours in names.items()} for mode, values in found.items()
        },
        "per_query": {mode: values[names[task.metric]] for mode, values in found.items()},
    }


def _blocks(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """Yield queries whose embeddings are in memory together: thousands of texts or images, videos by their frames.

    Documents are encoded again for each block. That costs little: where queries are videos, documents are class names,
    or options and clips of each query's own.
    """
    block: list[Query] = []
    held = 0.0
    for query in queries:
        content = query.content if isinstance(query.content, dict) else {}
        several = max(len(one) if isinstance(one, list) else 0 for one in ([], *content.values()))
        size = several / FRAMES_AT_ONCE if several else 1 / ROWS_AT_ONCE
        if block and held + size > 1:
            yield block
            block, held = [], 0.0
        block.append(query)
        held += size
    if block:
        yield block


def _check(encoder: SmartEncoder, task: MmebTask, data: TaskData) -> None:
    if not data.queries:
        raise EvaluationError(f"{task.name} has no query to evaluate; see the notes above")
    base, can = encoder.settings.base, set(encoder.st.modalities)
    shown = [query.content for query in data.queries] + list(data.documents.values())
    parts = {part for one in shown for part in (("image",) if hasattr(one, "content") else modality(one).split("+"))}
    if parts - {"text"} and "image" not in can:
        raise EvaluationError(f"{task.name} shows images, and {base} has no image side")
    if "video" in parts and "video" not in can:
        raise EvaluationError(
            f"{task.name}: {base} takes no videos here (its processor was loaded without torchvision, or it has no "
            "video side); read videos as images (without --as-video), or install torchvision"
        )
    several = any(isinstance(one, dict) and isinstance(one.get("image"), list) for one in shown)
    if several and "message" not in can:
        raise EvaluationError(f"{task.name} shows several frames at once, and {base} takes one image a row")


def _queries(
    encoder: SmartEncoder, queries: Sequence[Query], instructions: bool, batch_size: int, progress: bool
) -> Embeddings:
    """Encode all queries; those of one instruction together, the result in their order."""
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query.instruction if instructions else "", []).append(row)
    parts = []
    for instruction, own in rows.items():
        contents = [queries[row].content for row in own]
        with prompted(encoder, query=instruction) if instructions else nullcontext():
            parts.append(encoder.encode_queries(contents, batch_size=batch_size, progress=progress))
    order = torch.tensor([row for own in rows.values() for row in own])
    return Embeddings.cat(parts).select(order.argsort())


def _documents(
    encoder: SmartEncoder, documents: Mapping[str, Any], instructions: bool, batch_size: int, shown: str | None
) -> tuple[Iterator[Embeddings], list[str]]:
    """Return (portions, ids in their order): texts first; each portion is encoded when it is iterated."""
    ids = sorted(documents, key=lambda id: not isinstance(documents[id], str))
    texts = sum(isinstance(one, str) for one in documents.values())

    def portions() -> Iterator[Embeddings]:
        with tqdm(total=len(ids), desc=f"{shown}: documents", leave=False, disable=None if shown else True) as bar:
            for own in _cut(ids[:texts], TEXT_BATCHES * batch_size) + _cut(ids[texts:], IMAGE_BATCHES * batch_size):
                contents = [_opened(documents[id]) for id in own]
                with prompted(encoder, document="") if instructions else nullcontext():
                    found = encoder.encode_documents(contents, batch_size=batch_size, dtype=torch.float16)
                bar.update(len(own))
                yield Embeddings(found.pooled.float(), found.tokens)

    return portions(), ids


def _opened(content: Any) -> Any:
    return content.content() if hasattr(content, "content") else content


def _cut(ids: list[str], size: int) -> list[list[str]]:
    return [ids[begin : begin + size] for begin in range(0, len(ids), size)]
