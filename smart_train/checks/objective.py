"""Check the block ``objective``: its terms, batch and schedule, and that they train what the recipe trains.

What a term reads and trains is asked of the term itself (LossTerm in losses/base.py), never of a list of names.
"""

from __future__ import annotations

import os

from smart_train.checks.bounds import Problems, at_least, layers
from smart_train.config.schema import Recipe
from smart_train.config.typed_values import Problem
from smart_train.core.environment import world
from smart_train.losses.compression import BITS
from smart_train.losses.recipe_terms import RecipeTerm, RecipeTerms, read_terms
from smart_train.models.base_config import BaseConfig


def terms_of(recipe: Recipe) -> RecipeTerms:
    """Return the recipe's loss terms, and what is wrong with them."""
    return read_terms(recipe.objective, where=recipe.where)


def teacher_key(recipe: Recipe) -> str | None:
    """Return the key of the term that needs a teacher's scores in the data; None where none does."""
    readers = (one for one in terms_of(recipe).active if "labels.teacher" in one.term.reads)
    return next((one.key() for one in readers if one.term.weight >= 0), None)


def needs_teacher(recipe: Recipe) -> bool:
    """Return whether the data must have another model's scores."""
    return teacher_key(recipe) is not None


# By itself -----------------------------------------------------------------------------------------------------------


def check_objective(recipe: Recipe) -> Problems:
    """Yield what is wrong with the block ``objective`` by itself."""
    yield from terms_of(recipe).problems
    yield from _reduction(recipe)
    yield from _compression(recipe)
    pages = recipe.objective.neighbour_pages
    if pages is not None and pages < 0:
        what = f"is {pages}, must be at least 0"
        yield Problem("objective.neighbour_pages", what, "write 1 for the page before and after, or null")


def _reduction(recipe: Recipe) -> Problems:
    """Check objective.reduction."""
    block, key = recipe.objective.reduction, "objective.reduction"
    if not block.temperature > 0 or block.temperature == float("inf"):
        what = f"is {block.temperature:g}, must be above 0 and finite"
        yield Problem(f"{key}.temperature", what, "write 0.02 to 0.1 (similarities are cosines)")
    yield from at_least(f"{key}.k", block.k, 1)


def _compression(recipe: Recipe) -> Problems:
    """Check objective.compression."""
    block, key = recipe.objective.compression, "objective.compression"
    bad = [factor for factor in block.factors if factor < 1]
    if bad:
        yield Problem(f"{key}.factors", f"has {bad[0]}", "write whole numbers of 1 or more, such as [1, 2, 4]")
    bad = [bits for bits in block.bits if bits not in BITS]
    if bad:
        yield Problem(f"{key}.bits", f"has {bad[0]}", f"choose from {', '.join(map(str, BITS))}, such as [32, 8, 4]")


def check_batch(recipe: Recipe) -> Problems:
    """Check how many pairs one loss has, in which chunks, and over how many processes."""
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
    """Check skip_nonfinite: engines that step in their backward cannot undo a step (training/nonfinite.py)."""
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
    """Check that something is trained, and that every term of the loss reaches it."""
    late, kind, terms = recipe.late, recipe.adapter.kind, terms_of(recipe)
    head = late.head.type != "none" or len(layers(late)) > 1
    if kind == "frozen" and not head:
        what = "is frozen, and with late.head none and a single layer nothing is left to train"
        yield Problem("adapter.kind", what, "write late.head: layernorm_linear, a list of layers, or kind: lora")
    if kind == "frozen" and not terms.trains("tokens"):
        what = "is frozen, but no term with a weight trains the tokens, and the pooled vector has nothing to train then"
        yield Problem("adapter.kind", what, "give objective.late a weight, or write kind: lora")
    elif kind == "frozen":
        yield from (_idle(one) for one in terms.active if _is_idle(one))
    elif head and terms.learns and not terms.trains("tokens"):
        named = late.head.type != "none"
        key, value = ("late.head", late.head.type) if named else ("late.layer", "a list of layers to mix")
        what = f"is {value}, but no term with a weight trains the tokens, so it would get no gradient"
        yield Problem(key, what, "give objective.late a weight, or write late.head: none and a single layer")
    if recipe.training.get("head_learning_rate") is not None and not head:
        what = "has nothing to set: late.head is none and there is a single layer"
        yield Problem("training.head_learning_rate", what, "remove it, or write late.head: layernorm_linear")
    yield from _alone(recipe)


def check_scaling(recipe: Recipe) -> Problems:
    """Check that standardised hybrid scores have their constants where they are used before the run fits them: what
    trains, chooses or mines would otherwise use raw scores, and what is saved others."""
    hybrid, training, mining = recipe.late.hybrid, recipe.training, recipe.mining
    if hybrid.scaling != "standardised" or (hybrid.pooled_std, hybrid.late_std) != (1, 1):
        return
    users = [one.key() for one in terms_of(recipe).active if "scores.hybrid" in one.term.reads]
    metric = str(training.get("metric_for_best_model") or "").removeprefix("eval_").removeprefix("dev/")
    users += ["training.metric_for_best_model"] if metric.startswith("hybrid/") else []
    dev = recipe.evaluation.during and training.get("eval_strategy", "no") != "no"
    users += ["evaluation.during"] if dev else []
    users += ["mining.mode"] if mining.rounds and mining.mode == "hybrid" else []
    if users:
        what = f"is standardised, but {users[0]} uses the hybrid score while its constants are not fitted yet"
        yield Problem("late.hybrid.scaling", what, "write the four constants, or scaling: none")


def _is_idle(one: RecipeTerm) -> bool:
    """Whether a term learns through the pooled vector alone, at a cost. One that reads the pooled scores alone may
    stay: it costs next to nothing, and its value in the log is that of the base."""
    cheap = {"scores.pooled", "labels.grades", "labels.query_repeats", "labels.all_ranks"}
    return one.term.trains == ("pooled",) and not set(one.term.reads) <= cheap


def _idle(one: RecipeTerm) -> Problem:
    what = f"is on, but {one.term.name} trains the pooled vector alone, which is frozen while adapter.kind is frozen"
    return Problem(one.key(), what, "write 0, let the term train the tokens, or write kind: lora")


def _alone(recipe: Recipe) -> Problems:
    """Check that a pair has another document besides its own."""
    objective, ranks = recipe.objective, world()
    rows = recipe.training.get("per_device_train_batch_size", 8)
    each = rows if objective.batch is None else objective.batch // ranks
    if recipe.data.negatives or each != 1 or (objective.gather and (objective.gather_group or ranks) > 1):
        return
    if objective.batch is None:
        what = "is 1, and without hard negatives a batch of one pair has no negative: the loss would always be 0"
        yield Problem("training.per_device_train_batch_size", what, "raise it, or set data.negatives")
    elif objective.batch > 1:  # check_batch reports a batch of 1
        what = f"is {objective.batch} over {ranks} processes that do not gather: one pair each, without a negative"
        yield Problem("objective.batch", what, "raise it, write gather: true, or set data.negatives")


# Against the base ----------------------------------------------------------------------------------------------------


def check_blocks(recipe: Recipe, base: BaseConfig) -> Problems:
    """Check that LoRA's blocks exist, and that nothing is trained above the layers that the loss reads."""
    adapter, read = recipe.adapter, [layer % (base.layers + 1) for layer in layers(recipe.late)]
    blocks = range(1, base.layers + 1)
    trained = {"lora": adapter.layers or list(blocks), "full": list(blocks), "frozen": []}[adapter.kind]
    wrong = [block for block in trained if block not in blocks]
    if wrong:
        what = f"the model has no block {', '.join(map(str, wrong))}: it has 1 to {base.layers}"
        yield Problem("adapter.layers", what, f"write numbers from 1 to {base.layers}, or null for all")
    late_alone = not terms_of(recipe).trains("pooled")
    if late_alone and read and not wrong and any(block > max(read) for block in trained):
        what = f"the late term alone reads layer {max(read)}, so what is trained above it gets no gradient"
        fix = f"write adapter.layers: {list(range(1, max(read) + 1))}" if max(read) else "choose a layer above 0"
        yield Problem("late.layer", what, f"{fix}, or give the pooled term a weight")


def check_term_widths(recipe: Recipe, base: BaseConfig) -> Problems:
    """Check that every term can work with vectors of these widths."""
    for one in terms_of(recipe).active:
        wrong = one.term.width_problem(base.pooled, recipe.late.dim or base.hidden)
        if wrong is not None:
            yield Problem(one.key(), *wrong)
