"""The JSONL log: one object a line, there at once, under the names that everything here has."""

from __future__ import annotations

import json
import math

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerControl, TrainerState
from transformers.integrations.integration_utils import rewrite_logs

from smart_train.training.callbacks.logging import JsonLogger, MetricMeans, rename_logs

NO_ARGS = None  # the callback reads none


def write(log: JsonLogger, logs: dict, step: int = 3, zero: bool = True) -> None:
    log.on_log(NO_ARGS, TrainerState(global_step=step, is_world_process_zero=zero), TrainerControl(), logs)


def test_each_line_is_on_disk_when_it_was_logged_and_an_earlier_runs_lines_stay(tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    log = JsonLogger(path)
    for step in (1, 2):
        write(log, {"loss": 0.5 / step}, step)
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, step + 1))
    write(JsonLogger(path), {"loss": 0.1}, 3)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in found] == [(1, 0.5), (2, 0.25), (3, 0.1)]
    assert all(line["seconds"] >= 0 for line in found)


def test_only_rank_0_writes_and_an_empty_line_is_none(tmp_path):
    path = tmp_path / "log.jsonl"
    write(JsonLogger(path), {"loss": 1.0}, zero=False)
    write(JsonLogger(path), {})
    assert not path.exists()


def test_a_number_that_is_not_finite_is_no_bare_word_that_json_does_not_have(tmp_path):
    path = tmp_path / "log.jsonl"
    write(JsonLogger(path), {"grad_norm": math.inf, "loss": math.nan, "margin/late": 0.5})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    assert json.loads(path.read_text(), parse_constant=refuse) | {"seconds": 0} == {
        "step": 3,
        "seconds": 0,
        "grad_norm": "inf",
        "loss": "nan",
        "margin/late": 0.5,
    }


def test_the_dev_splits_figures_have_one_name_where_trainer_has_two():
    given = {"eval_hybrid/ndcg@10": 0.5, "loss/late": 1.0, "mining/seconds": 2.0}
    assert rename_logs(given) == {"dev/hybrid/ndcg@10": 0.5, "loss/late": 1.0, "mining/seconds": 2.0}
    assert rename_logs(rename_logs(given)) == rename_logs(given)
    assert set(rewrite_logs(given)) == {"eval/hybrid/ndcg@10", "train/loss/late", "train/mining/seconds"}


def test_means_leave_out_steps_without_a_number_and_begin_anew_after_a_line():
    means, accelerator = MetricMeans(), Accelerator(cpu=True)
    for loss, margin in ((1.0, torch.nan), (2.0, 0.5), (6.0, 0.25)):
        means.add({"loss/late": torch.tensor(loss), "margin/late": margin, "never": torch.nan})
    assert means.take(accelerator) == pytest.approx({"loss/late": 3.0, "margin/late": 0.375})
    assert means.take(accelerator) == {}
