"""A run that goes on from a checkpoint is the uninterrupted one, bit for bit, whatever it trains; a checkpoint is whole
or not there; and what cannot be gone on from is refused with the reason."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from resumed import HEAD, differences, left, log_of, root, trainer_of
from steps import JOINT
from torch import nn

from smart_train.core.errors import CheckpointError
from smart_train.models.lora import AdapterError
from smart_train.training import checkpoint as files

# 30 pairs in batches of 6: five steps an epoch, and 12 steps end in the middle of the third
LONG = {"max_steps": 12, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "logging_steps": 3}
LONG |= {"per_device_train_batch_size": 6}
SHORT = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "save_total_limit": None}
DROPOUT = {"dropout": 0.2, "adapter": {"dropout": 0.2}}
CASES: dict[str, dict] = {
    "dropout, data workers, hard negatives": {**DROPOUT, "dataloader_num_workers": 2, "negatives": 2},
    "gradient caching, planned batches of like length": {
        **DROPOUT,
        "window": 3,
        "cached": True,
        "chunk_rows": 2,
        "objective": replace(JOINT, batch=6),
    },
    "accumulation, warm-up, head": {
        **DROPOUT,
        "late": HEAD,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 3,
        "lr_scheduler_type": "cosine",
        "head_learning_rate": 0.03,
        "max_steps": 7,
    },
    "every weight": {"adapter": {"kind": "full"}, "late": HEAD, "dropout": 0.1},
    "lines and evaluation at an epoch's end": {
        "logging_strategy": "epoch",
        "eval_strategy": "epoch",
        "metric_for_best_model": "pooled/ndcg@10",
    },
}


@pytest.fixture(scope="module")
def short_run(tiny_bert, tmp_path_factory) -> Path:
    """The folder of a run of four steps, each with its checkpoint; not to be written to."""
    folder = tmp_path_factory.mktemp("short") / "run"
    trainer_of(tiny_bert, folder, **SHORT).train()
    return folder


@pytest.fixture
def copied(short_run, tmp_path) -> Path:
    shutil.copytree(short_run, tmp_path / "run")
    return tmp_path / "run"


def measured(encoder) -> dict[str, float]:
    """A figure of the dev split that goes up and down with the weights."""
    total = sum(float(p.detach().sum()) for n, p in encoder.named_parameters() if p.requires_grad)
    return {"pooled/ndcg@10": abs(total) % 1, "hybrid/ndcg@10": abs(total) % 1}


@pytest.mark.parametrize("case", [c if n < 2 else pytest.param(c, marks=pytest.mark.slow) for n, c in enumerate(CASES)])
def test_a_resumed_run_is_the_uninterrupted_one(case, tiny_bert, tmp_path):
    """From the middle of an epoch, between two logged lines, and from its very end: weights, optimizer, schedule,
    random states, sums, best metric and every line."""
    options = {**LONG, **CASES[case], "evaluator": measured if "eval_strategy" in CASES[case] else None}
    whole = trainer_of(tiny_bert, tmp_path / "whole", **options)
    whole.train()
    last = whole.state.max_steps
    expected = left(root(whole) / f"checkpoint-{last}")
    for step in (2, 4) if last < 10 else (5, 8):
        folder = tmp_path / f"from {step}"
        shutil.copytree(tmp_path / "whole", folder)
        resumed = trainer_of(tiny_bert, folder, **options)
        resumed.train(resume_from_checkpoint=str(folder / "checkpoints" / f"checkpoint-{step}"))
        found = left(folder / "checkpoints" / f"checkpoint-{last}")
        assert not differences(found, expected), step
        ours, theirs = log_of(folder), log_of(tmp_path / "whole")
        means = [next(line.pop("train_loss") for line in lines if "train_loss" in line) for lines in (ours, theirs)]
        assert ours == theirs, step
        assert means[0] == pytest.approx(means[1], rel=1e-9)  # of all steps; a sum in another order


# -- the end of an epoch, and of a run


def test_a_checkpoint_of_each_epoch_is_of_its_last_step(tiny_bert, tmp_path):
    options = {**LONG, "save_strategy": "epoch", "max_steps": 10, "eval_strategy": "epoch", "evaluator": measured}
    options |= {"metric_for_best_model": "pooled/ndcg@10", "load_best_model_at_end": True}
    trainer = trainer_of(tiny_bert, tmp_path / "run", **options)
    trainer.train()
    assert files.list_steps(root(trainer)) == [5, 10]
    states = [json.loads((root(trainer) / f"checkpoint-{n}/trainer_state.json").read_text()) for n in (5, 10)]
    assert [state["epoch"] for state in states] == [1, 2]
    assert trainer.state.best_global_step in (5, 10)
    assert trainer.state.best_model_checkpoint == str(root(trainer) / f"checkpoint-{trainer.state.best_global_step}")


def test_a_run_that_is_through_is_not_trained_further(tiny_bert, copied):
    """Trainer looks for the end after a step only, so it would take one more in the middle of an epoch."""
    again = trainer_of(tiny_bert, copied, **SHORT)
    assert again.train(resume_from_checkpoint=True).global_step == 4
    again.save_model(str(copied / "final"))
    expected = left(copied / "checkpoints" / "checkpoint-4")["adapter_model.safetensors"]
    assert (copied / "final" / "adapter_model.safetensors").read_bytes() == expected
    assert [line["step"] for line in log_of(copied) if "loss" in line] == [1, 2, 3, 4]
    assert sum("train_loss" in line for line in log_of(copied)) == 1


def test_a_run_that_early_stopping_ended_stays_ended(tiny_bert, tmp_path):
    """It is killed after its last checkpoint and before its adapter is saved."""
    options = {
        **LONG,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "pooled/ndcg@10",
        "patience": 2,
        "evaluator": lambda encoder: {"pooled/ndcg@10": 0.5, "hybrid/ndcg@10": 0.5},
    }
    first = trainer_of(tiny_bert, tmp_path, **options)
    assert first.train().global_step == 3
    again = trainer_of(tiny_bert, tmp_path, **options)
    assert again.train(resume_from_checkpoint=True).global_step == 3
    longer = trainer_of(tiny_bert, tmp_path, **{**options, "patience": 3})
    assert longer.train(resume_from_checkpoint=True).global_step == 4


# -- the best and the last stay


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_and_the_last_checkpoint_stay(limit, tiny_bert, tmp_path):
    """Also after a resume from a folder that was moved, where the recorded path leads nowhere; and the best weights
    are those that the trainer ends with."""
    scores = {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.2, 5: 0.5, 6: 0.4}

    def run(folder: Path, last: int, **more):
        trainer = None

        def figures(_):
            value = scores[trainer.state.global_step]
            return {"pooled/ndcg@10": value, "hybrid/ndcg@10": value}

        chosen = {"metric_for_best_model": "pooled/ndcg@10", "load_best_model_at_end": True}
        steps = {**SHORT, "max_steps": last, "save_total_limit": limit, "eval_strategy": "steps", "eval_steps": 1}
        trainer = trainer_of(tiny_bert, folder, evaluator=figures, **chosen, **steps)
        trainer.train(**more)
        return trainer

    run(tmp_path / "run", 4)
    assert files.list_steps(tmp_path / "run" / "checkpoints") == [2, 4]
    (tmp_path / "run").rename(tmp_path / "moved")
    resumed = run(tmp_path / "moved", 6, resume_from_checkpoint=True)
    assert files.list_steps(root(resumed)) == [2, 6]
    assert resumed.state.best_model_checkpoint == str(root(resumed) / "checkpoint-2")
    best = left(root(resumed) / "checkpoint-2")["adapter_model.safetensors"]
    resumed.save_model(str(tmp_path / "final"))
    assert (tmp_path / "final" / "adapter_model.safetensors").read_bytes() == best


def test_a_best_checkpoint_that_is_gone_is_told_and_looked_for_anew(tiny_bert, tmp_path, caplog):
    figures = iter([0.9, 0.1, 0.2, 0.3])
    options = {**SHORT, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "pooled/ndcg@10"}
    options["evaluator"] = lambda _: {"pooled/ndcg@10": (value := next(figures)), "hybrid/ndcg@10": value}
    trainer_of(tiny_bert, tmp_path, **{**options, "max_steps": 2}).train()
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-1")
    resumed = trainer_of(tiny_bert, tmp_path, **options)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-1, no longer exists: the best is searched anew" in caplog.text
    assert resumed.state.best_global_step == 4 and resumed.state.best_model_checkpoint.endswith("checkpoint-4")


# -- a save that fails


class Died(BaseException):
    """As a kill would: no handler of the save sees it."""


STAGES = ("_write_weights", "_save_scaler", "_finalize", "_commit")


@pytest.mark.parametrize("stage", STAGES)
def test_a_crash_in_the_middle_of_a_save_leaves_the_previous_checkpoint_whole(
    stage, tiny_bert, short_run, tmp_path, monkeypatch
):
    """Before, in the midst of and after writing; the run then goes on from the one before and ends as ever."""
    trainer = trainer_of(tiny_bert, tmp_path / "run", **SHORT)
    owner = trainer if stage == "_save_scaler" else trainer.checkpoints
    original = getattr(owner, stage)

    def die(*args):
        if trainer.state.global_step == 3:
            raise Died
        return original(*args)

    monkeypatch.setattr(owner, stage, die)
    with pytest.raises(Died):
        trainer.train()
    assert files.list_steps(root(trainer)) == [1, 2] and files.is_complete(root(trainer) / "checkpoint-2")
    assert (root(trainer) / "checkpoint-3.part").is_dir() == (stage != "_write_weights")
    resumed = trainer_of(tiny_bert, tmp_path / "run", **SHORT)
    resumed.train(resume_from_checkpoint=True)
    assert not list(root(resumed).glob("*.part"))
    assert not differences(left(root(resumed) / "checkpoint-4"), left(short_run / "checkpoints/checkpoint-4"))


def test_a_checkpoint_that_is_being_replaced_is_never_missing(tmp_path):
    """The same step is saved once more; the process ends between the two renames."""
    folder, part = tmp_path / "checkpoint-3", tmp_path / "checkpoint-3.part"
    for path, text in ((folder, "old"), (part, "new")):
        path.mkdir()
        (path / "weights").write_text(text)
        files.finalize(path, {"step": 3, "resumable": True})
    folder.rename(tmp_path / "checkpoint-3.old")
    assert len(files.clean_up(tmp_path)) == 2
    assert files.is_complete(folder) and (folder / "weights").read_text() == "old"
    part.mkdir()
    (part / "weights").write_text("new")
    files.finalize(part, {"step": 3, "resumable": True})
    files.commit(part, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"] and (folder / "weights").read_text() == "new"


FAULTS = {
    "full": OSError(28, "No space left on device"),
    "quota": OSError(122, "Disk quota exceeded"),
    "broken": OSError(5, "Input/output error"),
    "read-only": OSError(30, "Read-only file system"),
    "safetensors": RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "torch": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_checkpoint_that_the_disk_does_not_take_is_counted_and_the_training_goes_on(
    fault, tiny_bert, tmp_path, monkeypatch, caplog
):
    trainer = trainer_of(tiny_bert, tmp_path, **SHORT)

    def fail(output_dir: str) -> None:
        if trainer.state.global_step in (2, 3):
            raise fault

    monkeypatch.setattr(trainer, "_save_rng_state", fail)
    with caplog.at_level(logging.WARNING):
        assert trainer.train().global_step == 4
    assert trainer.checkpoints.lost == [2, 3] and files.list_steps(root(trainer)) == [1, 4]
    assert not list(root(trainer).glob("*.part"))
    told = [one.getMessage() for one in caplog.records if "could not be written" in one.getMessage()]
    assert len(told) == 2 and "checkpoint of step 3" in told[1] and "the disk " in told[1]
    assert told[1].endswith("The training goes on; 2 checkpoints could not be written so far")
    assert f"{root(trainer)}/checkpoint-1 is complete" in told[0] and "MB are free" in told[0]


def test_an_error_while_writing_that_is_not_of_the_disk_ends_the_training(tiny_bert, tmp_path, monkeypatch):
    trainer = trainer_of(tiny_bert, tmp_path, **SHORT)
    monkeypatch.setattr(trainer, "_save_rng_state", lambda _: [].pop())
    with pytest.raises(CheckpointError, match="step 1 could not be written .*IndexError"):
        trainer.train()
    assert not trainer.checkpoints.lost


def test_the_best_weights_are_those_that_are_on_the_disk(tiny_bert, tmp_path, monkeypatch):
    """The best evaluation was after step 3, whose checkpoint could not be written."""
    scores = iter([0.1, 0.2, 0.9, 0.5])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "pooled/ndcg@10", "greater_is_better": True}
    options = {**SHORT, **best, "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(tiny_bert, tmp_path, evaluator=lambda _: {"pooled/ndcg@10": next(scores)}, **options)

    def fail(output_dir: str) -> None:
        if trainer.state.global_step == 3:
            raise FAULTS["full"]

    monkeypatch.setattr(trainer, "_save_rng_state", fail)
    trainer.train()
    assert trainer.state.best_global_step == 4 and trainer.state.best_metric == 0.5
    assert str(trainer.state.best_model_checkpoint).endswith("checkpoint-4")


def test_an_error_while_a_signal_ends_the_run_is_told_and_the_last_checkpoint_holds(tiny_bert, tmp_path, monkeypatch):
    trainer = trainer_of(tiny_bert, tmp_path, **SHORT)

    def full(output_dir: str) -> None:
        if trainer.state.global_step == 3:
            trainer.nonfinite.signal = 15
            raise OSError(28, "No space left on device", output_dir)

    monkeypatch.setattr(trainer, "_save_rng_state", full)
    with pytest.raises(CheckpointError) as raised:
        trainer.train()
    told = str(raised.value)
    assert "step 3 could not be written" in told and "the disk is full" in told and "MB are free" in told
    assert f"{tmp_path}/checkpoints/checkpoint-2 is complete" in told and "with resume_from_checkpoint=True" in told
    assert files.list_steps(root(trainer)) == [1, 2] and not list(root(trainer).glob("*.part"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system is mounted, which takes root")
@pytest.mark.parametrize("room", [0.3, 0.6, 0.95], ids="{} of a checkpoint's room".format)
def test_a_full_disk_is_told_and_keeps_the_last_good_checkpoint(room, tiny_bert, tmp_path, caplog):
    """A real file system with room for one checkpoint and a part of the next: weights, optimizer or the rest of it."""
    options = {**SHORT, "max_steps": 3, "adapter": {"r": 64}}
    trainer = trainer_of(tiny_bert, tmp_path / "measured", **{**options, "max_steps": 2})
    trainer.train()
    size = files.folder_size(root(trainer) / "checkpoint-2")
    mounted = tmp_path / "small"
    mounted.mkdir()
    if os.system(f"mount -t tmpfs -o size={int(size * (1 + room)) + 40_000} tmpfs {mounted}"):
        pytest.skip("no file system can be mounted here")
    try:
        filled = trainer_of(tiny_bert, mounted, **options)
        with caplog.at_level(logging.WARNING):
            filled.train()
        assert re.search(r"step 2 .* the disk is full .*checkpoint-1 is complete", caplog.text)
        assert filled.checkpoints.lost == [2, 3]
        assert files.is_complete(mounted / "checkpoints" / "checkpoint-1") and files.list_steps(root(filled)) == [1]
    finally:
        os.system(f"umount --lazy {mounted}")  # a writer that failed may still be open in the traceback


# -- a checkpoint is what was written


def rewritten(folder: Path, manifest: dict) -> None:
    (folder / "checkpoint.json").write_text(json.dumps({**manifest, "checksum": files._checksum(manifest)}))


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


FILES = ["adapter_model.safetensors", "adapter_config.json", "smart_train.json", "tokenizer.json"]
FILES += ["optimizer.pt", "scheduler.pt", "rng_state.pth", "run_state_0.pt", "trainer_state.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_told_with_the_checkpoint_to_take(name, tiny_bert, copied):
    folder = copied / "checkpoints" / "checkpoint-3"
    shutil.rmtree(copied / "checkpoints" / "checkpoint-4")
    flip(folder / name, 8 * (folder / name).stat().st_size * 2 // 3)
    wanted = rf"checkpoint-3 was damaged .*: {re.escape(name)} is not what was written .*=\S+checkpoint-2;"
    for resume_from in (True, str(folder)):
        with pytest.raises(CheckpointError, match=wanted):
            trainer_of(tiny_bert, copied, **SHORT).train(resume_from_checkpoint=resume_from)


def test_a_flipped_bit_anywhere_in_the_list_of_files_is_told(short_run, tmp_path):
    """Every 31st byte of checkpoint.json: no content but the written one is read."""
    source = short_run / "checkpoints" / "checkpoint-3" / "checkpoint.json"
    written = json.loads(source.read_text())
    for place in range(0, source.stat().st_size, 31):
        shutil.copy(source, tmp_path / "checkpoint.json")
        flip(tmp_path / "checkpoint.json", 8 * place + place % 8)
        try:
            assert files.read_manifest(tmp_path) == written, place  # a space became another
        except CheckpointError as error:
            assert "checkpoint.json" in str(error)


def test_the_first_checkpoint_damaged_means_a_new_run(tiny_bert, copied):
    folder = copied / "checkpoints" / "checkpoint-1"
    flip(folder / "optimizer.pt", 4000)
    with pytest.raises(CheckpointError, match="there is no earlier one: start a new run"):
        trainer_of(tiny_bert, copied, **SHORT).train(resume_from_checkpoint=str(folder))


def test_damaged_best_weights_are_not_loaded(tiny_bert, copied):
    trainer = trainer_of(tiny_bert, copied, **SHORT)
    trainer.state.best_model_checkpoint = str(copied / "checkpoints" / "checkpoint-2")
    trainer.checkpoints.load_best()
    flip(copied / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors", 90_000)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is not what was written"):
        trainer.checkpoints.load_best()


def test_a_checkpoint_of_version_0_1_has_no_digests_and_is_still_taken(tiny_bert, copied, caplog):
    folder = copied / "checkpoints" / "checkpoint-3"
    facts = json.loads((folder / "checkpoint.json").read_text())
    old = {key: value for key, value in facts.items() if key not in ("sha256", "checksum")}
    (folder / "checkpoint.json").write_text(json.dumps({**old, "format": 1}))
    assert trainer_of(tiny_bert, copied, **SHORT).train(resume_from_checkpoint=str(folder)).global_step == 4
    assert "written by version 0.1, without digests" in caplog.text


# -- which checkpoint


def test_the_newest_whole_checkpoint_is_taken(tiny_bert, copied, caplog):
    (copied / "checkpoints" / "checkpoint-4" / "optimizer.pt").unlink()
    resumed = trainer_of(tiny_bert, copied, **SHORT)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is incomplete on some rank; resuming from" in caplog.text
    assert files.is_complete(root(resumed) / "checkpoint-4")
    aside = [path.name for path in root(resumed).iterdir() if path.name.startswith("later")]
    assert aside == ["later-4"]  # it was put aside, not overwritten


def test_what_cannot_be_gone_on_from_is_refused_with_the_reason(tiny_bert, tmp_path):
    def refused(wanted, why: str, error: type[Exception] = CheckpointError, **other) -> None:
        with pytest.raises(error, match=why):
            trainer_of(tiny_bert, tmp_path, **{**SHORT, **other}).train(resume_from_checkpoint=wanted)

    refused(
        True,
        "there is no complete checkpoint in .*; name another in resume_from_checkpoint, or remove it to start anew",
    )
    trainer_of(tiny_bert, tmp_path, **{**SHORT, "max_steps": 2}).train()
    good = tmp_path / "checkpoints" / "checkpoint-2"
    refused(str(tmp_path / "nowhere"), "nowhere is no folder")
    refused(
        str(tmp_path),
        "has no readable checkpoint.json, so it is no complete checkpoint; .* has checkpoint-1, checkpoint-2",
    )
    refused(str(good), "adapter.r was 4, is 8", AdapterError, adapter={"r": 8})
    refused(str(good), "adapter.alpha was 32, is 4", AdapterError, adapter={"alpha": 4})
    refused(str(good), "adapter.kind was lora, is full", AdapterError, adapter={"kind": "full"})
    refused(str(good), "late.head was none, is layernorm_linear", AdapterError, late=HEAD)
    facts = json.loads((good / "checkpoint.json").read_text())
    assert facts["processes"] == 1 and facts["step"] == 2
    rewritten(good, {**facts, "engine": "DeepSpeed ZeRO-2", "processes": 4})
    refused(str(good), "written under DeepSpeed ZeRO-2 by 4 processes, .* launch as before")
    (good / "rng_state.pth").unlink()
    (good / "scheduler.pt").write_bytes(b"half")
    (good / "checkpoint.json").write_text(json.dumps(facts))
    refused(str(good), "rng_state.pth is missing; scheduler.pt has 4 bytes of")
    trainer_of(tiny_bert, tmp_path / "bare", **{**SHORT, "save_only_model": True, "max_steps": 1}).train()
    refused(str(tmp_path / "bare" / "checkpoints" / "checkpoint-1"), "has only weights")


def test_another_number_of_processes_is_told(tiny_bert, copied, caplog):
    good = copied / "checkpoints" / "checkpoint-3"
    facts = json.loads((good / "checkpoint.json").read_text())
    rewritten(good, {**facts, "engine": "DDP", "processes": 3})
    with caplog.at_level(logging.WARNING):
        assert trainer_of(tiny_bert, copied, **SHORT).train(resume_from_checkpoint=str(good)).global_step == 4
    assert "was written by 3 processes, and 1 resume" in caplog.text and "but not equal" in caplog.text


def test_a_checkpoint_of_the_untrained_start_can_be_gone_on_from(tiny_bert, tmp_path):
    """A warm-up's first step has a learning rate of zero: every LoRA B is zero, which an adapter must not be."""
    options = {**SHORT, "lr_scheduler_type": "linear", "warmup_steps": 2}
    trainer_of(tiny_bert, tmp_path / "run", **options).train()
    path = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    with pytest.raises(AdapterError, match="zero"):
        trainer_of(tiny_bert, tmp_path / "other", **options).encoder.from_pretrained(path, device="cpu")
    resumed = trainer_of(tiny_bert, tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(path))
    expected = left(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    assert left(root(resumed) / "checkpoint-4")["adapter_model.safetensors"] == expected["adapter_model.safetensors"]


def test_only_what_trains_and_its_state_is_in_a_checkpoint(tiny_bert, tmp_path):
    trainer = trainer_of(tiny_bert, tmp_path, late=HEAD, **SHORT)
    trainer.train()
    sizes = {file.name: file.stat().st_size for file in (root(trainer) / "checkpoint-4").iterdir() if file.is_file()}
    trained = 4 * sum(p.numel() for p in trainer.encoder.parameters() if p.requires_grad)
    frozen = 4 * sum(p.numel() for p in trainer.encoder.parameters() if not p.requires_grad)
    weights = sizes["adapter_model.safetensors"] + sizes["late_head.safetensors"]
    assert trained <= weights < trained + 20_000 and 2 * trained <= sizes["optimizer.pt"] < 2 * trained + 60_000
    assert trained < frozen / 4 and not [name for name in sizes if name.startswith(("model", "pytorch_model"))]


def test_schedule_free_optimizers_are_saved_with_the_weights_they_have_averaged(tiny_bert, tmp_path):
    """They keep other weights for training than for reading; eval() and train() go from the one to the other."""

    class Averaged(torch.optim.SGD):
        mode = "train"

        def train(self) -> None:
            self.mode = "train"

        def eval(self) -> None:
            self.mode = "eval"

        def step(self, closure=None):
            assert self.mode == "train"
            return super().step(closure)

    trainer = trainer_of(tiny_bert, tmp_path, **SHORT)
    seen = []
    trainer.optimizer = Averaged([p for p in trainer.encoder.parameters() if isinstance(p, nn.Parameter)], lr=1e-3)
    save = trainer._save
    trainer._save = lambda *args: (seen.append(trainer.optimizer.optimizer.mode), save(*args))
    trainer.train()
    assert seen == ["eval"] * 4


def test_a_checkpoint_that_has_no_folder_to_lie_in_says_so(tiny_bert, tmp_path, monkeypatch):
    trainer = trainer_of(tiny_bert, tmp_path / "run", **SHORT)

    def refused(self, *args, **options):
        raise OSError(28, "No space left on device")

    with (
        monkeypatch.context() as patched,
        pytest.raises(CheckpointError, match=r"disk is full .*There is no earlier checkpoint"),
    ):
        patched.setattr(Path, "mkdir", refused)
        part = root(trainer) / "checkpoint-1.part"
        trainer.checkpoints._on_every_rank(lambda: root(trainer).mkdir(), part)
