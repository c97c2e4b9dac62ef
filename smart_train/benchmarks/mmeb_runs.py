"""What a person reads after MMEB-V2: a row a task, means of the groups, and of all 78."""

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

from smart_train.benchmarks.mmeb_data import (
    Data,
    Query,
    Reader,
    Reading,
    read_choice,
    read_class,
    read_images,
    read_moment,
    read_pages,
    read_questions,
    read_search,
    read_seeker,
)
from smart_train.benchmarks.mmeb_tasks import GROUPS, TASKS, Task
from smart_train.benchmarks.mteb_models import digest, prompted
from smart_train.core.atomic_io import replacing
from smart_train.core.embeddings import Embeddings
from smart_train.core.errors import EvaluationError
from smart_train.core.modality import kind
from smart_train.evaluation.encode import IMAGE_BATCHES, TEXT_BATCHES
from smart_train.evaluation.metrics import Ranking, interval, measure
from smart_train.evaluation.ranking import rank_candidates, rank_views
from smart_train.evaluation.scoring import MODES, view

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder


def summary(done: Mapping[str, Mapping[str, Any]], failed: Mapping[str, str], modes: Sequence[str]) -> dict[str, Any]:
    """{"tasks": {task: {"measure", mode: value}}, "means": {group: {"tasks", "of", mode: mean}}, "failed"}.

    A mean says how many of the group's tasks it is of: only the whole group's is the leaderboard's.
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


def mmeb_table(found: Mapping[str, Any]) -> str:
    """In points of 100, as the leaderboard tells them."""
    rows = list(found["tasks"].items())
    modes = [mode for mode in MODES if any(mode in row for _, row in rows)]
    lines = [["task", "measure", *modes]]
    lines += [[name, row["measure"], *(f"{100 * row[mode]:.2f}" for mode in modes)] for name, row in rows]
    for group, mean in found["means"].items():
        told = f"{group}, {mean['tasks']} of {mean['of']} tasks"
        lines.append([told, "mean", *(f"{100 * mean[mode]:.2f}" for mode in modes)])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


# MMEB-V2 with an encoder: every mode from one encoding, a file a task, what is there skipped.

logger = logging.getLogger(__name__)

READERS: dict[str, Reader] = {
    "image": read_images,
    "choice": read_choice,
    "class": read_class,
    "search": read_search,
    "moment": read_moment,
    "seeker": read_seeker,
    "question": read_questions,
    "visdoc": read_pages,
}
CUTS = (1, 5, 10)
ROWS_AT_ONCE = 4096  # queries of a text or a picture: 170 tokens of width 2048 are 1.4 MB
FRAMES_AT_ONCE = 512  # of queries that are videos: 300 tokens each are 1.2 GB


def evaluate_task(
    encoder: SmartEncoder,
    task: Task,
    data: Data,
    *,
    modes: Sequence[str] = MODES,
    instructions: bool = True,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, Any]:
    """{"modes": {mode: {measure: interval}}, "per_query": {mode: {query: value}}, "queries", "documents", "cut"}.

    instructions: True = the benchmark's before queries and none before documents, as the reference measures; False =
        the encoder's own prompts
    A hit@k is whether one of the first k is an answer.  Raises EvaluationError where the encoder cannot take what the
    task shows.
    """
    _check(encoder, task, data)
    views = {mode: view(mode, encoder.late.hybrid) for mode in modes}
    before, shown = dict(encoder.cut_rows), task.name if progress else None
    rankings: dict[str, dict[str, Ranking]] = {mode: {} for mode in modes}
    for block in _blocks(data.queries):
        names = [query.id for query in block]
        queries = _queries(encoder, block, instructions, batch_size, progress)
        given = {query.id: query.given or () for query in block} if task.given else None
        wanted = data.documents
        if given is not None:
            wanted = {id: wanted[id] for own in given.values() for id in own}
        documents, ids = _documents(encoder, wanted, instructions, batch_size, shown)
        if given is not None:
            found = rank_candidates(queries, documents, names, ids, given, views, device=encoder.device)
        else:
            found = rank_views(queries, documents, names, ids, views, top=max(CUTS), device=encoder.device)
        for mode in modes:
            rankings[mode] |= found[mode]
    return _figures(task, data, rankings) | {
        "queries": len(data.queries),
        "documents": len(data.documents),
        "cut": {role: encoder.cut_rows[role] - before[role] for role in encoder.cut_rows},
    }


def _figures(task: Task, data: Data, rankings: Mapping[str, Mapping[str, Ranking]]) -> dict[str, Any]:
    qrels = {query.id: query.answers for query in data.queries}
    found = {mode: measure(qrels, ranked, CUTS) for mode, ranked in rankings.items()}
    # A hit is success; MMEB-V2 calls it by that name, and its tasks' main measure is found under it.
    called = {f"hit@{cut}": f"success@{cut}" for cut in CUTS} | {f"ndcg@{cut}": f"ndcg@{cut}" for cut in CUTS}
    return {
        "modes": {
            mode: {name: interval(values[ours]) for name, ours in called.items()} for mode, values in found.items()
        },
        "per_query": {mode: values[called[task.measure]] for mode, values in found.items()},
    }


def _blocks(queries: Sequence[Query]) -> Iterator[list[Query]]:
    """Queries whose embeddings are in memory together: thousands of texts or pictures, and videos by their frames.

    Documents are encoded anew for each block, which costs little: where queries are videos, documents are names of
    classes, or options and clips of each query's own.
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


def _check(encoder: SmartEncoder, task: Task, data: Data) -> None:
    if not data.queries:
        raise EvaluationError(f"{task.name} has no query to measure")
    base, can = encoder.settings.base, set(encoder.st.modalities)
    shown = [query.content for query in data.queries] + list(data.documents.values())
    parts = {part for one in shown for part in (("image",) if hasattr(one, "content") else kind(one).split("+"))}
    if parts - {"text"} and "image" not in can:
        raise EvaluationError(f"{task.name} shows images, and {base} has no image side")
    if "video" in parts and "video" not in can:
        raise EvaluationError(
            f"{task.name}: {base} takes no videos here (its processor was loaded without torchvision, or it has no "
            "video side); have the frames as images, or install torchvision"
        )
    several = any(isinstance(one, dict) and isinstance(one.get("image"), list) for one in shown)
    if several and "message" not in can:
        raise EvaluationError(f"{task.name} shows several frames at once, and {base} takes one image a row")


def _queries(
    encoder: SmartEncoder, queries: Sequence[Query], instructions: bool, batch_size: int, progress: bool
) -> Embeddings:
    """All of them, in their order; those of one instruction together."""
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
    """(portions, ids in their order): texts first; a portion is encoded when it is asked for."""
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


def run_mmeb(
    encoder: SmartEncoder,
    tasks: Iterable[Task],
    reading: Reading,
    output: str | Path,
    *,
    modes: Sequence[str] = MODES,
    instructions: bool = True,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates and files each task; returns what mmeb.json holds.

    A task whose file is there is not run again.  One that fails, for want of its rows say, is told and the others go
    on.  Raises EvaluationError where a file there was measured with other settings or weights: it is not replaced.
    """
    output = Path(output)
    settings = {
        "encoder": digest(encoder),
        "frames": reading.frames,
        "video": reading.video,
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
                data = READERS[task.kind](task, reading)
                for note in data.notes:
                    logger.warning("%s: %s", task.name, note)
                options = {"modes": modes, "instructions": instructions, "batch_size": batch_size}
                found = evaluate_task(encoder, task, data, progress=progress, **options)  # type: ignore[arg-type]
                for role, rows in found["cut"].items():
                    if rows:
                        logger.warning("%s: %d %s texts fill the encoder's limit and were cut", task.name, rows, role)
                stored = {"task": task.name, "group": task.group, "measure": task.measure, **found}
                stored |= {"notes": data.notes, "settings": settings}
                _write(file, stored)
            done[task.name] = stored
        except OtherSettings:
            raise
        except Exception as error:  # of a reader, of the encoder: the other tasks can be run
            failed[task.name] = f"{type(error).__name__}: {error}"
            logger.warning("%s failed and has no figures (%s)", task.name, failed[task.name])
        _write(output / "mmeb.json", summary(done, failed, modes))
    return summary(done, failed, modes)


class OtherSettings(EvaluationError):
    """Figures that are there were measured with other settings or weights."""


def _stored(file: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    other = [key for key, value in settings.items() if stored["settings"].get(key) != value]
    if other:
        told = ", ".join(f"{key} {stored['settings'].get(key)!r}, now {settings[key]!r}" for key in other)
        raise OtherSettings(f"{file} was measured with other settings ({told}); choose another output folder")
    return stored


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, f".{os.getpid()}") as part:  # several processes may share the tasks, and the folder
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
