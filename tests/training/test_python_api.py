"""SmartTrainer from a Python program: forms of data, what it says, Ctrl-C, defaults, own parts."""

from __future__ import annotations

import logging
import os
import signal

import pandas as pd
import pytest
import tiny
import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback

from smart_train import SmartEncoder, SmartTrainer, TrainingArguments, as_collection, losses
from smart_train.core.errors import LossError, Preempted, SettingError, TrainingStopped
from smart_train.core.terminal_log import TerminalHandler, show_log
from smart_train.distributed.signals import interruptible

ROWS = [
    {"query": f"what {a}", "positive": f"the {a} stands", "negative": f"a {b} page"}
    for a, b in zip(tiny.WORDS[:12], tiny.WORDS[12:24], strict=True)
]
OTHER = [{"question": f"which {a}", "answer": f"about {a}"} for a in tiny.WORDS[24:32]]


@pytest.fixture
def trainer_of(tiny_bert, tmp_path):
    """trainer_of(data, **options of SmartTrainer and TrainingArguments) -> a trainer of a tiny model."""

    def build(data, *, lora=True, late=None, args=None, **options) -> SmartTrainer:
        adapter = {"kind": "lora", "r": 2} if lora is True else lora
        encoder = SmartEncoder(str(tiny_bert), adapter=adapter, late=late, device="cpu")
        usual = {"use_cpu": True, "max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no"}
        return SmartTrainer(encoder, TrainingArguments(str(tmp_path), **{**usual, **(args or {})}), data, **options)

    return build


def batches(trainer: SmartTrainer) -> list[set[str]]:
    """The first words of the queries of each batch of an epoch."""
    collection = trainer.train_collection
    return [
        {collection.queries[query].split()[0] for query, _ in batch["batch"].rows}
        for batch in trainer.get_train_dataloader()
    ]


def test_a_batch_is_of_one_data_set_or_mixes_them(trainer_of, caplog):
    caplog.set_level(logging.INFO, "smart_train")
    data = {"what": Dataset.from_list(ROWS), "which": pd.DataFrame(OTHER)}
    drawn = batches(trainer_of(data))
    assert all(len(words) == 1 for words in drawn) and sum("which" in words for words in drawn) == 2
    assert "train data sets: what (12 pairs), which (8 pairs); a batch is of one of them" in caplog.text
    assert any(len(words) == 2 for words in batches(trainer_of(data, mix_datasets=True)))
    assert all(words == {"what"} for words in batches(trainer_of(data, source_weights={"which": 0})))
    with pytest.raises(SettingError, match="source_weights: names that, and the train data sets are what, which"):
        trainer_of(data, source_weights={"that": 2})


def test_every_eval_data_set_has_its_own_metrics_and_one_of_them_chooses(trainer_of, tmp_path):
    args = {"eval_strategy": "steps", "eval_steps": 2}
    sets = {"first": ROWS[:4], "second": pd.DataFrame(OTHER)}
    found = trainer_of(ROWS, eval_dataset=sets, args=args).evaluate()
    single = trainer_of(ROWS, eval_dataset=OTHER, args=args).evaluate()
    assert found["eval_second_hybrid/ndcg@10"] == single["eval_hybrid/ndcg@10"] != found["eval_first_hybrid/ndcg@10"]
    with pytest.raises(TrainingStopped, match="name the one to choose by, such as .*first_hybrid/ndcg@10"):
        trainer_of(ROWS, eval_dataset=sets, args=args, patience=2)
    trainer_of(ROWS, eval_dataset=sets, patience=2, args={**args, "metric_for_best_model": "second_late/mrr@10"})


@pytest.mark.parametrize(
    ("lora", "late", "given", "rates"),
    [
        (True, None, {}, {1e-4}),
        ({"kind": "full"}, None, {}, {2e-5}),
        ({"kind": "frozen"}, {"head": "linear"}, {}, {1e-3}),
        (True, {"head": "linear"}, {}, {1e-4, 1e-3}),
        (True, {"head": "linear"}, {"learning_rate": 1e-4}, {1e-4}),
        ({"kind": "full"}, None, {"learning_rate": 1e-4}, {1e-4}),
        (True, {"head": "linear"}, {"head_learning_rate": 3e-3}, {1e-4, 3e-3}),
    ],
)
def test_the_learning_rate_follows_what_is_trained_unless_it_is_given(lora, late, given, rates, trainer_of, caplog):
    caplog.set_level(logging.INFO, "smart_train")
    trainer = trainer_of(ROWS, lora=lora, late=late, args=given)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == rates
    told = [one.message for one in caplog.records if one.message.startswith("defaults in use: ")]
    assert len(told) == 1 and ("learning_rate" in told[0].replace("head_", "")) == ("learning_rate" not in given)
    assert "warmup_steps 0.05" in told[0] and "logging_steps 10" in told[0] and "seed 42" in told[0]


@pytest.mark.parametrize(("steps", "warm"), [(1, 0), (19, 0), (20, 1), (100, 5)])
def test_a_short_run_does_not_begin_with_a_step_that_changes_nothing(steps, warm, tmp_path):
    assert TrainingArguments(str(tmp_path), use_cpu=True).get_warmup_steps(steps) == warm


# -- what is seen, with no logging set up


@pytest.fixture
def unconfigured(monkeypatch):
    """unconfigured() -> this package's logger, as in a program that has not set up logging.

    A test calls it, since pytest sets up logging after the fixtures."""

    def change() -> logging.Logger:
        root, own = logging.getLogger(), logging.getLogger("smart_train")
        monkeypatch.setattr(root, "handlers", [])
        monkeypatch.setattr(own, "handlers", [])
        own.setLevel(logging.NOTSET)
        return own

    return change


def test_a_program_without_logging_sees_its_training(unconfigured, trainer_of, capsys):
    unconfigured()
    trainer_of(ROWS, args={"logging_steps": 1}).train()
    out = capsys.readouterr().out
    assert out.count("columns read: query = query, document = positive, negatives = negative") == 1
    assert out.count("step 2/2  loss ") == 1 and out.count("step 2/2  done in") == 1


def test_a_program_s_own_logging_is_left_alone(unconfigured, capsys):
    log = unconfigured()
    log.setLevel(logging.WARNING)
    show_log()
    assert log.handlers == [] and log.level == logging.WARNING
    log.setLevel(logging.NOTSET)
    show_log()
    show_log()
    (handler,) = log.handlers
    assert isinstance(handler, TerminalHandler)
    logging.getLogger().handlers = [logging.NullHandler()]
    log.info("shown by the program alone")
    assert capsys.readouterr().out == ""


# -- Ctrl-C


class Interrupt(TrainerCallback):
    def on_step_begin(self, args, state, control, **others):
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_saves_says_how_to_resume_and_the_resumed_run_says_from_where(trainer_of, caplog):
    caplog.set_level(logging.INFO, "smart_train")
    before = signal.getsignal(signal.SIGINT)
    options = {"args": {"save_strategy": "steps", "max_steps": 3}}
    with pytest.raises(Preempted, match=r"checkpoint-2; resume with trainer.train\(resume_from_checkpoint=True\)"):
        trainer_of(ROWS, callbacks=[Interrupt()], **options).train()
    assert signal.getsignal(signal.SIGINT) is before
    resumed = trainer_of(ROWS, args={**options["args"], "resume_from_checkpoint": True})
    resumed.train()
    assert resumed.state.global_step == 3 and "checkpoint-2, after step 2" in caplog.text


def test_ctrl_c_while_nothing_is_trained_is_a_keyboard_interrupt_and_ends_no_process():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# -- own parts


class Pull(losses.LossTerm, nn.Module):
    name, reads, trains = "pull", ("scores.late",), ("tokens",)

    def __init__(self, weight: float = 1.0, start: float = 1.0) -> None:
        super().__init__(weight)
        self.inner = nn.Linear(1, 1).requires_grad_(False)
        self.register_buffer("start", torch.tensor(start))

    def forward(self, scores, labels, embeddings):
        return labels.mean(self.start - scores.late[labels.query, labels.document])


class Count(TrainerCallback):
    steps = 0

    def on_step_end(self, args, state, control, **others):
        self.steps += 1


def test_a_term_that_is_a_module_and_a_callback_take_part(trainer_of):
    count = Count()
    trainer = trainer_of(ROWS, loss=losses.Joint(losses.Pooled(), Pull(0.5)), callbacks=[count])
    trainer.train()
    logged = next(line for line in trainer.state.log_history if "loss/pull" in line)
    assert 0 < logged["loss/pull"] < 2 and count.steps == 2
    assert repr(trainer).startswith("SmartTrainer(LoRA of ") and "12 pairs, 2 steps of 4 pairs, Joint(" in repr(trainer)


def test_a_plain_module_is_told_how_to_be_a_term():
    with pytest.raises(
        LossError, match=r"Linear.* is not a loss term; write class Linear\(losses.LossTerm, nn.Module\)"
    ):
        losses.Joint(losses.Pooled(), nn.Linear(1, 1))


# -- what a run from YAML does


@pytest.mark.slow
def test_hard_negatives_are_mined_during_a_training_from_python(trainer_of):
    data = [{"query": row["query"], "positive": row["positive"]} for row in ROWS]
    trainer = trainer_of(data, mining={"rounds": 1, "start": True, "k": 2, "max_relative": None})
    trainer.train()
    assert any("mining/negatives" in line for line in trainer.state.log_history)
    assert all(trainer.train_collection.negatives.values())


@pytest.mark.slow
def test_a_trained_encoder_is_verified_calibrated_and_published(trainer_of, tmp_path, caplog):
    from smart_train import calibrate, evaluate

    caplog.set_level(logging.INFO, "smart_train")
    trainer = trainer_of(ROWS, args={"learning_rate": 1e-2})
    trainer.train()
    folder = trainer.save_verified(tmp_path / "adapter")
    assert (folder / "verified.json").is_file()
    encoder = SmartEncoder.from_pretrained(folder, device="cpu")
    encoder.late.hybrid, _ = calibrate(encoder, as_collection(OTHER))
    encoder.save_settings(folder)
    assert 0 < evaluate(encoder, OTHER, bootstrap=10).metrics["hybrid"]["ndcg@10"]["value"] <= 1
    assert encoder.push_to_hub("me/mine", dry_run=True).endswith("/me/mine")
    assert "README.md" in caplog.text and "dry run: nothing was sent" in caplog.text
