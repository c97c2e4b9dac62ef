"""The trainer on tiny models: what trains moves and what does not stays, a step is the written-out step, a resumed run
is the uninterrupted one, and what would train silently wrong stops with the reason."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import tiny_data
import torch
from formula import formula_loss
from steps import JOINT, lines, texts, weights
from torch import nn

from smart_train.config.schema import AdapterBlock, HybridBlock, ModelBlock, ObjectiveBlock, TermBlock
from smart_train.core.embeddings import Batch
from smart_train.core.errors import SettingError, TrainingStopped
from smart_train.data.collection import Collection
from smart_train.models.encoder import SmartEncoder
from smart_train.models.lora import AdapterError
from smart_train.models.verification import verify
from smart_train.training.arguments import SmartTrainingArguments, training_arguments
from smart_train.training.callbacks.first_step import check_trainable
from smart_train.training.engine import check_launched

HEAD = {"layer": [2, -1], "head": "layernorm_linear", "dim": 12}


# -- what trains


KINDS = {
    "lora": (AdapterBlock(r=4), {}),
    "lora and head": (AdapterBlock(r=4, layers=[3]), HEAD),
    "full": (AdapterBlock(kind="full"), {}),
    "full and head": (AdapterBlock(kind="full"), HEAD),
    "frozen and head": (AdapterBlock(kind="frozen"), HEAD),
}


@pytest.mark.parametrize("kind", ["bert", "qwen3", "modernbert"])
@pytest.mark.parametrize("case", KINDS)
def test_what_is_trained_moves_and_nothing_else_does(case, kind, make):
    """Every tensor of it: a LoRA A has no gradient before its B has moved, so three steps."""
    trainer = make(kind, *KINDS[case], max_steps=3)
    before, trained = weights(trainer.encoder), {n for n, p in trainer.encoder.named_parameters() if p.requires_grad}
    trainer.train()
    after = weights(trainer.encoder)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == trained
    parts = {"lora": "lora_" in " ".join(moved), "head": any(n.startswith("head.") for n in moved)}
    assert parts == {"lora": "lora" in case, "head": "head" in case}


@pytest.mark.parametrize("case", ["lora", "frozen and head"])
def test_pages_and_pages_with_text_train_through_the_same_step(case, make):
    trainer = make("qwen3vl", *KINDS[case], max_steps=3, per_device_train_batch_size=6)
    before, trained = weights(trainer.encoder), {n for n, p in trainer.encoder.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {n for n, p in weights(trainer.encoder).items() if not torch.equal(before[n], p)}
    assert moved == trained and not any("visual" in name for name in moved)


def test_the_vision_tower_trains_when_asked(make):
    trainer = make("qwen3vl", AdapterBlock(r=4, vision=True), max_steps=3)
    trainer.train()
    moved = [n for n, p in trainer.encoder.named_parameters() if "lora_B" in n and p.detach().any()]
    assert any("visual" in name for name in moved) and any("language_model" in name for name in moved)


def test_lora_starts_as_the_base_and_leaves_it(make):
    trainer = make("bert", AdapterBlock(r=4))
    sample = [tiny_data.passage(n) for n in range(4)]
    start = trainer.encoder.encode_documents(sample).pooled
    base = SmartEncoder(trainer.encoder.settings.base, device="cpu").encode_documents(sample).pooled
    torch.testing.assert_close(start, base, atol=1e-6, rtol=0)
    trainer.train()
    assert (trainer.encoder.encode_documents(sample).pooled - base).abs().max() > 1e-3


@pytest.mark.parametrize(("layers", "expected"), [(None, {0, 1, 2}), ([3], {2}), ([1, 2], {0, 1})])
def test_lora_sits_in_the_blocks_that_were_named(layers, expected, make):
    encoder = make("qwen3", AdapterBlock(r=4, layers=layers)).encoder
    blocks = {int(n.split("layers.")[1].split(".")[0]) for n, _ in encoder.named_parameters() if "lora_" in n}
    assert blocks == expected


def test_training_lowers_the_loss(make):
    trainer = make("qwen3", AdapterBlock(r=8), max_steps=30, per_device_train_batch_size=8, learning_rate=3e-3)
    trainer.train()
    losses = [line["loss"] for line in lines(trainer) if "loss" in line]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


# -- the step


def known_answers(batch: Batch) -> torch.Tensor:
    """[B, N]: by id, one after another (no two documents of these collections have one content)."""
    answers = [set(keys[:, 0].tolist()) for keys in batch.known.keys.split(batch.known.lengths.tolist())]
    return torch.tensor([[i in known for i in batch.document_ids.tolist()] for known in answers])


def by_hand(encoder: SmartEncoder, batches: list, objective: ObjectiveBlock) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss over the batches, by autograd of the padded formula; no trainer involved."""
    total = 0.0
    for batch in batches:
        queries, documents = encoder(batch.queries), encoder(batch.documents)
        total = total + formula_loss(queries, documents, known_answers(batch), batch.positives, objective)
    (total / len(batches)).backward()
    found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.requires_grad and p.grad is not None}
    encoder.zero_grad()
    return found


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("objective", ["joint", "hybrid", "late"])
def test_one_step_is_gradient_descent_on_the_written_out_loss(accumulation, objective, make):
    """SGD, no clipping: weights move by the learning rate times the formula's gradient, accumulation is a mean."""
    block = {
        "joint": JOINT,
        "hybrid": ObjectiveBlock(TermBlock(0.0), TermBlock(0.0), TermBlock(1.0, 0.1)),
        "late": ObjectiveBlock(TermBlock(0.0), TermBlock(1.0, 0.03), TermBlock(0.0)),
    }[objective]
    trainer = make(
        "qwen3",
        AdapterBlock(kind="full"),
        HEAD,
        block,
        negatives=1,
        max_steps=1,
        optim="sgd",
        max_grad_norm=0.0,
        gradient_accumulation_steps=accumulation,
    )
    reference = copy.deepcopy(trainer.encoder).train()
    before = weights(trainer.encoder)
    batches = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)["batch"]) or {"batch": batches[-1]}
    trainer.train()
    after = weights(trainer.encoder)
    expected = by_hand(reference, batches[:accumulation], block)
    assert len(expected) > 30
    for name, gradient in expected.items():
        torch.testing.assert_close(before[name] - after[name], 1e-2 * gradient, atol=1e-6, rtol=1e-3, msg=name)


def test_dropout_is_on_in_a_step_and_off_when_the_dev_split_is_ranked(make):
    modes = []

    def rank(encoder: SmartEncoder) -> dict[str, float]:
        return {"pooled/ndcg@10": float(encoder.encode_queries(["a"]).pooled.sum())}

    trainer = make("bert", AdapterBlock(r=4), evaluator=rank, eval_strategy="steps", eval_steps=1)
    trainer.encoder.backbone.encoder.layer[0].register_forward_hook(lambda module, *_: modes.append(module.training))
    trainer.train()
    assert modes.count(False) == 2 and modes.count(True) >= 2


def test_evaluation_steps_do_nothing_where_nothing_is_ranked(make):
    """evaluation.during=false on the command line must do for a recipe that names eval_strategy."""
    trainer = make("bert", AdapterBlock(r=4), eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "dev/" not in (Path(trainer.args.output_dir).parent / "log.jsonl").read_text()


def test_activation_checkpointing_gives_the_same_step(make):
    after = []
    for on in (False, True):
        trainer = make("qwen3", AdapterBlock(r=4), optim="sgd", activation_checkpointing=on, folder=f"run{on}")
        trainer.train()
        after.append({n: p for n, p in weights(trainer.encoder).items() if "lora_" in n})
    assert any(p.abs().max() > 0 for n, p in after[1].items() if "lora_B" in n)
    for name, expected in after[0].items():
        torch.testing.assert_close(after[1][name], expected, atol=1e-6, rtol=1e-4)


def test_bf16_trains_with_float32_adapters_and_losses(make):
    trainer = make("qwen3", AdapterBlock(r=4), HEAD, bf16=True, max_steps=3)
    trainer.train()
    assert all(p.dtype == torch.float32 for p in trainer.encoder.parameters() if p.requires_grad)
    assert all(line["loss"] == line["loss"] for line in lines(trainer) if "loss" in line)


def test_after_bf16_training_vectors_are_those_of_the_reloaded_encoder(make, tmp_path):
    """Autocast stays around the trained object's forward; a fresh object has none."""
    trainer = make("bert", AdapterBlock(r=4), bf16=True)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    report = verify(trainer.encoder, tmp_path / "saved", ["a query"], [tiny_data.passage(0), tiny_data.passage(1)])
    assert report["tolerance"] == 1e-5
    assert "forward" in trainer.encoder.__dict__, "training goes on under autocast"


def test_several_gpus_in_one_process_are_refused(make, monkeypatch):
    monkeypatch.setattr(SmartTrainingArguments, "n_gpu", 2)
    with pytest.raises(TrainingStopped, match="--num_processes 2"):
        make("bert", AdapterBlock(r=4))


def test_only_the_late_head_has_the_heads_learning_rate(make):
    """A vision tower may have a module called head too."""
    trainer = make("bert", AdapterBlock(kind="full"), HEAD, head_learning_rate=0.5)
    trainer.encoder.backbone.head = nn.Linear(2, 2)
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    assert {rates[id(p)] for p in trainer.encoder.head.parameters()} == {0.5}
    assert {rates[id(p)] for p in trainer.encoder.backbone.head.parameters()} == {1e-2}


def test_a_target_that_no_block_has_is_named(make):
    with pytest.raises(AdapterError, match="quarry"):
        make("bert", AdapterBlock(r=4, targets=["query", "quarry"]))


def test_batches_are_made_in_data_workers_too(make):
    trainer = make("qwen3vl", AdapterBlock(r=4), dataloader_num_workers=1)
    trainer.train()
    assert trainer.state.global_step == 2


def test_what_makes_batches_can_be_sent_to_a_spawned_worker(make):
    """macOS and Windows spawn their workers, Linux too from Python 3.14 on."""
    trainer = make("bert", AdapterBlock(r=4))
    pickle.dumps(trainer.data_collator)


# -- learning rates


def test_head_learning_rate_is_the_heads_and_the_mixes_alone(make):
    trainer = make("bert", AdapterBlock(r=4), HEAD, learning_rate=1e-3, head_learning_rate=1e-2)
    optimizer = trainer.create_optimizer()
    names = {id(p): n for n, p in trainer.encoder.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == {n for n, p in trainer.encoder.named_parameters() if p.requires_grad}
    assert {n for n, rate in rates.items() if rate == 1e-2} == {n for n in rates if n.startswith("head.")}
    assert {rate for n, rate in rates.items() if not n.startswith("head.")} == {1e-3}


def test_ten_times_the_head_learning_rate_moves_the_head_ten_times_as_far(make):
    moved = {}
    for rate in (0.1, 1.0):  # Qwen3 has no dropout, so both runs see one gradient
        options = {"optim": "sgd", "learning_rate": 0.1, "head_learning_rate": rate, "max_grad_norm": 0.0}
        trainer = make("qwen3", AdapterBlock(r=4), HEAD, max_steps=1, folder=f"run{rate}", **options)
        before = weights(trainer.encoder)
        trainer.train()
        moved[rate] = {name: p - before[name] for name, p in weights(trainer.encoder).items()}
    for name, step in moved[0.1].items():
        factor = 10 if name.startswith("head.") else 1
        torch.testing.assert_close(moved[1.0][name], factor * step, atol=2e-6, rtol=1e-3, msg=name)
    assert moved[1.0]["head.mix"].any() and moved[1.0]["head.projection.linear.weight"].any()


def test_a_heads_large_gradient_does_not_shorten_the_steps_of_lora(make):
    trainer = make("bert", AdapterBlock(r=2), late=HEAD, max_grad_norm=1.0)
    encoder = trainer.encoder
    head, lora = list(encoder.head.parameters()), [p for n, p in encoder.named_parameters() if "lora_" in n]
    for parameter in head:
        parameter.grad = torch.full_like(parameter, 100.0)
    for parameter in lora:
        parameter.grad = torch.full_like(parameter, 1e-4)
    norm = trainer._clip_grad_norm(encoder)
    expected = (sum(1e4 * p.numel() for p in head) + sum(1e-8 * p.numel() for p in lora)) ** 0.5
    assert float(norm) == pytest.approx(expected, rel=1e-4), "the norm that is logged is the whole one, before clipping"
    assert sum(float(p.grad.square().sum()) for p in head) == pytest.approx(1.0, rel=1e-4)
    assert all(torch.equal(p.grad, torch.full_like(p, 1e-4)) for p in lora), "below the limit by itself: left alone"


def test_the_bases_dropout_can_be_turned_off(tiny_models, make):
    encoder = SmartEncoder(str(tiny_models("bert")), model=ModelBlock(dropout=0.0), device="cpu")
    features = encoder.preprocess([tiny_data.passage(0)], "document")
    still = encoder(features).tokens.values
    assert torch.equal(encoder.train()(features).tokens.values, still)
    with_dropout = SmartEncoder(str(tiny_models("bert")), device="cpu").train()
    assert not torch.allclose(with_dropout(features).tokens.values, still)


def test_the_schedule_scales_every_group(make):
    trainer = make(
        "bert",
        AdapterBlock(r=4),
        HEAD,
        max_steps=4,
        lr_scheduler_type="linear",
        learning_rate=1e-3,
        head_learning_rate=1e-2,
    )
    trainer.train()
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {0.0}
    assert trainer.lr_scheduler.base_lrs and set(trainer.lr_scheduler.base_lrs) == {1e-3, 1e-2}


def test_weight_decay_leaves_norms_and_biases_alone(make):
    trainer = make("bert", AdapterBlock(kind="full"), HEAD, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    names = {id(p): n for n, p in trainer.encoder.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert "head.projection.linear.weight" in decayed
    assert not any("norm" in n.lower() or n.endswith("bias") for n in decayed)


# -- what is seen


def test_every_part_of_the_loss_is_logged_as_json(make):
    trainer = make("bert", AdapterBlock(r=4), objective=ObjectiveBlock(TermBlock(0.5), TermBlock(2.0), TermBlock(1.0)))
    trainer.train()
    steps = [line for line in lines(trainer) if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        parts = {f"{part}/{term}" for part in ("loss", "accuracy", "margin") for term in ("pooled", "late", "hybrid")}
        assert parts <= set(line) and {"learning_rate", "grad_norm", "seconds"} <= set(line)
        total = 0.5 * line["loss/pooled"] + 2 * line["loss/late"] + line["loss/hybrid"]
        assert line["loss"] == pytest.approx(total, rel=1e-3)
        assert 0 <= line["accuracy/late"] <= 1


def test_logged_parts_are_the_mean_over_the_steps_between_lines(make):
    losses = []
    trainer = make("bert", AdapterBlock(r=4), max_steps=4, logging_steps=2, logging_first_step=False)
    compute = trainer.batch_loss
    trainer.batch_loss = lambda *a: losses.append(compute(*a)) or losses[-1]
    trainer.train()
    logged = [line["loss/late"] for line in lines(trainer) if "loss" in line]
    expected = [float(one.parts["loss/late"]) for one in losses]
    assert logged == pytest.approx([sum(expected[:2]) / 2, sum(expected[2:]) / 2], rel=1e-4)


def test_dev_figures_are_logged_and_choose_the_best_checkpoint(make):
    """The best of three is the first: its weights are the ones at the end."""
    figures = iter([0.9, 0.5, 0.4])
    seen = []

    def rank(encoder: SmartEncoder) -> dict[str, float]:
        seen.append(weights(encoder))
        return {"hybrid/ndcg@10": next(figures)}

    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_hybrid/ndcg@10", "greater_is_better": True}
    trainer = make("bert", AdapterBlock(r=4), HEAD, max_steps=3, evaluator=rank, **every, **best)
    trainer.train()
    assert [line["dev/hybrid/ndcg@10"] for line in lines(trainer) if "dev/hybrid/ndcg@10" in line] == [0.9, 0.5, 0.4]
    found = weights(trainer.encoder)
    assert all(torch.equal(found[name], seen[0][name]) for name in found)
    assert any(not torch.equal(found[name], seen[1][name]) for name in found)


# -- what stops


def test_a_head_that_no_term_reaches_stops_the_run(make):
    pooled = ObjectiveBlock(TermBlock(1.0), TermBlock(0.0), TermBlock(0.0))
    trainer = make("bert", AdapterBlock(r=4), {"head": "linear", "dim": 8}, pooled)
    with pytest.raises(TrainingStopped, match="no gradient.*head.projection.linear.weight"):
        trainer.train()


def test_lora_outside_the_forward_stops_the_run(make):
    """BERT's pooler is part of the model and of neither view."""
    trainer = make("bert", AdapterBlock(r=4, targets=r".*(pooler\.dense|attention\.self\.query)"))
    with pytest.raises(TrainingStopped, match="no gradient.*pooler"):
        trainer.train()


def test_tensors_that_never_move_stop_the_run(make):
    trainer = make("bert", AdapterBlock(kind="full"), learning_rate=1e-30)
    with pytest.raises(TrainingStopped, match="none of the .* trained tensors has moved"):
        trainer.train()


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch, tmp_path):
    args = training_arguments({"use_cpu": True}, tmp_path)
    check_launched(args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingStopped, match=r"2 processes were launched, .* launch/cpu\.yaml"):
        check_launched(args)


def test_batches_without_a_negative_stop_the_run(make):
    """Every document answers every query: nothing can be learned, and the loss is 0 from the start."""
    data = texts()
    answers = {query: dict.fromkeys(data.corpus, 1) for query in data.queries}
    trainer = make("bert", AdapterBlock(r=4), collection=Collection("all", data.corpus, data.queries, answers))
    with pytest.raises(TrainingStopped, match="negative"):
        trainer.train()


def test_a_loss_that_is_not_finite_stops_with_step_and_parts(make):
    trainer = make("bert", AdapterBlock(r=4))
    trainer.encoder.backbone.encoder.layer[0].attention.output.dense.weight.data[0, 0] = float("nan")
    before = weights(trainer.encoder)
    with pytest.raises(TrainingStopped, match=r"step 1: the loss is nan.*loss/late"):
        trainer.train()
    moved = [n for n, p in weights(trainer.encoder).items() if "lora_" in n and not torch.equal(p, before[n])]
    assert not moved


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("lora", lambda e: e.backbone.embeddings.requires_grad_(True)),
        ("lora", lambda e: [p.requires_grad_(False) for p in e.parameters()]),
        ("full", lambda e: e.backbone.requires_grad_(False)),
        ("frozen", lambda e: e.head.requires_grad_(False)),
    ],
    ids=["a base tensor trains with LoRA", "nothing trains", "full but frozen", "the head is frozen"],
)
def test_trainable_parameters_are_what_the_recipe_says(kind, spoil, make):
    encoder = make("bert", AdapterBlock(kind=kind, r=4), HEAD).encoder
    counts = check_trainable(encoder, encoder.adapter)
    assert counts["trainable"] == sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    spoil(encoder)
    with pytest.raises(TrainingStopped, match=f"adapter.kind is {kind}"):
        check_trainable(encoder, encoder.adapter)


def test_a_frozen_base_without_a_head_has_nothing_to_train(make):
    with pytest.raises(TrainingStopped, match="nothing was trained"):
        make("bert", AdapterBlock(kind="frozen"))


# -- checkpoints


@pytest.mark.parametrize("case", ["lora and head", "full and head", "frozen and head"])
def test_a_resumed_run_is_the_uninterrupted_one(case, make):
    """Four steps at once, and two, a fresh process's objects, and two more: optimiser, schedule and data go on."""
    options = {"lr_scheduler_type": "linear", "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make("qwen3", *KINDS[case], folder="whole", **options)
    whole.train()
    resumed = make("qwen3", *KINDS[case], folder="resumed", **options)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
    expected, found = weights(whole.encoder), weights(resumed.encoder)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0, msg=name)
    ours, theirs = ({line["step"]: line["loss/late"] for line in lines(t) if "loss" in line} for t in (resumed, whole))
    assert ours == pytest.approx({step: theirs[step] for step in (3, 4)}, abs=1e-5)


def test_a_checkpoint_with_a_missing_key_is_refused(make):
    from safetensors.torch import load_file, save_file

    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = make("bert", AdapterBlock(r=4), **options)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-2"
    path = checkpoint / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t for n, t in list(tensors.items())[1:]}, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match="missing"):
        make("bert", AdapterBlock(r=4), folder="again", **options)._load_from_checkpoint(str(checkpoint))


def test_a_checkpoint_is_an_encoders_folder(make):
    trainer = make("bert", AdapterBlock(r=4), HEAD, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    found = SmartEncoder.from_pretrained(Path(trainer.args.output_dir) / "checkpoint-2", device="cpu")
    sample = [tiny_data.passage(n) for n in range(4)]
    ours, theirs = (e.encode_documents(sample) for e in (found, trainer.encoder))
    torch.testing.assert_close(ours.pooled, theirs.pooled, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.tokens.values, theirs.tokens.values, atol=1e-6, rtol=0)


def test_hybrid_constants_of_the_block_are_those_of_the_loss(make):
    """Standardised scores in the loss as in the ranking."""
    block = HybridBlock(1.0, 2.0, "standardised", 0.3, 0.2, 0.5, 0.1)
    hybrid = ObjectiveBlock(TermBlock(0.0), TermBlock(0.0), TermBlock(1.0, 1.0))
    trainer = make("bert", AdapterBlock(r=4), {"hybrid": block}, hybrid)
    batch = trainer.data_collator([("q1", "d1"), ("q2", "d2"), ("q3", "d3")])["batch"]
    encoder = trainer.encoder.eval()
    with torch.no_grad():
        loss = trainer.batch_loss(encoder, batch).total
        q, x = encoder(batch.queries), encoder(batch.documents)
        late = torch.tensor([[float((a @ b.T).amax(1).mean()) for b in x.tokens.rows()] for a in q.tokens.rows()])
        score = (q.pooled @ x.pooled.T - 0.3) / 0.2 + 2 * (late - 0.5) / 0.1
        rows, columns = batch.positives.T
        expected = nn.functional.cross_entropy(score[rows], columns)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(
    ("objective", "training"),
    [
        (ObjectiveBlock(hybrid=TermBlock(1.0)), {}),
        (
            ObjectiveBlock(),
            {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "hybrid/ndcg@10"},
        ),
    ],
    ids=["a term", "the best checkpoint"],
)
def test_standardised_scores_without_constants_are_not_trained_or_chosen_by(make, objective, training):
    options = {"objective": objective, "evaluator": lambda encoder: {"hybrid/ndcg@10": 0.5}, **training}
    with pytest.raises(SettingError, match=r"late.hybrid.scaling: is standardised, but its constants are not fitted"):
        make("bert", AdapterBlock(r=2), late={"hybrid": HybridBlock(scaling="standardised")}, **options)
    fitted = HybridBlock(scaling="standardised", pooled_std=0.1, late_std=0.1)
    make("bert", AdapterBlock(r=2), late={"hybrid": fitted}, **options)
