"""A loss or gradient that is no finite number stops with step, ids and parts, or leaves no trace; a signal saves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from steps import JOINT, lines
from torch import Tensor
from transformers import TrainerCallback

from smart_train.config.schema import AdapterBlock
from smart_train.core.embeddings import Batch, Embeddings, KnownPositives, Tokens
from smart_train.core.errors import Preempted, TrainingStopped
from smart_train.distributed import failures as watch
from smart_train.distributed import signals
from smart_train.distributed.signals import stoppable
from smart_train.losses.joint import Loss
from smart_train.training import checkpoint as files
from smart_train.training.nonfinite import describe_loss
from smart_train.training.trainer import SmartTrainer

CALM = {"lr_scheduler_type": "linear", "optim": "adamw_torch", "max_steps": 4}


def spoil(trainer: SmartTrainer, *calls: int) -> None:
    """The losses of these calls (0 = the first batch) are not finite."""
    made, compute = [], trainer.step.loss

    def loss(both, batch):
        found = compute(both, batch)
        made.append(1)
        wrong = len(made) - 1 in calls
        parts = found.parts | {"loss/late": torch.tensor(torch.inf)}
        return Loss(found.total * torch.inf, parts) if wrong else found

    trainer.step.loss = loss


class States(TrainerCallback):
    """Copies of weights and of what the optimizer remembers, after every step; and its learning rates."""

    def __init__(self, trainer: SmartTrainer) -> None:
        self.trainer, self.weights, self.memory, self.rates = trainer, [], [], []
        trainer.add_callback(self)

    def on_train_begin(self, *args, **kwargs) -> None:
        self.on_step_end()

    def on_step_end(self, *args, **kwargs) -> None:
        trained = [p.detach().clone() for p in self.trainer.encoder.parameters() if p.requires_grad]
        state = self.trainer.optimizer.state_dict()["state"]
        self.weights.append(trained)
        self.memory.append([v.clone() for one in state.values() for v in one.values() if isinstance(v, Tensor)])
        self.rates.append(self.trainer.lr_scheduler.get_last_lr()[0])


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


# -- a loss that is not finite


def test_a_loss_that_is_not_finite_names_step_pairs_and_the_largest_parts(make):
    trainer = make("bert", AdapterBlock(r=4), max_steps=3)
    spoil(trainer, 1)
    rows, collate = [], trainer.data_collator
    trainer.data_collator = lambda values: rows.append(values) or collate(values)
    with pytest.raises(TrainingStopped) as told:
        trainer.train()
    message = str(told.value)
    assert message.startswith("step 2: the loss is inf (loss/late inf, loss/pooled ")
    assert "from embeddings that are finite, of 4 pairs" in message and "objective.skip_nonfinite" in message
    assert all(f"{query} -> {document}" in message for query, document in rows[1])


@pytest.mark.parametrize("where", ["query's vector", "document's token"])
def test_the_pairs_whose_embeddings_are_not_finite_are_named_first(where):
    pooled, tokens = torch.ones(5, 2), torch.ones(7, 2)
    if where == "query's vector":
        pooled[1, 0] = torch.nan  # of the second query
    else:
        tokens[5, 1] = torch.inf  # of the third document, row 4
    both = Embeddings(pooled, Tokens(tokens, torch.tensor([1, 1, 1, 2, 2])))
    known = KnownPositives(torch.zeros(2, 4, dtype=torch.int64), torch.ones(2), torch.ones(2, dtype=torch.int64))
    pairs = torch.tensor([[0, 0], [1, 1], [0, 2]])
    rows = [("q0", "a"), ("q1", "b"), ("q0", "c")]
    batch = Batch([], [], torch.arange(2), torch.zeros(3, 4, dtype=torch.int64), known, pairs, rows=rows)
    nan = torch.tensor(torch.nan)
    bad, blamed, told = describe_loss(
        Loss(nan, {"loss/pooled": nan, "accuracy/pooled": torch.tensor(0.5)}), batch, both
    )
    assert bad and blamed
    expected = "q1 -> b" if where == "query's vector" else "q0 -> c"
    assert told == (
        "the loss is nan (loss/pooled nan), from embeddings of which 1 of 5 rows are not finite, of 3 pairs "
        f"(the pairs with them are: {expected})"
    )


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_a_step_that_is_left_out_leaves_no_trace(cached, accumulation, make, caplog):
    """Neither in weights nor in Adam's moments; the learning rate goes on, and so does the run."""
    options = {**CALM, "gradient_accumulation_steps": accumulation, "cached": cached, "chunk_rows": 2}
    trainer = make("qwen3", AdapterBlock(r=4), objective=replace(JOINT, skip_nonfinite=2), **options)
    plain = make("qwen3", AdapterBlock(r=4), folder="plain", **options)
    wanted, found = States(plain), States(trainer)
    spoil(trainer, accumulation)  # the first batch of the second step
    plain.train()
    with caplog.at_level("WARNING", "smart_train"):
        trainer.train()
    assert trainer.state.global_step == 4 and found.rates == wanted.rates
    assert same(found.weights[1], wanted.weights[1]) and not same(found.weights[0], found.weights[1])
    assert same(found.weights[1], found.weights[2]) and same(found.memory[1], found.memory[2])
    assert not same(found.weights[2], found.weights[3]) and not same(found.weights[3], found.weights[4])
    logged = {line["step"]: line for line in lines(trainer) if "batch/skipped" in line}
    assert [logged[step]["batch/skipped"] for step in (1, 2, 3)] == [0.0, 1.0, 0.0]
    told = [record.getMessage() for record in caplog.records]
    assert any("skipped the step (1 of at most 2)" in line for line in told)
    assert any(line.startswith("skipped 1 of 4 steps") for line in told)


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_steps_may_be_left_out_too(first, make):
    """Nothing has moved then, and no gradient came: which is else a reason to stop."""
    trainer = make("qwen3", AdapterBlock(r=4), objective=replace(JOINT, skip_nonfinite=1), **CALM)
    spoil(trainer, first)
    states = States(trainer)
    trainer.train()
    assert same(states.weights[first], states.weights[first + 1]) and not same(states.weights[0], states.weights[4])


def test_after_so_many_steps_it_stops_all_the_same(make):
    trainer = make("bert", AdapterBlock(r=4), objective=replace(JOINT, skip_nonfinite=2), max_steps=9)
    spoil(trainer, 1, 3, 5)
    with pytest.raises(TrainingStopped, match=r"step 6: the loss is inf .*\(2 steps were skipped before\)"):
        trainer.train()


# -- a gradient that is not finite


def bad_gradient(trainer: SmartTrainer, at: int) -> None:
    """One entry of one tensor's gradient is NaN in that backward."""
    parameter = next(p for n, p in trainer.encoder.named_parameters() if "lora_B" in n)
    seen: list[int] = []

    def spoiled(gradient: Tensor) -> Tensor:
        seen.append(1)
        return gradient.index_fill(0, torch.tensor([0]), torch.nan) if len(seen) - 1 == at else gradient

    parameter.register_hook(spoiled)


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(limit, make):
    trainer = make("bert", AdapterBlock(r=4), max_steps=3, max_grad_norm=limit)
    bad_gradient(trainer, 1)
    states = States(trainer)
    with pytest.raises(
        TrainingStopped, match=r"step 2: the gradient's norm is nan: the loss is \d.*of 4 pairs \(query"
    ):
        trainer.train()
    now = [p.detach() for p in trainer.encoder.parameters() if p.requires_grad]
    assert len(states.weights) == 2 and same(states.weights[1], now)


def test_a_gradient_that_is_not_finite_can_be_left_out(make):
    trainer = make("bert", AdapterBlock(r=4), objective=replace(JOINT, skip_nonfinite=1), **CALM)
    bad_gradient(trainer, 1)
    states = States(trainer)
    trainer.train()
    assert same(states.weights[1], states.weights[2]) and same(states.memory[1], states.memory[2])
    assert not same(states.weights[2], states.weights[3])
    assert all(w.isfinite().all() for w in states.weights[4])


# -- signals


class At(TrainerCallback):
    """Sends this process a signal while a step is made."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)
            end = time.monotonic() + 5
            while not signals.received() and time.monotonic() < end:
                time.sleep(0.01)


@pytest.fixture
def interruptible():
    """SIGINT ends a process: it is ignored, rightly, in what a shell runs in the background, these tests among it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_end_of_the_step_and_says_how_to_go_on(number, make, capfd):
    trainer = make("bert", AdapterBlock(r=4), max_steps=4)
    trainer.add_callback(At(2, number))
    with (
        stoppable(),
        pytest.raises(Preempted, match="after step 2, which is saved in .*checkpoint-2; resume with trainer"),
    ):
        trainer.train()
    output = Path(trainer.args.output_dir).parent
    told = json.loads((output / "stopped.json").read_text())
    saved = output / "checkpoints" / "checkpoint-2"
    assert (told["signal"], told["step"], told["checkpoint"]) == (signal.Signals(number).name, 2, str(saved))
    assert told["resume"] == "trainer.train(resume_from_checkpoint=True)" and (saved / "optimizer.pt").is_file()
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint-2"]
    assert f"{signal.Signals(number).name}: finishing and saving this step" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "what was before is put back"
    resumed = make("bert", AdapterBlock(r=4), max_steps=4)
    resumed.train(resume_from_checkpoint=str(saved))
    assert resumed.state.global_step == 4 and not (output / "stopped.json").exists()


def test_a_step_that_is_saved_anyway_is_saved_once_and_evaluation_waits(make, monkeypatch):
    ranked: list[int] = []
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    trainer = make("bert", AdapterBlock(r=4), evaluator=lambda encoder: ranked.append(1) or {}, **options)
    saves, save = [], trainer._save_checkpoint
    monkeypatch.setattr(
        trainer, "_save_checkpoint", lambda *args: saves.append(trainer.state.global_step) or save(*args)
    )
    trainer.add_callback(At(2))
    with stoppable(), pytest.raises(Preempted):
        trainer.train()
    assert saves == [2] and ranked == []


def test_a_signal_in_an_epochs_last_step_saves_though_only_the_best_is_kept(make):
    """The epoch's evaluation belongs to it; what it says of the best is no reason not to save."""
    best = {"save_strategy": "best", "metric_for_best_model": "pooled/ndcg@10", "eval_strategy": "epoch"}
    ranked = iter([0.5, 0.4])
    trainer = make(
        "bert", AdapterBlock(r=4), evaluator=lambda encoder: {"pooled/ndcg@10": next(ranked)}, max_steps=99, **best
    )
    steps = len(trainer.get_train_dataloader())
    trainer.add_callback(At(2 * steps))
    with stoppable(), pytest.raises(Preempted, match=f"stopped after step {2 * steps}"):
        trainer.train()
    assert files.list_steps(trainer.checkpoints.root) == [steps, 2 * steps]


def ended(listener: signals.Listener, monkeypatch, *numbers: int) -> int | None:
    """Status that the process would end with at one of these signals; None = it goes on."""
    status: list[int] = []

    def end(found: int) -> None:
        status.append(found)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", end)
    for number in numbers:
        try:
            listener.receive(number)
        except SystemExit:
            return status[0]
    return None


def test_what_a_signal_means_at_each_moment(monkeypatch, capfd):
    before, during, out = signals.Listener(), signals.Listener(), signals.Listener()
    assert ended(before, monkeypatch, signal.SIGTERM) == 143
    assert "SIGTERM before the training began: nothing was lost" in capfd.readouterr().err
    during.training, during.saved = True, "again: checkpoints are in HERE"
    assert ended(during, monkeypatch, signal.SIGINT) is None
    assert ended(during, monkeypatch, signal.SIGINT) is None, "the terminal and the launcher hand on the same one"
    during.since -= 10
    assert ended(during, monkeypatch, signal.SIGINT) == 130
    assert "SIGINT again: checkpoints are in HERE" in capfd.readouterr().err
    out.exit_status = 75
    assert ended(out, monkeypatch, signal.SIGTERM) == 75
    assert capfd.readouterr().err == ""


def test_data_workers_outlast_the_signal_of_a_process_group(make, monkeypatch):
    """A launcher signals a rank's whole group; batches are still needed for the step that is finished."""
    trainer = make("bert", AdapterBlock(r=4), max_steps=4, dataloader_num_workers=2)
    from smart_train.data.batch_sampler import pair_groups

    trainer.pair_groups = pair_groups(trainer.data_collator.collate.collection, trainer.train_dataset.rows)
    send = os.kill

    def to_all(pid: int, number: int) -> None:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                subprocess.run(["kill", f"-{int(number)}", child], check=True)  # torch's workers obey their parent
        time.sleep(0.5)
        send(pid, number)

    trainer.add_callback(At(2))
    monkeypatch.setattr(os, "kill", to_all)
    with stoppable(), pytest.raises(Preempted, match="after step 2"):
        trainer.train()


def test_a_worker_that_lives_on_neither_stops_the_run_nor_keeps_it_from_ending():
    """A forked worker has the run's sockets: what it is sent is its own, and its end is not waited for."""
    with stoppable():
        signals.set_training(True, "again")
        ready, tell = os.pipe()
        worker = os.fork()
        if not worker:
            signals.outlast_first_signal()
            os.write(tell, b"x")
            time.sleep(30)
            os._exit(0)
        os.read(ready, 1)
        os.kill(worker, signal.SIGTERM)  # as a loader ends a worker that is too slow
        time.sleep(0.3)
        assert signals.received() == 0
        begun = time.monotonic()
    try:
        assert time.monotonic() - begun < 5
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


# -- other machines


class Store(dict):
    """What is used of a c10d store."""

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:
        return self[key]

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()


def test_a_failure_that_was_written_ends_a_waiting_rank_and_nothing_else_does(monkeypatch, capfd):
    monkeypatch.setattr(watch, "POLL", 0.02)
    monkeypatch.setattr(watch, "GRACE", 0.02)
    ends: list[int] = []
    store = Store()

    def broken() -> Store:
        if len(looks := answers) and looks.pop():
            raise_on_check = Store()
            raise_on_check.check = lambda keys: (_ for _ in ()).throw(RuntimeError("the store is gone"))
            return raise_on_check
        return store

    answers = [True, True, True]
    done = threading.Event()
    thread = threading.Thread(target=watch.watch, args=(done, broken, ends.append))
    thread.start()
    time.sleep(0.3)
    assert ends == [] and thread.is_alive(), "neither silence nor a store that is gone ends a rank"
    store.set(watch.KEY, "rank 3 failed: page 7 is broken")
    thread.join(5)
    assert ends == [1]
    assert "rank 0: stopped, because rank 3 failed: page 7 is broken" in capfd.readouterr().err


def test_ranks_are_watched_where_a_launcher_sees_a_part_of_them(monkeypatch):
    for world, beside, expected in (("1", None, False), ("2", "2", False), ("4", "2", True), ("4", None, True)):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", beside) if beside else monkeypatch.delenv("LOCAL_WORLD_SIZE", False)
        assert watch.several_machines() == expected
