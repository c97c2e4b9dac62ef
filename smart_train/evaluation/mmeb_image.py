"""MMEB-V2's 36 image tasks: classification, questions, retrieval, grounding.

    image-tasks/NAME/test-*.parquet    qry_inst, qry_text, qry_img_path, tgt_text [list], tgt_img_path [list]
    image-tasks/MMEB/...               the pictures (or image-tasks/... itself, as the archive is unpacked)

Every row has candidates of its own, and the first of them is the answer.

Knows: these columns.  Does not know: encoders, scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smart_train.data.ids import DataError
from smart_train.evaluation.mmeb_data import Data, Query, Reading, media_of, rows_of, value
from smart_train.evaluation.mmeb_tasks import Task

PLACEHOLDER = "<|image_1|>"  # where a picture stands in the benchmark's texts; a chat template has its own


def read_images(task: Task, reading: Reading) -> Data:
    """Raises DataError for a row without candidates, and, before anything is encoded, for pictures that are missing."""
    table, media, data = rows_of(task, reading), media_of(task, reading), Data()
    if "qry_inst" not in table.columns:
        data.notes.append("the rows have no column qry_inst: instructions stand in the text, not in the system message")
    wanted: set[Path] = set()

    def content(text: Any, name: Any) -> Any:
        text = (text or "").replace(f"{PLACEHOLDER}\n", "").replace(PLACEHOLDER, "")
        if not name:
            return text
        wanted.add(media / name)
        return {"image": media / name, "text": text} if text.strip() else media / name

    for number, (where, row) in enumerate(table):
        texts, names = _candidates(row, where)
        ids = [data.add(content(text, name), name or "", text) for text, name in zip(texts, names, strict=True)]
        asked = content(row.get("qry_text"), row.get("qry_img_path"))
        if isinstance(asked, str) and not asked.strip():
            raise DataError(f"{where}: the query has neither a text nor a picture")
        instruction = (row.get("qry_inst") or "").replace(PLACEHOLDER, "").strip()
        data.queries.append(Query(str(number), asked, instruction, {ids[0]: 1}, tuple(dict.fromkeys(ids))))
    missing = sorted(str(path) for path in wanted if not path.is_file())
    if missing:
        raise DataError(f"{task.name}: {len(missing)} of {len(wanted)} pictures are not there, such as {missing[0]}")
    return data


def _candidates(row: dict[str, Any], where: str) -> tuple[Sequence[str], Sequence[str]]:
    texts = list(value(row, "tgt_text", where))
    names = list(row.get("tgt_img_path") or [""] * len(texts))
    if not texts or len(texts) != len(names):
        raise DataError(f"{where}: {len(texts)} tgt_text and {len(names)} tgt_img_path; a candidate has one of each")
    return [text or "" for text in texts], [name or "" for name in names]
