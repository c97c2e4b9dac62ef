"""An argument of transformers' Trainer that would change nothing here is refused, in a recipe and in Python."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import TrainingArguments

from smart_train.config.recipe import read
from smart_train.config.training_arguments import IDLE, check_idle
from smart_train.config.typed_values import RecipeError
from smart_train.core.errors import SettingError
from smart_train.training.arguments import SmartTrainingArguments
from smart_train.training.trainer import SmartTrainer

OTHER = {  # a value that is not the default
    "label_smoothing_factor": 0.1,
    "per_device_eval_batch_size": 4,
    "eval_accumulation_steps": 2,
    "prediction_loss_only": True,
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "fp16_full_eval": True,
    "bf16_full_eval": True,
    "length_column_name": "size",
}
PYTHON = [*OTHER]


@pytest.mark.parametrize("name", IDLE)
def test_a_recipe_that_sets_one_is_refused_with_what_to_write(name, tmp_path):
    assert name in {field.name for field in dataclasses.fields(TrainingArguments)}  # transformers still has it
    file = tmp_path / "recipe.yaml"
    file.write_text(f"training:\n  max_steps: 2\n  {name}: true\n")
    with pytest.raises(RecipeError) as refused:
        read(file)
    assert "recipe.yaml, line 3: training." + name in str(refused.value) and IDLE[name] in str(refused.value)


@pytest.mark.parametrize("name", PYTHON)
def test_arguments_in_python_are_refused_too(name, tmp_path):
    args = SmartTrainingArguments(str(tmp_path), use_cpu=True)
    check_idle(args)
    setattr(args, name, OTHER[name])
    with pytest.raises(SettingError, match=rf"training.{name}: is .*, which changes nothing; "):
        check_idle(args)


def test_arguments_that_transformers_sets_itself_are_no_ones_wish(tmp_path):
    check_idle(SmartTrainingArguments(str(tmp_path), use_cpu=True, eval_strategy="steps", eval_steps=5))
    check_idle(TrainingArguments(str(tmp_path), use_cpu=True))


def test_the_trainer_refuses_them_before_it_looks_at_the_model(tmp_path):
    args = SmartTrainingArguments(str(tmp_path), use_cpu=True, label_smoothing_factor=0.1)
    with pytest.raises(SettingError, match="label_smoothing_factor: is 0.1, which changes nothing; remove it"):
        SmartTrainer(None, args)
