"""Who is measured by gpu_step.py: our trainer and sentence-transformers' own, on one model, each in its own process."""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import gpu_model
import sentence_transformers
import torch
from transformers import TrainerCallback

FIRST = 2  # steps that are not counted: kernels are compiled and chosen in them
PLAIN, CACHED, MANY = "plain", "cached", "many"  # one pass; the same batch in chunks; four times the batch in chunks

CONTENDERS: dict[str, dict[str, Any]] = {
    "st pooled": {"who": "st", "how": PLAIN},
    "st pooled, cached": {"who": "st", "how": CACHED},
    "st multi-vector": {"who": "multi", "how": PLAIN},
    "st multi-vector, cached": {"who": "multi", "how": CACHED},
    "ours pooled": {"who": "ours", "how": PLAIN, "late": 0.0},
    "ours pooled, cached": {"who": "ours", "how": CACHED, "late": 0.0},
    "ours joint": {"who": "ours", "how": PLAIN},
    "ours joint, cached": {"who": "ours", "how": CACHED},
    "ours joint, d = 128": {"who": "ours", "how": PLAIN, "dim": 128},
    "ours joint, d = 128, no kernels": {"who": "ours", "how": PLAIN, "dim": 128, "kernels": False},
    "ours joint, d = 128, cached": {"who": "ours", "how": CACHED, "dim": 128},
    "ours joint, d = 128, cached, many": {"who": "ours", "how": MANY, "dim": 128},
}


# -- the contenders ---------------------------------------------------------------------------------------------------


def arguments(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    on_cpu = options.device == "cpu"
    return {
        "per_device_train_batch_size": batch,
        "max_steps": options.steps,
        "learning_rate": 1e-4,
        "bf16": True,
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "dataloader_num_workers": options.workers,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": on_cpu,
        "seed": 0,
    }


def clock(device: str) -> Any:
    """A callback that keeps the time of every step's end."""

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            if device != "cpu":
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())

        on_step_end = on_train_begin

    return Clock()


def ours(base: Path, files: list[Path], spec: dict[str, Any], options: argparse.Namespace, folder: str) -> Any:
    from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, ObjectiveBlock, TermBlock
    from smart_train.data.collate import Collator, Pairs
    from smart_train.data.collection import Collection, Document
    from smart_train.losses import maxsim_fused as kernels
    from smart_train.models.encoder import SmartEncoder
    from smart_train.training.arguments import training_arguments
    from smart_train.training.trainer import SmartTrainer

    if not spec.get("kernels", True):
        kernels._library = lambda: None
    corpus = {f"d{n}": Document(f"d{n}", image=str(file)) for n, file in enumerate(files)}
    queries = {f"q{n}": gpu_model.query(n) for n in range(len(files))}
    pairs = Collection("pages", corpus, queries, {f"q{n}": {f"d{n}": 1} for n in range(len(files))})
    dim = min(spec["dim"], 16) if "dim" in spec and options.tiny else spec.get("dim")
    late = LateBlock(head="linear" if dim else "none", dim=dim)
    model = ModelBlock(dtype="bfloat16")
    encoder = SmartEncoder(str(base), model=model, late=late, adapter=AdapterBlock(), device=options.device)
    objective = ObjectiveBlock(late=TermBlock(weight=spec.get("late", 1.0)))
    batch, rows = sizes(spec["how"], options)
    objective.batch = batch if rows else None
    collate = Collator(pairs, encoder.preprocess, chunk_rows=rows)
    args = training_arguments(arguments(options, batch), Path(folder))
    watch = clock(options.device)
    trainer = SmartTrainer(encoder, args, Pairs(pairs), objective=objective, data_collator=collate, callbacks=[watch])
    return trainer, watch, encoder.token_width if spec.get("late", 1.0) else None


def theirs(base: Path, files: list[Path], spec: dict[str, Any], options: argparse.Namespace, folder: str) -> Any:
    """sentence-transformers' trainer and loss, pooled or multi-vector, with the LoRA that ours has."""
    from datasets import Dataset, Image

    from smart_train.config.schema import AdapterBlock
    from smart_train.models.lora import add_lora
    from smart_train.models.processors import images_without_torchvision

    rows = {"anchor": [gpu_model.query(n) for n in range(len(files))], "positive": [str(file) for file in files]}
    data = Dataset.from_dict(rows).cast_column("positive", Image())
    batch, chunk = sizes(spec["how"], options)
    several = spec["who"] == "multi"
    package = "multi_vector_encoder" if several else "sentence_transformer"
    kind = "MultiVectorEncoder" if several else "SentenceTransformer"
    room = importlib.import_module(f"sentence_transformers.{package}")
    losses = importlib.import_module(f"sentence_transformers.{package}.losses")
    with images_without_torchvision():
        model = getattr(sentence_transformers, kind)(
            str(base), device=options.device, model_kwargs={"dtype": torch.bfloat16}
        )
    add_lora(model[0].model, AdapterBlock(), str(base), None)
    name = "MultiVectorMultipleNegativesRankingLoss" if several else "MultipleNegativesRankingLoss"
    cut = {"mini_batch_size": chunk} if chunk else {}
    loss = getattr(losses, f"Cached{name}" if chunk else name)(model, **cut)
    args = getattr(room, f"{kind}TrainingArguments")(output_dir=folder, **arguments(options, batch))
    watch = clock(options.device)
    trainer = getattr(room, f"{kind}Trainer")(model=model, args=args, train_dataset=data, loss=loss, callbacks=[watch])
    return trainer, watch, model.get_embedding_dimension() if several else None


def sizes(how: str, options: argparse.Namespace) -> tuple[int, int | None]:
    """(pairs a step, rows of a chunk; None = one pass)."""
    return options.pairs * (4 if how == MANY else 1), None if how == PLAIN else options.chunk


def resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def one(name: str, base: Path, files: list[Path], options: argparse.Namespace) -> dict[str, Any]:
    """Runs one contender in this process."""
    spec = CONTENDERS[name]
    batch, chunk = sizes(spec["how"], options)
    with tempfile.TemporaryDirectory() as folder:
        trainer, watch, width = (ours if spec["who"] == "ours" else theirs)(base, files, spec, options, folder)
        on_gpu = options.device != "cpu"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")
            before = resident()
        trainer.train()
        held = torch.cuda.max_memory_allocated() if on_gpu else resident() - before
        reserved = torch.cuda.max_memory_reserved() if on_gpu else None
    spent = [b - a for a, b in zip(watch.marks, watch.marks[1:], strict=False)][FIRST:]
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    memory = {"allocated": held, "reserved": reserved, "weights": before if on_gpu else None}
    seconds = median(spent)
    found = {"pairs": batch, "chunk": chunk, "width": width, "trained": trained, "seconds": seconds}
    return {**found, "pairs_per_second": batch / seconds, "steps": len(spent), **memory}
