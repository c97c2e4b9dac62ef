"""A disk costs no trained weights: the output, then a second place that is named, then memory until there is room."""

from __future__ import annotations

import json
import logging
import resource
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from resumed import trainer_of

from smart_train.checks.recipe import check
from smart_train.cli import main as command
from smart_train.config.recipe import read
from smart_train.core.errors import CheckpointError, DataError, SavedElsewhere
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import lora_parameters
from smart_train.training import final_save
from smart_train.training.final_save import save_trained
from smart_train.training.run import run

FAULTS = {
    "full": OSError(28, "No space left on device"),
    "quota": OSError(122, "Disk quota exceeded"),
    "too large": OSError(27, "File too large"),
    "broken": OSError(5, "Input/output error"),
    "read-only": OSError(30, "Read-only file system"),
    "safetensors": RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.fixture
def trainer(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "second"))
    (tmp_path / "second").mkdir()
    trainer = trainer_of(tiny_bert, tmp_path / "run", max_steps=1)
    for parameter in trainer.encoder.parameters():  # an untrained LoRA changes nothing, and is refused when it is read
        if parameter.requires_grad:
            parameter.data.fill_(0.5)
    return trainer


def check_saved(trainer, place: Path) -> None:
    ours = lora_parameters(trainer.encoder.backbone)
    theirs = lora_parameters(SmartEncoder.from_pretrained(place, device="cpu").backbone)
    assert ours and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def spoil(monkeypatch):
    """spoil(fault, folder ...): saving there writes half a file, then fails; returns the folders, to be changed."""
    save = SmartEncoder.save_pretrained

    def begin(fault: Exception, *folders: Path) -> set[Path]:
        spoilt = set(folders)

        def half(self, folder, **options):
            if any(folder.is_relative_to(one) for one in spoilt):
                folder.mkdir(parents=True)
                (folder / "adapter_model.safetensors").write_bytes(b"half")
                raise fault
            return save(self, folder, **options)

        monkeypatch.setattr(SmartEncoder, "save_pretrained", half)
        return spoilt

    return begin


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_the_output_does_not_take_goes_to_the_second_place(fault, trainer, spoil, tmp_path):
    spoil(fault, tmp_path / "run")
    place = save_trained(trainer, tmp_path / "run" / "adapter")
    assert place.parent.parent == tmp_path / "second" and place.parent.name.startswith("smart-train-run-")
    check_saved(trainer, place)
    assert not (tmp_path / "run" / "adapter").exists()  # half an adapter would look like one


def test_without_any_room_the_weights_wait_in_memory_until_there_is_some(trainer, tmp_path, monkeypatch, caplog):
    """A real limit: no file may be larger than 1 kB; it is lifted while the run waits."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    monkeypatch.setattr(final_save.time, "sleep", wait)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with caplog.at_level(logging.ERROR, "smart_train.training.final_save"):
            place = save_trained(trainer, tmp_path / "run" / "adapter")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert place == tmp_path / "run" / "adapter" and waited == [final_save.RETRY] * 2
    told = caplog.records[0].getMessage()
    assert len(caplog.records) == 2 and f"{place}: File too large; {tmp_path / 'second'}/smart-train-run-" in told
    assert "They stay in memory: free about 35 MB in one of these places" in told
    check_saved(trainer, place)
    assert not any((tmp_path / "second").rglob("*.safetensors"))


def test_room_for_the_weights_alone_is_not_enough(trainer, tmp_path, monkeypatch):
    """Checksums, settings and metrics come after them."""
    whole = final_save._check_spare

    def full(place: Path) -> None:
        if place.is_relative_to(tmp_path / "run"):
            raise FAULTS["full"]
        whole(place)

    monkeypatch.setattr(final_save, "_check_spare", full)
    assert save_trained(trainer, tmp_path / "run" / "adapter").is_relative_to(tmp_path / "second")


def test_the_wait_ends(trainer, spoil, tmp_path, monkeypatch):
    spoil(FAULTS["full"], tmp_path)
    monkeypatch.setattr(final_save, "PATIENCE", -1.0)
    with pytest.raises(CheckpointError, match="could not be saved for .* and are lost: .*adapter: No space left"):
        save_trained(trainer, tmp_path / "run" / "adapter")


def test_an_error_that_is_not_of_the_disk_is_raised_as_it_is(trainer, spoil, tmp_path):
    spoil(ZeroDivisionError("a bug"), tmp_path / "run")
    with pytest.raises(ZeroDivisionError, match="a bug"):
        save_trained(trainer, tmp_path / "run" / "adapter")


@pytest.fixture
def recipe(tmp_path, tiny_bert, triples_file, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "second"))
    (tmp_path / "second").mkdir()
    content = {
        "output": str(tmp_path / "run"),
        "model": {"base": str(tiny_bert)},
        "adapter": {"r": 4},
        "data": {"path": str(triples_file), "dev": 2, "test": 2},
        "training": {"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "save_steps": 1},
        "evaluation": {"before": False, "bootstrap": 1},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_run_whose_disk_is_full_at_its_end_leaves_a_verified_adapter_and_its_metrics(recipe, spoil, tmp_path):
    spoil(FAULTS["full"], tmp_path / "run")  # the checkpoint of the last step as well
    wanted = read(recipe, [])
    check(wanted)
    with pytest.raises(SavedElsewhere, match="adapter is in .*, verified; free space, then move it to") as raised:
        run(wanted)
    assert raised.value.status == 1
    (results,) = (tmp_path / "second").iterdir()
    assert json.loads((results / "adapter" / "verified.json").read_text())["files"]
    assert json.loads((results / "metrics.json").read_text())["trained"]
    assert json.loads((results / "evaluation.json").read_text())["lost_checkpoints"] == [1]
    assert not list((tmp_path / "run").rglob("*.safetensors")) and (tmp_path / "run" / "log.jsonl").is_file()


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_disk_that_fails_elsewhere_is_a_sentence_of_any_command(fault, monkeypatch, capsys):
    def fail(*_: object) -> None:
        try:
            raise fault
        except (OSError, RuntimeError) as error:
            raise KeyError("a library's own") from error

    monkeypatch.setattr(command.new, "run", fail)
    assert command.main(["new", "mine.yaml"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "run the same command again" in line


def test_a_sentence_of_ours_about_the_disk_stays_ours(monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise DataError("page 3 cannot be stored") from FAULTS["full"]

    monkeypatch.setattr(command.new, "run", fail)
    assert command.main(["new", "mine.yaml"]) == 1
    assert capsys.readouterr().err == "page 3 cannot be stored\n"
