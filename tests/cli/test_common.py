"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import json

import pytest
import yaml

from smart_train.cli.benchmark import _result_name
from smart_train.cli.main import build_parser, main
from smart_train.cli.mine import in_folder, read_held_out
from smart_train.cli.options import choose_base, read_data
from smart_train.core.errors import UsageError
from smart_train.core.hub import display_name


@pytest.mark.parametrize("command", ["evaluate", "probe"])
@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_a_seed_that_no_generator_takes_is_refused_before_anything_is_read(command, seed, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "nowhere", "--model", "nothing", "--output", "out", "--seed", seed])
    assert ended.value.code == 2 and "is not a whole number of 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "heavy"])
def test_a_weight_that_would_make_every_score_nan_is_refused_before_anything_is_read(weight, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "nowhere", "--model", "nothing", f"--late-weight={weight}"])
    assert ended.value.code == 2 and "is not a finite number" in capsys.readouterr().err


def test_a_run_s_adapter_is_told_by_its_run_and_never_by_where_it_lies(tmp_path):
    (tmp_path / "mine" / "adapter").mkdir(parents=True)
    (tmp_path / "free").mkdir()
    run, free = str(tmp_path / "mine" / "adapter"), str(tmp_path / "free")
    assert [display_name(run), display_name(free), display_name("me/mine")] == ["mine/adapter", "free", "me/mine"]
    assert [_result_name(run), _result_name(free), _result_name("me/mine")] == ["local/mine", "local/free", "me/mine"]


READS_DATA = {"evaluate": [], "probe": ["--output", "out"], "mine": [], "score": ["--teacher", "bm25"]}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    blocks = {
        "model": {"base": "their/base", "query_prompt": "find: ", "dtype": "bfloat16", "trust_remote_code": True},
        "late": {"layer": 3},
        "data": {"path": "pairs.csv", "query": "question", "document": "answer", "dev": 7, "test": 0.5},
    }
    path.write_text(yaml.safe_dump(blocks))
    return path


def parsed(command: str, data: object, *words: str) -> argparse.Namespace:
    return build_parser().parse_args([command, str(data), *READS_DATA[command], *words])


@pytest.mark.parametrize("command", READS_DATA)
def test_every_command_that_reads_data_takes_columns_and_a_recipe(command, recipe):
    block, none = read_data(parsed(command, "pairs.csv", "--data", "query=question", "document=answer"))
    assert none is None and (block.path, block.query, block.document) == ("pairs.csv", "question", "answer")
    block, found = read_data(parsed(command, recipe, "--data", "document=reply", "dev=9"))
    assert found is not None and found.model.base == "their/base"
    assert (block.path, block.query, block.document, block.dev) == ("pairs.csv", "question", "reply", 9)


def test_no_command_reads_data_in_a_way_of_its_own():
    (commands,) = (one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    named = {
        name: {action.dest for action in one._positionals._group_actions} for name, one in commands.choices.items()
    }
    assert {name for name, positions in named.items() if "data" in positions} == set(READS_DATA)


@pytest.mark.parametrize("command", ["mine", "score"])
def test_what_a_recipe_holds_out_is_not_mined_or_scored(command, recipe, tmp_path):
    block, _ = read_held_out(parsed(command, recipe))
    data = in_folder(block, tmp_path)
    assert (data.path, data.dev, data.test, data.split, data.query) == (str(tmp_path), 7, 0.5, "train", "query")
    block, _ = read_held_out(parsed(command, "folder", "--dev", "3", "--split", "all", "--allow-outside"))
    assert (block.dev, block.split, block.allow_outside) == (3, "all", True)
    with pytest.raises(UsageError, match="is a recipe, which says itself what is held out; leave out --dev, --split"):
        read_held_out(parsed(command, recipe, "--dev", "3", "--split", "train"))


@pytest.mark.parametrize("command", ["evaluate", "probe", "mine"])
def test_the_base_is_by_default_that_of_the_adapter_or_of_the_recipe(command, recipe, tmp_path):
    options = parsed(command, recipe)
    choose_base(options, read_data(options)[1])
    assert (options.model, options.query_prompt, options.dtype) == ("their/base", "find: ", "bfloat16")
    assert options.trust_remote_code and options.layer == (None if command == "probe" else 3)  # probe chooses the layer
    options = parsed(command, recipe, "--base", "own/base", "--query-prompt", "")
    choose_base(options, read_data(options)[1])
    assert (options.model, options.query_prompt, options.layer) == ("own/base", "", None)
    (tmp_path / "smart_train.json").write_text(json.dumps({"base": "trained/base"}))
    options = parsed(command, recipe, "--adapter", str(tmp_path))
    choose_base(options, read_data(options)[1])
    assert (options.model, options.query_prompt) == ("trained/base", None)
    with pytest.raises(UsageError, match="--model: name the base, or give --adapter"):
        choose_base(parsed(command, "folder"))
    with pytest.raises(UsageError, match="has no smart_train.json that names its base; give --model"):
        (tmp_path / "smart_train.json").unlink()
        choose_base(parsed(command, "folder", "--adapter", str(tmp_path)))
