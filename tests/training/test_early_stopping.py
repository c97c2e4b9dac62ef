"""The best evaluation: which it was, when training ends for want of a better one, and when it says nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from steps import lines, weights
from transformers import TrainerState

from smart_train.config.schema import AdapterBlock
from smart_train.core.errors import TrainingStopped
from smart_train.training.callbacks.early_stopping import (
    best_message,
    best_step,
    check_best_is_measured,
    constant_message,
    final_step,
    metric_history,
)

LORA = AdapterBlock(r=4)
EVERY = {"eval_strategy": "steps", "eval_steps": 1}
SAVED = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}


def ranks(values: Iterable[float], name: str = "hybrid/ndcg@10"):
    """A dev split whose figure is the next of these each time it is ranked."""
    given = iter(values)
    return lambda encoder: {name: next(given), "pooled/mrr@10": 0.25}


@pytest.fixture
def heard(caplog):
    caplog.set_level(logging.INFO, "smart_train.training.callbacks.early_stopping")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name == "smart_train.training.callbacks.early_stopping"
    ]


def of(trainer, name: str) -> list[float]:
    return [line[name] for line in lines(trainer) if name in line]


def test_the_run_tells_which_evaluation_was_best_and_whose_weights_it_ends_with(make, heard):
    trainer = make("bert", LORA, max_steps=4, evaluator=ranks([0.9, 0.4, 0.7, 0.7, 0.6]), eval_on_start=True, **EVERY)
    trainer.train()
    (line,) = heard()
    assert line.startswith(
        "hybrid/ndcg@10 on dev was best at step 2: 0.7000; the adapter is of the last step, 4 (0.6000)"
    )
    assert of(trainer, "best/step") == [2] and of(trainer, "best/value") == [0.7]


def test_the_best_checkpoint_is_kept_and_its_weights_are_the_ones_at_the_end(make, heard):
    """save_total_limit 1; the figure that is named decides, not the one that would be taken otherwise."""
    seen = []
    figures = iter([(0.9, 0.1), (0.1, 0.8), (0.2, 0.5), (0.3, 0.4)])

    def rank(encoder):
        seen.append(weights(encoder))
        return dict(zip(("hybrid/ndcg@10", "late/mrr@5"), next(figures), strict=True))

    options = {"load_best_model_at_end": True, "metric_for_best_model": "late/mrr@5"}
    trainer = make("bert", LORA, max_steps=4, evaluator=rank, **EVERY, **SAVED, **options)
    trainer.train()
    assert heard() == ["late/mrr@5 on dev was best at step 2: 0.8000; the adapter is of that step"]
    found = weights(trainer.encoder)
    assert all(torch.equal(found[name], seen[1][name]) for name in found)
    assert any(not torch.equal(found[name], seen[3][name]) for name in found)
    assert (Path(trainer.args.output_dir) / "checkpoint-2").is_dir()


def test_training_ends_after_so_many_evaluations_without_a_better_one(make, heard):
    """0.6 is step 3's; 0.6 again is not better, nor are 0.5 and the start, which is no evaluation to wait for."""
    figures = [0.9, 0.3, 0.2, 0.6, 0.6, 0.5, 0.9]
    trainer = make("bert", LORA, max_steps=9, evaluator=ranks(figures), patience=2, eval_on_start=True, **EVERY)
    trainer.train()
    assert trainer.state.global_step == 5
    assert heard()[0].startswith("step 5: training ends, since hybrid/ndcg@10 has not risen above 0.6000 (step 3)")


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(make):
    """Resumed in the middle of the waiting, with the start ranked once more: its patience is what was left of it."""
    figures = {0: 0.1, 1: 0.6, 2: 0.5, 3: 0.4, 4: 0.3, 5: 0.2}
    options = {"max_steps": 9, "patience": 3, "eval_on_start": True, "save_total_limit": None, **EVERY}
    options |= {"save_strategy": "steps", "save_steps": 1}
    steps = {}
    for folder in ("whole", "resumed"):
        trainer = make("bert", LORA, folder=folder, evaluator=lambda e: {}, **options)
        trainer.evaluator = lambda e, t=trainer: {"hybrid/ndcg@10": figures[t.state.global_step]}
        start = Path(trainer.args.output_dir).parents[1] / "whole" / "checkpoints" / "checkpoint-3"
        trainer.train(resume_from_checkpoint=str(start) if folder == "resumed" else None)
        steps[folder] = trainer.state.global_step
        assert of(trainer, "best/step") == [1]
    assert steps == {"whole": 4, "resumed": 4}


# -- a figure that does not move


def test_a_figure_that_never_moves_is_told_once_with_its_likely_reason(make, heard):
    trainer = make("bert", LORA, max_steps=5, evaluator=ranks([0.5] * 5), **EVERY)
    trainer.train()
    warnings = [line for line in heard() if "cannot choose" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("hybrid/ndcg@10 on dev is 0.5 at every evaluation so far (steps 1, 2, 3)")
    constant = [line["step"] for line in lines(trainer) if line.get("dev/constant")]
    assert constant == [3]


def test_a_figure_that_moves_is_not_called_constant(make, heard):
    trainer = make("bert", LORA, max_steps=4, evaluator=ranks([0.5, 0.5, 0.51, 0.5]), **EVERY)
    trainer.train()
    assert not [line for line in heard() if "cannot choose" in line]
    assert of(trainer, "dev/constant") == []


def test_two_evaluations_of_one_value_are_told_when_there_will_be_no_third(make, heard):
    trainer = make("bert", LORA, max_steps=2, evaluator=ranks([0.0, 0.0]), **EVERY)
    trainer.train()
    assert "no query finds its document" in heard()[0] and of(trainer, "dev/constant") == [1.0]


def test_reasons_follow_the_value():
    assert "no query finds" in constant_message("late/ndcg@10", 0.0, [1, 2, 3])
    assert "too easy" in constant_message("late/ndcg@10", 1.0, [1, 2, 3])
    assert "pooled vectors change too little" in constant_message("pooled/ndcg@10", 0.4, [1, 2, 3])
    assert "learning_rate" in constant_message("hybrid/ndcg@10", 0.4, [1, 2, 3])


# -- parts


def test_the_first_of_equals_is_the_best_and_the_start_never_is():
    assert best_step({0: 0.9, 10: 0.5, 20: 0.7, 30: 0.7, 40: 0.1}) == (20, 2)
    assert best_step({10: 0.5}) == (10, 0)
    assert best_step({0: 0.9}) == (0, 0)


def test_history_reads_a_figure_by_any_of_its_names_and_a_step_as_last_measured(make):
    args = make("bert", LORA).args
    log = [
        {"step": 0, "eval_late/mrr@5": 0.1, "eval_hybrid/ndcg@20": 0.3},
        {"step": 5, "loss": 1.0},
        {"step": 5, "eval_late/mrr@5": 0.2, "eval_hybrid/ndcg@20": 0.4},
        {"step": 5, "eval_late/mrr@5": 0.25, "eval_hybrid/ndcg@20": 0.5},
    ]
    state = TrainerState(log_history=log)
    assert metric_history(args, state) == ("hybrid/ndcg@20", {0: 0.3, 5: 0.5})
    for name in ("late/mrr@5", "eval_late/mrr@5"):
        args.metric_for_best_model = name
        assert metric_history(args, state) == ("late/mrr@5", {0: 0.1, 5: 0.25})


def test_what_is_told_of_the_adapter_is_what_was_loaded(make):
    args = make("bert", LORA).args
    state = TrainerState(global_step=40, best_model_checkpoint="anywhere/checkpoints/checkpoint-20")
    assert final_step(args, state) == 40, "best checkpoints are loaded where that is asked for"
    args.load_best_model_at_end = True
    assert final_step(args, state) == 20
    assert final_step(args, TrainerState(global_step=40)) == 40, "there was none to load"
    values = {10: 0.6, 20: 0.5, 40: 0.4}
    assert "of step 20 (0.5000), the best that was kept" in best_message("late/ndcg@10", values, 10, 20, 40)


@pytest.mark.parametrize("case", ["metric_for_best_model", "patience"])
def test_choosing_by_a_dev_split_that_is_not_ranked_is_refused_before_the_first_step(case, make):
    options = {"metric_for_best_model": "hybrid/ndcg@10"} if case == "metric_for_best_model" else {"patience": 2}
    with pytest.raises(TrainingStopped, match=f"{case} is .*, but the dev split is not ranked"):
        make("bert", LORA, **EVERY, **options)
    args = make("bert", LORA, patience=2).args
    check_best_is_measured(args, evaluated=False, patience=2)  # nothing is evaluated at all
