"""MMEB-V2 on tiny tasks in its layout: figures computed by hand, and by formula from a real architecture's scores."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmeb_layout
import pytest
import torch
from mmeb_layout import COLOURS
from PIL import Image

from smart_train.benchmarks import mmeb_runs as mmeb
from smart_train.benchmarks.benchmark_encoder import prompted
from smart_train.benchmarks.mmeb_data import READERS, MmebFolder, Query, TaskData
from smart_train.benchmarks.mmeb_runs import evaluate_task, mmeb_table, run_mmeb
from smart_train.benchmarks.mmeb_tasks import PAGE, TASKS, select_tasks
from smart_train.config.schema import HybridBlock, LateBlock, ModelBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.evaluation.scoring import MODES
from smart_train.models.encoder import SmartEncoder
from smart_train.models.preprocessing import open_content


class Colours:
    """An encoder that sees colours: a token is the colour of a picture, or of a word that names one; one-hot vectors,
    so that every score can be told by hand."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.late = LateBlock(hybrid=HybridBlock())
        self.settings = ModelBlock(query_prompt="its own", document_prompt="its own")
        self.st = SimpleNamespace(modalities=["text", "image", "message"])
        self.cut_rows = {"query": 0, "document": 0}
        self.prompts: list[tuple[str, Any]] = []

    def _tokens(self, content: Any) -> list[str]:
        if isinstance(content, str):
            return [word for word in content.lower().replace(".", "").split() if word in COLOURS] or ["white"]
        if isinstance(content, dict):
            parts = content.get("image", [])
            parts = parts if isinstance(parts, list) else [parts]
            seen = [one for part in parts for one in self._tokens(part)]
            return seen + [one for one in self._tokens(content.get("text", "")) if one != "white"]
        seen = open_content(content).getpixel((0, 0))
        near = {
            one: sum(abs(a - b) for a, b in zip(Image.new("RGB", (1, 1), one).getpixel((0, 0)), seen, strict=True))
            for one in COLOURS
        }
        return [min(near, key=lambda one: near[one])]

    def _encode(self, contents: list[Any]) -> Embeddings:
        rows = [[COLOURS.index(one) for one in self._tokens(content)] for content in contents]
        eye = torch.eye(len(COLOURS))
        pooled = torch.nn.functional.normalize(torch.stack([eye[row].sum(0) for row in rows]), dim=1)
        return Embeddings(pooled, Tokens(eye[sum(rows, [])], torch.tensor([len(row) for row in rows])))

    def encode_queries(self, contents: list[Any], batch_size: int = 1, progress: bool = False) -> Embeddings:
        self.prompts.append(("query", self.settings.query_prompt))
        return self._encode(contents)

    def encode_documents(self, contents: list[Any], batch_size: int = 1, dtype: Any = None) -> Embeddings:
        self.prompts.append(("document", self.settings.document_prompt))
        return self._encode(contents)


def measured(root: Path, name: str, encoder: Any = None, **options: Any) -> dict[str, Any]:
    task = TASKS[name]
    return evaluate_task(encoder or Colours(), task, READERS[task.kind](task, MmebFolder(root)), **options)


def figures(found: dict[str, Any], name: str) -> list[float]:
    return [round(found["modes"][mode][name]["value"], 6) for mode in MODES]


def test_hits_among_own_candidates_are_those_counted_by_hand(tmp_path):
    found = measured(mmeb_layout.write_images(tmp_path), "OK-VQA")
    # red among red, blue, green: a hit; blue among blue, red: a hit; cyan among gray, cyan: none, for the answer is the
    # first candidate, gray.
    assert figures(found, "hit@1") == [0.666667] * 3 and figures(found, "hit@5") == [1.0] * 3
    assert found["per_query"]["late"] == {"0": 1.0, "1": 1.0, "2": 0.0}
    assert (found["queries"], found["documents"]) == (3, 5)


def test_an_answer_that_nobody_gave_a_query_cannot_beat_its_own_candidates(tmp_path):
    # Over all documents purple scores what red does or more; the first query was given red and green alone.
    data = TaskData([Query("q", "purple red", "i", {"red": 1}, ("red", "green"))], {one: one for one in COLOURS})
    given = evaluate_task(Colours(), TASKS["OK-VQA"], data)
    assert figures(given, "hit@1") == [1.0] * 3
    among_all = evaluate_task(
        Colours(), TASKS["Breakfast"], TaskData([Query("q", "purple", "i", {"red": 1})], data.documents)
    )
    assert figures(among_all, "hit@1") == [0.0] * 3


def test_ndcg_of_pages_has_linear_gain_and_counts_a_page_that_was_not_found(tmp_path):
    found = measured(mmeb_layout.write_charts(tmp_path), "VisRAG_ChartQA")
    # q0 red: first of 4 -> 1.  q1 "green blue": both pages score 1/sqrt(2) pooled and 1/2 late: equal, ordered by hash;
    # green (1) before blue (2) or behind it.
    best = (2 + 1 / math.log2(3)) / (2 + 1 / math.log2(3))
    worse = (1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3))
    value = found["per_query"]["pooled"]["q1"]
    assert value == pytest.approx(best) or value == pytest.approx(worse)
    assert figures(found, "ndcg@5") == [round((1 + value) / 2, 6)] * 3
    data = TaskData([Query("q", "red", "i", {"red": 1, "not there": 1})], {one: one for one in COLOURS})
    found = evaluate_task(Colours(), TASKS["VisRAG_ChartQA"], data)
    assert figures(found, "ndcg@5") == [round(1 / (1 + 1 / math.log2(3)), 6)] * 3


def test_videos_are_measured_by_their_frames(tmp_path):
    root = mmeb_layout.write_videos(tmp_path)
    for name in ("Breakfast", "MSR-VTT", "DiDeMo", "QVHighlight"):
        assert figures(measured(root, name), "hit@1") == [1.0] * 3, name
    # The film of the seeker is gray and the still is blue: late has a token for each, and "red" finds the red clip
    # beside them; with the still's blue, red and blue clips are equal, and the hash decides.
    seeker = measured(root, "MomentSeeker")["per_query"]["late"]
    assert (seeker["0"], seeker["2"]) == (1.0, 1.0)
    assert figures(measured(root, "SmthSmthV2"), "hit@1") == [1.0] * 3


def test_queries_get_their_instruction_and_documents_none_or_both_their_own(tmp_path):
    root, encoder = mmeb_layout.write_videos(tmp_path), Colours()
    measured(root, "MomentSeeker", encoder)
    asked = [prompt for role, prompt in encoder.prompts if role == "query"]
    assert len(asked) == len(set(asked)) == 3 and {
        prompt for role, prompt in encoder.prompts if role == "document"
    } == {""}
    assert encoder.settings.query_prompt == "its own"  # put back
    encoder.prompts.clear()
    own = measured(root, "MomentSeeker", encoder, instructions=False)
    assert set(encoder.prompts) == {("query", "its own"), ("document", "its own")}
    assert list(own["per_query"]["late"]) == ["0", "1", "2"]  # in the rows' order, whatever was encoded together


@pytest.fixture(scope="module")
def encoder(tiny_qwen3vl) -> SmartEncoder:
    return SmartEncoder(str(tiny_qwen3vl), late=LateBlock(hybrid=HybridBlock(late=1.7)), device="cpu")


@pytest.mark.parametrize("name", ["OK-VQA", "VisDial", "MSR-VTT", "QVHighlight", "VisRAG_ChartQA"])
def test_a_real_architecture_s_figures_follow_from_its_scores_pair_by_pair(encoder, name, tmp_path):
    for write in (mmeb_layout.write_images, mmeb_layout.write_videos, mmeb_layout.write_charts):
        write(tmp_path)
    task = TASKS[name]
    data = READERS[task.kind](task, MmebFolder(tmp_path, frames=2))
    found = evaluate_task(encoder, task, data, batch_size=2)
    for mode in MODES:
        for query in data.queries:
            scores = {}
            with prompted(encoder, query=query.instruction, document=""):
                for document in query.candidates or data.documents:
                    content = data.documents[document]
                    content = content.content() if hasattr(content, "content") else content
                    scores[document] = float(encoder.score([query.content], [content], mode))
            order = sorted(scores, key=lambda document: -scores[document])
            gained = sum(query.answers.get(one, 0) / math.log2(place + 2) for place, one in enumerate(order[:5]))
            ideal = sum(g / math.log2(p + 2) for p, g in enumerate(sorted(query.answers.values(), reverse=True)))
            expected = gained / ideal if task.group == "visdoc" else float(order[0] in query.answers)
            assert found["per_query"][mode][query.id] == pytest.approx(expected, abs=1e-6)


def test_a_run_files_every_task_goes_on_where_it_stood_and_tells_what_failed(encoder, tmp_path, monkeypatch, caplog):
    root, output = mmeb_layout.write_images(tmp_path / "data"), tmp_path / "out"
    mmeb_layout.write_charts(root)
    names = ["OK-VQA", "K700", "VisRAG_ChartQA"]
    encoded = []
    real = encoder.encode_queries
    monkeypatch.setattr(encoder, "encode_queries", lambda rows, **o: encoded.append(len(rows)) or real(rows, **o))
    with caplog.at_level(logging.WARNING):
        found = run_mmeb(encoder, select_tasks(names), MmebFolder(root), output)
    assert set(found["tasks"]) == {"OK-VQA", "VisRAG_ChartQA"} and "no rows; looked for" in found["failed"]["K700"]
    assert any("K700 failed" in one.message for one in caplog.records)
    assert any("1 queries have no relevant page" in one.message for one in caplog.records)
    assert (
        found["means"]["image"]["of"] == 36 and found["means"]["all"] | {"tasks": 2, "of": 78} == found["means"]["all"]
    )
    values = [found["tasks"][name]["late"] for name in found["tasks"]]
    assert found["means"]["all"]["late"] == pytest.approx(sum(values) / 2)
    told = mmeb_table(found)
    assert "image, 1 of 36 tasks" in told and ["VisRAG_ChartQA", "ndcg@5"] in [
        line.split()[:2] for line in told.splitlines()
    ]
    before = list(encoded)
    assert (
        run_mmeb(encoder, select_tasks(names), MmebFolder(root), output) == found and encoded == before
    )  # nothing anew
    with pytest.raises(EvaluationError, match=r"OK-VQA\.json was measured with other settings \(frames 8, now 4\)"):
        run_mmeb(encoder, select_tasks(names), MmebFolder(root, frames=4), output)
    monkeypatch.setattr(encoder.late.hybrid, "late", 0.1)
    with pytest.raises(EvaluationError, match="encoder '"):
        run_mmeb(encoder, select_tasks(names), MmebFolder(root), output)


def test_texts_that_were_cut_are_told(tiny_qwen3vl, tmp_path, caplog):
    short = SmartEncoder(str(tiny_qwen3vl), model=ModelBlock(query_tokens=2), device="cpu")
    with caplog.at_level(logging.WARNING):
        run_mmeb(short, select_tasks(["OK-VQA"]), MmebFolder(mmeb_layout.write_images(tmp_path)), tmp_path / "out")
    assert any("OK-VQA: 2 query texts fill the encoder's limit" in one.message for one in caplog.records)


def test_what_an_encoder_cannot_take_is_refused_before_anything_is_encoded(encoder, real_base, tmp_path):
    root = mmeb_layout.write_videos(mmeb_layout.write_images(tmp_path))
    text = SmartEncoder(str(real_base), device="cpu")
    with pytest.raises(EvaluationError, match="OK-VQA shows images, and .* has no image side"):
        measured(root, "OK-VQA", text)
    task = TASKS["MSR-VTT"]
    data = READERS[task.kind](task, MmebFolder(root, video=True))
    with pytest.raises(EvaluationError, match="takes no videos here .*read videos as images .*or install torchvision"):
        evaluate_task(encoder, task, data)
    one = Colours()
    one.st.modalities = ["text", "image"]
    with pytest.raises(EvaluationError, match="shows several frames at once, and .* takes one image a row"):
        measured(root, "MSR-VTT", one)
    with pytest.raises(EvaluationError, match="has no query to evaluate"):
        evaluate_task(one, task, TaskData())


def test_pages_are_decoded_a_portion_at_a_time(tmp_path, monkeypatch):
    open_now = []

    class Page:
        def __init__(self, colour: str) -> None:
            self.colour = colour

        def content(self) -> str:
            open_now.append(self.colour)
            return self.colour

    class Watched(Colours):
        def encode_documents(self, contents: list[Any], **options: Any) -> Embeddings:
            sizes.append(len(open_now))
            open_now.clear()
            return self._encode(contents)

    sizes: list[int] = []
    data = TaskData([Query("q", "red", PAGE, {"red": 1})], {one: Page(one) for one in COLOURS})
    found = evaluate_task(Watched(), TASKS["VisRAG_ChartQA"], data, batch_size=2)
    assert sizes == [2 * mmeb.IMAGE_BATCHES] * 2 + [2] and figures(found, "ndcg@5") == [1.0] * 3


def test_queries_that_are_videos_are_held_a_few_at_a_time_with_the_same_figures(tmp_path, monkeypatch):
    root = mmeb_layout.write_videos(tmp_path)
    whole, encoder = {name: measured(root, name) for name in ("Breakfast", "MomentSeeker", "MSR-VTT")}, Colours()
    monkeypatch.setattr(mmeb, "FRAMES_AT_ONCE", 4)  # a query of Breakfast has 3
    encode, sizes = encoder.encode_queries, []
    monkeypatch.setattr(encoder, "encode_queries", lambda rows, **o: sizes.append(len(rows)) or encode(rows, **o))
    for name, found in whole.items():
        assert measured(root, name, encoder) == found
    assert sizes[:3] == [1, 1, 1] and sizes[-1] == 3  # descriptions are texts, and stay together
