"""Mining anew while training: the run is the one whose negatives were replaced at that step, whoever prepares batches.

The reference is made without mining: a run that ends at the step, and another that resumes its checkpoint with the new
negatives in its collection.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from random import Random

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from steps import JOINT, TRAINING, lines, texts, weights
from transformers import TrainerCallback

from smart_train.config.schema import AdapterBlock, ModelBlock
from smart_train.core.errors import TrainingStopped
from smart_train.data.collate import Collator, Pairs
from smart_train.data.collection import Collection
from smart_train.mining.folder import round_miner
from smart_train.mining.miner import mine
from smart_train.mining.selection import MiningOptions
from smart_train.models.encoder import SmartEncoder
from smart_train.training import mining_rounds
from smart_train.training.arguments import training_arguments
from smart_train.training.mining_rounds import FreshCollator, MiningRounds, NegativesStore, is_due
from smart_train.training.trainer import SmartTrainer
from smart_train.training.weights import load_weights

LORA = AdapterBlock(r=4)


def drawn(step: int) -> dict[str, list[str]]:
    """Negatives that are new at every step: two a query, no answers of it."""
    draw = Random(step)
    near = {n: {n, (n + 1) % 24} for n in range(24)}
    return {f"q{n}": [f"d{m}" for m in draw.sample(sorted(set(range(24)) - near[n]), 2)] for n in range(24)}


def given() -> Collection:
    found = texts(teacher=False)
    found.negatives = drawn(-1)
    return found


class Scripted:
    """A miner that says what ``drawn`` says of each of its steps in turn."""

    def __init__(self, *steps: int) -> None:
        self.steps = list(steps)

    def __call__(self, encoder):
        return drawn(self.steps.pop(0)), {"negatives": 2.0}


def watched(trainer: SmartTrainer, collection: Collection, mine, **rounds) -> MiningRounds:
    return MiningRounds(trainer, collection, mine, Path(trainer.args.output_dir).parent / "negatives", **rounds)


def assert_same_weights(found: dict, expected: dict, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=tolerance, rtol=0, msg=name)


def test_rounds_are_due_at_equal_distances_and_never_at_the_end():
    def steps(last, every=None, rounds=None):
        return [step for step in range(last + 2) if is_due(step, last, every, rounds)]

    assert steps(10, every=3) == [3, 6, 9] and steps(9, every=3) == [3, 6]
    assert steps(12, rounds=3) == [3, 6, 9] and steps(10, rounds=1) == [5] and steps(10, rounds=3) == [2, 5, 7]
    assert steps(3, rounds=50) == [1, 2] and steps(1, rounds=1) == [] and steps(1, every=1) == []
    for last in range(2, 60):
        assert len(steps(last, rounds=min(4, last - 1))) == min(4, last - 1)


@pytest.fixture(scope="module")
def reference(tiny_models, tmp_path_factory):
    """Weights after 12 steps of which 5 saw the first negatives, 4 those of step 5, 3 those of step 9; without mining.

    A loader passes over 24 queries in 6 or 7 steps, so a new pass begins between the rounds.
    """
    folder, last = tmp_path_factory.mktemp("reference"), None
    for end, start in ((5, -1), (9, 5), (12, 9)):
        collection = given()
        collection.negatives = drawn(start)
        trainer = build(tiny_models("bert"), folder, collection, max_steps=end, save_steps=end, save_strategy="steps")
        trainer.train(resume_from_checkpoint=last)
        last = str(folder / "checkpoints" / f"checkpoint-{end}")
    return weights(trainer.encoder)


def build(base: Path, folder: Path, collection: Collection, cached: bool | None = None, dropout=0.0, **training):
    block = {**TRAINING, "max_steps": 12, **training}
    args = training_arguments(block, folder)
    torch.manual_seed(0)
    model = ModelBlock(dropout=dropout)
    encoder = SmartEncoder(str(base), model=model, adapter=LORA, device="cpu")
    collate = Collator(collection, encoder.preprocess, negatives=2, length_groups=2, seed=args.seed)
    return SmartTrainer(
        encoder,
        args,
        Pairs(collection),
        objective=JOINT,
        data_collator=collate,
        run_dir=folder,
        gradient_caching=cached,
    )


WORKERS = {
    "no workers": {},
    "workers": {"dataloader_num_workers": 2},
    "workers that stay": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
}


@pytest.mark.parametrize("how", WORKERS)
def test_a_run_with_rounds_is_the_one_whose_negatives_were_replaced_at_these_steps(how, tiny_bert, tmp_path, reference):
    collection = given()
    trainer = build(tiny_bert, tmp_path, collection, **WORKERS[how])
    remine = Steps(trainer, collection, Scripted(5, 9), tmp_path / "negatives", every=1)
    trainer.train()
    assert_same_weights(weights(trainer.encoder), reference)
    assert (
        remine.collator.remade == 2 if how == "no workers" else remine.collator.remade >= 2
    )  # accelerate is one ahead
    assert [line["step"] for line in lines(trainer) if line.get("mining/negatives") == 2.0] == [5, 9]


def test_workers_that_run_take_new_negatives_and_only_what_was_ahead_is_made_again(tiny_bert, tmp_path):
    collection = given()
    workers = WORKERS["workers"]  # one pass over 30 pairs, so that nobody starts them anew
    trainer = build(tiny_bert, tmp_path, collection, max_steps=27, per_device_train_batch_size=1, **workers)
    remine = Steps(trainer, collection, Scripted(5, 9), tmp_path / "negatives", every=1)
    trainer.train()
    assert 2 <= remine.collator.remade <= 2 * 5  # a round finds at most workers x prefetch and accelerate's one ahead


class Steps(MiningRounds):
    """Rounds after steps 5 and 9."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (5, 9):
            self._round(args, state)


def test_the_reference_depends_on_the_negatives(tiny_bert, tmp_path, reference):
    trainer = build(tiny_bert, tmp_path, given())
    trainer.train()
    differences = [float((weights(trainer.encoder)[name] - tensor).abs().max()) for name, tensor in reference.items()]
    assert max(differences) > 1e-3


def test_a_cached_run_with_rounds_is_the_plain_one(tiny_bert, tmp_path, reference):
    collection = given()
    trainer = build(tiny_bert, tmp_path, collection, cached=True)
    Steps(trainer, collection, Scripted(5, 9), tmp_path / "negatives", every=1)
    trainer.train()
    assert_same_weights(weights(trainer.encoder), reference, 1e-5)


def test_a_resumed_run_has_the_negatives_that_were_in_force(tiny_bert, tmp_path):
    def run(folder, **more):
        collection = given()
        trainer = build(tiny_bert, folder, collection, save_strategy="steps", save_steps=3, save_total_limit=9, **more)
        return trainer, watched(trainer, collection, Scripted(4, 8), rounds=2), collection

    trainer, _, _ = run(tmp_path / "whole")
    trainer.train()
    expected = weights(trainer.encoder)
    for step, left in ((3, (4, 8)), (6, (8,)), (9, ())):
        again, remine, collection = run(tmp_path / "whole")
        remine.mine = Scripted(*left)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / f"checkpoint-{step}"))
        assert_same_weights(weights(again.encoder), expected)
        assert collection.negatives == drawn(8)
    store = tmp_path / "whole" / "negatives"
    (store / "step-4.json").unlink()
    again, _, _ = run(tmp_path / "whole")
    with pytest.raises(TrainingStopped, match="resumed after step 6, and the negatives mined after step 4 are not in"):
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoints" / "checkpoint-6"))


@pytest.mark.parametrize("lost", ["step-8.json", "current"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_round_that_a_full_disk_does_not_take_is_said_and_counted_and_the_run_goes_on(
    lost, workers, tiny_bert, tmp_path, monkeypatch, caplog
):
    """With the negatives of the round before, exactly; and a resumed run does the same."""
    real = mining_rounds._replace

    def full(file: Path, text: str) -> None:
        if file.name == lost and trainer.state.global_step == 8:
            raise OSError(28, "No space left on device", str(file))
        real(file, text)

    def run(folder, *steps):
        collection = given()
        more = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 9, "dataloader_num_workers": workers}
        trainer = build(tiny_bert, folder, collection, **more)
        return trainer, watched(trainer, collection, Scripted(*steps), rounds=2), collection

    trainer, remine, collection = run(tmp_path / "full", 4, 8)
    monkeypatch.setattr(mining_rounds, "_replace", full)
    trainer.train()
    assert collection.negatives == drawn(4) and remine.lost == 1
    assert "the negatives mined after step 8 cannot be written to" in caplog.text
    assert "(No space left on device): the training goes on with those of step 4" in caplog.text
    assert [(line["step"], line["mining/lost"]) for line in lines(trainer) if "mining/lost" in line] == [(8, 1.0)]
    assert (tmp_path / "full" / "negatives" / "current").read_text() == "4"
    expected, _, _ = run(tmp_path / "once", 4)
    monkeypatch.setattr(mining_rounds, "is_due", lambda step, *_: step == 4)
    expected.train()
    assert_same_weights(weights(trainer.encoder), weights(expected.encoder), 0.0)
    monkeypatch.undo()
    again, remine, collection = run(tmp_path / "full")
    again.train(resume_from_checkpoint=str(tmp_path / "full" / "checkpoints" / "checkpoint-9"))
    assert_same_weights(weights(again.encoder), weights(expected.encoder), 0.0)
    assert collection.negatives == drawn(4) and remine.lost == 1


def test_a_round_before_the_first_step_that_the_disk_does_not_take_ends_the_run(tiny_bert, tmp_path, monkeypatch):
    """Nothing is trained yet, and without any negatives it would be another training."""

    def full(file: Path, text: str) -> None:
        if file.name == "step-0.json":
            raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(mining_rounds, "_replace", full)
    trainer = build(tiny_bert, tmp_path, given(), max_steps=4)
    watched(trainer, given(), Scripted(0), rounds=1, start=True)
    with pytest.raises(TrainingStopped, match="mined before the first step cannot be written .*No space left.*free"):
        trainer.train()


def test_a_run_that_was_stopped_where_a_round_was_due_makes_it_when_it_goes_on(tiny_bert, tmp_path):
    def run(folder, stop=0):
        collection = given()
        trainer = build(tiny_bert, folder, collection, save_strategy="steps", save_steps=12)
        trainer.add_callback(Stop(stop))
        watched(trainer, collection, Scripted(4, 8), rounds=2)
        return trainer

    whole, stopped = run(tmp_path / "whole"), run(tmp_path / "stopped", 4)
    whole.train()
    stopped.train()
    assert not list((tmp_path / "stopped" / "negatives").glob("step-*"))
    again = run(tmp_path / "stopped")
    again.train(resume_from_checkpoint=True)
    assert_same_weights(weights(again.encoder), weights(whole.encoder), 0.0)
    rounds = [line["step"] for line in lines(again) if "mining/negatives" in line]
    assert rounds == [4, 8] == [line["step"] for line in lines(whole) if "mining/negatives" in line]


class Stop(TrainerCallback):
    """Saves after a step and ends, as a signal does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def test_mining_uses_the_weights_of_its_step_and_touches_no_random_state(tiny_bert, tmp_path):
    """With dropout, so that one number drawn more would show; what is mined is then thrown away."""
    options = MiningOptions(k=3, max_relative=None)
    plain = build(tiny_bert, tmp_path / "plain", given(), dropout=0.2, max_steps=6)
    plain.train()
    collection = given()
    trainer = build(
        tiny_bert, tmp_path / "mined", collection, dropout=0.2, max_steps=6, save_strategy="steps", save_steps=2
    )
    found, modes = [], []
    real = round_miner(collection, [], options)

    def look(encoder):
        modes.append(encoder.training)
        found.append(real(encoder)[0])
        modes.append(encoder.training)
        return collection.negatives, {}

    watched(trainer, collection, look, every=2)
    trainer.train()
    assert_same_weights(weights(trainer.encoder), weights(plain.encoder), 0.0)
    assert len(found) == 2 and found[0] != found[1] and modes == [True] * 4
    checkpoint = tmp_path / "mined" / "checkpoints" / "checkpoint-4"
    fresh = build(tiny_bert, tmp_path / "fresh", given()).encoder
    load_weights(fresh, checkpoint)
    assert mine(given(), fresh, options).document_ids() == found[1]


def test_a_round_before_the_first_step_makes_do_without_any_negatives(tiny_bert, tmp_path):
    collection = texts(teacher=False)
    collection.negatives = {}
    trainer = build(tiny_bert, tmp_path, collection, max_steps=4)
    watched(
        trainer, collection, round_miner(collection, [], MiningOptions(k=2, max_relative=None)), rounds=1, start=True
    )
    trainer.train()
    logged = [line for line in lines(trainer) if "mining/negatives" in line]
    assert [line["step"] for line in logged] == [0, 2] and all(line["mining/negatives"] == 2.0 for line in logged)
    assert all(line["batch/negatives"] == 8.0 for line in lines(trainer) if "batch/negatives" in line)
    assert {file.name for file in (tmp_path / "negatives").glob("step*")} == {"step-0.json", "step-2.json"}


def test_what_a_collator_pickled_with_its_store_reads_is_one_collection(tmp_path):
    collection = given()
    store = NegativesStore(tmp_path, collection)
    store.announce(-1)

    fresh = pickle.loads(pickle.dumps(FreshCollator(Reads(collection), store)))
    assert fresh([("q0", "d0")])["negatives"] == drawn(-1)["q0"]
    store.publish(7, drawn(7))
    made = fresh([("q0", "d0")])
    assert made["negatives"] == drawn(7)["q0"] and made["origin"].step == 7
    assert store.collection.negatives == drawn(-1), "the process that trains decides itself when"


class Reads:
    """A collator that shows the negatives it sees."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection

    def __call__(self, rows):
        return {"negatives": self.collection.negatives[rows[0][0]]}


@pytest.mark.parametrize("wrong", [{}, {"every": 2, "rounds": 2}, {"every": 0}, {"rounds": -1}])
def test_when_to_mine_is_said_once(wrong, tiny_bert, tmp_path):
    trainer = build(tiny_bert, tmp_path, given())
    with pytest.raises(ValueError, match="give steps between rounds, or a number of rounds"):
        watched(trainer, given(), Scripted(), **wrong)


def on_ranks(base: str, folder: str) -> dict:
    """Rank 0 mines with its rank in the result; then it fails."""
    rank = dist.get_rank()
    collection = given()
    trainer = build(Path(base), Path(folder) / "run", collection, max_steps=4, per_device_train_batch_size=3)
    called = []

    def tell(encoder):
        called.append(rank)
        return drawn(2), {"rank": float(rank)}

    watched(trainer, collection, tell, every=2)
    trainer.train()
    out = {"called": list(called), "negatives": collection.negatives, "weights": weights(trainer.encoder)}
    trainer.engine.sharded = True  # a forward is everyone's then
    trainer.callback_handler.callbacks[-1]._round(trainer.args, trainer.state)
    out["sharded"] = called[len(out["called"]) :]

    def fail(encoder):
        raise KeyError("a page that is gone")

    trainer = build(Path(base), Path(folder) / "failed", collection, max_steps=4, per_device_train_batch_size=3)
    watched(trainer, collection, fail, every=2)
    try:
        trainer.train()
    except TrainingStopped as error:
        out["failed"] = str(error)
    return out


def test_one_rank_mines_and_all_have_it_and_a_failure_stops_them_all(tiny_bert, tmp_path):
    first, second = run_ranks(2, on_ranks, str(tiny_bert), str(tmp_path), timeout=200.0)
    assert (first["called"], second["called"]) == ([0], []) and (first["sharded"], second["sharded"]) == ([0], [1])
    assert first["negatives"] == second["negatives"] == drawn(2)
    assert_same_weights(first["weights"], second["weights"], 0.0)
    for rank in (first, second):
        assert rank["failed"] == "mining after step 2 failed on rank 0: KeyError: 'a page that is gone'"
