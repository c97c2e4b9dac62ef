"""``smart-train new NAME --base B --data D``: the recipe says what was found, and it runs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import tiny_data

from smart_train.cli.main import main
from smart_train.config.recipe import read


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_csv(path: Path, *columns: str) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        for number, topic in enumerate(tiny_data.TOPICS):
            writer.writerow([f"what stands beside the {topic}", tiny_data.passage(number)])
    return path


def made(base: Path, *data: object):
    assert main(["new", "mine", "--base", str(base), "--data", *map(str, data)]) == 0
    return read("mine.yaml")


def test_columns_of_a_table_are_found_by_their_place(work, tiny_bert, capsys):
    recipe = made(tiny_bert, write_csv(work / "own.csv", "frage", "antwort"))
    assert (recipe.data.query, recipe.data.document) == ("frage", "antwort")
    assert (recipe.data.dev, recipe.data.test, recipe.objective.batch) == (4, 4, 4)
    assert recipe.model.query_tokens == 16 and recipe.model.pooling is None and recipe.name == "mine"
    assert recipe.model.document_tokens and recipe.model.document_tokens % 16 == 0
    assert "wrote mine.yaml and checked it; run: smart-train train mine.yaml" in capsys.readouterr().out
    assert "24 training queries, 24 documents, texts" in Path("mine.yaml").read_text()


def test_own_splits_and_negatives_are_used(work, tiny_bert, beir_folder, triples_file):
    recipe = made(tiny_bert, beir_folder)
    assert recipe.data.dev == 4 and "data.test" not in recipe.where.lines  # 16 train queries, and a test split
    Path("mine.yaml").unlink()
    assert made(tiny_bert, triples_file).data.negatives == 1  # every query has at least one


def test_keys_of_the_data_block_are_taken_as_given(work, tiny_bert):
    recipe = made(tiny_bert, write_csv(work / "own.csv", "a", "b"), "query=b", "document=a")
    assert (recipe.data.query, recipe.data.document) == ("b", "a")


def test_pages_get_a_pixel_limit_and_need_a_base_that_sees(work, tiny_qwen3vl, tiny_bert, page_rows, capsys):
    recipe = made(tiny_qwen3vl, page_rows)
    assert recipe.model.max_pixels == 786_432 and recipe.training["activation_checkpointing"] is True
    assert main(["new", "other", "--base", str(tiny_bert), "--data", str(page_rows)]) == 2
    assert "24 of 24 documents" in capsys.readouterr().err and not Path("other.yaml").exists()


def test_a_language_model_is_pooled_by_its_last_token(work, tiny_qwen3):
    model = work / "model"
    shutil.copytree(tiny_qwen3, model)
    for name in ("modules.json", "config_sentence_transformers.json"):
        (model / name).unlink(missing_ok=True)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3ForCausalLM"]}))
    assert made(model, write_csv(work / "own.csv", "query", "document")).model.pooling == "lasttoken"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base", "b"], "--base and --data belong together"),
        (["--data", "d"], "--base and --data belong together"),
        (["--base", "b", "--data", "d", "--from", "text_lora"], "leave one of them out"),
    ],
)
def test_half_a_request_is_refused(work, words, said, capsys):
    assert main(["new", "mine", *words]) == 2
    assert said in capsys.readouterr().err and not Path("mine.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rows", "beir", "pages"])
def test_the_recipe_runs_as_it_is(kind, work, tiny_bert, tiny_qwen3vl, beir_folder, page_rows, monkeypatch):
    """With relative paths, as one types them."""
    monkeypatch.delenv("SMART_TRAIN_READ_PLAINLY", raising=False)
    Path("base").symlink_to(tiny_qwen3vl if kind == "pages" else tiny_bert)
    data = {"rows": lambda: write_csv(work / "own.csv", "frage", "antwort").name, "beir": lambda: beir_folder}
    made(Path("base"), data.get(kind, lambda: page_rows)())
    assert main(["train", "mine.yaml", "training.use_cpu=true"]) == 0
    metrics = json.loads(Path("runs/mine/metrics.json").read_text())
    assert {"base", "trained"} <= set(metrics.get("rows", metrics))
    assert Path("runs/mine/adapter/verified.json").is_file() and Path("runs/mine/curve.png").is_file()
