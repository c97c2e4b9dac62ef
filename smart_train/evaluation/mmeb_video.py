"""MMEB-V2's video tasks but for the questions: classification, retrieval, moments.

    video-tasks/data/NAME.jsonl        one row a query; columns differ, see each reader
    video-tasks/frames/.../VIDEO/      up to 64 frames of a video, numbered

Frames are what the benchmark hands out; raw videos are not read here.

Knows: these columns and folders.  Does not know: encoders, scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smart_train.data.ids import DataError
from smart_train.evaluation.mmeb_data import Data, Query, Reading, clip, media_of, rows_of, value
from smart_train.evaluation.mmeb_tasks import CLIP_FRAMES, Task


def read_choice(task: Task, reading: Reading) -> Data:
    """video_id, pos_text, neg_text [list]: a clip, and class names of which one is right.  neg_text has the right one
    in it already; where it does not, it is put there, or the query could never be answered."""
    table, media, data = rows_of(task, reading), media_of(task, reading), Data()
    for number, (where, row) in enumerate(table):
        if number == task.limit:
            break
        right, names = value(row, "pos_text", where), list(value(row, "neg_text", where))
        ids = [data.add(name, name) for name in dict.fromkeys([*names, right])]
        shown = clip(media / str(value(row, "video_id", where)), reading)
        data.queries.append(Query(str(number), shown, task.instruction, {right: 1}, tuple(ids)))
    return data


def read_class(task: Task, reading: Reading) -> Data:
    """video_id, pos_text: a clip and its class; documents are the names of all classes.

    Those are the rows' own where these have every class, else of a file beside the rows, NAME.labels, with a name a
    line: fewer of them would make the task easier than it is.  Raises DataError where some are missing.
    """
    table, media, data = rows_of(task, reading), media_of(task, reading), Data()
    for number, (where, row) in enumerate(table):
        name = value(row, "pos_text", where)
        shown = clip(media / str(value(row, "video_id", where)), reading)
        data.queries.append(Query(str(number), shown, task.instruction, {data.add(name, name): 1}))
    file = reading.root / "video-tasks" / "data" / f"{task.name}.labels"
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip():
                data.add(line.strip(), line.strip())
    if len(data.documents) != task.labels:
        raise DataError(
            f"{task.name}: {len(data.documents)} classes, and the task has {task.labels}; write the names of all, as "
            f"the rows write them, to {file}, one a line"
        )
    return data


SEARCHED = {  # task -> columns of the video's name and of what is looked for
    "MSR-VTT": ("video_id", "caption"),
    "MSVD": ("video_id", "caption"),
    "DiDeMo": ("video", "caption"),
    "YouCook2": ("id", "sentence"),
    "VATEX": ("videoID", "enCap"),
}


def read_search(task: Task, reading: Reading) -> Data:
    """A description (the first, where there are several) and the video it was written of; all videos are documents."""
    table, media, data = rows_of(task, reading), media_of(task, reading), Data()
    named, told = SEARCHED[task.name]
    for number, (where, row) in enumerate(table):
        text = value(row, told, where)
        name = Path(str(value(row, named, where)))
        name = Path(name.stem) if named == "video" else name
        document = data.add(clip(media / name, reading), str(name))
        text = text[0] if isinstance(text, list | tuple) else text
        data.queries.append(Query(str(number), text, task.instruction, {document: 1}))
    return data


def read_moment(task: Task, reading: Reading) -> Data:
    """query, video_path: a whole video and a text; candidates are the clips in the folder of the video's frames.

    VIDEO/query/ has the frames of the whole, every other folder those of a clip; positive* are the answers.
    """
    table, media, data = rows_of(task, reading), media_of(task, reading), Data()
    for number, (where, row) in enumerate(table):
        folder = media / Path(str(value(row, "video_path", where))).stem
        clips = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        given = [path for path in clips if path.name != "query"]
        right = [path.name for path in given if path.name.startswith("positive")]
        if not right:
            raise DataError(f"{where}: {folder} has no clip whose name begins with positive")
        ids = {path.name: data.add(clip(path, reading, most=CLIP_FRAMES), folder.name, path.name) for path in given}
        asked = clip(folder / "query", reading, value(row, "query", where))
        answers = {ids[name]: 1 for name in right}
        data.queries.append(Query(str(number), asked, task.instruction, answers, tuple(ids.values())))
    return data


SEEKER = {  # what the query comes with -> instruction; where from, see mmeb_tasks.py
    "text": "Find the clip that corresponds to the given text.",
    "image": "Select the video clip that aligns with the given text and image.",
    "video": "Find the clip that corresponds to the given sentence and video segment.",
}


def read_seeker(task: Task, reading: Reading) -> Data:
    """query, input_frames (a .mp4, a .jpg or nothing), positive_frames and negative_frames [{output_path}]."""
    table, media, data = rows_of(task, reading), media_of(task, reading), Data()

    def frames(path: str) -> Path:
        return media / "video_frames" / path.split(".mp4")[0].replace("/", "_")

    def clips(row: dict[str, Any], key: str, where: str) -> list[str]:
        paths = [value(each, "output_path", where) for each in row.get(key) or []]
        return [data.add(clip(frames(path), reading), frames(path).name) for path in paths]

    for number, (where, row) in enumerate(table):
        right, wrong = clips(row, "positive_frames", where), clips(row, "negative_frames", where)
        if not right:
            raise DataError(f"{where}: no positive_frames")
        text, beside = value(row, "query", where), row.get("input_frames") or ""
        kind, asked = "text", text
        if beside.endswith(".mp4"):
            kind, asked = "video", clip(frames(beside), reading, text)
        elif beside.endswith(".jpg"):
            kind, asked = "image", {"image": media / f"query_{beside}", "text": text}
            if not asked["image"].is_file():
                raise DataError(f"{where}: {asked['image']} is not there")
        given = tuple(dict.fromkeys([*right, *wrong]))
        data.queries.append(Query(str(number), asked, SEEKER[kind], dict.fromkeys(right, 1), given))
    return data
