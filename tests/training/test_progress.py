"""What is seen of a run: its lines and its bar, and the speed, memory and time left that they tell."""

from __future__ import annotations

import io
import logging
import re
import socket
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from ranks import run_ranks
from steps import lines
from torch import nn
from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from smart_train.config.schema import AdapterBlock
from smart_train.core.embeddings import Batch
from smart_train.training.callbacks import speed as speed_module
from smart_train.training.callbacks.progress import (
    ProgressReporter,
    dev_line,
    format_duration,
    main_metric,
    training_line,
)
from smart_train.training.callbacks.speed import ForwardTimer, SpeedMeter, outliers

LORA = AdapterBlock(r=4)


# -- what a line says


def test_a_training_line_says_loss_parts_speed_memory_and_time_left():
    found = {
        "loss": 0.4123,
        "loss/pooled": 0.2101,
        "loss/late": 0.2,
        "accuracy/late": 0.9,
        "speed/pairs_per_second": 64.2,
        "speed/tokens_per_second": 21_049.0,
        "speed/waiting": 0.02,
        "memory/gib": 12.31,
        "eta_seconds": 480.0,
    }
    expected = "loss 0.4123 (pooled 0.21, late 0.2)  64 pairs/s  21k tokens/s  12.3 GiB  8 min left"
    assert training_line(found) == expected
    assert "31% of it waiting for data" in training_line(found | {"speed/waiting": 0.312})
    assert training_line({"loss": 1.5, "eta_seconds": 0.0}) == "loss 1.5"


def test_an_evaluations_line_says_its_headline_measure_for_each_score():
    depths = {
        f"dev/{mode}/{m}@{k}": k / 100
        for mode in ("pooled", "late", "hybrid")
        for m in ("ndcg", "mrr")
        for k in (5, 10)
    }
    found = depths | {"dev/late/ndcg@10": 0.66, "dev/seconds": 8.2}
    assert dev_line(found) == "dev ndcg@10: pooled 0.100, late 0.660, hybrid 0.100  (8 s)"
    assert dev_line(found, "late/mrr@5").startswith(
        "dev ndcg@10: pooled 0.100, late 0.660, hybrid 0.100, late/mrr@5 0.050"
    )
    assert main_metric(found) == "hybrid/ndcg@10"
    assert main_metric({"dev/hybrid/ndcg@3": 1.0, "dev/pooled/ndcg@20": 1.0}) == "pooled/ndcg@20"
    assert main_metric({"dev/hybrid/mrr@10": 1.0}) is None and dev_line({"train_runtime": 3.0}) == ""


def test_time_left_is_told_in_units_that_one_thinks_in():
    expected = {0.6: "1 s", 99: "99 s", 480: "8 min", 5400: "90 min", 12_000: "3 h 20 min", 86_400: "24 h 00 min"}
    assert {seconds: format_duration(seconds) for seconds in expected} == expected


# -- where it is said


def test_without_a_terminal_every_logging_step_is_a_line_of_the_log(make, monkeypatch, caplog, capsys):
    monkeypatch.setattr(logging.getLogger("smart_train"), "handlers", [])  # of a command that ran before
    caplog.set_level(logging.INFO, "smart_train.training.callbacks.progress")
    trainer = make(
        "bert",
        LORA,
        max_steps=4,
        logging_steps=2,
        evaluator=lambda e: {"hybrid/ndcg@10": 0.5},
        eval_strategy="steps",
        eval_steps=4,
        disable_tqdm=False,
    )
    trainer.train()
    told = [
        record.getMessage() for record in caplog.records if record.name == "smart_train.training.callbacks.progress"
    ]
    assert [line.split("  ")[0] for line in told] == ["step 1/4", "step 2/4", "step 4/4", "step 4/4", "step 4/4"]
    assert all("pairs/s" in line and "GiB" in line for line in told[:3])
    assert told[3].startswith("step 4/4  dev ndcg@10: hybrid 0.500")
    assert re.fullmatch(r"step 4/4  done in \d+ s, mean loss [\d.]+", told[4])
    handlers = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert ProgressCallback not in handlers and PrinterCallback not in handlers
    assert "loss" not in capsys.readouterr().out, "nothing is printed beside the log"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_goes_on_where_a_resumed_run_does(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "smart_train.training.callbacks.progress")
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    progress, control = ProgressReporter(), TrainerControl()
    state = TrainerState(global_step=5, max_steps=8, is_world_process_zero=True)
    args = SimpleNamespace(disable_tqdm=False, metric_for_best_model=None)
    progress.on_train_begin(args, state, control)
    assert "step 5/8" in screen.getvalue()
    for state.global_step in (6, 7, 8):
        progress.on_step_end(args, state, control)
        progress.on_log(args, state, control, {"loss": 0.25, "loss/late": 0.25, "speed/pairs_per_second": 12.0})
    progress.on_log(args, state, control, {"eval_hybrid/ndcg@10": 0.75})
    progress.on_train_end(args, state, control)
    last = screen.getvalue().replace("\n", "\r").split("\r")[-2]
    assert "100%" in last and "step 8/8" in last and "loss 0.25 (late 0.25)  12 pairs/s" in last
    assert [record.getMessage() for record in caplog.records] == ["step 8/8  dev ndcg@10: hybrid 0.750"]


@pytest.mark.parametrize("case", ["disable_tqdm", "another rank"])
def test_there_is_no_bar_where_none_is_asked_for_and_none_of_another_rank(case, monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    progress, control = ProgressReporter(), TrainerControl()
    state = TrainerState(max_steps=8, is_world_process_zero=case != "another rank")
    args = SimpleNamespace(disable_tqdm=case == "disable_tqdm", metric_for_best_model=None)
    progress.on_train_begin(args, state, control)
    progress.on_step_end(args, state, control)
    progress.on_train_end(args, state, control)
    assert screen.getvalue() == ""


# -- speed


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


CPU = SimpleNamespace(device=torch.device("cpu"), world_size=1)


def batch(pairs: int, tokens: int, positions: int) -> Batch:
    none = torch.zeros(0, dtype=torch.int64)
    return Batch([], [], none, none, none, none, None, {"tokens": tokens, "positions": positions}, [("q", "d")] * pairs)


def one_step(
    speed: SpeedMeter, state: TrainerState, clock: Clock, wait: float, work: float, drawn: list[Batch]
) -> None:
    with speed.waiting():
        clock.now += wait
    speed.count(drawn)
    clock.now += work
    state.global_step += 1
    speed.on_step_end(CPU, state, TrainerControl())


def test_speed_is_of_the_steps_alone_and_the_time_left_has_everything_in(monkeypatch):
    """Two steps of 4 s, of which 1 s is waiting, then 100 s of evaluation, then one of 8 s; resumed after step 50."""
    clock = Clock()
    monkeypatch.setattr(speed_module, "time", clock)
    speed, state, accelerator = (
        SpeedMeter(nn.Linear(1, 1)),
        TrainerState(global_step=50, max_steps=60),
        Accelerator(cpu=True),
    )
    speed.on_train_begin(CPU, state, TrainerControl())
    clock.now += 30  # the start is ranked
    one_step(speed, state, clock, 1.0, 3.0, [batch(4, 30, 40), batch(4, 24, 40)])  # two accumulated ones
    one_step(speed, state, clock, 1.0, 3.0, [batch(4, 30, 40), batch(4, 30, 40)])
    found = speed.take(accelerator, state)
    assert found.pop("memory/gib") > 0.01
    assert found == {
        "speed/pairs_per_second": 16 / 8,
        "speed/tokens_per_second": 114 / 8,
        "speed/padding": pytest.approx(1 - 114 / 160, abs=1e-4),
        "speed/waiting": 2 / 8,
        "eta_seconds": 8 * 4.0,
    }
    clock.now += 100
    one_step(speed, state, clock, 0.0, 8.0, [batch(8, 80, 80)])
    found = speed.take(accelerator, state)
    assert found["speed/pairs_per_second"] == 1.0 and found["speed/waiting"] == found["speed/padding"] == 0.0
    assert found["eta_seconds"] == 7 * (4 + 100 + 8) / 2
    assert speed.take(accelerator, state) == {}, "no step, no speed"


def test_the_first_step_of_a_process_tells_no_time_left(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed_module, "time", clock)
    speed, state = SpeedMeter(nn.Linear(1, 1)), TrainerState(max_steps=10)
    one_step(speed, state, clock, 0.0, 60.0, [batch(4, 30, 40)])
    assert "eta_seconds" not in speed.take(Accelerator(cpu=True), state)


@pytest.mark.parametrize("cached", [False, True])
def test_tokens_and_padding_are_those_of_the_rows_one_by_one(make, cached):
    """Against the masks of every row by itself; caching reads each row twice and counts it once."""
    trainer = make("qwen3", LORA, cached=cached, chunk_rows=2 if cached else None)
    encoder, collate, drawn = trainer.encoder, trainer.data_collator.collate, []
    trainer.data_collator.collate = lambda rows: drawn.append(collate(rows)) or drawn[-1]
    trainer.train()
    data = collate.collection
    found = [line for line in lines(trainer) if "loss" in line]
    for line, one in zip(found, drawn, strict=False):  # the loader is one batch ahead
        queries, documents = ({side for side in sides} for sides in zip(*one.rows, strict=True))
        contents = [(data.queries[q], "query") for q in queries]
        contents += [(data.corpus[d].content(), "document") for d in documents]
        tokens = sum(int(encoder.preprocess([c], role)["attention_mask"].sum()) for c, role in contents)
        positions = sum(chunk["input_ids"].numel() for chunk in (*one.queries, *one.documents))
        assert line["batch/tokens"] == tokens and line["batch/positions"] == positions
        assert line["speed/padding"] == pytest.approx(1 - tokens / positions, abs=1e-4)
        ratio = line["speed/tokens_per_second"] / line["speed/pairs_per_second"]
        assert ratio == pytest.approx(tokens / len(one.rows), rel=2e-3)


# -- ranks


def test_a_rank_is_far_off_where_it_has_half_as_much_again_as_the_others_and_enough_to_matter():
    assert outliers([1.0, 1.0, 1.6, 1.0], 1.5, 0.1) == [2]
    assert outliers([1.0, 1.4, 1.0], 1.5, 0.1) == []
    assert outliers([2.0, 1.0], 1.5, 0.1) == [0]
    assert outliers([0.01, 0.03], 1.5, 0.1) == [], "three times nothing is nothing"
    assert outliers([1.0, 3.0, 3.0, 1.0, 1.0, 1.0], 1.5, 0.1) == [1, 2]
    assert outliers([5.0], 1.5, 0.1) == []


def test_only_training_forwards_are_timed(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed_module, "time", clock)

    class Slow(nn.Module):
        def forward(self) -> None:
            clock.now += 2.0

    module = Slow()
    forwards = ForwardTimer(module)
    module()
    forwards.start(torch.device("cpu"))
    module.train()()
    module()
    module.eval()()
    assert forwards.take() == 4.0 and forwards.take() == 0.0
    forwards.stop()
    module.train()()
    assert forwards.take() == 0.0


def two_ranks() -> tuple[list[dict[str, float]], list[str]]:
    """Five lines of one step each; rank 1 has twice the pairs and waits for its data from the second line on."""
    rank, heard = dist.get_rank(), []
    log = logging.getLogger("smart_train.training.callbacks.speed")
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    log.addHandler(handler)
    clock = Clock()
    speed_module.time = clock
    speed_module._memory = lambda: 4.0 + 8.0 * rank
    accelerator, speed = Accelerator(cpu=True), SpeedMeter(nn.Linear(1, 1))
    state = TrainerState(max_steps=5, is_world_process_zero=rank == 0)
    found = []
    for line in range(5):
        wait = 1.0 if rank == 1 and line > 0 else 0.0
        one_step(speed, state, clock, wait, 2.0 - wait, [batch(4 + 4 * rank, 10, 20)])
        found.append(speed.take(accelerator, state))
    return found, heard


def test_ranks_are_counted_together_and_one_that_is_far_off_is_told_once():
    (first, heard), (second, other) = run_ranks(2, two_ranks)
    assert first == second and not other, "every rank has the figures, rank 0 tells"
    assert [line["speed/pairs_per_second"] for line in first] == [6.0] * 5
    assert [line["speed/waiting"] for line in first] == [0.0, 0.5, 0.5, 0.5, 0.5]
    assert {line["memory/gib"] for line in first} == {12.0} and first[0]["speed/tokens_per_second"] == 10.0
    assert first[3]["eta_seconds"] == 2.0
    host = socket.gethostname()
    assert sorted(heard) == [
        f"step 3: rank 1 ({host}) spends 50% of a step on its own work (50% waiting for data, 0% in forwards), the "
        "others 0%: every rank waits for it",
        f"step 3: rank 1 ({host}) uses 12.0 GiB, the others 4.0: it limits the batch size",
    ]
