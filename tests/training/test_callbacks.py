"""training.callbacks: transformers callbacks by a recipe or in Python, checked before a model is loaded."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import yaml
from steps import texts
from transformers import TrainerCallback

import smart_train
from smart_train import SmartEncoder, SmartTrainer, TrainingArguments
from smart_train.checks.recipe import check
from smart_train.config.recipe import plain, read
from smart_train.config.typed_values import RecipeError
from smart_train.core.errors import TrainingStopped

MODULE = """
    from transformers import TrainerCallback

    class Counting(TrainerCallback):
        def __init__(self, file, start=0):
            self.file, self.steps = file, start

        def on_step_end(self, args, state, control, **kwargs):
            self.steps += 1
            with open(self.file, "w") as stream:
                stream.write(str(self.steps))

    class Plain:
        pass
"""


@pytest.fixture
def recipe(tiny_models, triples_file, tmp_path, monkeypatch):
    """recipe(callbacks) -> the path of a recipe; my_callbacks.py lies in the folder that it is run in."""
    (tmp_path / "my_callbacks.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)

    def write(callbacks: list) -> Path:
        path = tmp_path / "mine.yaml"
        blocks = {
            "model": {"base": str(tiny_models("bert"))},
            "adapter": {"r": 4},
            "data": {"path": str(triples_file), "dev": 4},
            "training": {
                "max_steps": 3,
                "per_device_train_batch_size": 4,
                "save_strategy": "no",
                "use_cpu": True,
                "disable_tqdm": True,
                "callbacks": callbacks,
            },
            "evaluation": {"before": False, "after": False},
            "output": str(tmp_path / "run"),
        }
        path.write_text(yaml.safe_dump(blocks))
        return path

    return write


def test_a_recipe_names_a_callback_of_ones_own_with_its_options(recipe, tmp_path):
    path = recipe([{"type": "my_callbacks:Counting", "file": str(tmp_path / "steps"), "start": 10}])
    assert smart_train.train(path) == {}
    assert (tmp_path / "steps").read_text() == "13"
    written = read(tmp_path / "run" / "recipe.yaml")
    assert plain(written)["training"]["callbacks"] == plain(read(path))["training"]["callbacks"]


@pytest.mark.parametrize(
    ("callback", "why"),
    [
        ("my_callbacks:Missing", "my_callbacks has no Missing"),
        ("no_such_module:Callback", "cannot be imported"),
        ("counting", "there is no callback 'counting'; write package.module:Name"),
        ("my_callbacks:Plain", "is no transformers.TrainerCallback class"),
        ({"type": "my_callbacks:Counting", "files": "x"}, "does not accept its options"),
    ],
)
def test_a_callback_that_cannot_be_made_is_refused_before_a_model_is_loaded(callback, why, recipe):
    with pytest.raises(RecipeError, match=f"training.callbacks: .*{why}"):
        check(read(recipe([callback])), data=False)


class Steps(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seen.append(state.global_step)


ROWS = [
    {"anchor": query, "positive": document.text, "negative": f"nothing about it, {number}"}
    for number, (query, document) in enumerate(
        zip(texts(False).queries.values(), texts(False).corpus.values(), strict=True)
    )
]


def test_the_python_api_trains_evaluates_saves_and_loads(tiny_bert, tmp_path):
    """As the README shows it; the log, the metrics and the adapter are where they are after a recipe."""
    model = SmartEncoder(str(tiny_bert), lora={"r": 4}, device="cpu")
    args = TrainingArguments(
        str(tmp_path / "mine"), max_steps=2, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1,
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    assert args.save_total_limit == 2 and args.lr_scheduler_type == "cosine" and args.dataloader_drop_last
    loss = smart_train.losses.Joint(smart_train.losses.Pooled(), smart_train.losses.Late(temperature=0.02))
    steps = Steps()
    trainer = SmartTrainer(model, args, ROWS, ROWS[:6], loss, [steps])
    assert trainer.train().global_step == 2 and steps.seen == [1, 2]
    lines = [json.loads(line) for line in (tmp_path / "mine" / "log.jsonl").read_text().splitlines()]
    assert {"loss/pooled", "loss/late"} <= set(lines[0]) and "loss/hybrid" not in lines[0]
    assert lines[0]["batch/negatives"] == 4.0
    assert [line["step"] for line in lines if "dev/hybrid/ndcg@10" in line] == [1, 2]
    model.save_pretrained(tmp_path / "adapter")
    loaded = SmartEncoder.from_pretrained(tmp_path / "adapter", device="cpu")
    ours, theirs = (one.encode_documents(["a passage"]).pooled for one in (model, loaded))
    assert (ours - theirs).abs().max() < 1e-6


def test_a_trainer_without_data_or_options_is_told_what_it_lacks(tiny_bert, tmp_path):
    model = SmartEncoder(str(tiny_bert), lora={"r": 4}, device="cpu")
    with pytest.raises(ValueError, match="train_dataset is a NoneType; give a Collection"):
        SmartTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(ValueError, match="there are 24 training pairs, and a step takes 64"):
        SmartTrainer(model, TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=64), ROWS)
    bare = SmartEncoder(str(tiny_bert), device="cpu")
    with pytest.raises(TrainingStopped, match="neither an adapter nor a late head, .*lora="):
        SmartTrainer(bare, TrainingArguments(str(tmp_path), use_cpu=True), ROWS)
