"""Every kind of MMEB-V2 task, read from the benchmark's own layout: contents, answers, candidates, instructions."""

from __future__ import annotations

from collections import Counter

import mmeb_layout
import pytest
from mmeb_layout import COLOURS

from smart_train.benchmarks.mmeb_data import MVBENCH_PARTS, READERS, MmebFolder, frames_in
from smart_train.benchmarks.mmeb_tasks import PAGE, TASKS, select_tasks
from smart_train.core.errors import DataError, EvaluationError


def read(name, root, **options):
    task = TASKS[name]
    return READERS[task.kind](task, MmebFolder(root, **options))


def stems(content, what="image"):
    return [path.parent.name + "/" + path.stem for path in content[what]]


def test_there_are_78_tasks_each_with_a_reader_and_the_leaderboard_s_measure():
    assert Counter(task.group for task in TASKS.values()) == {"image": 36, "video": 18, "visdoc": 24}
    assert all(task.kind in READERS and task.tables and task.media for task in TASKS.values())
    assert {task.metric for task in TASKS.values() if task.group == "visdoc"} == {"ndcg@5"}
    assert {task.metric for task in TASKS.values() if task.group != "visdoc"} == {"hit@1"}
    assert all(task.instruction.endswith((".", "?")) for task in TASKS.values() if task.kind not in ("image", "seeker"))
    # image and multiple choice: own candidates; classes, searches and pages: all documents
    assert Counter(task.own_candidates for task in TASKS.values()) == {True: 36 + 1 + 3 + 5, False: 4 + 5 + 24}
    assert [task.name for task in select_tasks(["visdoc", "K700"])][-1] == "K700" and len(select_tasks(None)) == 78
    with pytest.raises(EvaluationError, match="no task 'ViDoRe_arxiv'; did you mean ViDoRe_arxivqa"):
        select_tasks(["ViDoRe_arxiv"])


def test_an_image_task_has_its_row_s_candidates_of_which_the_first_is_right(tmp_path):
    data = read("OK-VQA", mmeb_layout.write_images(tmp_path))
    store = tmp_path / "image-tasks" / "MMEB" / "shown"
    first, second, third = data.queries
    assert first.content == {"image": store / "red.jpg", "text": "which colour?"}
    assert list(first.content) == ["image", "text"]  # the picture stands before the question
    assert first.instruction == "Represent the given image with the following question:"
    assert (first.answers, first.candidates) == ({"red": 1}, ("red", "blue", "green"))
    assert third.content == store / "cyan.jpg" and third.candidates == ("gray", "cyan")
    assert data.documents == {one: one for one in ("red", "blue", "green", "gray", "cyan")}  # each once
    assert data.notes == []


def test_candidates_may_be_pictures_alone_or_with_a_text(tmp_path):
    root = mmeb_layout.write_images(tmp_path)
    store = root / "image-tasks" / "MMEB" / "shown"
    (wish,) = read("CIRR", root).queries
    assert wish.candidates == ("shown/green.jpg", "shown/red.jpg", "shown/blue.jpg") and wish.answers == {
        wish.candidates[0]: 1
    }
    data = read("VisDial", root)
    (told,) = data.queries
    assert told.content == "green" and told.candidates == ("shown/green.jpg", "shown/green.jpg:a page")
    assert data.documents["shown/green.jpg"] == store / "green.jpg"
    assert data.documents["shown/green.jpg:a page"] == {"image": store / "green.jpg", "text": "a page"}


def test_instructions_within_the_text_are_told_and_missing_pictures_are_counted(tmp_path):
    root = mmeb_layout.write_images(tmp_path)
    row = {"qry_text": "<|image_1|>\nWhich? ", "qry_img_path": "shown/red.jpg", "tgt_text": ["a", "b"]}
    mmeb_layout.parquet(root / "image-query" / "GQA" / "test-00000-of-00001.parquet", [row])
    data = read("GQA", root)
    assert data.queries[0].content["text"] == "Which? " and data.queries[0].instruction == ""
    assert "instructions stand in the text" in data.notes[0]
    (root / "image-tasks" / "MMEB" / "shown" / "red.jpg").unlink()
    with pytest.raises(DataError, match=r"OK-VQA: 1 of 3 images are not there, such as .*red\.jpg"):
        read("OK-VQA", root)
    with pytest.raises(DataError, match="VOC2007: no rows; looked for .*image-tasks/VOC2007, .*image-query/VOC2007"):
        read("VOC2007", root)
    mmeb_layout.parquet(root / "image-query" / "VizWiz" / "test.parquet", [row | {"tgt_img_path": ["x"]}])
    with pytest.raises(DataError, match="2 tgt_text and 1 tgt_img_path"):
        read("VizWiz", root)


def test_frames_are_spread_evenly_in_the_order_of_their_numbers_and_short_clips_are_whole(tmp_path):
    mmeb_layout.frames(tmp_path / "v", COLOURS + ["red", "blue"])
    assert [path.stem for path in frames_in(tmp_path / "v", 4)] == ["frame_1", "frame_4", "frame_8", "frame_12"]
    assert [path.stem for path in frames_in(tmp_path / "v", 64)] == [f"frame_{n}" for n in range(1, 13)]
    with pytest.raises(DataError, match="no frames of this video"):
        frames_in(tmp_path / "w", 4)


def test_a_class_is_sought_among_all_and_too_few_names_are_refused(tmp_path):
    root = mmeb_layout.write_videos(tmp_path)
    data = read("Breakfast", root)
    assert list(data.documents) == COLOURS and [query.answers for query in data.queries][1] == {"green": 1}
    assert data.queries[0].candidates is None and stems(data.queries[0].content)[0] == "v-red/frame_1"
    (root / "video-tasks" / "data" / "Breakfast.labels").unlink()
    with pytest.raises(DataError, match="Breakfast: 3 classes, and the task has 10; write the names of all"):
        read("Breakfast", root)
    right = read("SmthSmthV2", root).queries
    assert right[0].candidates == ("green", "red") and right[1].candidates == ("green", "red", "blue")
    assert right[1].answers == {"blue": 1}


def test_a_description_is_sought_among_all_videos(tmp_path):
    root = mmeb_layout.write_videos(tmp_path)
    data = read("MSR-VTT", root, frames=3)
    assert list(data.documents) == ["video-red", "video-green", "video-blue"]
    assert stems(data.documents["video-blue"]) == ["video-blue/frame_1", "video-blue/frame_6", "video-blue/frame_12"]
    assert data.queries[2].content == "blue" and data.queries[2].answers == {"video-blue": 1}
    assert data.queries[0].instruction == "Find a video that contains the following visual content."
    assert list(read("DiDeMo", root).documents) == ["red_7", "green_7", "blue_7"]
    whole = read("MSR-VTT", root, video=True)
    assert set(whole.documents["video-red"]) == {"video"} and len(whole.documents["video-red"]["video"]) == 8


def test_a_moment_is_sought_among_the_clips_of_its_film(tmp_path):
    root = mmeb_layout.write_videos(tmp_path)
    data = read("QVHighlight", root, frames=10)
    (query,) = data.queries
    assert query.candidates == ("film:negative_1", "film:negative_2", "film:positive_1")
    assert query.answers == {"film:positive_1": 1} and query.content["text"] == "red"
    assert len(query.content["image"]) == 10 and len(data.documents["film:positive_1"]["image"]) == 8
    text, image, video = read("MomentSeeker", root).queries
    assert text.content == "red" and text.candidates == ("film_1", "film_2", "film_3") and text.answers == {"film_1": 1}
    assert image.content["image"].name == "query_still.jpg" and "text and image" in image.instruction
    assert stems(video.content) == ["film_whole/frame_1", "film_whole/frame_2"] and "segment" in video.instruction
    (root / "video-tasks/frames/video_mret/QVHighlight/film/positive_1").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no clip whose name begins with positive"):
        read("QVHighlight", root)


def test_a_question_brings_its_options_as_each_task_writes_them(tmp_path):
    root = mmeb_layout.write_questions(tmp_path)
    (mme,) = read("Video-MME", root).queries
    assert mme.content["text"] == "Which?\nA. Red.\nB. Green.\nC. Blue.\nD. Black."
    assert (mme.candidates, mme.answers) == (("Red", "Green", "Blue", "Black"), {"Blue": 1})
    (nextqa,) = read("NExTQA", root).queries
    assert nextqa.content["text"] == "which\nOptions:\n(A) red\n(B) green\n(C) blue\n(D) black\n(E) white"
    assert (nextqa.candidates, nextqa.answers) == (tuple(COLOURS[:5]), {"green": 1})
    (ego,) = read("EgoSchema", root).queries
    assert ego.content["text"] == "Which?A. Red. B. Green. C. Blue. D. Black." and ego.answers == {"Red": 1}
    (activity,) = read("ActivityNetQA", root).queries
    assert activity.content["text"] == "is it red? (A) yes; (B) no." and activity.answers == {"no": 1}
    assert activity.instruction.endswith("Return only the exact text of your chosen answer.")
    mmeb_layout.lines(
        root / "video-tasks/data/activitynetqa.jsonl", [{"video_name": "n1", "question": "", "answer": "?"}]
    )
    with pytest.raises(DataError, match="activitynetqa.jsonl:1: the answer is none of the 2 options"):
        read("ActivityNetQA", root)


def test_mvbench_is_all_of_its_parts(tmp_path):
    mmeb_layout.write_mvbench(tmp_path, list(MVBENCH_PARTS))
    data = read("MVBench", tmp_path)
    assert len(data.queries) == len(MVBENCH_PARTS) == 20
    assert data.queries[1].candidates == ("(A) red", "(B) green") and data.queries[1].answers == {"(B) green": 1}
    assert stems(data.queries[1].content) == ["clip.mp4/frame_1"]
    (tmp_path / "video-tasks" / "data" / "mvbench" / "state_change.json").unlink()
    with pytest.raises(DataError, match=r"MVBench: 1 of its 20 parts are missing, such as .*state_change\.json"):
        read("MVBench", tmp_path)


def test_pages_lie_in_the_table_or_as_files_and_queries_without_an_answer_are_told(tmp_path):
    import local_tasks

    folder = tmp_path / "visdoc-tasks" / "data" / "arxivqa_test_subsampled_beir"
    local_tasks.write_pages(folder, 6)
    data = read("ViDoRe_arxivqa", tmp_path)
    assert len(data.documents) == 6 and len(data.queries) == 8 and data.queries[0].candidates is None
    assert {query.instruction for query in data.queries} == {PAGE}
    assert data.documents["0"].content().size[0] > 0  # decoded when it is wanted
    data = read("VisRAG_ChartQA", mmeb_layout.write_charts(tmp_path))
    by_id = {query.id: query for query in data.queries}
    assert [by_id["q1"].answers[id] for id in sorted(by_id["q1"].answers)] == [2, 1]
    assert data.notes == ["1 queries have no relevant page and are left out"] and set(by_id) == {"q0", "q1"}
    assert [page.content().getpixel((0, 0)) for page in data.documents.values()][2] == (0, 0, 255)
    next((tmp_path / "visdoc-tasks" / "images" / "VisRAG_ChartQA").glob("black*")).unlink()
    with pytest.raises(DataError, match="1 of 4 pages are not there, such as that of 'black'"):
        read("VisRAG_ChartQA", tmp_path)
    with pytest.raises(DataError, match="ViDoSeek-page: .*ViDoSeek-page-fixed is not there"):
        read("ViDoSeek-page", tmp_path)
