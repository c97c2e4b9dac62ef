"""List the 78 tasks of MMEB-V2: files, instructions, candidates and metric of each.

Sources. Tasks, candidates and layout: VLM2Vec-V2 (arXiv 2507.04590) and its repository TIGER-AI-Lab/VLM2Vec,
experiments/public/eval/*.yaml, src/constant/dataset_hf_path.py and docs/mmebv2_reproduction/README.md (the 24 sets of
visual documents that the leaderboard counts). Instructions: those of Qwen3-VL-Embedding's own evaluation, on which the
reference (SMART, arXiv 2605.24938) builds its evaluation. They end with a full stop where VLM2Vec has a colon, and
documents get none. Rows of image tasks bring theirs, in the column qry_inst.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from smart_train.core.errors import EvaluationError

Group = Literal["image", "video", "visdoc"]
GROUPS: tuple[Group, ...] = ("image", "video", "visdoc")
METRICS = {"image": "hit@1", "video": "hit@1", "visdoc": "ndcg@5"}  # what the leaderboard averages, linear gain
CLIP_FRAMES = 8  # most frames of a candidate clip, whatever a video gets


@dataclass(frozen=True)
class MmebTask:
    """One of the 78 tasks.

    kind: which reader knows its rows; see ``mmeb_data.READERS``
    own_candidates: each query is ranked against its own candidates; False = against all documents of the task
    tables: files or folders below the root; the first that exists has the rows
    media: folders of images or frames, in the same way
    instruction: prompt of queries; "" = the rows bring theirs
    labels: number of classes, where documents are class names
    limit: number of rows that count, from the first; None = all
    """

    name: str
    group: Group
    kind: str
    own_candidates: bool
    tables: tuple[str, ...]
    media: tuple[str, ...]
    instruction: str = ""
    split: str = "test"
    labels: int = 0
    limit: int | None = None

    @property
    def metric(self) -> str:
        return METRICS[self.group]


IMAGE = (
    *("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397", "Place365", "ImageNet-A", "ImageNet-R"),
    *("ObjectNet", "Country211", "OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W", "ScienceQA"),
    *("VizWiz", "GQA", "TextVQA", "VisDial", "CIRR", "VisualNews_t2i", "VisualNews_i2t", "MSCOCO_t2i", "MSCOCO_i2t"),
    *("NIGHTS", "WebQA", "FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS", "MSCOCO", "RefCOCO", "RefCOCO-Matching"),
    "Visual7W-Pointing",
)
BREAKFAST = "Recognize the breakfast type that the person is cooking in the video."
CLASSES = {  # name -> (folder of frames, stem of the rows, instruction, classes)
    "HMDB51": ("HMDB51", "hmdb51", "What actions or objects interactions are the person in the video doing?", 51),
    "UCF101": ("UCF101", "ucf101", "What activities or sports are being performed by the person in the video?", 101),
    "K700": ("K700", "k700", "Recognize the category of the video content.", 700),
    "Breakfast": ("Breakfast", "breakfast", BREAKFAST, 10),
}
ACTIONS = "What actions or object interactions are being performed by the person in the video?"
RETRIEVAL = {  # name -> (stem of the rows, instruction)
    "MSR-VTT": ("msr-vtt", "Find a video that contains the following visual content."),
    "MSVD": ("msvd", "Find the video snippet that corresponds to the given summary."),
    "DiDeMo": ("didemo", "Find a video that includes the following described scenes."),
    "YouCook2": ("youcook2-val", "Find a video that demonstrates the following action while making a recipe."),
    "VATEX": ("vatex", "Select a video that fits the description provided."),
}
MOMENTS = {"QVHighlight": "qvhighlight", "Charades-STA": "charades_sta"}
MOMENT = "Find the clip that corresponds to the described scene in the given video."
QUESTIONS = {  # name -> (stem of the rows, folders of frames)
    "Video-MME": ("video-mme", ("Video-MME",)),
    "NExTQA": ("nextqa", ("NExTQA",)),
    "EgoSchema": ("egoschema", ("EgoSchema", "egoschema")),
    "MVBench": ("mvbench", ("MVBench",)),
    "ActivityNetQA": ("activitynetqa", ("ActivityNetQA",)),
}
ANSWER = (
    "Given a video and a question, select the most accurate answer from the provided candidates. "
    "Return only the exact text of your chosen answer."
)
VISDOC = {  # name -> (repository without its owner, split)
    **{
        f"ViDoRe_{name}": (f"{name}_test{part}_beir", "test")
        for part, names in (
            ("_subsampled", ("arxivqa", "docvqa", "infovqa", "tabfquad")),
            ("", ("tatdqa", "shiftproject", "syntheticDocQA_artificial_intelligence", "syntheticDocQA_energy")),
            ("", ("syntheticDocQA_government_reports", "syntheticDocQA_healthcare_industry")),
        )
        for name in names
    },
    "ViDoRe_esg_reports_human_labeled_v2": ("esg_reports_human_labeled_v2", "test"),
    **{
        f"ViDoRe_{name}_multilingual": (name, "test")
        for name in ("biomedical_lectures_v2", "economics_reports_v2", "esg_reports_v2")
    },
    **{
        f"VisRAG_{name}": (f"VisRAG-Ret-Test-{name}", "train")
        for name in ("ArxivQA", "ChartQA", "MP-DocVQA", "SlideVQA", "InfoVQA", "PlotQA")
    },
    "ViDoSeek-page": ("ViDoSeek-page-fixed", "test"),
    "ViDoSeek-doc": ("ViDoSeek", "test"),
    "MMLongBench-page": ("MMLongBench-page-fixed", "test"),
    "MMLongBench-doc": ("MMLongBench-doc", "test"),
}
PAGE = "Find a document image that matches the given query."
SUBSETS = {
    "MSR-VTT": "test_1k",
    "NExTQA": "MC",
    "EgoSchema": "Subset",
}  # of several in a repository, the one that counts
FRAMES, ROWS = "video-tasks/frames", "video-tasks/data"


def _tasks() -> list[MmebTask]:
    return [*_images(), *_classification(), *_retrieval(), *_moments(), *_questions(), *_pages()]


def _images() -> Iterator[MmebTask]:
    for name in IMAGE:
        tables = tuple(f"{place}/{name}" for place in ("image-tasks", "image-query", "image-tasks/data"))
        yield MmebTask(name, "image", "image", True, tables, ("image-tasks/MMEB", "image-tasks"))


def _classification() -> Iterator[MmebTask]:
    tables = (f"{ROWS}/ssv2.jsonl", f"{ROWS}/SmthSmthV2")
    yield MmebTask("SmthSmthV2", "video", "choice", True, tables, (f"{FRAMES}/video_cls/SSv2",), ACTIONS, limit=1000)
    for name, (folder, stem, instruction, labels) in CLASSES.items():
        tables = (f"{ROWS}/{stem}.jsonl", f"{ROWS}/{'Kinetics-700' if name == 'K700' else name}")
        media = (f"{FRAMES}/video_cls/{folder}",)
        yield MmebTask(name, "video", "class", False, tables, media, instruction, labels=labels)


def _retrieval() -> Iterator[MmebTask]:
    for name, (stem, instruction) in RETRIEVAL.items():
        inner = (f"{ROWS}/{name}/{SUBSETS[name]}",) if name in SUBSETS else ()
        tables = (f"{ROWS}/{stem}.jsonl", *inner, f"{ROWS}/{name}")
        deep = f"{FRAMES}/video_ret/data/ziyan/video_retrieval/{name}/frames"  # as the archive unpacks
        media = (f"{FRAMES}/video_ret/{name}/frames", deep, f"{FRAMES}/video_ret/{name}")
        split = "val" if name == "YouCook2" else "test"
        yield MmebTask(name, "video", "search", False, tables, media, instruction, split)


def _moments() -> Iterator[MmebTask]:
    for name, stem in MOMENTS.items():
        media = tuple(f"{FRAMES}/video_mret/{one}" for one in (name, name.replace("-", "_")))
        yield MmebTask(name, "video", "moment", True, (f"{ROWS}/{stem}.jsonl", f"{ROWS}/{name}"), media, MOMENT)
    tables = (f"{ROWS}/momentseeker_1k6.jsonl", f"{ROWS}/MomentSeeker")
    yield MmebTask("MomentSeeker", "video", "seeker", True, tables, (f"{FRAMES}/video_mret/MomentSeeker",))


def _questions() -> Iterator[MmebTask]:
    for name, (stem, folders) in QUESTIONS.items():
        inner = (f"{ROWS}/{name}/{SUBSETS[name]}",) if name in SUBSETS else ()
        tables = (f"{ROWS}/{stem}" if name == "MVBench" else f"{ROWS}/{stem}.jsonl", *inner, f"{ROWS}/{name}")
        media = tuple(f"{FRAMES}/{place}/{one}" for place in ("video_qa", "video_qa/video_qa") for one in folders)
        yield MmebTask(name, "video", "question", True, tables, media, ANSWER)


def _pages() -> Iterator[MmebTask]:
    for name, (repository, split) in VISDOC.items():
        own = (name, repository, f"{repository}_multilingual")
        media = tuple(f"visdoc-tasks/images/{one}" for one in own)
        yield MmebTask(name, "visdoc", "visdoc", False, (f"visdoc-tasks/data/{repository}",), media, PAGE, split)


TASKS: dict[str, MmebTask] = {task.name: task for task in _tasks()}


def select_tasks(names: list[str] | None) -> list[MmebTask]:
    """Return tasks by name or group (image, video, visdoc); None = all 78. Raises EvaluationError for other names."""
    found: dict[str, MmebTask] = {}
    for name in names if names is not None else GROUPS:
        if name in GROUPS:
            found |= {task.name: task for task in TASKS.values() if task.group == name}
        elif name in TASKS:
            found[name] = TASKS[name]
        else:
            near = get_close_matches(name, [*GROUPS, *TASKS], 3)
            fix = f"; did you mean {' or '.join(near)}?" if near else f"; groups are {', '.join(GROUPS)}"
            raise EvaluationError(f"MMEB-V2 has no task {name!r}{fix}")
    return list(found.values())
