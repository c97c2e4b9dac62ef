"""MMEB-V2 in small: its folders and columns, with pictures of one colour and the colours' names as texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = ["red", "green", "blue", "black", "white", "orange", "purple", "gray", "cyan", "magenta"]
INSTRUCTION = "<|image_1|>\nRepresent the given image with the following question:\n"


def picture(path: Path, colour: str, size: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def frames(folder: Path, colours: list[str]) -> None:
    """frame_1.png ... frame_N.png: their order by name is not that of their numbers from the tenth on."""
    for number, colour in enumerate(colours, 1):
        picture(folder / f"frame_{number}.png", colour)


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pa.Table.from_pylist(rows), path)
    return path


def write_images(root: Path) -> Path:
    """OK-VQA (a picture and a question, answers as texts), CIRR (a picture and a wish, pictures), VisDial (a text,
    pictures, some with a text of their own)."""
    store = root / "image-tasks" / "MMEB"
    for colour in COLOURS:
        picture(store / "shown" / f"{colour}.jpg", colour)

    def row(colour: str, text: str, texts: list[str], colours: list[str], instruction: str = INSTRUCTION):
        return {
            "qry_inst": instruction,
            "qry_text": text,
            "qry_img_path": f"shown/{colour}.jpg" if colour else "",
            "tgt_inst": "<|image_1|>\nRepresent the given image." if any(colours) else "",
            "tgt_text": texts,
            "tgt_img_path": [f"shown/{one}.jpg" if one else "" for one in colours],
        }

    asked = [row("red", "which colour?", ["red", "blue", "green"], [""] * 3)]
    asked += [row("blue", "which colour?", ["blue", "red"], [""] * 2), row("cyan", "", ["gray", "cyan"], [""] * 2)]
    parquet(root / "image-tasks" / "OK-VQA" / "test-00000-of-00001.parquet", asked)
    wished = [row("red", "but green", [""] * 3, ["green", "red", "blue"], "<|image_1|>\nFind another image:")]
    parquet(root / "image-tasks" / "CIRR" / "test-00000-of-00001.parquet", wished)
    told = [row("", "green", ["", "a page"], ["green", "green"], "Find an image:")]
    parquet(root / "image-tasks" / "VisDial" / "test-00000-of-00001.parquet", told)
    return root


def write_videos(root: Path) -> Path:
    """Breakfast, SmthSmthV2, MSR-VTT, DiDeMo, QVHighlight and MomentSeeker."""
    rows, shown = root / "video-tasks" / "data", root / "video-tasks" / "frames"
    for colour in COLOURS[:3]:
        frames(shown / "video_cls" / "Breakfast" / f"v-{colour}", [colour] * 3)
        frames(shown / "video_cls" / "SSv2" / f"{COLOURS.index(colour)}", [colour])
        frames(shown / "video_ret" / "MSR-VTT" / f"video-{colour}", ["black"] + [colour] * 11)
        frames(shown / "video_ret" / "DiDeMo" / f"{colour}_7", [colour] * 2)
    lines(rows / "breakfast.jsonl", [{"video_id": f"v-{one}", "pos_text": one} for one in COLOURS[:3]])
    (rows / "Breakfast.labels").write_text("\n".join(COLOURS) + "\n", encoding="utf-8")
    choices = [{"video_id": 0, "pos_text": "red", "neg_text": ["green", "red"]}]
    choices += [{"video_id": 2, "pos_text": "blue", "neg_text": ["green", "red"]}]  # without the right one
    lines(rows / "ssv2.jsonl", choices)
    found = [{"video_id": f"video-{one}", "video": f"video-{one}.mp4", "caption": one} for one in COLOURS[:3]]
    lines(rows / "msr-vtt.jsonl", found)
    lines(rows / "didemo.jsonl", [{"video": f"raw/{one}_7.mp4", "caption": f"a {one}"} for one in COLOURS[:3]])
    moments = shown / "video_mret" / "QVHighlight" / "film"
    for name, colour in (("query", "gray"), ("positive_1", "red"), ("negative_1", "blue"), ("negative_2", "cyan")):
        frames(moments / name, [colour] * (12 if name == "query" else 9))
    lines(rows / "qvhighlight.jsonl", [{"query": "red", "video_path": "somewhere/film.mp4"}])
    seeker = shown / "video_mret" / "MomentSeeker"
    for name, colour in (("film_1", "red"), ("film_2", "blue"), ("film_3", "green"), ("film_whole", "gray")):
        frames(seeker / "video_frames" / name, [colour] * 2)
    picture(seeker / "query_still.jpg", "blue")
    clips = {
        "positive_frames": [{"output_path": "film/1.mp4"}],
        "negative_frames": [{"output_path": "film/2.mp4"}, {"output_path": "film/3.mp4"}],
    }
    sought = [{"query": "red", "input_frames": beside, **clips} for beside in ("", "still.jpg", "film/whole.mp4")]
    lines(rows / "momentseeker_1k6.jsonl", sought)
    return root


def write_questions(root: Path) -> Path:
    """Video-MME, NExTQA, EgoSchema, ActivityNetQA and MVBench, a question each (MVBench: one a part)."""
    rows, shown = root / "video-tasks" / "data", root / "video-tasks" / "frames" / "video_qa"
    for place in ("Video-MME/a1", "NExTQA/12", "EgoSchema/e1", "ActivityNetQA/v_n1"):
        frames(shown / place, ["red", "blue"])
    lettered = [f"{letter}. {colour.title()}." for letter, colour in zip("ABCD", COLOURS, strict=False)]
    mme = {"videoID": "a1", "question": "Which?", "options": lettered, "answer": "C"}
    lines(rows / "video-mme.jsonl", [mme])
    nextqa = {"video": 12, "question": "which", "answer": 1, **{f"a{n}": one for n, one in enumerate(COLOURS[:5])}}
    lines(rows / "nextqa.jsonl", [nextqa])
    lines(rows / "egoschema.jsonl", [{"video_idx": "e1", "question": "Which?", "option": lettered, "answer": "0"}])
    lines(rows / "activitynetqa.jsonl", [{"video_name": "n1", "question": "is it red", "answer": "no"}])
    return root


def write_mvbench(root: Path, parts: list[str]) -> Path:
    for number, part in enumerate(parts):
        frames(root / "video-tasks" / "frames" / "video_qa" / "MVBench" / part / "clip.mp4", ["red"])
        right = COLOURS[number % 2]
        row = {"video": "clip.mp4", "question": "Which?", "candidates": ["red", "green"], "answer": right}
        file = root / "video-tasks" / "data" / "mvbench" / f"{part}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([row]), encoding="utf-8")
    return root


def write_charts(root: Path) -> Path:
    """VisRAG_ChartQA, whose pages lie as files; graded judgements, and a query without any."""
    name = "a very long name of a chart that goes on and on and on for more than fifty characters"
    folder, media = root / "visdoc-tasks" / "data" / "VisRAG-Ret-Test-ChartQA", root / "visdoc-tasks" / "images"
    ids = ["red.png", "green", f"{name}.png", "black"]
    lines(folder / "corpus" / "train.jsonl", [{"corpus-id": id} for id in ids])
    asked = [("q0", "red"), ("q1", "green blue"), ("q2", "white")]
    lines(folder / "queries" / "train.jsonl", [{"query-id": id, "query": text} for id, text in asked])
    judged = [("q0", "red.png", 1), ("q1", f"{name}.png", 2), ("q1", "green", 1), ("q2", "black", 0)]
    rows = [{"query-id": query, "corpus-id": document, "score": grade} for query, document, grade in judged]
    lines(folder / "qrels" / "train.jsonl", rows)
    short = "a very long name of a chart that goes on and on an_a1356f3b"
    for file, colour in (("red", "red"), ("green.png", "green"), (short, "blue"), ("black.png", "black")):
        picture(media / "VisRAG_ChartQA" / f"{file.removesuffix('.png')}.png", colour)
    return root
