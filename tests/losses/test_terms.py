"""Loss terms of a user's own, in Python and in a recipe: their value, their mean over ranks, and every refusal."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from formula import draw, late_matrix
from own_terms import (
    FirstToken,
    HalfHybrid,
    HardestNegative,
    Misdeclared,
    PlainLate,
    Refusing,
    Secretive,
    Shapeless,
    Unread,
    WithParameters,
)
from ranks import run_ranks

from smart_train import losses
from smart_train.config.recipe import plain, read, save
from smart_train.config.schema import (
    Component,
    HybridBlock,
    ObjectiveBlock,
    SelfDistillationBlock,
    TeacherBlock,
    TermBlock,
)
from smart_train.core import registry
from smart_train.core.embeddings import Batch, Embeddings, KnownPositives
from smart_train.core.errors import LossError
from smart_train.losses import Joint, Labels
from smart_train.losses.base import LOSSES
from smart_train.losses.recipe_terms import read_terms
from smart_train.training.loss_step import LossStep

OFF = TermBlock(0.0)
ALONE = ObjectiveBlock(OFF, OFF, OFF)
QUERY_LENGTHS, DOCUMENT_LENGTHS = [3, 1, 4, 2, 5, 2], [4, 1, 6, 2, 7, 3, 5, 2]
POSITIVES = [(0, 0), (1, 1), (2, 3), (3, 0), (4, 5), (5, 6)]
ALSO_KNOWN = [(0, 4), (3, 5), (5, 7)]


def batch(dtype=torch.float64) -> tuple[Embeddings, Embeddings, Labels]:
    relevance = torch.zeros(6, 8, dtype=torch.bool)
    for query, document in [*POSITIVES, *ALSO_KNOWN]:
        relevance[query, document] = True
    queries = draw(QUERY_LENGTHS, 0, pooled=8, width=8, dtype=dtype)
    documents = draw(DOCUMENT_LENGTHS, 1, pooled=8, width=8, dtype=dtype)
    return queries, documents, Labels(relevance, torch.tensor(POSITIVES))


def gradients(total: torch.Tensor, *sides: Embeddings) -> list[torch.Tensor]:
    leaves = [leaf for side in sides for leaf in (side.pooled, side.tokens.values)]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def hardest(
    queries: Embeddings, documents: Embeddings, labels: Labels, margin: float, least: float = 0.0
) -> torch.Tensor:
    """The term ``HardestNegative``, pair by pair."""
    matrix, costs = late_matrix(queries, documents), []
    for query, own in labels.positives.tolist():
        negatives = [n for n in range(len(documents)) if not labels.relevance[query, n] and n != own]
        most = torch.stack([matrix[query, n] for n in negatives]).max()
        costs.append(torch.clamp(margin - matrix[query, own] + most, min=least))
    return torch.stack(costs).mean()


def named(term: losses.LossTerm, name: str) -> losses.LossTerm:
    term.name = name
    return term


# -- values


@pytest.mark.parametrize("written", ["Python", "recipe"])
def test_a_term_of_ones_own_is_its_formula_in_value_and_gradient(written, tmp_path):
    queries, documents, labels = batch()
    if written == "Python":
        joint = Joint(losses.Pooled(temperature=0.1), HardestNegative(weight=0.3, margin=0.2))
    else:
        (tmp_path / "mine.yaml").write_text(
            "objective:\n  pooled: {temperature: 0.1}\n  late: {weight: 0}\n  terms:\n"
            "    - {type: own_terms:HardestNegative, weight: 0.3, margin: 0.2}\n"
        )
        joint = Joint.from_recipe(read(tmp_path / "mine.yaml").objective)
    loss = joint(queries, documents, labels)
    pooled = Joint(losses.Pooled(temperature=0.1))(queries, documents, labels).total
    own = hardest(queries, documents, labels, 0.2)
    assert own > 0
    assert loss.parts["loss/hardest"].item() == pytest.approx(own.item(), abs=1e-12)
    distance = 0.2 - hardest(queries, documents, labels, 0.2, least=-torch.inf)
    assert loss.parts["hardest/distance"].item() == pytest.approx(distance.item(), abs=1e-12)
    assert loss.total.item() == pytest.approx((pooled + 0.3 * own).item(), abs=1e-12)
    expected = gradients(pooled + 0.3 * own, queries, documents)
    for mine, other in zip(gradients(loss.total, queries, documents), expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


def test_terms_are_reached_from_the_package():
    joint = losses.Joint(losses.Pooled(), losses.Late(temperature=0.02))
    assert [(term.name, term.weight, term.temperature) for term in joint.terms] == [
        ("pooled", 1.0, 0.05),
        ("late", 1.0, 0.02),
    ]
    with pytest.raises(AttributeError, match="has no attribute 'Latte'"):
        losses.Latte  # noqa: B018


def test_a_built_in_written_again_by_hand_is_the_built_in_at_every_width():
    queries, documents, labels = batch()
    ours, theirs = (
        Joint(losses.Pooled(), term)(queries, documents, labels, token_widths=[2, 4])
        for term in (losses.Late(temperature=0.1), PlainLate(temperature=0.1))
    )
    assert ours.parts["loss/late"].item() == pytest.approx(theirs.parts["loss/PlainLate"].item(), abs=1e-12)
    for mine, other in zip(*(gradients(loss.total, queries, documents) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)


def test_every_built_in_block_is_the_term_of_its_name_made_by_hand():
    queries, documents, labels = batch()
    labels = replace(labels, teacher=torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))
    by_hand = Joint(
        losses.Pooled(0.7, 0.2, margin=0.1, symmetric=True),
        losses.Late(1.3, 0.1, margin=0.1, symmetric=True),
        losses.Hybrid(0.4, 0.15, margin=0.1, symmetric=True),
        losses.SelfDistillation(0.6, 0.1),
        losses.Teacher(0.8, 0.3, "margin_mse", 0.5, "late"),
        losses.Diversity(0.9),
        losses.Overlap(1.1),
    )

    blocks = ObjectiveBlock(
        TermBlock(0.7, 0.2),
        TermBlock(1.3, 0.1),
        TermBlock(0.4, 0.15),
        margin=0.1,
        symmetric=True,
        self_distillation=SelfDistillationBlock(0.6, 0.1),
        teacher=TeacherBlock(0.8, 0.3, "margin_mse", 0.5, "late"),
        diversity=0.9,
        overlap=1.1,
    )
    ours, theirs = (joint(queries, documents, labels) for joint in (by_hand, Joint.from_recipe(blocks)))
    assert ours.total == theirs.total
    assert ours.parts == theirs.parts


def test_an_entry_takes_the_place_of_its_block_and_follows_the_shared_options():
    queries, documents, labels = batch()
    entry = Component("late", {"weight": 2, "temperature": 0.02})
    by_entry = Joint.from_recipe(ObjectiveBlock(terms=[entry], margin=0.1))
    by_block = Joint.from_recipe(ObjectiveBlock(late=TermBlock(2.0, 0.02), margin=0.1))
    assert by_entry(queries, documents, labels).total.item() == pytest.approx(
        by_block(queries, documents, labels).total.item(), abs=1e-12
    )
    own_margin = Component("late", {"margin": 0.3, "name": "wide"})
    names = {t.name: t.margin for t in Joint.from_recipe(ObjectiveBlock(terms=[own_margin], margin=0.1)).terms}
    assert names == {"pooled": 0.1, "wide": 0.3}


def test_what_a_term_does_not_train_gets_no_gradient_from_it():
    queries, documents, labels = batch()
    loss = Joint(FirstToken(), HalfHybrid())(queries, documents, labels, HybridBlock(2.0, 3.0))
    pooled, tokens, *_ = gradients(loss.total, queries, documents)
    assert pooled.abs().max() == 0
    assert tokens.abs().max() > 0
    matrix = 2 * (queries.pooled @ documents.pooled.T).detach() + 3 * late_matrix(queries, documents)
    expected = matrix[labels.query, labels.document].square().mean()
    assert loss.parts["loss/half_hybrid"].item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_schedule_names_a_term_of_ones_own():
    queries, documents, labels = batch()
    term = Component("own_terms:HardestNegative", {"margin": 0.2})
    objective = ObjectiveBlock(terms=[term], schedule={"hardest.weight": [[0, 0], [0.5, 2]]})
    joint = Joint.from_recipe(objective)
    first, later = (joint(queries, documents, labels, progress=progress) for progress in (0.0, 0.25))
    assert first.parts["loss/hardest"] > 0
    gained = (later.total - first.total).item()
    assert gained == pytest.approx(first.parts["loss/hardest"].item(), abs=1e-12)


def test_an_attribute_that_a_term_calls_schedulable_is_scheduled():
    queries, documents, labels = batch()
    joint = Joint(losses.Pooled(), Refusing(), schedule={"refusing.strength": [[0, 1], [1, 3]]})
    low, high = (joint(queries, documents, labels, progress=p).parts["loss/refusing"].item() for p in (0.0, 0.5))
    assert high == pytest.approx(2 * low, abs=1e-12) and low != 0
    with pytest.raises(LossError, match=r"schedule refusing.strength: is 11, must be at most 10; write 10"):
        Joint(losses.Pooled(), Refusing(), schedule={"refusing.strength": [[0, 1], [1, 11]]})


def test_another_package_registers_its_term_by_an_entry_point(monkeypatch):
    point = EntryPoint("hardest_negative", "own_terms:HardestNegative", "smart_train.losses")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "smart_train.losses" else [])
    joint = Joint.from_recipe(replace(ALONE, terms=[Component("hardest_negative", {"margin": 0.3})]))
    assert [(type(term), term.margin) for term in joint.terms] == [(HardestNegative, 0.3)]
    assert "hardest_negative" in LOSSES.names()


# -- what is computed and gathered is what is declared


def test_only_what_is_declared_is_computed_and_gathered():
    joint = Joint(HardestNegative())
    assert (joint.views, joint.scores, joint.trains) == ({"tokens"}, ("late",), {"tokens"})
    queries, documents, labels = batch()
    empty = Embeddings(documents.pooled[:, :0], documents.tokens)  # as Gather hands them out: pooled is not sent
    assert joint(queries, empty, labels).total > 0
    assert set(Joint(FirstToken(), PlainLate()).views) == {"pooled", "tokens"}
    assert read_terms(replace(ALONE, terms=[Component("own_terms:HardestNegative")])).trains("pooled") is False


@pytest.mark.parametrize("what", ["scores.late", "embeddings.tokens"])
def test_reading_what_is_not_declared_is_refused_on_one_rank_as_on_many(what):
    queries, documents, labels = batch()
    with pytest.raises(LossError, match=f"reads {what} without declaring it; add '{what}' to Secretive.reads"):
        Joint(losses.Late(), Secretive(what))(queries, documents, labels)


def test_a_cost_of_another_shape_is_refused():
    queries, documents, labels = batch()
    with pytest.raises(LossError, match=r"term Shapeless returned a tensor \[6\]; Shapeless.forward returns a scalar"):
        Joint(Shapeless())(queries, documents, labels)


# -- two ranks

OWN = ObjectiveBlock(
    terms=[
        Component("own_terms:HardestNegative", {"weight": 0.7, "margin": 0.2}),
        Component("own_terms:FirstToken", {"weight": 0.4}),
        Component("own_terms:PlainLate", {"temperature": 0.1}),
    ]
)
# rank -> its queries, its documents
SHARES = (([0, 1, 2, 3], [0, 1, 2, 3, 4]), ([4, 5], [5, 6, 7]))


def step_on(rows: tuple[list[int], list[int]]) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
    """Total, gradients of all vectors and parts, of the queries and documents of some rows."""
    queries, documents, labels = batch()
    mine, own = rows
    known = [(q, x) for q, x in labels.relevance.nonzero().tolist() if q in mine]
    keys = torch.tensor([[100 + n, 200 + n, 0, -1] for n in range(8)])
    given = Batch(
        [],
        [],
        torch.tensor(mine) + 1,
        keys[own],
        KnownPositives(
            keys[[x for _, x in known]],
            torch.ones(len(known)),
            torch.tensor([sum(q == query for q, _ in known) for query in mine]),
        ),
        torch.tensor([(mine.index(q), own.index(x)) for q, x in POSITIVES if q in mine]),
    )
    both = Embeddings.cat([queries.select(mine), documents.select(own)])
    loss = LossStep(OWN, HybridBlock(), [4], [2, 4]).loss(both, given)
    return loss.total.detach(), gradients(loss.total, queries, documents), loss.parts


def on_a_rank() -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
    total, leaves, parts = step_on(SHARES[dist.get_rank()])
    for tensor in (total, *leaves):
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return total, leaves, parts


def test_the_mean_over_two_ranks_is_the_value_and_gradient_of_one_process():
    """The terms know nothing of ranks; ranks hold unequal numbers of queries, pairs and documents."""
    one = step_on((SHARES[0][0] + SHARES[1][0], SHARES[0][1] + SHARES[1][1]))
    ranks = run_ranks(2, on_a_rank)
    for total, leaves, _ in ranks:
        assert total.item() == pytest.approx(one[0].item(), abs=1e-12)
        for mine, other in zip(leaves, one[1], strict=True):
            torch.testing.assert_close(mine, other, atol=1e-12, rtol=0)
    assert "hardest/distance" in one[2] and "loss/first_token" in one[2]
    for name, value in one[2].items():
        both = sum(parts[name] for _, _, parts in ranks) / 2
        assert both.item() == pytest.approx(value.item(), abs=1e-6), name


# -- refusals, in Python


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([losses.Late(weight=-1)], "late.weight: is -1, must be at least 0"),
        ([losses.Late(temperature=0)], "late.temperature: is 0, must be above 0"),
        ([losses.Late(weight="much")], "late.weight: is 'much', which is no finite number"),
        ([losses.Late(weight=True)], "late.weight: is True, which is no finite number"),
        ([losses.Late(loss="sigmoid", symmetric=True)], "late.symmetric: has no meaning with loss: sigmoid"),
        ([losses.Late(loss="hinge")], "late.loss: is 'hinge'; write softmax or sigmoid"),
        ([losses.Late(margin=1.0)], "late.margin: is 1, must be from 0 to below 1"),
        ([losses.Late(false_negatives=95)], "late.false_negatives: is 95, must be above 0 and at most 1"),
        ([losses.Teacher(kind="mse")], "teacher.kind: is 'mse'; write kl or margin_mse"),
        ([losses.Late(), losses.Late()], "two terms are named late"),
        ([losses.Late(weight=0)], "every weight is 0, so there is no loss; give pooled, late, hybrid"),
        ([losses.Diversity()], "every weight is 0"),
        ([], "every weight is 0"),
        ([WithParameters()], r"trainable parameters of its own \(layer.weight, layer.bias\), which a run neither"),
        ([Misdeclared()], r"(?s)reads names 'scores.latte'; .*trains is \('token',\).*mean_over is \('batches',\)"),
        ([HardestNegative(), named(PlainLate(), "margin")], "the name is 'margin', which the log uses already"),
        ([named(PlainLate(), "a/b")], "the name is 'a/b', not a word without dots and slashes"),
        ([Unread()], "Unread.trains names tokens, which nothing in its reads is made of"),
        ([object()], "is not a loss term; write class object.losses.LossTerm."),
    ],
)
def test_what_cannot_work_is_refused_when_the_loss_is_made(terms, message):
    with pytest.raises(LossError, match=message):
        Joint(*terms)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"latte.weight": [[0, 1]]}, "schedule latte.weight: cannot be scheduled; choose from late.weight, late.tempe"),
        ({"late.loss": [[0, 1]]}, "cannot be scheduled"),
        ({"late.temperature": [[0, 1], [1, 0]]}, "schedule late.temperature: is 0, must be above 0"),
        ({"weight": [[0, 1]]}, "cannot be scheduled"),
        ({"late.weight": [[0, -1]]}, "has the value -1, which is below 0"),
        ({"margin": [[0, 0], [1, 2]]}, "schedule margin: is 2, must be from 0 to below 1"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_when_the_loss_is_made(schedule, message):
    with pytest.raises(LossError, match=message):
        Joint(losses.Late(), schedule=schedule)


def test_frozen_parameters_are_a_terms_own_affair():
    assert Joint(WithParameters(frozen=True)).terms


# -- recipes


def test_a_saved_recipe_with_terms_reads_as_it_was(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "objective:\n  terms:\n    - {type: late, temperature: 0.02}\n    - own_terms:HardestNegative\n"
    )
    recipe = read(tmp_path / "mine.yaml")
    again = read(save(recipe, tmp_path / "run"))
    assert again == recipe and "late" not in plain(recipe)["objective"]
    assert read_terms(again.objective, where=again.where).problems == []
    assert [one.term.name for one in read_terms(again.objective).active] == ["pooled", "late", "hardest"]
    other = read(tmp_path / "mine.yaml", ["objective.terms=[{type: late, weight: -1}]"])
    (problem,) = read_terms(other.objective, where=other.where).problems
    assert (problem.key, other.where.place(problem.key)) == ("objective.terms.0.weight", "command line")


def test_reading_a_recipe_imports_nothing_that_it_names_and_a_downloaded_one_never_does(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    Path("theirs.yaml").write_text("objective:\n  terms: [trap:Term]\n")
    objective = read("theirs.yaml").objective
    with pytest.raises(LossError, match=r"objective.terms.0: .* is code of another package, and a downloaded file may"):
        Joint.from_recipe(objective, trusted=False)
    assert "trap" not in sys.modules
    builtin = Joint.from_recipe(ObjectiveBlock(terms=[Component("late")]), trusted=False)
    assert [term.name for term in builtin.terms] == ["pooled", "late"]


def test_a_module_that_fails_is_named_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "broken_terms.py").write_text("class Term(:\n")
    monkeypatch.chdir(tmp_path)
    (problem,) = read_terms(ObjectiveBlock(terms=[Component("broken_terms:Term")])).problems
    assert problem.key == "objective.terms.0"
    assert "broken_terms:Term cannot be imported: SyntaxError" in problem.what


def test_the_example_of_the_documentation_works_as_it_stands(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "objective.md").read_text(encoding="utf8")
    module, program, recipe = re.findall(r"```(?:python|yaml)\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_terms.py").write_text(module)
    (tmp_path / "mine.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_terms", raising=False)
    by_recipe = Joint.from_recipe(read("mine.yaml").objective)  # it finds the module in the working directory
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict = {}
    exec(program, names)
    queries, documents, labels = batch()
    ours = Joint(losses.Pooled(), losses.Late(temperature=0.02), HardestNegative(0.1))(queries, documents, labels)
    assert names["loss"](queries, documents, labels).total.item() == pytest.approx(ours.total.item(), abs=1e-12)
    theirs = by_recipe(queries, documents, labels, progress=1.0)
    assert [(term.name, term.weight) for term in by_recipe.terms] == [("pooled", 1.0), ("late", 1.0), ("hardest", 0.1)]
    own = hardest(queries, documents, labels, 0.2)
    assert theirs.parts["loss/hardest"].item() == pytest.approx(own.item(), abs=1e-12)
