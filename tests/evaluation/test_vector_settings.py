"""What is compared before vectors, or figures, are used again."""

from __future__ import annotations

import json
import shutil

import torch

from smart_train.benchmarks.benchmark_encoder import encoder_hash
from smart_train.evaluation.evaluator import vector_settings
from smart_train.evaluation.vector_store import flatten
from smart_train.models.encoder import SmartEncoder


def test_the_same_weights_pooled_in_another_way_are_another_encoder(real_base, tmp_path):
    folder = shutil.copytree(real_base, tmp_path / "base")
    before = SmartEncoder(str(folder), device="cpu")
    file = folder / "1_Pooling" / "config.json"
    modes = {name: name == "pooling_mode_cls_token" for name in json.loads(file.read_text()) if "mode" in name}
    file.write_text(json.dumps({**json.loads(file.read_text()), **modes}))
    after = SmartEncoder(str(folder), device="cpu")
    texts = ["Plants make sugar from light."]
    cosine = torch.sum(before.encode_documents(texts).pooled * after.encode_documents(texts).pooled)
    assert cosine < 0.9
    then, now = flatten(vector_settings(before)), flatten(vector_settings(after))
    changed = {key: (then[key], now[key]) for key in then if then[key] != now[key]}
    pooling = ("mean", "cls")
    assert changed == {"modules.1 Pooling.pooling_mode": pooling, "processing.pooling": pooling}
    assert encoder_hash(before) != encoder_hash(after)
