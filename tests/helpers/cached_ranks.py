"""What a rank does in the tests of cached steps: a trainer on tiny data, its gradients, its runs and its plans."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import tiny_data
import torch
import torch.distributed as dist
from steps import JOINT, OBJECTIVES, lines, taken, weights
from torch import Tensor

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, ObjectiveBlock
from smart_train.core.embeddings import Batch, KnownPositives, PairScores
from smart_train.core.errors import TrainingStopped
from smart_train.data.collate import Collator, Pairs
from smart_train.data.collection import Collection, Document
from smart_train.models.encoder import SmartEncoder
from smart_train.training.arguments import training_arguments
from smart_train.training.trainer import SmartTrainer

ROWS = ([1, 2, 3, 5, 6], [9, 10, 11])  # numbers of the pairs that each of two ranks holds: unequal, and of other length
HEAD = {"layer": [2, -1], "head": "layernorm_linear"}
LORA = {"r": 4, "vision": True}


def collection(images: bool = False) -> Collection:
    """16 pairs; what a teacher says, it says of documents that lie on one rank.  With images, the first 8 documents
    are pages, so that rank 1 holds none."""
    corpus = {
        f"d{n}": Document(f"d{n}", image=tiny_data.draw_page(n)) if images and n < 8 else Document(f"d{n}", text(n))
        for n in range(16)
    }
    queries = {f"q{n}": f"what stands beside the {tiny_data.TOPICS[n]}" for n in range(16)}
    found = Collection("ranks", corpus, queries, {f"q{n}": {f"d{n}": 1 + n % 2} for n in range(16)})
    near = range(16)
    found.teacher = {f"q{n}": {f"d{m}": 0.9 - 0.05 * abs(n - m) for m in near if n // 8 == m // 8} for n in near}
    return found


def text(number: int) -> str:
    return tiny_data.passage(number) + (" and the market by the river" * (number // 8))


def encoder_of(folder: str, adapter: dict[str, Any], dropout: float = 0.0, head: bool = True) -> SmartEncoder:
    torch.manual_seed(0)
    settings, late = ModelBlock(dropout=dropout), LateBlock(**(HEAD if head else {}))
    made = SmartEncoder(folder, model=settings, late=late, adapter=AdapterBlock(**adapter), device="cpu")
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def trainer_of(
    folder: str,
    out: str,
    adapter: dict[str, Any],
    objective: ObjectiveBlock = JOINT,
    cached: bool | None = True,
    images: bool = False,
    dropout: float = 0.0,
    head: bool = True,
    encoder: SmartEncoder | None = None,
    deepspeed: dict[str, Any] | None = None,
    **training: Any,
) -> SmartTrainer:
    block = {
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        "optim": "sgd",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "deepspeed": deepspeed,
        **training,
    }
    encoder = encoder or encoder_of(folder, adapter, dropout, head)
    args = training_arguments(block, Path(out))
    data = collection(images)
    rank = int(os.environ["RANK"])  # one rank has twice as many chunks as the other
    collate = Collator(data, encoder.preprocess, length_groups=2 - rank, chunk_rows=1 + 2 * rank)
    log = Path(out) / "log.jsonl"
    return SmartTrainer(
        encoder,
        args,
        Pairs(data),
        objective=objective,
        data_collator=collate,
        run_dir=log.parent,
        gradient_caching=cached,
    )


def batch_of(encoder: SmartEncoder, numbers: list[int], images: bool = False) -> Batch:
    rows = [(f"q{n}", f"d{n}") for n in numbers]
    return Collator(collection(images), encoder.preprocess, length_groups=2, chunk_rows=2)(rows)


def joined(encoder: SmartEncoder, images: bool = False) -> Batch:
    """The rows of both ranks as one batch, in the same chunks, so that rows are padded alike."""
    parts = [batch_of(encoder, numbers, images) for numbers in ROWS]
    rows, columns = len(parts[0].query_ids), len(parts[0].document_keys)
    known = [part.known for part in parts]
    (a, b) = (part.teacher for part in parts)
    teacher = PairScores(
        torch.cat([a.rows, b.rows + rows]), torch.cat([a.columns, b.columns + columns]), torch.cat([a.values, b.values])
    )
    return Batch(
        [chunk for part in parts for chunk in part.queries],
        [chunk for part in parts for chunk in part.documents],
        torch.cat([part.query_ids for part in parts]),
        torch.cat([part.document_keys for part in parts]),
        KnownPositives(*(torch.cat([getattr(one, name) for one in known]) for name in ("keys", "grades", "lengths"))),
        torch.cat([parts[0].positives, parts[1].positives + torch.tensor([rows, columns])]),
        teacher,
    )


def all_of_ddp(texts: str, pages: str, out: str) -> dict[str, Any]:
    return {
        "gradients": gradients_on_ranks(texts, f"{out}/gradients"),
        "pages": pages_on_ranks(pages, f"{out}/pages"),
        "runs": runs_on_ranks(texts, f"{out}/runs", None, VARIANTS | DROPOUT),
        "plans": plans_on_ranks(pages, f"{out}/plans"),
    }


def gradients_on_ranks(folder: str, out: str) -> dict[str, Any]:
    """By name of a setting: loss and gradients of a cached step of DDP, and how often gradients crossed in it and in a
    plain one.  (A head that pooled vectors alone train would wait for its gradient.)"""
    found: dict[str, Any] = {}
    for head, names in ((False, ["pooled"]), (True, [name for name in OBJECTIVES if name != "pooled"])):
        trainer = trainer_of(folder, out, {"kind": "full"}, head=head)
        model: Any = trainer.accelerator.prepare(trainer.encoder).train()
        assert type(model).__name__ == "DistributedDataParallel" and trainer.accelerator.num_processes == 2
        crossed = counted(model)
        batch = batch_of(trainer.encoder, ROWS[dist.get_rank()])
        for name in names:
            trainer.step = type(trainer.step)(OBJECTIVES[name], trainer.encoder.late.hybrid)
            trainer.step.progress = 0.3
            trainer.batch_loss(model, batch).total.backward()
            once = len(crossed)
            trainer.encoder.zero_grad(set_to_none=True)
            loss = trainer.cached_loss(model, batch)
            found[name] = (float(loss.total), taken(trainer.encoder), len(crossed) - once, once)
            crossed.clear()
    return {"settings": found, "chunks": len(batch.queries) + len(batch.documents)}


def counted(model: Any) -> list[int]:
    """Grows by one for every bucket of gradients that DDP reduces."""
    crossed: list[int] = []

    def count(_, bucket):  # torch compares annotations with its own classes
        crossed.append(bucket.index())
        work = dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
        return work.then(lambda done: done.value()[0])

    model.register_comm_hook(None, count)
    return crossed


def pages_on_ranks(folder: str, out: str) -> list[dict[str, Tensor]]:
    """Gradients of a cached step, then of two accumulated ones; rank 1 holds no page."""
    trainer = trainer_of(folder, out, LORA, images=True)
    model: Any = trainer.accelerator.prepare(trainer.encoder).train()
    state = trainer.accelerator.gradient_state
    batch = batch_of(trainer.encoder, ROWS[dist.get_rank()], images=True)
    assert ("pixel_values" in batch.documents[-1]) == (dist.get_rank() == 0)
    found = []
    for steps in (1, 2):
        trainer.current_gradient_accumulation_steps = steps
        for at in range(steps):  # as transformers does it
            state._set_sync_gradients(at == steps - 1)
            with trainer.accelerator.no_sync(model) if at < steps - 1 else torch.enable_grad():
                trainer.cached_loss(model, batch)
            assert state.sync_gradients == (at == steps - 1)
        found.append(taken(trainer.encoder))
    return found


def runs_on_ranks(folder: str, out: str, stage: int | None, variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """(engine and its stage, weights, log, forwards) of a run of two steps, by variant; stage: of DeepSpeed."""
    deepspeed = None
    if stage is not None:
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled for a minute and a half
        deepspeed = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",  # left out, accelerate clips at 1
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
        }
    # Before any arguments: under ZeRO-3 these have weights cut up while they are loaded, and a base is probed whole.
    encoders = {name: encoder_of(folder, {"kind": "full"}, o.get("dropout", 0.0)) for name, o in variants.items()}
    found = {}
    for name, options in variants.items():
        options = {"encoder": encoders[name], "deepspeed": deepspeed, **options}
        trainer = trainer_of(folder, f"{out}/{name}", {"kind": "full"}, **options)
        forwards: list[int] = []
        trainer.encoder.transformer.register_forward_hook(lambda *_, calls=forwards: calls.append(1))
        trainer.train()
        assert trainer.accelerator.num_processes == 2 and trainer.state.global_step == 2
        engine: Any = trainer.model_wrapped
        kind = f"{type(engine).__name__} {engine.zero_optimization_stage() if stage else 0}"
        dist.barrier()
        found[name] = (kind, whole(trainer, stage), lines(trainer), len(forwards))
    return found


def whole(trainer: SmartTrainer, stage: int | None) -> dict[str, Tensor]:
    """The weights, collected from all ranks where they are sharded."""
    if stage != 3:
        return weights(trainer.encoder)
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(trainer.encoder.parameters())):
        return weights(trainer.encoder)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"cached": False},
    "cached": {"cached": True},
    "plain, accumulated": {"cached": False, "gradient_accumulation_steps": 2},
    "cached, accumulated": {"cached": True, "gradient_accumulation_steps": 2},
    "checkpointed": {"cached": True, "activation_checkpointing": True},
}
DROPOUT: dict[str, dict[str, Any]] = {
    "plain, dropout": {"cached": False, "dropout": 0.2},
    "cached, dropout": {"cached": True, "dropout": 0.2},
}


def plans_on_ranks(folder: str, out: str) -> dict[str, Any]:
    """What two ranks agree to run, of chunks of text and of images, under an engine that collects weights."""
    engine = trainer_of(folder, out, LORA, images=True).engine
    text, image = {"input_ids": torch.zeros(1, 1)}, {"input_ids": torch.zeros(1, 1), "pixel_values": torch.zeros(1)}
    rank = dist.get_rank()
    chunks = [[text, image, text], [text, image, image, image]][rank]
    found: dict[str, Any] = {"free": engine.plan(chunks, cached=True)}
    engine.deepspeed, engine.stage, engine.by_kind = True, 3, False
    found["plain"], found["by number"] = engine.plan(chunks, cached=False), engine.plan(chunks, cached=True)
    engine.sharded = engine.by_kind = True
    found["by kind"] = engine.plan(chunks, cached=False)
    for name, without in (("no image", [[text], [text, image]]), ("no text", [[image, text], [image]])):
        try:
            engine.plan(without[rank], cached=True)
        except TrainingStopped as error:
            found[name] = str(error)
    return found
