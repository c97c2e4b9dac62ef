"""Commands: what they call, print, write and exit with."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer

from smart_train.cli.main import main
from smart_train.config.recipe import plain, read
from smart_train.config.schema import AdapterBlock, LateBlock
from smart_train.models.encoder import SmartEncoder

ROOT = Path(__file__).parents[2]


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, timeout=120
    )


@pytest.fixture
def runs(monkeypatch) -> list[tuple]:
    """Recipes that would have been run: ``smart_train.training.run`` is replaced, nothing is trained."""
    called: list[tuple] = []
    stub = ModuleType("smart_train.training.run")
    stub.run = called.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "smart_train.training.run", stub)
    return called


@pytest.fixture
def recipe(tmp_path, tiny_bert, beir_folder) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(f"model:\n  base: {tiny_bert}\ndata:\n  path: {beir_folder}\n")
    return path


def test_the_command_line_imports_nothing_heavy():
    code = (
        "import smart_train.cli.main, sys; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    assert python("-c", code).stdout.strip() == "[]"


def test_the_package_is_a_program():
    done = python("-m", "smart_train", "--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("train", "new", "evaluate"))
    assert python("-m", "smart_train", "trian").returncode == 2
    assert python("-m", "smart_train", "--version").stdout == f"smart-train {version('smart-train')}\n"


# train ---------------------------------------------------------------------------------------------------------------


def test_train_runs_the_checked_recipe_with_its_overrides(runs, recipe):
    assert main(["train", str(recipe), "--local_rank=1", "late.layer=[1,2]", "data.limit=null"]) == 0
    (given,) = runs
    assert given.where.file == str(recipe)
    assert given.late.layer == [1, 2] and given.data.limit is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--training.max_steps=2"], "'--training.max_steps=2' is not key=value; write training.max_steps=2"),
        (["--training.max_steps", "2"], "'--training.max_steps' is not key=value; write training.max_steps=VALUE"),
        (["late.layer=1", "--data.limit=3", "name=x"], "'--data.limit=3' is not key=value; write data.limit=3"),
        (["-data.limit=3"], "'-data.limit=3' is not key=value; write data.limit=3"),
    ],
)
def test_an_override_written_as_a_flag_is_told_how_it_is_written(runs, recipe, capsys, given, told):
    assert main(["train", str(recipe), *given]) == 2
    assert capsys.readouterr().err == f"command line: {told}\n"
    assert runs == []


def test_an_unknown_flag_of_another_command_is_told_with_its_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["new", "mine", "--form", "quickstart"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --form" in capsys.readouterr().err


def test_train_tells_a_bad_recipe_on_rank_0_alone_and_runs_nothing(runs, recipe, monkeypatch, capsys):
    assert main(["train", str(recipe), "late.layer=9"]) == 2
    assert capsys.readouterr().err.startswith("command line: late.layer: the model has no layer 9")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    told_before = []
    monkeypatch.setattr("time.sleep", lambda seconds: told_before.append(capsys.readouterr()))
    assert main(["train", str(recipe), "late.layer=9"]) == 2
    (waiting,) = told_before  # rank 0's launcher ends this rank here
    assert waiting.err == waiting.out == ""
    assert capsys.readouterr().err.startswith("rank 1: command line: late.layer")
    assert runs == []


def test_an_error_that_is_foreseen_has_no_traceback_and_another_one_keeps_it(runs, recipe, monkeypatch, capsys):
    from smart_train.core.errors import DataError

    def fail(error):
        def run(recipe):
            raise error

        return run

    stub = sys.modules["smart_train.training.run"]
    monkeypatch.setattr(stub, "run", fail(DataError("page 7 of book.pdf is broken")))
    assert main(["train", str(recipe)]) == 1
    assert capsys.readouterr().err == "page 7 of book.pdf is broken\n"
    monkeypatch.setattr(stub, "run", fail(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        main(["train", str(recipe)])


# new -----------------------------------------------------------------------------------------------------------------


def test_new_writes_a_commented_recipe_that_reads_and_boots(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "mine", "--from", "visdoc_head"]) == 0
    path = tmp_path / "mine.yaml"
    assert "smart-train train mine.yaml" in capsys.readouterr().out
    text = path.read_text()
    assert (
        text.startswith("from smart_train.recipe import boot; boot(__file__, __name__); r")
        and "visdoc_head" not in text
    )
    made, shipped = plain(read(path)), plain(read(ROOT / "recipes" / "visdoc_head.yaml"))
    assert (made.pop("name"), made.pop("output")) == ("mine", "runs/mine")
    assert (shipped.pop("name"), shipped.pop("output")) == ("visdoc_head", "runs/visdoc_head")
    assert made == shipped


def test_new_never_overwrites(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    assert main(["new", str(tmp_path / "mine")]) == 2
    assert path.read_text() == "precious"
    assert "already exists and was not changed" in capsys.readouterr().err


def test_new_names_the_recipes_there_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "mine", "--from", "nothing"]) == 2
    assert (
        "distill, lm_to_retriever, quickstart, text_lora, visdoc_head, visdoc_hybrid, visdoc_lora"
        in capsys.readouterr().err
    )
    assert main(["new", "two words"]) == 2
    assert list(tmp_path.iterdir()) == []


# evaluate ------------------------------------------------------------------------------------------------------------


def evaluated(folder: Path, *arguments: object) -> dict:
    command = ["evaluate", *map(str, arguments), "--output", str(folder), "--bootstrap", "50"]
    assert main(command) == 0
    return json.loads((folder / "metrics.json").read_text())


def pooled_ndcg(base: Path, data: Path, k: int) -> float:
    """nDCG@k of plain sentence-transformers embeddings, by the formula, over the test split."""

    def lines(name):
        return [json.loads(line) for line in (data / name).read_text().splitlines()]

    documents = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in lines("corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in lines("queries.jsonl")}
    qrels: dict[str, dict[str, int]] = {}
    for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        qrels.setdefault(query, {})[document] = int(grade)
    model = SentenceTransformer(str(base), device="cpu")
    ids = list(documents)
    stored = model.encode(list(documents.values()), convert_to_tensor=True)
    total = 0.0
    for query, relevant in qrels.items():
        scores = (stored @ model.encode(queries[query], convert_to_tensor=True)).tolist()
        ranked = [ids[i] for i in sorted(range(len(ids)), key=lambda i: -scores[i])][:k]
        gain = sum(relevant.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(ranked))
        best = sorted(relevant.values(), reverse=True)[:k]
        total += gain / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))
    return total / len(qrels)


def test_evaluate_writes_one_row_that_the_formula_confirms(tmp_path, tiny_bert, beir_folder, capsys):
    metrics = evaluated(tmp_path / "out", beir_folder, "--model", tiny_bert, "--k", 3, 10)
    assert list(metrics) == ["base"] and set(metrics["base"]) == {"pooled", "late", "hybrid"}
    for k in (3, 10):
        figure = metrics["base"]["pooled"][f"ndcg@{k}"]
        assert set(figure) == {"value", "low", "high"} and figure["low"] <= figure["value"] <= figure["high"]
        assert figure["value"] == pytest.approx(pooled_ndcg(tiny_bert, beir_folder, k), abs=1e-6)
    printed = capsys.readouterr().out
    assert "nDCG@10" in printed and "8 queries, 24 documents" in printed and "metrics.json" in printed


def test_the_layer_changes_the_token_view_alone(tmp_path, tiny_bert, beir_folder):
    last = evaluated(tmp_path / "last", beir_folder, "--model", tiny_bert)["base"]
    first = evaluated(tmp_path / "first", beir_folder, "--model", tiny_bert, "--layer", 0)["base"]
    assert first["pooled"] == last["pooled"]
    assert first["late"] != last["late"]
    again = evaluated(tmp_path / "again", beir_folder, "--model", tiny_bert, "--layer", -1, "--batch-size", 3)["base"]
    assert again == last


def test_a_hybrid_without_the_late_score_is_the_pooled_one(tmp_path, tiny_bert, beir_folder):
    row = evaluated(tmp_path, beir_folder, "--model", tiny_bert, "--late-weight", 0)["base"]
    assert row["hybrid"] == row["pooled"] != row["late"]


def test_an_adapter_makes_the_trained_row(tmp_path, tiny_bert, beir_folder):
    encoder = SmartEncoder(str(tiny_bert), late=LateBlock(layer=2), adapter=AdapterBlock(r=4), device="cpu")
    torch.manual_seed(0)
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    encoder.save_pretrained(tmp_path / "adapter")
    arguments = (beir_folder, "--model", tiny_bert)
    base = evaluated(tmp_path / "base", *arguments)["base"]
    metrics = evaluated(tmp_path / "trained", *arguments, "--adapter", tmp_path / "adapter")
    assert list(metrics) == ["trained"]
    assert main(["evaluate", str(beir_folder), "--model", str(tmp_path / "adapter"), "--output", str(tmp_path)]) == 2
    assert metrics["trained"]["pooled"] != base["pooled"]
    other = evaluated(tmp_path / "other", *arguments, "--adapter", tmp_path / "adapter", "--layer", 1)["trained"]
    assert other["pooled"] == metrics["trained"]["pooled"] and other["late"] != metrics["trained"]["late"]


def test_pages_are_not_given_to_a_base_without_an_image_side(tmp_path, tiny_bert, tiny_qwen3vl, beir_folder, capsys):
    pages = shutil.copytree(beir_folder, tmp_path / "pages")
    rows = [json.loads(line) for line in (pages / "corpus.jsonl").read_text().splitlines()]
    for row in rows[5:7]:
        row["image"] = "page.png"
    Image.new("RGB", (64, 64), "red").save(pages / "page.png")
    (pages / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    assert main(["evaluate", str(pages), "--model", str(tiny_bert), "--output", str(out)]) == 2
    told = f"2 documents of {pages} are images, such as 'd5', and {tiny_bert} has no image side"
    assert told in capsys.readouterr().err and not out.exists()
    assert set(evaluated(out, pages, "--model", tiny_qwen3vl)["base"]) == {"pooled", "late", "hybrid"}


OWN = """
from transformers import BertConfig, BertModel

class OwnConfig(BertConfig):
    model_type = "own"

class OwnModel(BertModel):
    config_class = OwnConfig
"""


def test_code_of_the_bases_repository_runs_only_when_the_flag_that_is_told_is_given(
    tmp_path, tiny_bert, beir_folder, monkeypatch, capsys
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    base = tmp_path / "own"
    shutil.copytree(tiny_bert, base)
    config = next(path for path in base.rglob("config.json") if "model_type" in path.read_text())
    settings = json.loads(config.read_text()) | {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
    }
    config.write_text(json.dumps(settings))
    (config.parent / "own.py").write_text(OWN)
    arguments = ("evaluate", str(beir_folder), "--model", str(base), "--output", str(tmp_path / "out"))
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "brings model code of its own; read it, then give --trust-remote-code" in told and "model." not in told
    own = evaluated(tmp_path / "out", beir_folder, "--model", base, "--trust-remote-code")
    assert own == evaluated(tmp_path / "plain", beir_folder, "--model", tiny_bert)


def test_revision_and_dtype_reach_the_check_and_the_encoder(tmp_path, tiny_bert, beir_folder, monkeypatch, capsys):
    from smart_train.core import hub
    from smart_train.core.errors import BaseNotFound, EvaluationError, Setting
    from smart_train.models import base_config

    read_base, asked, encoders = base_config.read_base, [], []

    def reading(*given):
        asked.append(given)
        return read_base(*given)

    def stop(encoder, collection, **options):
        encoders.append(encoder)
        raise EvaluationError("the embedding of q1 is not finite; ", Setting("model.dtype", "float32"))

    monkeypatch.setattr(base_config, "read_base", reading)
    monkeypatch.setattr("smart_train.evaluation.evaluator.encode_shards", stop)
    command = ["evaluate", str(beir_folder), "--model", str(tiny_bert), "--output", str(tmp_path / "out")]
    assert main([*command, "--revision", "v2", "--dtype", "bfloat16"]) == 1
    assert asked == [(str(tiny_bert), "v2", False)]
    (encoder,) = encoders
    assert encoder.settings.revision == "v2" and next(encoder.backbone.parameters()).dtype == torch.bfloat16
    assert capsys.readouterr().err.endswith("the embedding of q1 is not finite; give --dtype float32\n")

    encoder.settings.revision = None
    encoder.save_pretrained(tmp_path / "adapter")
    adapted = [*command, "--adapter", str(tmp_path / "adapter")]
    assert main([*adapted, "--dtype", "float32"]) == 1
    assert next(encoders[-1].backbone.parameters()).dtype == torch.float32
    assert main([*adapted, "--revision", "v2"]) == 2
    assert "the adapter brings its own --revision" in capsys.readouterr().err

    def missing(*given):
        raise BaseNotFound(*hub.MESSAGES["revision"])

    monkeypatch.setattr(base_config, "read_base", missing)
    assert main([*command, "--revision", "v9"]) == 2
    assert capsys.readouterr().err == "the repository has no such revision; correct the revision (--revision)\n"


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--layer", "4"], 2, "--layer: {bert} has no layer 4: it has 0 (embeddings) to 3"),
        (["--model", "package:no_such_package/x"], 2, "the package no_such_package is not installed"),
        (["--model", "./nowhere/at_all"], 2, "there is no folder ./nowhere/at_all"),
        (["--split", "dev"], 2, "--split: {beir} has no split 'dev'; there is test, train; name one of these"),
        (["--baseline", "nowhere"], 2, "nowhere: there is no evaluation.json; name the folder of an evaluation"),
        (["--output", __file__], 2, f"--output: {__file__} is a file; name another folder"),
        (["--output", f"{__file__}/deep/er"], 2, f"--output: {__file__} is a file; name another folder"),
        (["--document-tokens", "100000"], 2, "100000 tokens are more; give at most "),
        (["--adapter", "somewhere", "--query-tokens", "8"], 2, "the adapter brings its own --query-tokens"),
    ],
)
def test_what_cannot_be_evaluated_is_told(tmp_path, tiny_bert, beir_folder, capsys, arguments, status, told):
    command = ["evaluate", str(beir_folder), "--model", str(tiny_bert), "--output", str(tmp_path / "out"), *arguments]
    assert main(command) == status
    assert told.format(bert=tiny_bert, beir=beir_folder) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_told(tmp_path, tiny_bert, capsys):
    assert main(["evaluate", str(tmp_path / "no"), "--model", str(tiny_bert), "--output", str(tmp_path)]) == 2
    assert f"DATA: there is no file or folder '{tmp_path / 'no'}'" in capsys.readouterr().err
