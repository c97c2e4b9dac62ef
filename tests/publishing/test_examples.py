"""Examples of the data are in a card where they were asked for, just as they were shown; else nothing of it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smart_train.config.recipe import read, save
from smart_train.publishing.publisher import PublishError, prepare
from smart_train.publishing.run_record import examples_section


@pytest.fixture
def run(run_copy, beir_folder) -> Path:
    recipe = read(run_copy / "recipe.yaml")
    recipe.data.path, recipe.data.dev = str(beir_folder), 4
    save(recipe, run_copy)
    return run_copy


def test_what_goes_up_is_what_was_shown_and_without_asking_nothing_of_it(run, beir_folder, caplog):
    queries = [json.loads(line)["text"] for line in (beir_folder / "queries.jsonl").read_text().splitlines()]
    folder = run / "adapter"
    files = prepare(folder, folder, run, "me/mine", None)
    everything = b"\n".join(f if isinstance(f, bytes) else f.read_bytes() for f in files.values())
    assert not [query for query in queries if query.encode() in everything]
    with caplog.at_level("INFO", "smart_train"):
        card = prepare(folder, folder, run, "me/mine", None, examples=2)["README.md"]
    assert isinstance(card, bytes)
    section = caplog.text[caplog.text.index("### Examples") :].split("\n\n")[2]
    assert sum(query in section for query in queries) == 2 and section in card.decode()
    assert "2 of " in caplog.text and "pairs will be public" in caplog.text


def test_examples_of_other_data_than_the_run_had_are_refused(run, beir_folder, run_copy):
    (run / "versions.json").write_text(json.dumps({"data": {"train": "0" * 64}}))
    with pytest.raises(PublishError, match="holds other data than"):
        examples_section(run, 2)
    recipe = read(run / "recipe.yaml")
    recipe.data.path = str(run / "gone")
    save(recipe, run)
    with pytest.raises(PublishError, match="cannot be read"):
        examples_section(run, 2)


def test_examples_need_a_run(run_copy):
    with pytest.raises(PublishError, match="need the run's folder"):
        examples_section(None, 2)
