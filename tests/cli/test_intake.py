"""Every command takes a base or an adapter through the same intake: what could run code, hang, lead elsewhere or is not
whole ends with status 2 and one sentence, whichever door it comes through."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import yaml
from adapters import trained

from smart_train.cli.main import main
from smart_train.config.schema import AdapterBlock


class Mine:
    """Unpickled, it writes the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


def a_pickle(folder: Path, ran: Path) -> None:
    (folder / "vocab.pkl").write_bytes(pickle.dumps(Mine(ran)))


def a_pipe(folder: Path, ran: Path) -> None:
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    os.mkfifo(folder / "special_tokens_map.json")


def a_link(folder: Path, ran: Path) -> None:
    (folder / "words.txt").symlink_to("/etc/hostname")


def code_of_its_own(folder: Path, ran: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "evil.Evil"
    (folder / "modules.json").write_text(json.dumps(modules))


def cut_weights(folder: Path, ran: Path) -> None:
    path = next(path for path in folder.glob("*model.safetensors"))
    path.write_bytes(path.read_bytes()[:-500])


def a_looping_template(folder: Path, ran: Path) -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}looped{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loops)


HOSTILE = {
    "a pickle": (a_pickle, "is a pickle by its name"),
    "a pipe": (a_pipe, "neither a file nor a folder"),
    "a link": (a_link, "is a link to"),
    "code": (code_of_its_own, "is of the class evil.Evil"),
    "cut weights": (cut_weights, "not a whole safetensors file"),
    "a loop": (a_looping_template, "makes more than"),
}


def recipe(folder: Path, base: Path, data: Path) -> str:
    content = {"model": {"base": str(base)}, "data": {"path": str(data)}, "output": str(folder / "run")}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "mine.yaml")


BASES = {  # command -> its words, with a base
    "evaluate": lambda base, data, out: ["evaluate", data, "--model", base, "--output", out / "found"],
    "mine": lambda base, data, out: ["mine", data, "--model", base, "--out", out / "found"],
    "probe": lambda base, data, out: ["probe", data, "--model", base, "--output", out / "found"],
    "heatmap": lambda base, data, out: ["heatmap", "a", "--text", "b", "--model", base, "--output", out / "a.png"],
    "benchmark": lambda base, data, out: [
        "benchmark",
        "--model",
        base,
        "--tasks",
        "NanoSciFactRetrieval",
        "--output",
        out / "b",
    ],
    "train": lambda base, data, out: ["train", recipe(out, base, data)],
    "doctor": lambda base, data, out: ["doctor", recipe(out, base, data)],
}
ADAPTERS = {  # command -> its words, with a base and an adapter
    "evaluate": lambda base, one, data, out: [*BASES["evaluate"](base, data, out), "--adapter", one],
    "mine": lambda base, one, data, out: [*BASES["mine"](base, data, out), "--adapter", one],
    "probe": lambda base, one, data, out: [*BASES["probe"](base, data, out), "--adapter", one],
    "heatmap": lambda base, one, data, out: [*BASES["heatmap"](base, data, out), "--adapter", one],
    "benchmark": lambda base, one, data, out: [*BASES["benchmark"](base, data, out), "--adapter", one],
    "export": lambda base, one, data, out: ["export", one, "--as", "merged", "--out", out / "found"],
    "merge": lambda base, one, data, out: ["merge", one, one, "--out", out / "found"],
}


def refused(words, message: str, capsys, ran: Path) -> None:
    status = main([str(word) for word in words])
    told = capsys.readouterr()
    assert status == 2, told.err[-2000:]
    assert message in told.err and "Traceback" not in told.err
    assert not ran.exists()


def doors(commands) -> list:
    """Every kind at two or three commands, and all of them in the slow tests."""
    return [
        pytest.param(command, kind, marks=[] if (door + number) % 3 == 0 else pytest.mark.slow)
        for door, command in enumerate(commands)
        for number, kind in enumerate(HOSTILE)
    ]


@pytest.mark.parametrize(("command", "kind"), doors(BASES))
def test_a_base_is_refused_at_every_door(command, kind, tiny_bert, triples_file, tmp_path, capsys):
    base = Path(shutil.copytree(tiny_bert, tmp_path / "base"))
    spoil, message = HOSTILE[kind]
    spoil(base, tmp_path / "ran")
    refused(BASES[command](base, triples_file, tmp_path), message, capsys, tmp_path / "ran")


@pytest.fixture(scope="module")
def saved(tiny_bert, tmp_path_factory) -> Path:
    return trained(tiny_bert, AdapterBlock(r=2)).save_pretrained(tmp_path_factory.mktemp("saved") / "adapter")


@pytest.mark.parametrize(("command", "kind"), doors(ADAPTERS))
def test_an_adapter_is_refused_at_every_door(command, kind, saved, tiny_bert, triples_file, tmp_path, capsys):
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    spoil, message = HOSTILE[kind]
    spoil(folder, tmp_path / "ran")
    refused(ADAPTERS[command](tiny_bert, folder, triples_file, tmp_path), message, capsys, tmp_path / "ran")
