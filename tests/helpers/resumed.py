"""What the tests of checkpoints share: a run's trainer on tiny data, and what is left of a run for comparing bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from steps import JOINT, TRAINING, texts
from torch import Tensor

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, ObjectiveBlock
from smart_train.data.batch_sampler import pair_groups
from smart_train.data.collate import Collator, Pairs
from smart_train.data.collection import Collection
from smart_train.models.encoder import SmartEncoder
from smart_train.training.arguments import training_arguments
from smart_train.training.engine import prepare_deepspeed
from smart_train.training.trainer import SmartTrainer

HEAD = {"layer": [2, -1], "head": "layernorm_linear", "dim": 12}
CLOCKS = (
    "seconds",
    "dev/seconds",
    "eval_seconds",
    "speed/",
    "memory/",
    "eta_seconds",
    "train_runtime",
    "train_samples_per",
    "train_steps_per",
)


def trainer_of(
    base: Path,
    folder: Path,
    adapter: dict[str, Any] | None = None,
    late: dict[str, Any] | None = None,
    objective: ObjectiveBlock = JOINT,
    dropout: float = 0.0,
    negatives: int = 0,
    window: int | None = None,
    cached: bool | None = None,
    chunk_rows: int | None = None,
    evaluator: Any = None,
    patience: int | None = None,
    collection: Collection | None = None,
    callbacks: list[Any] | None = None,
    **training: Any,
) -> SmartTrainer:
    """Fresh objects, as a new process has them; folder: the run's.  window: batches are planned."""
    prepare_deepspeed(bool(training.get("deepspeed")))
    args = training_arguments({**TRAINING, **training}, folder)
    torch.manual_seed(args.seed)
    block = AdapterBlock(**{"r": 4, **(adapter or {})})
    encoder = SmartEncoder(
        str(base), model=ModelBlock(dropout=dropout), late=LateBlock(**(late or {})), adapter=block, device="cpu"
    )
    data = collection or texts(teacher=False)
    pairs = Pairs(data)
    collate = Collator(
        data, encoder.preprocess, negatives=negatives, length_groups=2, seed=args.seed, chunk_rows=chunk_rows
    )
    return SmartTrainer(
        encoder,
        args,
        pairs,
        objective=objective,
        data_collator=collate,
        evaluator=evaluator,
        run_dir=folder,
        gradient_caching=cached,
        pair_groups=pair_groups(data, pairs.rows, window=window) if window is not None else None,
        patience=patience,
        callbacks=callbacks,
    )


def root(trainer: SmartTrainer) -> Path:
    """The folder of its checkpoints."""
    return trainer.checkpoints.root


def log_of(folder: Path) -> list[dict[str, Any]]:
    """A run's lines without what clocks and memory say."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(CLOCKS)} for line in found]


def left(checkpoint: Path) -> dict[str, Any]:
    """Everything that a checkpoint holds, by file: bytes of weights, values of states."""
    found: dict[str, Any] = {}
    for file in sorted(checkpoint.rglob("*")):
        name = str(file.relative_to(checkpoint))
        if file.suffix == ".safetensors":
            found[name] = file.read_bytes()
        elif file.suffix in (".pt", ".pth"):
            found[name] = torch.load(file, weights_only=False)
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    names = ("global_step", "epoch", "best_metric", "best_global_step", "stateful_callbacks", "total_flos")
    history = [{k: v for k, v in one.items() if not k.startswith(CLOCKS)} for one in state["log_history"]]
    return found | {"state": {name: state[name] for name in names}, "history": history}


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Places at which two of ``left`` are not the same, bit for bit; the log's length in bytes may differ."""
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [where]
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = [name for name in {**ours, **theirs} if name != "log_bytes"]
        return [one for n in names for one in differences(ours.get(n), theirs.get(n), f"{where}/{n}")]
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [one for at, (a, b) in pairs for one in differences(a, b, f"{where}/{at}")]
    if type(ours).__module__ == "numpy":
        return [] if (ours == theirs).all() else [where]
    if type(ours) is type(theirs) and getattr(ours, "__dict__", None):  # DeepSpeed's loss scaler has no ==
        return differences(vars(ours), vars(theirs), where)
    return [] if ours == theirs else [f"{where}: {str(ours)[:80]} and {str(theirs)[:80]}"]


def whole_recipe(base: Path, rows: Path, steps: int) -> dict[str, Any]:
    """A recipe with caching, accumulation, dropout, negatives, a head, a data worker, planned batches, evaluation."""
    return {
        "name": "tiny",
        "model": {"base": str(base), "dropout": 0.1},
        "late": {"head": "layernorm_linear", "dim": 8},
        "adapter": {"r": 4, "dropout": 0.1},
        "data": {"path": str(rows), "negatives": 1, "dev": 4, "length_window": 2},
        "objective": {"batch": 4, "chunk_rows": 3},
        "training": {
            "max_steps": steps,
            "gradient_accumulation_steps": 2,
            "learning_rate": 0.01,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "metric_for_best_model": "late/ndcg@10",
            "dataloader_num_workers": 1,
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "evaluation": {"bootstrap": 20, "k": [10]},
    }
