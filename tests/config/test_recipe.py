"""Recipes: what each mistake is told as, overrides, YAML's traps, the boot line, what is saved.

The messages are written out in full in bad_recipes.yaml: they are what a newcomer reads.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_data import write_lines, write_scored

from smart_train.checks import model as model_checks
from smart_train.checks.recipe import check
from smart_train.config.recipe import BOOT, CLOSE, RecipeError, plain, read, save
from smart_train.config.reference import comments, page, rows, shipped
from smart_train.config.schema import Recipe
from smart_train.config.training_arguments import MOVED, hints
from smart_train.data.load import load

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.yaml"))
BAD = yaml.safe_load(Path(__file__).with_name("bad_recipes.yaml").read_text(encoding="utf8"))
GOOD = "model:\n  base: {bert}\ndata:\n  path: {beir}\n"


@pytest.fixture
def told(tmp_path, monkeypatch, tiny_bert, beir_folder, triples_file):
    """told(text, *overrides) -> the lines that are told about a recipe; [] where nothing is wrong."""
    scored = write_scored(tmp_path / "data" / "scored.jsonl")
    names = {"bert": str(tiny_bert), "beir": str(beir_folder), "triples": str(triples_file), "scored": str(scored)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    def lines(text: str, *overrides: str) -> list[str]:
        path = tmp_path / "mine.yaml"
        for name, place in names.items():
            text = text.replace(f"{{{name}}}", place)
        path.write_text(text.replace("BOOT", BOOT), encoding="utf8")
        try:
            check(read(path, overrides))
        except RecipeError as error:
            found = str(error).replace(str(path), "FILE")
            for name, place in names.items():
                found = found.replace(place, name.upper())
            return found.split("\n")
        return []

    return lines


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf8")
    return path


@pytest.fixture
def page_folder(tmp_path) -> Path:
    """A retrieval collection of pages: a corpus with the column image beside its text."""
    write_lines(tmp_path / "pages" / "queries.jsonl", [{"_id": f"q{n}", "text": f"page {n}"} for n in range(4)])
    corpus = [{"_id": f"d{n}", "text": f"words {n}", "image": f"{n}.png"} for n in range(4)]
    for row in corpus:
        Image.new("RGB", (40, 40), "red").save(tmp_path / "pages" / str(row["image"]))
    write_lines(tmp_path / "pages" / "corpus.jsonl", corpus)
    (tmp_path / "pages" / "qrels").mkdir()
    for split in ("train", "test"):
        (tmp_path / "pages" / "qrels" / f"{split}.tsv").write_text("".join(f"q{n}\td{n}\t1\n" for n in range(4)))
    return tmp_path / "pages"


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_a_base_without_an_image_side_is_refused_for_images_that_are_found_though_no_key_names_them(
    told, page_rows, page_folder, tiny_qwen3vl
):
    for place in (page_rows, page_folder):
        pages = GOOD.replace("{beir}", str(place)) + "  dev: 1\n"
        assert told(pages) == [
            "FILE, line 3: data.image: is not given, so the images of the column image are read, but BERT has no image "
            'side; choose a vision-language base, or write data.image: "" for the text alone'
        ]
        assert told(pages.replace("{bert}", str(tiny_qwen3vl))) == []
    assert told(pages + '  image: ""\n') == []
    assert {document.image for document in load(read("mine.yaml").data)[0].corpus.values()} == {None}
    (line,) = told(GOOD.replace("{beir}", str(page_rows)) + '  image: ""\n')
    assert line.startswith("FILE, line 3: data.document: no column holds the documents")


def test_the_recipe_that_the_bad_ones_are_made_of_is_good(told):
    assert told(GOOD) == []
    assert told(f"BOOT\n---\n{GOOD}{CLOSE}\n") == []


@pytest.mark.parametrize("bad", BAD, ids=[bad["name"] for bad in BAD])
def test_a_bad_recipe_is_told_what_is_wrong_and_what_to_do(told, bad):
    found = told(bad["recipe"])
    for line, expected in zip(found, bad["told"], strict=True):
        pattern = ".*".join(re.escape(part) for part in expected.split("..."))  # ... = words of another package
        assert re.fullmatch(pattern, line), f"\ntold:     {line}\nexpected: {expected}"


def test_every_problem_is_told_at_once_in_the_order_of_the_file(told):
    text = GOOD + "late:\n  dim: 64\n  layer: 9\nobjective:\n  late: {temperature: 0}\nadapter:\n  vision: true\n"
    assert [line.split(": ")[:2] for line in told(text)] == [
        ["FILE, line 6", "late.dim"],
        ["FILE, line 7", "late.layer"],
        ["FILE, line 9", "objective.late.temperature"],
        ["FILE, line 11", "adapter.vision"],
    ]


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: there is no such file; .*smart-train new"):
        read(tmp_path / "none.yaml")


def test_a_folder_is_not_read_as_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match="it cannot be read"):
        read(tmp_path)


def test_bytes_that_are_not_text_are_told(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read(path)


def test_attention_that_needs_a_missing_package_is_told(told, monkeypatch):
    monkeypatch.setattr(model_checks, "installed", lambda name: False)
    (line,) = told(GOOD.replace("{bert}\n", "{bert}\n  attention: flash_attention_2\n"))
    assert line.startswith("FILE, line 3: model.attention: flash_attention_2 needs the package flash_attn")


def test_bf16_without_a_gpu_is_told_unless_the_cpu_is_asked_for(told, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_torch_bf16_gpu_available", lambda: False)
    (line,) = told(GOOD + "training:\n  bf16: true\n")
    assert line.startswith(
        "FILE, line 6: training.bf16: bf16 is true, but this machine has no GPU that computes in it; write bf16: false"
    )
    assert told(GOOD + "training:\n  bf16: true\n  use_cpu: true\n") == []


def test_wandb_without_a_key_is_told_before_anything_is_loaded(told, monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    text = GOOD + "training:\n  report_to: [wandb]\n"
    (line,) = told(text)
    assert line.startswith(
        "FILE, line 6: training.report_to: is wandb, but wandb has no API key here; run `wandb login`"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert told(text) == []
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    assert told(text) == []


def test_checking_joins_no_process_group_and_makes_no_folder(told, tmp_path):
    import torch.distributed as dist
    from accelerate.state import PartialState

    before = dict(PartialState._shared_state)
    engine = "deepspeed: {gradient_clipping: auto, zero_optimization: {stage: 2}}"
    assert told(GOOD + f"output: runs/here\ntraining:\n  learning_rate: 1e-4\n  {engine}\n") == []
    assert PartialState._shared_state == before
    assert not dist.is_initialized()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mine.yaml"]


def test_a_model_in_the_first_module_folder_is_found(tmp_path, tiny_bert, beir_folder):
    """sentence-transformers once saved the transformer in a folder of its own."""
    import shutil

    shutil.copytree(tiny_bert, tmp_path / "old")
    inner = tmp_path / "old" / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.move(tmp_path / "old" / name, inner / name)
    modules = json.loads((tmp_path / "old" / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "old" / "modules.json").write_text(json.dumps(modules))
    base = check(read(written(tmp_path, f"model: {{base: {tmp_path / 'old'}}}\ndata: {{path: {beir_folder}}}\n")))
    assert (base.layers, base.hidden, base.pooled, base.positions, base.vision) == (3, 32, 32, 128, False)


def test_a_vision_language_model_is_measured_by_its_language_side(tmp_path, tiny_qwen3vl, beir_folder):
    blocks = {"model": {"base": str(tiny_qwen3vl), "max_pixels": 16384}, "data": {"path": str(beir_folder)}}
    text = yaml.safe_dump({**blocks, "adapter": {"vision": True}})
    base = check(read(written(tmp_path, text)))
    assert (base.layers, base.hidden, base.positions, base.vision) == (3, 64, 512, True)


def test_layers_are_counted_from_the_end_too(told):
    assert told(GOOD + "late:\n  layer: [-4, -3, -2, -1]\n") == []
    assert told(GOOD + "late:\n  layer: -5\n") != []


@pytest.mark.parametrize(
    ("processes", "objective", "expected"),
    [
        (
            8,
            "batch: 100",
            ["batch: is 100, which 8 processes cannot share evenly; write 96 or 104, or another multiple of 8"],
        ),
        (8, "batch: 4", ["batch: is 4, which 8 processes cannot share evenly; write 8, or another multiple of 8"]),
        (8, "batch: 64", []),
        (
            8,
            "gather_group: 3",
            ["gather_group: is 3, and 8 processes are no multiple of it; write one of 1, 2, 4, 8, or"],
        ),
        (8, "gather_group: 4", []),
        (1, "gather_group: 4", []),  # a recipe for a larger machine can be looked at on this one
        (2, "batch: 2", []),
        (2, "batch: 2, gather_group: 1", ["batch: is 2 over 2 processes that do not gather: one pair each, without a"]),
        (
            2,
            "batch: 2, gather: false",
            ["batch: is 2 over 2 processes that do not gather: one pair each, without a neg"],
        ),
    ],
)
def test_what_depends_on_the_number_of_processes_is_told_when_they_are_known(
    told, monkeypatch, processes, objective, expected
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    lines = told(GOOD + f"objective: {{{objective}}}\n")
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(f"FILE, line 5: objective.{start}"), line


def test_one_pair_per_process_has_negatives_where_the_processes_gather(told, monkeypatch):
    text = GOOD + "training: {per_device_train_batch_size: 1}\nobjective: {gather: true}\n"
    assert len(told(text)) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert told(text) == [] and len(told(text.replace("true", "false"))) == 1


@pytest.mark.parametrize(
    "objective",
    [
        "batch: 64, chunk_rows: 8, chunk_tokens: 4096",
        "loss: sigmoid, sigmoid_bias: -5, margin: 0.1, false_negatives: 1.0",
        "symmetric: true, hardness: 9, graded: true, neighbour_pages: 0",
        "pooled: {weight: 0}, late: {weight: 0}, teacher: {weight: 1, kind: margin_mse, scale: 0.1}",
        "pooled: {weight: 0}, self_distillation: {weight: 0.5}, diversity: 0.1, overlap: 0.1",
        "late: {weight: 0}, schedule: {late.weight: [[0, 0], [0.3, 1], [1, 1]], margin: [[0, 0], [1, 0.2]]}",
        "pooled: {weight: 0}, late: {weight: 0}, schedule: {hybrid.weight: [[0, 1], [1, 0]]}",
    ],
)
def test_every_setting_of_the_objective_has_a_good_recipe(told, objective):
    text = GOOD.replace("{beir}", "{scored}") + f"objective: {{{objective}}}\n"
    assert told(text) == [] and told(text + "training: {gradient_accumulation_steps: 4}\n") == []


def test_a_resolved_recipe_is_as_good_as_the_one_it_came_from(told, tmp_path):
    """Every key is given then, and none of them may be taken for a contradiction."""
    assert told(GOOD + "objective: {batch: 64, schedule: {late.weight: [[0, 0], [0.3, 1]]}}\n") == []
    check(read(save(read(tmp_path / "mine.yaml"), tmp_path / "run")))


def test_self_distillation_alone_trains_no_tokens_but_the_blocks_below_the_pooled_vector(told):
    lone = GOOD + "objective: {pooled: {weight: 0}, late: {weight: 0}, self_distillation: {weight: 1}}\n"
    assert told(lone) == []
    (line,) = told(lone + "late: {head: linear}\n")
    assert line.startswith("FILE, line 6: late.head: is linear, but no term with a weight trains the tokens")
    (line,) = told(lone + "adapter: {kind: frozen}\nlate: {head: linear}\n")
    assert line.startswith("FILE, line 6: adapter.kind: is frozen, but no term with a weight trains the tokens")


def test_overlap_is_fine_where_both_widths_are_one(told):
    assert (
        told(GOOD + "objective: {overlap: 0.1}\n") == told(GOOD + "late: {dim: 32}\nobjective: {overlap: 0.1}\n") == []
    )


# Types and YAML's traps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "1.0e-4", "1.e-4", "0.0001", ".0001", "+1e-4"])
def test_a_number_is_a_number_however_it_is_written(tmp_path, number):
    recipe = read(
        written(tmp_path, f"training:\n  learning_rate: {number}\nobjective:\n  late: {{weight: {number}}}\n")
    )
    assert recipe.training["learning_rate"] == recipe.objective.late.weight == 1e-4


def test_words_that_yaml_1_1_takes_for_truth_are_text(tmp_path):
    recipe = read(written(tmp_path, "training:\n  eval_strategy: no\n  save_strategy: no\n"))
    assert recipe.training == {"eval_strategy": "no", "save_strategy": "no"}


def test_a_whole_number_does_for_a_number_and_a_count_stays_a_count(tmp_path):
    recipe = read(written(tmp_path, "objective:\n  late: {weight: 2}\ndata:\n  dev: 50\n  test: 0.1\n"))
    assert isinstance(recipe.objective.late.weight, float)
    assert isinstance(recipe.data.dev, int) and isinstance(recipe.data.test, float)


def test_an_empty_block_means_its_defaults(tmp_path):
    assert plain(read(written(tmp_path, "late:\ntraining:\nobjective:\n  late:\n"))) == plain(Recipe())


def test_an_alias_stands_for_what_it_names(tmp_path):
    text = "objective:\n  pooled: &term {weight: 0.5, temperature: 0.02}\n  late: *term\n"
    recipe = read(written(tmp_path, text))
    assert recipe.objective.late == recipe.objective.pooled and recipe.objective.late.weight == 0.5


def test_every_training_argument_of_transformers_is_known_or_named_as_moved():
    import dataclasses

    from transformers import TrainingArguments

    names = {field.name for field in dataclasses.fields(TrainingArguments) if field.init}
    assert names - set(hints()) <= set(MOVED)
    assert set(hints()) - names == {"head_learning_rate", "callbacks"}


# Overrides -----------------------------------------------------------------------------------------------------------


def test_overrides_reach_every_kind_of_key(tmp_path):
    path = written(tmp_path, "name: one\nlate: {layer: -1}\ndata: {limit: 5}\ntraining: {bf16: true}\n")
    recipe = read(
        path,
        [
            "name=two",
            "late.layer=[1,2]",
            "data.limit=null",
            "training.bf16=false",
            "training.learning_rate=1e-4",
            "training.lr_scheduler_kwargs.num_cycles=2",
            "late.hybrid.late=4",
            "objective.hybrid={weight: 1, temperature: 0.02}",
            "model.query_prompt=Find a page",
            "late.drop=[punctuation]",
        ],
    )
    assert recipe.name == "two"
    assert recipe.late.layer == [1, 2]
    assert recipe.data.limit is None
    assert recipe.training == {"bf16": False, "learning_rate": 1e-4, "lr_scheduler_kwargs": {"num_cycles": 2}}
    assert recipe.late.hybrid.late == 4.0
    assert (recipe.objective.hybrid.weight, recipe.objective.hybrid.temperature) == (1.0, 0.02)
    assert recipe.model.query_prompt == "Find a page"
    assert recipe.late.drop == ["punctuation"]


@pytest.mark.parametrize("term", ["hybrid", "self_distillation", "teacher"])
def test_one_key_of_a_term_that_is_off_leaves_it_off(tmp_path, term):
    """Its weight is 0 by its place, not by its type."""
    for text, words in (
        (f"objective: {{{term}: {{temperature: 0.1}}}}", []),
        ("", [f"objective.{term}.temperature=0.1"]),
    ):
        block = getattr(read(written(tmp_path, text or "name: x"), words).objective, term)
        assert (block.weight, block.temperature) == (0.0, 0.1)
    assert getattr(read(written(tmp_path, f"objective: {{{term}: null}}")).objective, term).weight == 0.0


def test_a_schedule_is_overridden_key_by_key(tmp_path):
    text = "objective:\n  schedule:\n    late.weight: [[0, 0], [1, 1]]\n    diversity: [[0, 1], [1, 0]]\n"
    recipe = read(written(tmp_path, text), ["objective.schedule.late.weight=[[0.5, 2]]"])
    assert recipe.objective.schedule == {"late.weight": [[0.5, 2.0]], "diversity": [[0.0, 1.0], [1.0, 0.0]]}
    assert all(type(part) is float for points in recipe.objective.schedule.values() for p in points for part in p)
    assert recipe.where.place("objective.schedule.late.weight") == "command line"
    assert read(written(tmp_path, text), ["objective.schedule=null"]).objective.schedule == {}


def test_the_last_override_of_a_key_counts(tmp_path):
    assert read(written(tmp_path, "name: one\n"), ["adapter.r=4", "adapter.r=8"]).adapter.r == 8


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("late.lyer=2", "command line: late.lyer: there is no such key, the nearest is late.layer; write late.layer"),
        ("nothing.here=2", "command line: nothing: there is no such key"),
        (
            "adapter.r=eight",
            'command line: adapter.r: must be a whole number, got "eight" (text); write a whole number',
        ),
        ("late.layer=4", "command line: late.layer: the model has no layer 4: it has 0 (embeddings) to 3"),
        ("late=4", "command line: late: must be a block of keys, got 4 (int); its keys are layer, norm"),
        ("name.first=x", 'command line: name.first: name is no block, it is "one" (text); write name=VALUE'),
        ("quick", "command line: 'quick' is not key=value; write quick=VALUE"),
        ("--adapter.r=8", "command line: '--adapter.r=8' is not key=value; write adapter.r=8"),
        ("late.layer=[1,", "command line: late.layer: '[1,' is not YAML"),
        ("model.query_prompt=a: b: c", "command line: model.query_prompt: 'a: b: c' is not YAML"),
        ("data.path=", "command line: data.path: must be text, got null; write text"),
    ],
)
def test_a_bad_override_is_told_as_the_command_line(told, override, expected):
    (line,) = told(GOOD + "name: one\n", override)
    assert line.startswith(expected), line


# The boot line -------------------------------------------------------------------------------------------------------


def run_file(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_booted_recipe_with_backslashes_is_python_and_yaml_at_once(tmp_path):
    prompt = r"C:\new\table \N{x} \u12 \""
    path = written(tmp_path, f"{BOOT}\n---\nmodel:\n  query_prompt: '{prompt}'\n{CLOSE}\n")
    ast.parse(path.read_text())
    assert read(path).model.query_prompt == prompt
    assert list(yaml.safe_load_all(path.read_text()))[-1] == {"model": {"query_prompt": prompt}}


def test_a_bad_recipe_that_is_run_tells_one_message_and_exits_with_2(tmp_path, tiny_bert, beir_folder):
    good = GOOD.format(bert=tiny_bert, beir=beir_folder)
    path = written(tmp_path, f"{BOOT}\n---\n{good}late:\n  layer: 7\n{CLOSE}\n")
    done = run_file(path, "--local_rank=0", "adapter.r=0")
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if "mine.yaml" in line or "command line" in line]
    assert [line.split(": ")[0] for line in told] == ["command line", f"{path}, line 8"]
    assert "Traceback" not in done.stderr


def test_nothing_runs_when_a_worker_imports_the_recipe_again(tmp_path):
    path = written(tmp_path, f"{BOOT}\n---\nmodel: {{base: nowhere}}\n{CLOSE}\n")
    code = f"import runpy, sys; runpy.run_path({str(path)!r}, run_name='__mp_main__'); print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


# Saving --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_saved_recipe_reads_back_equal(tmp_path, path):
    recipe = read(path, ["late.hybrid.late=0.5", "training.learning_rate=1e-5"])
    again = save(recipe, tmp_path, {"train": "abc"})
    assert plain(read(again)) == plain(recipe)
    facts = json.loads((tmp_path / "versions.json").read_text())
    assert facts["data"] == {"train": "abc"}
    assert set(facts["packages"]) >= {"torch", "transformers", "peft"} and facts["packages"]["torch"][0].isdigit()


# What is shipped -----------------------------------------------------------------------------------------------------


def test_the_recipes_that_were_promised_are_shipped():
    promised = {"quickstart", "visdoc_lora", "visdoc_head", "visdoc_hybrid", "text_lora", "lm_to_retriever", "distill"}
    assert promised <= set(shipped()) == {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_recipe_means_the_same_to_every_yaml_tool(path):
    text = path.read_text(encoding="utf8")
    assert text.startswith(f"{BOOT}\n---\n") and text.endswith(f"\n{CLOSE}\n")
    ast.parse(text)
    values = list(yaml.safe_load_all(text))[-1]
    found = plain(read(path))

    def compare(given, resolved, key):
        for name, value in given.items():
            if isinstance(value, dict):
                compare(value, resolved[name], f"{key}.{name}")
            else:
                assert resolved[name] == value, f"{key}.{name}"

    compare(values, found, "")


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_recipe_says_what_it_is_and_what_every_knob_buys(path):
    lines = path.read_text(encoding="utf8").splitlines()[2:-1]
    opening = "\n".join(lines[: lines.index("")])
    assert all(f"# {word} " in opening for word in ("Trains", "Needs", "Launch", "Override", "Expect"))
    assert f"accelerate launch recipes/{path.name}" in opening or f"recipes/{path.name}" in opening
    bare = [
        line for line in lines if re.match(r"\s*\w+: \S", line) and "  # " not in line and not line.startswith("name")
    ]
    assert bare == []
    assert max(map(len, lines)) <= 122


def test_the_page_about_recipes_is_made_from_the_blocks():
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf8") == page(), (
        "run python -m smart_train.config.reference"
    )


def test_every_key_is_documented_with_its_default():
    assert all(comments(Recipe).values())
    table = {row.split("`")[1]: row for row in rows(Recipe(), "")}
    assert all(not row.endswith("|  |") for row in table.values()), "a key has no comment"
    assert "| `0.0` |" in table["objective.hybrid.weight"] and "| `1.0` |" in table["objective.late.weight"]
    assert "| `[1, 5, 10]` |" in table["evaluation.k"] and "| `null` |" in table["late.dim"]
