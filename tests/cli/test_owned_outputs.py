"""Every command refuses an output that another process is writing to, before a model is loaded."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
from word_encoder import words_collection

from smart_train import SmartEncoder, SmartTrainer, TrainingArguments
from smart_train.cli import benchmark, evaluate, mine, options, probe
from smart_train.cli.main import main
from smart_train.core.errors import FolderInUse
from smart_train.core.folder_lock import NAME, FolderLock, own
from smart_train.data import store

PAIRS = [{"query": f"query {n}", "positive": f"document {n}"} for n in range(4)]


@pytest.fixture
def data(tmp_path) -> Path:
    whole = words_collection(12)
    for at, split in enumerate(("dev", "test", "train")):
        names = list(whole.queries)[at::3]
        queries, qrels = ({name: of[name] for name in names} for of in (whole.queries, whole.qrels))
        store.write(replace(whole, queries=queries, qrels=qrels), tmp_path / "data", split)
    return tmp_path / "data"


@pytest.fixture
def commands(data, tmp_path, tiny_bert) -> dict[str, tuple[list[str], Path]]:
    """name -> (words, the folder that is owned by another)."""
    out, read = tmp_path / "out", ["--model", str(tiny_bert)]
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("words of a document, of which there are some")
    return {
        "evaluate": (["evaluate", str(data), *read, "--output", str(out)], out),
        "evaluate --store": (["evaluate", str(data), *read, "--store", str(out)], out),
        "probe": (["probe", str(data), *read, "--output", str(out)], out),
        "benchmark": (["benchmark", "--tasks", "NFCorpus", *read, "--output", str(out)], out),
        "mine": (["mine", str(data), *read], data / "mining"),
        "mine --out": (["mine", str(data), *read, "--out", str(out)], tmp_path / ".out.part"),
        "ingest": (["ingest", str(docs), "--out", str(out)], out),
        "export": (["export", str(tiny_bert), "--as", "merged", "--out", str(out)], tmp_path / ".out.part"),
        "data check": (
            [
                "data",
                "check",
                str(data),
                "--ignore",
                "leak-page",
                "--ignore",
                "leak-file",
                "--ignore",
                "leak-query",
                "--fix",
                str(out),
            ],
            tmp_path / ".out.part",
        ),
    }


@pytest.mark.parametrize(
    "command",
    ["evaluate", "evaluate --store", "probe", "benchmark", "mine", "mine --out", "ingest", "export", "data check"],
)
def test_an_output_in_use_is_refused_with_process_host_and_age(command, commands, capsys, monkeypatch, data):
    for module in (benchmark, evaluate, mine, probe, options):
        monkeypatch.setattr(module, "make_encoder", lambda _: pytest.fail("a model was loaded"))
    words, owned = commands[command]
    if command == "data check":  # something to fix
        store.write_qrels(data, "more", {"nobody": {"d0": 1}, "q0": {"d0": 1}})
    with FolderLock(owned):
        assert main(words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"is in use by process {os.getpid()} on " in line and "last sign of life" in line and "Traceback" not in line


@pytest.fixture
def trainer(tmp_path, tiny_bert):
    def make() -> SmartTrainer:
        arguments = TrainingArguments(
            str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to=[]
        )
        return SmartTrainer(SmartEncoder(str(tiny_bert), lora={"r": 2}, device="cpu"), arguments, PAIRS)

    return make


def test_two_trainers_do_not_train_into_one_folder(trainer, tmp_path, caplog):
    with FolderLock(tmp_path / "run") as first:
        with pytest.raises(FolderInUse, match=f"run is in use by process {os.getpid()} on .*last sign of life"):
            trainer().train()
        dead = {**first.owner, "pid": 2**22 + 1, "born": 1}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).write_text(str(dead).replace("'", '"'))
    with caplog.at_level(logging.WARNING):
        assert trainer().train().global_step == 1
    assert f"took over {tmp_path / 'run'} from process {2**22 + 1} on" in caplog.text
    assert not (tmp_path / "run" / NAME).exists()
    with own(tmp_path):  # as a recipe's run owns the folder above
        assert trainer().train().global_step == 1
