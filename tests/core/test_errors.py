"""Errors: one base class, exit statuses, and settings that each front end names in its own way."""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from pathlib import Path

import pytest

from smart_train.cli.options import ADAPTER_SETTING_NAMES, SETTING_NAMES, setting_namer
from smart_train.config.schema import Where
from smart_train.config.typed_values import Problem, RecipeError
from smart_train.core import errors
from smart_train.core.errors import BaseNotFound, DataError, Preempted, Setting, SettingError, SmartTrainError, checks

CLASSES = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, SmartTrainError)]


def test_every_error_says_what_it_is_and_has_a_status_that_commands_document():
    assert RecipeError.status == 2 and Preempted.status == 75
    for one in CLASSES:
        assert one.__doc__ and one.status in (1, 2, 75), one


def test_plain_errors_are_left_to_wrong_calls_of_functions():
    """What a user's settings, files or models can cause is a SmartTrainError, so that a command prints one sentence."""
    plain: Counter[str] = Counter()
    root = Path(errors.__file__).parents[1]
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else None
            name = call.func if isinstance(call, ast.Call) else None
            if isinstance(name, ast.Name) and name.id in ("ValueError", "TypeError", "RuntimeError", "OSError"):
                plain[path.relative_to(root).as_posix()] += 1
    assert plain == {
        "core/embeddings.py": 3,  # shapes that do not fit
        "data/batch_sampler.py": 1,  # a batch that the ranks cannot share, which the check of the recipe refuses first
        "data/collate.py": 2,  # limits below 1, which the check of the recipe refuses first
        "data/near_duplicates.py": 1,  # a share that the command refuses first
        "distributed/gather.py": 2,  # another process group, a dtype that is not gathered
        "evaluation/encode.py": 1,  # the wrong function for sharded weights
        "ingest/questions/chat_endpoint.py": 1,  # caught in that file
        "losses/false_negatives.py": 2,  # shapes that do not fit
        "losses/labels.py": 1,  # labels that a term reads and did not declare
        "losses/maxsim.py": 3,  # shapes that do not fit
        "models/microbatches.py": 3,  # limits below 1, image features that contradict each other
        "probing/layer_scores.py": 1,  # caught in that file
        "training/callbacks/logging.py": 1,  # caught in that file
        "training/checkpoint.py": 1,  # of one rank; every rank raises CheckpointError because of it
        "training/gradcache.py": 1,  # a plan that leaves out a chunk
        "training/mining_rounds.py": 1,  # arguments that exclude each other
    }


def test_a_front_end_names_the_settings_of_an_error_and_python_has_its_own_spelling():
    trust = Setting("model.trust_remote_code", True, python="pass trust_remote_code=True")
    error = BaseNotFound("its repository brings model code", ("read it, then ", trust))
    assert str(error) == "its repository brings model code; read it, then pass trust_remote_code=True"
    flags = error.text(setting_namer(SETTING_NAMES))
    assert flags == "its repository brings model code; read it, then give --trust-remote-code"
    moved = DataError("the base has moved; ", Setting("model.base", "FOLDER"))
    assert moved.text(setting_namer(SETTING_NAMES)) == "the base has moved; give --model FOLDER"
    assert moved.text(setting_namer(ADAPTER_SETTING_NAMES)) == "the base has moved; give --base FOLDER"


def test_what_a_message_quotes_is_never_taken_for_a_setting():
    error = SettingError("data.path", "there is no folder 'data.split: x'", "correct it")
    assert error.text(setting_namer(SETTING_NAMES)) == "DATA: there is no folder 'data.split: x'; correct it"
    assert (error.status, error.setting) == (2, "data.path")


def test_a_key_in_a_recipe_file_keeps_its_name_and_line_and_one_of_the_command_line_does_not():
    where = Where("mine.yaml", {"data.path": 3, "data.split": None})
    problems = [Problem("data.path", "is a file", "name a folder"), Problem("data.split", "is unknown", "name another")]
    told = RecipeError(problems, where).text(setting_namer(SETTING_NAMES)).splitlines()
    assert sorted(told) == [
        "command line: --split: is unknown; name another",
        "mine.yaml, line 3: data.path: is a file; name a folder",
    ]


def test_errors_of_checks_are_wrong_requests():
    with pytest.raises(DataError) as failed, checks():
        raise DataError("line 3 has no query")
    assert failed.value.status == 2 and DataError("line 3 has no query").status == 1
