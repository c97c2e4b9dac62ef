"""MMEB-V2's questions about videos: a video and a question with its options; candidates are the options.

    video-tasks/data/NAME.jsonl                     one row a question; columns differ, see each task
    video-tasks/data/mvbench/SUBSET.json            MVBench: a list of questions a subset
    video-tasks/frames/video_qa/NAME/VIDEO/         frames

Knows: these columns, and how each task writes its options into the question.  Does not know: encoders, scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smart_train.data.ids import DataError
from smart_train.data.tables import open_files
from smart_train.evaluation.mmeb_data import Data, Query, Reading, clip, media_of, rows_of, value
from smart_train.evaluation.mmeb_tasks import Task

Asked = tuple[str, str, str, list[str], int]
"""Where, the video's folder, the question with its options, the candidates, the place of the right one."""


def read_questions(task: Task, reading: Reading) -> Data:
    """Raises DataError for an answer that is none of the options."""
    media, data = media_of(task, reading), Data()
    for number, (where, video, question, options, right) in enumerate(_rows(task, reading)):
        if not 0 <= right < len(options):
            raise DataError(f"{where}: the answer is none of the {len(options)} options")
        ids = [data.add(option, option) for option in options]
        shown = clip(media / video, reading, question)
        data.queries.append(Query(str(number), shown, task.instruction, {ids[right]: 1}, tuple(dict.fromkeys(ids))))
    return data


def _rows(task: Task, reading: Reading) -> Iterator[Asked]:
    if task.name == "MVBench":
        yield from _mvbench(task, reading)
        return
    for where, row in rows_of(task, reading):
        yield where, *ROWS[task.name](row, where)


def _bare(option: str) -> str:
    """'A. A red one.' -> 'A red one'."""
    return option[option.find(". ") :].strip(". ")


def _lettered(question: str, options: list[str]) -> str:
    return "\n".join([question, "Options:", *(f"({chr(ord('A') + at)}) {each}" for at, each in enumerate(options))])


def _video_mme(row: dict[str, Any], where: str) -> tuple[str, str, list[str], int]:
    """videoID, question, options ["A. ...", ...], answer "A" to "D"."""
    options = list(value(row, "options", where))
    question = "\n".join([value(row, "question", where), *options])
    right = ord(str(value(row, "answer", where))[:1] or " ") - ord("A")
    return str(value(row, "videoID", where)), question, [_bare(each) for each in options], right


def _nextqa(row: dict[str, Any], where: str) -> tuple[str, str, list[str], int]:
    """video, question, a0 to a4, answer 0 to 4."""
    options = [value(row, f"a{at}", where) for at in range(5)]
    question = _lettered(value(row, "question", where), options)
    return str(value(row, "video", where)), question, options, int(value(row, "answer", where))


def _egoschema(row: dict[str, Any], where: str) -> tuple[str, str, list[str], int]:
    """video_idx, question, option ["A. ...", ...], answer 0 to 4 as a text."""
    options = list(value(row, "option", where))
    question = value(row, "question", where) + " ".join(options)
    right = int(value(row, "answer", where))
    return str(value(row, "video_idx", where)), question, [_bare(each) for each in options], right


def _activitynet(row: dict[str, Any], where: str) -> tuple[str, str, list[str], int]:
    """video_name, question, answer "yes" or "no"."""
    options, answer = ["yes", "no"], value(row, "answer", where)
    question = f"{value(row, 'question', where)}? (A) yes; (B) no."
    right = options.index(answer) if answer in options else -1
    return f"v_{value(row, 'video_name', where)}", question, options, right


ROWS = {"Video-MME": _video_mme, "NExTQA": _nextqa, "EgoSchema": _egoschema, "ActivityNetQA": _activitynet}
SUBSETS = (  # of MVBench, in its order
    *("episodic_reasoning", "action_sequence", "action_prediction", "action_antonym", "fine_grained_action"),
    *("unexpected_action", "object_existence", "object_interaction", "object_shuffle", "moving_direction"),
    *("action_localization", "scene_transition", "action_count", "moving_count", "moving_attribute", "state_change"),
    *("fine_grained_pose", "character_order", "egocentric_navigation", "counterfactual_inference"),
)


def _mvbench(task: Task, reading: Reading) -> Iterator[Asked]:
    """video, question, candidates [list], answer (its text); candidates are told with their letters."""
    places = [reading.root / table / inner for table in task.tables for inner in ("", "json")]
    folder = next((place for place in places if (place / f"{SUBSETS[0]}.json").is_file()), places[0])
    absent = [one for one in SUBSETS if not (folder / f"{one}.json").is_file()]
    if absent:
        told = f"{len(absent)} of its {len(SUBSETS)} parts are missing, such as {folder}/{absent[0]}.json"
        raise DataError(f"MVBench: {told}")
    for subset in SUBSETS:
        for where, row in open_files([folder / f"{subset}.json"]):
            options, answer = list(value(row, "candidates", where)), value(row, "answer", where)
            right = options.index(answer) if answer in options else -1
            lettered = [f"({chr(ord('A') + at)}) {each}" for at, each in enumerate(options)]
            question = _lettered(value(row, "question", where), options)
            yield where, f"{subset}/{value(row, 'video', where)}", question, lettered, right
