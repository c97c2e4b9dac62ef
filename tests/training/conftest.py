"""A trainer on tiny models and data, plain or cached."""

from __future__ import annotations

import pytest
import torch
from steps import JOINT, TRAINING, pages, texts

from smart_train.config.schema import AdapterBlock, LateBlock, ModelBlock, ObjectiveBlock
from smart_train.data.collate import Collator, Pairs
from smart_train.data.collection import Collection
from smart_train.models.encoder import SmartEncoder
from smart_train.training.arguments import training_arguments
from smart_train.training.trainer import SmartTrainer


@pytest.fixture
def make(tiny_models, tmp_path):
    """make(kind, adapter, late=..., objective=..., cached=..., **TrainingArguments) -> a trainer on tiny data."""

    def build(
        kind: str,
        adapter: AdapterBlock,
        late: dict | None = None,
        objective: ObjectiveBlock = JOINT,
        collection: Collection | None = None,
        negatives: int = 0,
        evaluator=None,
        folder: str = "run",
        cached: bool | None = None,
        chunk_rows: int | None = None,
        model: ModelBlock | None = None,
        patience: int | None = None,
        about: dict | None = None,
        **training,
    ) -> SmartTrainer:
        block = {**TRAINING, **training}
        args = training_arguments(block, tmp_path / folder)
        base = str(tiny_models(kind))
        torch.manual_seed(0)  # LoRA's A and the head are drawn when they are added
        late_block = LateBlock(**(late or {}))
        encoder = SmartEncoder(base, model=model or ModelBlock(), late=late_block, adapter=adapter, device="cpu")
        data = collection or (pages() if kind == "qwen3vl" else texts(teacher=False))
        collate = Collator(
            data, encoder.preprocess, negatives=negatives, length_groups=2, seed=args.seed, chunk_rows=chunk_rows
        )
        log = tmp_path / folder / "log.jsonl"
        pairs = Pairs(data)
        seen = {"evaluator": evaluator, "run_dir": log.parent, "patience": patience, "tracker_config": about}
        return SmartTrainer(
            encoder, args, pairs, objective=objective, data_collator=collate, gradient_caching=cached, **seen
        )

    return build
