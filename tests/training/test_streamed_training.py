"""Training on a stream: the loss of a batch in memory, the run of a recipe, and a resumed run that is the whole one."""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.data_loader import BatchSamplerShard
from ranks import run_ranks
from safetensors.torch import load_file
from steps import JOINT, TRAINING, texts

from smart_train.checks.recipe import check
from smart_train.config.recipe import read
from smart_train.config.schema import AdapterBlock, DataBlock, ModelBlock
from smart_train.config.typed_values import RecipeError
from smart_train.core.errors import DataError, SettingError
from smart_train.data.collate import Collator
from smart_train.data.load import load
from smart_train.data.streaming import BatchNumbers, RowStream, StreamedBatches
from smart_train.models.encoder import SmartEncoder
from smart_train.training.arguments import training_arguments
from smart_train.training.dataloader import batch_of
from smart_train.training.run import run
from smart_train.training.trainer import SmartTrainer


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder with the splits train, in two shards, dev and test."""
    data = texts(teacher=False)
    texts_of = {query: [data.corpus[document].text for document in judged] for query, judged in data.qrels.items()}
    lines = [
        json.dumps({"query": data.queries[query], "positive": found, "negative": data.corpus["d7"].text})
        for query, found in texts_of.items()
        if query != "q7"
    ]
    folder = tmp_path / "rows"
    folder.mkdir()
    parts = {"train-00000-of-00002": lines[:9], "train-00001-of-00002": lines[9:16]}
    parts |= {"dev": lines[16:20], "test": lines[20:]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in part))
    return folder


@pytest.fixture
def recipe(rows, tiny_bert, tmp_path):
    """recipe(*overrides) -> a recipe that streams ``rows``."""
    block = {
        "name": "tiny",
        "model": {"base": str(tiny_bert)},
        "adapter": {"r": 4},
        "late": {"head": "linear", "dim": 8},
        "data": {"path": str(rows), "streaming": True, "shuffle_buffer": 6, "negatives": 1},
        "training": {**TRAINING, "max_steps": 12, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 20},
        "evaluation": {"bootstrap": 10, "k": [10], "before": False},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(block))
    return lambda *words: read(path, list(words))


def streaming(base: Path, data: Any, folder: Path, **training: Any) -> SmartTrainer:
    torch.manual_seed(0)
    encoder = SmartEncoder(str(base), model=ModelBlock(dropout=0.0), adapter=AdapterBlock(r=4), device="cpu")
    args = training_arguments({**TRAINING, **training}, folder)
    return SmartTrainer(encoder, args, data, objective=JOINT, run_dir=folder)


@pytest.mark.slow
def test_the_loss_of_a_streamed_batch_is_that_of_the_same_batch_in_memory(rows, tiny_bert, tmp_path):
    stream = RowStream.open(rows, negatives=1, shuffle_buffer=6)
    trainer = streaming(tiny_bert, stream, tmp_path / "run", max_steps=3)
    held = load(DataBlock(path=str(rows), negatives=1, dev=0))[0]
    collate = trainer.data_collator.collate.collate
    assert isinstance(collate, Collator)
    for inputs in islice(trainer.get_train_dataloader(), 3):
        batch = batch_of(inputs)
        expected = Collator(held, collate.preprocess, 1, collate.length_groups, collate.seed)(batch.rows)
        ours, theirs = (trainer.batch_loss(trainer.encoder, one).total for one in (batch, expected))
        assert torch.equal(ours, theirs) and ours > 0


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5, 11])
def test_a_run_that_is_stopped_and_resumed_ends_as_the_uninterrupted_one(step, recipe, tmp_path, caplog):
    """12 steps of 4 of 21 pairs: two passes and a bit; the resumed run reads in two data workers."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    with caplog.at_level(logging.INFO):
        check(started := recipe(f"output={whole}"))
        run(started)
    told = [record.message for record in caplog.records]
    assert [line for line in told if line.startswith("rows/train")] == [
        "rows/train, pass 1: 16 rows read, 21 pairs",
        "rows/train, pass 2: 16 rows read, 21 pairs",
        "rows/train: training ended after 6 pairs of pass 3",
    ]
    assert any("a query's answers in other batches are not known" in line for line in told)
    begin = f"training.resume_from_checkpoint={whole}/checkpoints/checkpoint-{step}"
    run(recipe(f"output={resumed}", begin, "training.dataloader_num_workers=2"))
    for name in ("adapter_model.safetensors", "late_head.safetensors"):
        expected, found = (load_file(folder / "adapter" / name) for folder in (whole, resumed))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], weight) for key, weight in expected.items())
    lines = [
        {one["step"]: one["loss/late"] for one in map(json.loads, (folder / "log.jsonl").open()) if "loss/late" in one}
        for folder in (whole, resumed)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 12
    facts = json.loads((whole / "facts.json").read_text())
    assert facts["data"]["splits"]["train"] == {} and facts["data"]["splits"]["dev"]["queries"]


@pytest.mark.slow
def test_another_buffer_than_the_checkpoint_s_is_told_and_read_from_the_start(rows, tiny_bert, tmp_path, caplog):
    first = streaming(
        tiny_bert, RowStream.open(rows, shuffle_buffer=6), tmp_path / "run", save_strategy="steps", save_steps=1
    )
    first.train()
    again = streaming(tiny_bert, RowStream.open(rows, shuffle_buffer=5), tmp_path / "run", max_steps=3)
    with caplog.at_level(logging.WARNING):
        again.train(resume_from_checkpoint=True)
    assert "the streamed data, the seed or data.shuffle_buffer differ from the checkpoint's" in caplog.text
    assert again.state.global_step == 3


@pytest.mark.slow
def test_an_iterable_dataset_trains_in_python(rows, tiny_bert, tmp_path):
    import datasets

    files = {"train": [str(file) for file in sorted(rows.glob("train-*"))]}
    data = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    trainer = streaming(tiny_bert, data, tmp_path / "run", dataloader_num_workers=2)
    trainer.train()
    assert trainer.state.global_step == 2


def train_on_ranks(base: str, rows: str, folder: str, size: int) -> dict[str, Any]:
    """Train three steps on this rank; return its rows by step, and the weights that were trained."""
    stream = RowStream.open(rows, shuffle_buffer=16)
    options = {"max_steps": 3, "per_device_train_batch_size": size, "optim": "sgd"}
    trainer = streaming(Path(base), stream, Path(folder), **options)
    seen: list[list[tuple[str, str]]] = []
    step = trainer.batch_loss

    def record(model: Any, batch: Any) -> Any:
        seen.append([(query, document) for query, document in batch.rows])
        return step(model, batch)

    trainer.batch_loss = record  # type: ignore[method-assign]
    trainer.train()
    weights = {name: one.detach() for name, one in trainer.encoder.named_parameters() if one.requires_grad}
    return {"rows": seen, "weights": weights}


@pytest.mark.slow
def test_two_ranks_train_on_the_batches_of_one_and_end_with_its_weights(tiny_bert, tmp_path):
    data, rows = texts(teacher=False), tmp_path / "rows.jsonl"
    pairs = [{"query": data.queries[f"q{n}"], "positive": data.corpus[f"d{n}"].text} for n in range(24)]
    rows.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    alone = train_on_ranks(str(tiny_bert), str(rows), str(tmp_path / "alone"), 8)
    ranks = run_ranks(2, train_on_ranks, str(tiny_bert), str(rows), str(tmp_path / "ranks"), 4)
    for step, whole in enumerate(alone["rows"]):
        shares = [rank["rows"][step] for rank in ranks]
        assert [len(share) for share in shares] == [4, 4] and sorted(shares[0] + shares[1]) == sorted(whole)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(ranks[0]["weights"][name], weight, atol=1e-5, rtol=0)
    assert max(weight.abs().max() for name, weight in alone["weights"].items() if "lora_B" in name) > 1e-3  # from 0


@pytest.mark.slow
def test_a_row_that_a_data_worker_cannot_read_ends_the_run_with_its_file_and_line(rows, tiny_bert, tmp_path):
    file = rows / "long.jsonl"
    lines = [json.dumps({"query": f"ask {n}", "positive": f"answer {n}"}) for n in range(120)]
    file.write_text("\n".join([*lines, '{"query": 3']) + "\n")
    stream = RowStream.open(file, shuffle_buffer=6)
    trainer = streaming(tiny_bert, stream, tmp_path / "run", max_steps=40, dataloader_num_workers=1)
    with pytest.raises(DataError) as error:
        trainer.train()
    assert str(error.value).startswith(f"{file}:121: not JSON")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_accelerate_gives_each_rank_its_share_of_every_batch(ranks):
    shares = [[*BatchSamplerShard(BatchNumbers(5, ranks), ranks, rank)] for rank in range(ranks)]
    assert shares == [[[number * ranks + rank] for number in range(5)] for rank in range(ranks)]


REFUSED = {
    "training.max_steps=-1": "training.max_steps: is not given, and the number of pairs of a stream is not known; "
    "write it: the rows you want to train on, divided by 4",
    "training.save_strategy=epoch": "training.save_strategy: is epoch, and while streaming a run is one epoch",
    "training.eval_strategy=epoch": "training.eval_strategy: is epoch, and while streaming a run is one epoch",
    "mining.rounds=1": "mining.rounds: is 1, but data.streaming does not know all rows before training, so it can't "
    "look for negatives among them; mine negatives before",
    "data.limit=4": "data.limit: is 4, but data.streaming does not know all rows before training, so it takes no first",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_a_stream_does_not_know_is_refused_before_the_model_is_loaded(word, recipe):
    with pytest.raises(RecipeError) as error:
        check(recipe(word))
    assert REFUSED[word] in str(error.value)


def test_a_recipe_that_streams_is_accepted(recipe):
    check(recipe())


@pytest.mark.slow
def test_a_trainer_needs_to_know_its_steps(rows, tiny_bert, tmp_path):
    with pytest.raises(SettingError, match="training.max_steps: is not given"):
        streaming(tiny_bert, RowStream.open(rows), tmp_path, max_steps=-1)


@pytest.mark.slow
def test_memory_is_bounded_by_the_buffer(tmp_path):
    """A file of 10 MB, of which 200 rows are in memory at a time, in any pass."""
    import tracemalloc

    file = tmp_path / "rows.jsonl"
    with file.open("w") as stream:
        for number in range(10_000):
            stream.write(json.dumps({"query": f"ask {number}", "positive": f"{number} " + "word " * 200}) + "\n")
    batches = StreamedBatches(RowStream.open(file, shuffle_buffer=200), 64)
    batches[0]
    tracemalloc.start()
    for number in range(310):  # two passes
        batches[number]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6 < file.stat().st_size / 3
