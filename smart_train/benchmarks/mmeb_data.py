"""Read the tasks of MMEB-V2 from its files: queries with their answers and candidates, and documents, by content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from smart_train.benchmarks.mmeb_tasks import CLIP_FRAMES, MmebTask
from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document
from smart_train.data.readers import beir
from smart_train.data.tables import CORPUS_IDS, Table, data_files, open_files, read_id, require_column, split_name

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class MmebFolder:
    """MMEB-V2 on disk, and how its videos are read.

    root: the folder that its download script fills
    frames: most frames of a video, evenly spaced from the first to the last; of a candidate clip at most 8
    video: True = a video is one input, for the model's own video processor; False = it is several images
    """

    root: Path
    frames: int = 8
    video: bool = False


@dataclass(frozen=True)
class Query:
    """One query. answers: document id -> grade above 0; candidates: ids of its own, None = all documents."""

    id: str
    content: Any
    instruction: str
    answers: dict[str, int]
    candidates: tuple[str, ...] | None = None


@dataclass
class TaskData:
    """The rows of one task.

    documents: id -> content, or an object whose ``content()`` returns it (a page that is decoded when it is encoded)
    notes: for the log: rows that were left out, instructions that stand in the text
    """

    queries: list[Query] = field(default_factory=list)
    documents: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, content: Any, *identity: str) -> str:
        """Add a document; return its id, which says what it shows: candidates of several queries are encoded once."""
        name = ":".join(part for part in identity if part)
        self.documents.setdefault(name, content)
        return name


def rows_of(task: MmebTask, mmeb: MmebFolder) -> Table:
    """Return the rows of a task. Raises DataError, with the places looked at, where there are none."""
    for name in task.tables:
        place = mmeb.root / name
        if place.is_file():
            return open_files([place])
        files = [file for folder in (place, place / "data") for file in data_files(folder)]
        files = [file for file in files if re.split(r"[_-]", split_name(file))[-1] == task.split] or files
        if files:
            kinds = {file.suffix for file in files}
            if len(kinds) > 1 or len({split_name(file) for file in files}) > 1:
                names = ", ".join(file.name for file in files[:4])
                raise DataError(f"{place}: {names} may all be the split {task.split!r}; leave only the right one there")
            return open_files(files)
    raise DataError(f"{task.name}: no rows; looked for {_places(mmeb.root, task.tables)}")


def media_of(task: MmebTask, mmeb: MmebFolder) -> Path:
    """Return the folder of a task's images or frames. Raises DataError where there is none."""
    found = next((mmeb.root / name for name in task.media if (mmeb.root / name).is_dir()), None)
    if found is None:
        raise DataError(f"{task.name}: no folder of images; looked for {_places(mmeb.root, task.media)}")
    return found


def _places(root: Path, names: Iterable[str]) -> str:
    return ", ".join(str(root / name) for name in names)


def frames_in(folder: Path, most: int) -> list[Path]:
    """Return at most ``most`` frames of a folder: evenly spaced, with first and last, in the order of their numbers.

    A shorter clip has all its frames; it is not padded. Raises DataError for a folder without frames.
    """
    entries = folder.iterdir() if folder.is_dir() else []
    paths = sorted(
        (path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES), key=lambda path: _natural_key(path.name)
    )
    if not paths:
        raise DataError(f"{folder}: no frames of this video; unpack the benchmark's frames there")
    if len(paths) <= most:
        return paths
    return [paths[at] for at in np.linspace(0, len(paths) - 1, most, dtype=int).tolist()]


def _natural_key(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in re.split(r"(\d+)", name)]


def clip(folder: Path, mmeb: MmebFolder, text: str = "", most: int | None = None) -> dict[str, Any]:
    """Return the content of a video's frames, with a text after them."""
    paths = frames_in(folder, mmeb.frames if most is None else min(most, mmeb.frames))
    shown: dict[str, Any] = {"video" if mmeb.video else "image": paths}
    return {**shown, "text": text} if text.strip() else shown


def value(row: dict[str, Any], key: str, where: str) -> Any:
    """Return a cell. Raises DataError where the row has none."""
    if row.get(key) is None:
        raise DataError(f"{where}: no {key!r} in this row; it has {', '.join(sorted(row)) or 'nothing'}")
    return row[key]


# -------------------------------------------------------------------------------------- image tasks

PLACEHOLDER = "<|image_1|>"  # of an image in the benchmark's texts; chat templates have their own


def read_images(task: MmebTask, mmeb: MmebFolder) -> TaskData:
    """Read an image task: each query has its own candidates, of which the first is right.

    Raises DataError for a row without candidates, and, before anything is encoded, for missing images.
    """
    table, media, data = rows_of(task, mmeb), media_of(task, mmeb), TaskData()
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
        query = content(row.get("qry_text"), row.get("qry_img_path"))
        if isinstance(query, str) and not query.strip():
            raise DataError(f"{where}: the query has neither a text nor an image")
        instruction = (row.get("qry_inst") or "").replace(PLACEHOLDER, "").strip()
        data.queries.append(Query(str(number), query, instruction, {ids[0]: 1}, tuple(dict.fromkeys(ids))))
    missing = sorted(str(path) for path in wanted if not path.is_file())
    if missing:
        raise DataError(f"{task.name}: {len(missing)} of {len(wanted)} images are not there, such as {missing[0]}")
    return data


def _candidates(row: dict[str, Any], where: str) -> tuple[Sequence[str], Sequence[str]]:
    texts = list(value(row, "tgt_text", where))
    names = list(row.get("tgt_img_path") or [""] * len(texts))
    if not texts or len(texts) != len(names):
        raise DataError(f"{where}: {len(texts)} tgt_text and {len(names)} tgt_img_path; a candidate has one of each")
    return [text or "" for text in texts], [name or "" for name in names]


# ----------------------------------------------------------------------------- visual documents


def read_pages(task: MmebTask, mmeb: MmebFolder) -> TaskData:
    """Read a visual-document task; queries without a relevant page are left out, and counted in the notes."""
    folder = mmeb.root / task.tables[0]
    if not folder.is_dir():
        raise DataError(
            f"{task.name}: {folder} is not there; download the data set's corpus, queries and qrels into it"
        )
    collection = _collection(folder, task, mmeb)
    data = TaskData(documents=dict(collection.corpus))
    for query, text in collection.queries.items():
        answers = {document: grade for document, grade in collection.qrels[query].items() if grade > 0}
        if answers:
            data.queries.append(Query(query, text, task.instruction, answers))
    left = len(collection.queries) - len(data.queries)
    if left:
        data.notes.append(f"{left} queries have no relevant page and are left out")
    return data


def _collection(folder: Path, task: MmebTask, mmeb: MmebFolder) -> Collection:
    corpus = open_files(beir.part_files(folder, "corpus")) if beir.part_files(folder, "corpus") else None
    if corpus is None or "image" in corpus.columns:
        return beir.read_beir(folder, task.split, text="" if corpus is not None else None)
    media, key = media_of(task, mmeb), require_column(corpus, CORPUS_IDS, "document ids")
    ids = [read_id(row, key, where) for where, row in corpus]
    pages = {id: _page(media, id) for id in ids}
    absent = [id for id, page in pages.items() if page is None]
    if absent:
        raise DataError(
            f"{task.name}: {len(absent)} of {len(ids)} pages are not there, such as that of {absent[0]!r}; looked into "
            f"{media}"
        )
    documents = {id: Document(id, image=page) for id, page in pages.items()}
    judged = [each for file in beir.qrels_files(folder).get(task.split, []) for each in beir.judgements(file)]
    queries = beir.QueryRows(open_files(beir.part_files(folder, "queries"))).read()
    return beir.judged_collection(task.name, documents, queries, judged)


def _page(media: Path, id: str) -> Path | None:
    """Return ID.png, ID (if it is a file name), or its short form in VLM2Vec's export: 50 characters and a hash."""
    end = Path(id).suffix
    short = f"{id.removesuffix(end)[:50]}_{hashlib.md5(id.encode(), usedforsecurity=False).hexdigest()[:8]}{end}"
    return next((media / name for name in (f"{id}.png", id, short) if (media / name).is_file()), None)


# ----------------------------------------------------------------------- questions about videos

VideoQuestion = tuple[str, str, str, list[str], int]
"""(where it is, the video's folder, the question with its options, the candidates, the index of the right one)"""


def read_questions(task: MmebTask, mmeb: MmebFolder) -> TaskData:
    """Read a video question task: the candidates are the options of each question.

    Raises DataError for an answer that is none of the options.
    """
    media, data = media_of(task, mmeb), TaskData()
    for number, (where, video, question, options, right) in enumerate(_video_questions(task, mmeb)):
        if not 0 <= right < len(options):
            raise DataError(f"{where}: the answer is none of the {len(options)} options")
        ids = [data.add(option, option) for option in options]
        shown = clip(media / video, mmeb, question)
        data.queries.append(Query(str(number), shown, task.instruction, {ids[right]: 1}, tuple(dict.fromkeys(ids))))
    return data


def _video_questions(task: MmebTask, mmeb: MmebFolder) -> Iterator[VideoQuestion]:
    if task.name == "MVBench":
        yield from _mvbench(task, mmeb)
        return
    for where, row in rows_of(task, mmeb):
        yield where, *QUESTION_ROWS[task.name](row, where)


def _bare(option: str) -> str:
    """Return an option without its letter and full stop: 'A. A red one.' -> 'A red one'."""
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


QUESTION_ROWS = {"Video-MME": _video_mme, "NExTQA": _nextqa, "EgoSchema": _egoschema, "ActivityNetQA": _activitynet}
MVBENCH_PARTS = (  # in its order
    *("episodic_reasoning", "action_sequence", "action_prediction", "action_antonym", "fine_grained_action"),
    *("unexpected_action", "object_existence", "object_interaction", "object_shuffle", "moving_direction"),
    *("action_localization", "scene_transition", "action_count", "moving_count", "moving_attribute", "state_change"),
    *("fine_grained_pose", "character_order", "egocentric_navigation", "counterfactual_inference"),
)


def _mvbench(task: MmebTask, mmeb: MmebFolder) -> Iterator[VideoQuestion]:
    """Read MVBench: video, question, candidates [list], answer (its text); candidates come with their letters."""
    places = [mmeb.root / table / inner for table in task.tables for inner in ("", "json")]
    folder = next((place for place in places if (place / f"{MVBENCH_PARTS[0]}.json").is_file()), places[0])
    absent = [one for one in MVBENCH_PARTS if not (folder / f"{one}.json").is_file()]
    if absent:
        missing = f"{len(absent)} of its {len(MVBENCH_PARTS)} parts are missing, such as {folder}/{absent[0]}.json"
        raise DataError(f"MVBench: {missing}")
    for subset in MVBENCH_PARTS:
        for where, row in open_files([folder / f"{subset}.json"]):
            options, answer = list(value(row, "candidates", where)), value(row, "answer", where)
            right = options.index(answer) if answer in options else -1
            lettered = [f"({chr(ord('A') + at)}) {each}" for at, each in enumerate(options)]
            question = _lettered(value(row, "question", where), options)
            yield where, f"{subset}/{value(row, 'video', where)}", question, lettered, right


# ------------------------------------------------------ video classification, retrieval and moments


def read_choice(task: MmebTask, mmeb: MmebFolder) -> TaskData:
    """Read a task of clips with class names to choose from: video_id, pos_text, neg_text [list].

    neg_text usually holds the right name; where it does not, the name is added, or the query could not be answered.
    """
    table, media, data = rows_of(task, mmeb), media_of(task, mmeb), TaskData()
    for number, (where, row) in enumerate(table):
        if number == task.limit:
            break
        right, names = value(row, "pos_text", where), list(value(row, "neg_text", where))
        ids = [data.add(name, name) for name in dict.fromkeys([*names, right])]
        shown = clip(media / str(value(row, "video_id", where)), mmeb)
        data.queries.append(Query(str(number), shown, task.instruction, {right: 1}, tuple(ids)))
    return data


def read_class(task: MmebTask, mmeb: MmebFolder) -> TaskData:
    """Read a task of clips and their class: video_id, pos_text. Documents are the names of all classes.

    They come from the rows, and from a file NAME.labels beside them, one a line. Raises DataError where some are
    missing, since fewer classes would make the task easier.
    """
    table, media, data = rows_of(task, mmeb), media_of(task, mmeb), TaskData()
    for number, (where, row) in enumerate(table):
        name = value(row, "pos_text", where)
        shown = clip(media / str(value(row, "video_id", where)), mmeb)
        data.queries.append(Query(str(number), shown, task.instruction, {data.add(name, name): 1}))
    file = mmeb.root / "video-tasks" / "data" / f"{task.name}.labels"
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


RETRIEVAL_COLUMNS = {  # task -> columns of the video's name and of its description
    "MSR-VTT": ("video_id", "caption"),
    "MSVD": ("video_id", "caption"),
    "DiDeMo": ("video", "caption"),
    "YouCook2": ("id", "sentence"),
    "VATEX": ("videoID", "enCap"),
}


def read_search(task: MmebTask, mmeb: MmebFolder) -> TaskData:
    """Read a task of descriptions (the first of several) and their videos; all videos are documents."""
    table, media, data = rows_of(task, mmeb), media_of(task, mmeb), TaskData()
    name_column, text_column = RETRIEVAL_COLUMNS[task.name]
    for number, (where, row) in enumerate(table):
        text = value(row, text_column, where)
        name = Path(str(value(row, name_column, where)))
        name = Path(name.stem) if name_column == "video" else name
        document = data.add(clip(media / name, mmeb), str(name))
        text = text[0] if isinstance(text, list | tuple) else text
        data.queries.append(Query(str(number), text, task.instruction, {document: 1}))
    return data


def read_moment(task: MmebTask, mmeb: MmebFolder) -> TaskData:
    """Read a task of a whole video, a text and clips of that video: query, video_path.

    VIDEO/query/ holds the frames of the whole video, every other folder those of a candidate; positive* are answers.
    """
    table, media, data = rows_of(task, mmeb), media_of(task, mmeb), TaskData()
    for number, (where, row) in enumerate(table):
        folder = media / Path(str(value(row, "video_path", where))).stem
        clips = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        candidates = [path for path in clips if path.name != "query"]
        right = [path.name for path in candidates if path.name.startswith("positive")]
        if not right:
            raise DataError(f"{where}: {folder} has no clip whose name begins with positive")
        ids = {path.name: data.add(clip(path, mmeb, most=CLIP_FRAMES), folder.name, path.name) for path in candidates}
        content = clip(folder / "query", mmeb, value(row, "query", where))
        answers = {ids[name]: 1 for name in right}
        data.queries.append(Query(str(number), content, task.instruction, answers, tuple(ids.values())))
    return data


SEEKER = {  # kind of query -> instruction; for the source see mmeb_tasks.py
    "text": "Find the clip that corresponds to the given text.",
    "image": "Select the video clip that aligns with the given text and image.",
    "video": "Find the clip that corresponds to the given sentence and video segment.",
}


def read_seeker(task: MmebTask, mmeb: MmebFolder) -> TaskData:
    """Read MomentSeeker: query, input_frames (.mp4, .jpg, none), positive_ and negative_frames [{output_path}]."""
    table, media, data = rows_of(task, mmeb), media_of(task, mmeb), TaskData()

    def frames(path: str) -> Path:
        return media / "video_frames" / path.split(".mp4")[0].replace("/", "_")

    def clips(row: dict[str, Any], key: str, where: str) -> list[str]:
        paths = [value(each, "output_path", where) for each in row.get(key) or []]
        return [data.add(clip(frames(path), mmeb), frames(path).name) for path in paths]

    for number, (where, row) in enumerate(table):
        right, wrong = clips(row, "positive_frames", where), clips(row, "negative_frames", where)
        if not right:
            raise DataError(f"{where}: no positive_frames")
        text, beside = value(row, "query", where), row.get("input_frames") or ""
        kind, content = "text", text
        if beside.endswith(".mp4"):
            kind, content = "video", clip(frames(beside), mmeb, text)
        elif beside.endswith(".jpg"):
            kind, content = "image", {"image": media / f"query_{beside}", "text": text}
            if not content["image"].is_file():
                raise DataError(f"{where}: {content['image']} is not there")
        candidates = tuple(dict.fromkeys([*right, *wrong]))
        data.queries.append(Query(str(number), content, SEEKER[kind], dict.fromkeys(right, 1), candidates))
    return data


READERS: dict[str, Callable[[MmebTask, MmebFolder], TaskData]] = {
    "image": read_images,
    "choice": read_choice,
    "class": read_class,
    "search": read_search,
    "moment": read_moment,
    "seeker": read_seeker,
    "question": read_questions,
    "visdoc": read_pages,
}
