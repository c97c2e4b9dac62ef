"""Short runs under every engine, and what is compared between one process and several: losses, gradient norms, weights,
the saved adapter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import steps
import tiny_data
import torch
import torch.distributed as dist

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock
from smart_train.data.batch_sampler import pair_groups
from smart_train.data.collate import Collator, Pairs
from smart_train.data.collection import Collection, Document
from smart_train.models.encoder import SmartEncoder
from smart_train.models.verification import verify
from smart_train.training.arguments import training_arguments
from smart_train.training.engine import full_state_dict, prepare_deepspeed
from smart_train.training.trainer import SmartTrainer

STEPS = 5
PAIRS, BATCH = 22, 4  # in whole epochs: batches of 4 and of 3, so that two ranks have 2 and 2, or 2 and 1 pairs
LATE = LateBlock(layer=[2, -1], head="layernorm_linear")
LORA = AdapterBlock(r=4)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"cached": False},
    "cached": {"cached": True},
    "accumulated": {"cached": False, "gradient_accumulation_steps": 2},
    "cached, accumulated": {"cached": True, "gradient_accumulation_steps": 2},
    # of a gradient that is nearly 0, Adam makes a step of its rounding error's sign: unless epsilon is above it
    "adamw": {"cached": True, "optim": "adamw_torch", "adam_epsilon": 1e-4},
    "clipped": {"cached": True, "max_grad_norm": 1.0},  # DeepSpeed has one norm for the head and the rest
}
ENGINES = ("DDP", "DeepSpeed ZeRO-2", "DeepSpeed ZeRO-3", "FSDP2")


def collection() -> Collection:
    """Texts of unequal length; every query has two hard negatives, and every third a second answer."""
    corpus = {
        f"d{n}": Document(f"d{n}", tiny_data.passage(n) + " and the market by the river" * (n % 4))
        for n in range(PAIRS)
    }
    queries = {f"q{n}": f"what stands beside the {tiny_data.TOPICS[n]}" for n in range(PAIRS)}
    qrels = {f"q{n}": {f"d{n}": 1} | ({f"d{(n + 1) % PAIRS}": 1} if n % 3 == 0 else {}) for n in range(PAIRS)}
    negatives = {f"q{n}": [f"d{(n + 5) % PAIRS}", f"d{(n + 9) % PAIRS}"] for n in range(PAIRS)}
    return Collection("equal", corpus, queries, qrels, negatives)


def deepspeed_config(stage: int) -> dict[str, Any]:
    """As launch/zero2.json and zero3.json, with torch's own optimizers."""
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {
        **dict.fromkeys(auto, "auto"),
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }


@contextmanager
def fsdp_on_cpu(wanted: bool) -> Iterator[None]:
    """accelerate has FSDP on accelerators only, and is DDP on a CPU without a word; here it is told that these
    processes are as good, and shards over gloo."""
    if not wanted:
        yield
        return
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    made = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        made(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)

    names = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    names |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    os.environ.update(names)
    AcceleratorState.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        AcceleratorState.__init__ = made  # type: ignore[method-assign]
        for name in names:
            del os.environ[name]


def trainer_of(folder: str, out: Path, engine: str, adapter: AdapterBlock = LORA, **options: Any) -> SmartTrainer:
    """A run of STEPS steps over the collection; BATCH pairs a step, whatever the number of ranks."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    stage = int(engine[-1]) if engine.startswith("DeepSpeed") else None
    prepare_deepspeed(stage is not None)
    block = {
        **steps.TRAINING,
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH // ranks,
        "dataloader_drop_last": False,
        "optim": "sgd",
        "learning_rate": 1e-3,
        "max_grad_norm": 0.0,
        **{name: value for name, value in options.items() if name != "cached"},
    }
    if stage is not None:
        block["deepspeed"] = deepspeed_config(stage)
    args = training_arguments(block, out)
    torch.manual_seed(0)
    encoder = SmartEncoder(folder, model=ModelBlock(dropout=0.0), late=LATE, adapter=adapter, device="cpu")
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    data = collection()
    pairs = Pairs(data)
    collate = Collator(data, encoder.preprocess, negatives=2, length_groups=2, chunk_rows=3)
    return SmartTrainer(
        encoder,
        args,
        pairs,
        objective=steps.JOINT,
        data_collator=collate,
        run_dir=out,
        gradient_caching=options.get("cached"),
        pair_groups=pair_groups(data, pairs.rows),
    )


def run(folder: str, out: str, engine: str, variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By variant: the engine's name, the logged lines, the weights, the files of the saved adapter, what its
    verification says.  A function for ranks, and for one process by itself."""
    found: dict[str, Any] = {}
    with fsdp_on_cpu(engine == "FSDP2"):
        for name, options in variants.items():
            if name == "clipped" and engine.startswith("DeepSpeed"):
                continue
            place = Path(out) / name.replace(", ", "-")
            trainer = trainer_of(folder, place, engine, **options)
            trainer.train()
            main = trainer.is_world_process_zero()
            trainer.save_model(str(place / "adapter"))
            if dist.is_initialized():
                dist.barrier()
            report = verify(trainer.encoder, place / "adapter", ["a query"], [tiny_data.passage(3)], main=main)
            with full_state_dict(trainer.encoder, keep=True) as state:
                weights = dict(state)
            found[name] = {
                "engine": trainer.engine.name,
                "type": type(trainer.model_wrapped).__name__,
                "world": trainer.accelerator.num_processes,
                "lines": [line for line in steps.lines(trainer) if "loss" in line] if main else [],
                "weights": weights,
                "files": {f.name: f.stat().st_size for f in sorted((place / "adapter").rglob("*")) if f.is_file()},
                "report": report,
            }
    return found
