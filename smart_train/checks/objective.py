"""Whether the block ``objective`` can work: its values, its batch, its schedule, and that it trains what is trained.

Which settings exclude each other is told by losses/schedule.py, which the losses ask as well.
"""

from __future__ import annotations

import os
from difflib import get_close_matches

from smart_train.checks.bounds import Problems, above, at_least, layers
from smart_train.config.schema import SCHEDULED, ObjectiveBlock, Recipe
from smart_train.config.typed_values import Problem
from smart_train.core.environment import world
from smart_train.losses.schedule import active, at, conflicts, learns
from smart_train.models.base_config import BaseConfig

LEARNING = ("pooled", "late", "hybrid", "self_distillation", "teacher")  # blocks with a weight and a temperature
SCHEDULE = "objective.schedule."


def needs_teacher(recipe: Recipe) -> bool:
    """Whether the data has to have another model's scores."""
    return recipe.objective.teacher.weight >= 0 and active(recipe.objective, "teacher.weight")


# By itself -----------------------------------------------------------------------------------------------------------


def check_objective(recipe: Recipe) -> Problems:
    objective = recipe.objective
    for name in LEARNING:
        term = getattr(objective, name)
        yield from at_least(f"objective.{name}.weight", term.weight, 0)
        fix = "write 0.02 to 0.05 (scores are cosines)"
        yield from above(f"objective.{name}.temperature", term.temperature, 0, fix)
    yield from above("objective.teacher.scale", objective.teacher.scale, 0, "write 1 for scores that are cosines")
    for name in ("hardness", "diversity", "overlap"):
        yield from at_least(f"objective.{name}", getattr(objective, name), 0)
    if objective.false_negatives is not None and not 0 < objective.false_negatives <= 1:
        what = f"is {objective.false_negatives:g}, must be above 0 and at most 1: a share of the positive's score"
        yield Problem("objective.false_negatives", what, "write 0.95, or null to keep every negative")
    if not 0 <= objective.margin < 1:
        what = f"is {objective.margin:g}, must be from 0 to below 1: scores are cosines"
        yield Problem("objective.margin", what, "write 0.1, or 0")
    if objective.neighbour_pages is not None and objective.neighbour_pages < 0:
        what = f"is {objective.neighbour_pages}, must be at least 0"
        yield Problem("objective.neighbour_pages", what, "write 1 for the page before and after, or null")
    if objective.loss != "sigmoid" and objective.sigmoid_bias != ObjectiveBlock.sigmoid_bias:
        what = f"is {objective.sigmoid_bias:g}, but objective.loss is {objective.loss}, which has no bias"
        yield Problem("objective.sigmoid_bias", what, "remove it, or write loss: sigmoid")
    if not learns(objective):
        what = "every weight is 0, so there is no loss"
        yield Problem("objective", what, f"give {', '.join(LEARNING[:-1])} or {LEARNING[-1]} a weight")
    for key, what, fix in conflicts(objective):
        if not key.startswith(SCHEDULE):
            yield Problem(key, what, fix)


def check_schedule(recipe: Recipe) -> Problems:
    """Names and points, and that there is a loss when training begins."""
    objective = recipe.objective
    wrong = [(key, what, fix) for key, what, fix in conflicts(objective) if key.startswith(SCHEDULE)]
    for key, what, fix in wrong:
        near = get_close_matches(key.removeprefix(SCHEDULE), SCHEDULED, 1, 0.5)
        if near and near[0] not in objective.schedule and key.removeprefix(SCHEDULE) not in SCHEDULED:
            what, fix = f"{what}, the nearest is {near[0]}", f"write {near[0]}, or {fix}"
        yield Problem(key, what, fix)
    if wrong:
        return
    if any(value >= 1 for _, value in objective.schedule.get("margin", ())):
        yield Problem(f"{SCHEDULE}margin", "reaches 1 or more: scores are cosines", "keep its values below 1")
    silent = [key for key, points in objective.schedule.items() if not any(value for _, value in points)]
    for key in silent:
        yield Problem(SCHEDULE + key, "is 0 throughout", "remove it, or let a value be above 0")
    first = at(objective, 0.0)
    if objective.schedule and not silent and learns(objective) and not any(getattr(first, n).weight for n in LEARNING):
        what = "every weight of the loss is 0 when training begins, so the first steps would learn nothing"
        yield Problem("objective.schedule", what, "let one weight start above 0")


def check_batch(recipe: Recipe) -> Problems:
    """How many pairs a loss sees, in which pieces, and over how many processes."""
    objective, training, ranks = recipe.objective, recipe.training, world()
    yield from at_least("objective.batch", objective.batch, 2)
    for name in ("chunk_rows", "chunk_tokens", "gather_group"):
        yield from at_least(f"objective.{name}", getattr(objective, name), 1)
    batch, rows = objective.batch, training.get("per_device_train_batch_size")
    if batch is not None and rows is not None:
        what = f"is {batch}, and training.per_device_train_batch_size is {rows}: only one of them can hold"
        fix = "keep batch (pairs per loss over all GPUs, gradients cached) or the other (pairs per GPU, in one pass)"
        yield Problem("objective.batch", what, fix)
    if batch is not None and training.get("auto_find_batch_size"):
        what = f"is {batch}, but training.auto_find_batch_size would change it"
        yield Problem("objective.batch", what, "remove the latter: memory follows objective.chunk_rows, not the batch")
    if batch is not None and batch % ranks:
        near = f"{batch // ranks * ranks} or {(batch // ranks + 1) * ranks}" if batch > ranks else str(ranks)
        what = f"is {batch}, which {ranks} processes cannot share evenly"
        yield Problem("objective.batch", what, f"write {near}, or another multiple of {ranks}")
    group = objective.gather_group
    if group is not None and not objective.gather:
        yield Problem("objective.gather_group", f"is {group}, but objective.gather is false", "remove one of the two")
    elif group is not None and group > 0 and ranks > 1 and ranks % group:
        sizes = ", ".join(str(size) for size in range(1, ranks + 1) if ranks % size == 0)
        what = f"is {group}, and {ranks} processes are no multiple of it"
        yield Problem("objective.gather_group", what, f"write one of {sizes}, or null for all together")


def check_skips(recipe: Recipe) -> Problems:
    """training/nonfinite.py says why not under engines that step in their backward."""
    key, count = "objective.skip_nonfinite", recipe.objective.skip_nonfinite
    yield from at_least(key, count, 0)
    engines = {"DeepSpeed": "ACCELERATE_USE_DEEPSPEED", "FSDP": "ACCELERATE_USE_FSDP"}
    on = [name for name, variable in engines.items() if os.environ.get(variable, "").lower() == "true"]
    on += [] if on else [n for n in engines if recipe.training.get(n.lower())]
    if count > 0 and on:
        what = f"is {count}, but {on[0]} moves weights where a step cannot be taken back"
        yield Problem(key, what, "remove it, or launch with DDP (--multi_gpu)")


# With what is trained ------------------------------------------------------------------------------------------------


def check_trained(recipe: Recipe) -> Problems:
    """Something is trained, and every term of the loss that is asked for can reach it."""
    late, objective, kind = recipe.late, recipe.objective, recipe.adapter.kind
    head = late.head.type != "none" or len(layers(late)) > 1
    if kind == "frozen" and not head:
        what = "is frozen, and with late.head none and a single layer nothing is left to train"
        yield Problem("adapter.kind", what, "write late.head: layernorm_linear, a list of layers, or kind: lora")
    if kind == "frozen" and not _trains_tokens(objective):
        what = "is frozen, but no term with a weight trains the tokens, and the pooled vector has nothing to train then"
        yield Problem("adapter.kind", what, "give objective.late a weight, or write kind: lora")
    elif kind == "frozen":
        yield from _idle(objective)
    elif head and learns(objective) and not _trains_tokens(objective):
        key, value = (
            ("late.head", late.head.type) if late.head.type != "none" else ("late.layer", "a list of layers to mix")
        )
        what = f"is {value}, but no term with a weight trains the tokens, so it would get no gradient"
        yield Problem(key, what, "give objective.late a weight, or write late.head: none and a single layer")
    if recipe.training.get("head_learning_rate") is not None and not head:
        what = "has nothing to set: late.head is none and there is a single layer"
        yield Problem("training.head_learning_rate", what, "remove it, or write late.head: layernorm_linear")
    yield from _alone(recipe)


def _idle(objective: ObjectiveBlock) -> Problems:
    """Terms that learn through the pooled vector alone, while that cannot be trained.  (A pooled term may stay: it
    costs next to nothing, and its value in the log is that of the base.)"""
    why = "the pooled vector, which has nothing to train while adapter.kind is frozen"
    if active(objective, "self_distillation.weight"):
        yield Problem("objective.self_distillation.weight", f"is on, but it teaches {why}", "write 0, or kind: lora")
    if active(objective, "teacher.weight") and objective.teacher.score == "pooled":
        what = f"is pooled, so the teacher's scores teach {why}"
        yield Problem("objective.teacher.score", what, "write late or hybrid, or kind: lora")


def _alone(recipe: Recipe) -> Problems:
    """A pair needs another document beside its own."""
    objective, ranks = recipe.objective, world()
    rows = recipe.training.get("per_device_train_batch_size", 8)
    each = rows if objective.batch is None else objective.batch // ranks
    if recipe.data.negatives or each != 1 or (objective.gather and (objective.gather_group or ranks) > 1):
        return
    if objective.batch is None:
        what = "is 1, and without hard negatives a batch of one pair has no negative: the loss would always be 0"
        yield Problem("training.per_device_train_batch_size", what, "raise it, or set data.negatives")
    elif objective.batch > 1:  # a batch of 1 is told as such
        what = f"is {objective.batch} over {ranks} processes that do not gather: one pair each, without a negative"
        yield Problem("objective.batch", what, "raise it, write gather: true, or set data.negatives")


# Against the base ----------------------------------------------------------------------------------------------------


def check_blocks(recipe: Recipe, base: BaseConfig) -> Problems:
    """LoRA goes into blocks that are there, and nothing is trained above the layers that the loss reads."""
    adapter, read = recipe.adapter, [layer % (base.layers + 1) for layer in layers(recipe.late)]
    blocks = range(1, base.layers + 1)
    trained = {"lora": adapter.layers or list(blocks), "full": list(blocks), "frozen": []}[adapter.kind]
    wrong = [block for block in trained if block not in blocks]
    if wrong:
        what = f"the model has no block {', '.join(map(str, wrong))}: it has 1 to {base.layers}"
        yield Problem("adapter.layers", what, f"write numbers from 1 to {base.layers}, or null for all")
    late_alone = not _trains_pooled(recipe.objective)
    if late_alone and read and not wrong and any(block > max(read) for block in trained):
        what = f"the late term alone reads layer {max(read)}, so what is trained above it gets no gradient"
        fix = f"write adapter.layers: {list(range(1, max(read) + 1))}" if max(read) else "choose a layer above 0"
        yield Problem("late.layer", what, f"{fix}, or give the pooled term a weight")


def check_overlap(recipe: Recipe, base: BaseConfig) -> Problems:
    """A cosine needs two vectors of one width."""
    width = recipe.late.dim or base.hidden
    if active(recipe.objective, "overlap") and width != base.pooled:
        what = f"compares pooled vectors ({base.pooled} wide) with tokens ({width} wide)"
        equal = "null" if base.pooled == base.hidden else str(base.pooled)
        fix = f"write late.dim: {equal}, or overlap: 0" if base.pooled <= base.hidden else "write overlap: 0"
        yield Problem("objective.overlap", what, fix)


# Small parts ---------------------------------------------------------------------------------------------------------


def _trains_pooled(objective: ObjectiveBlock) -> bool:
    """Whether any term has a gradient to the pooled vectors."""
    on = {key for key in SCHEDULED if active(objective, key)}
    taught = "teacher.weight" in on and objective.teacher.score != "late"
    return taught or bool(on & {"pooled.weight", "hybrid.weight", "self_distillation.weight", "overlap"})


def _trains_tokens(objective: ObjectiveBlock) -> bool:
    """Whether any term has a gradient to the tokens; of self-distillation they are the teacher, which gets none."""
    on = {key for key in SCHEDULED if active(objective, key)}
    taught = "teacher.weight" in on and objective.teacher.score != "pooled"
    return taught or bool(on & {"late.weight", "hybrid.weight", "diversity", "overlap"})
