"""Every private member of transformers and accelerate that the trainer overrides or uses is listed here and exists.

They may change in any minor release, so pyproject.toml bounds transformers by the minor version that was tested.  When
a new one is tried, this test names what is gone.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest
import transformers
from accelerate.state import GradientState
from packaging.requirements import Requirement
from transformers import Trainer

from smart_train.training import checkpoint, engine, mining_rounds, nonfinite, trainer
from smart_train.training.trainer import SmartTrainer

MODULES = (trainer, checkpoint, mining_rounds, nonfinite, engine)

OVERRIDDEN = {
    "_clip_grad_norm",
    "_finalize_training",
    "_get_grad_norm",
    "_init_training_state",
    "_load_best_model",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_maybe_log_save_evaluate",
    "_prepare_for_training",
    "_run_epoch",
    "_save",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
}
CALLED = {"_load_scaler", "_save_rng_state", "_save_scaler"}
ATTRIBUTES = {"_globalstep_last_logged", "_initial_global_step", "_total_loss_scalar", "_tr_loss", "_train_batch_size"}
GRADIENT_STATE = {"_set_sync_gradients"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def used() -> set[str]:
    """Private attributes that these modules read, call or set on anything."""
    trees = [ast.parse(inspect.getsource(module)) for module in MODULES]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def defined() -> set[str]:
    """Names that our own classes and functions define, or set on themselves."""
    names = set()
    for module in MODULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef):
                names.add(node.name)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                names.add(node.attr)
    return names


def theirs() -> set[str]:
    """Private members of Trainer, with the attributes that its methods set."""
    set_by_methods = set(re.findall(r"self\.(_[a-z]\w*)", inspect.getsource(Trainer)))
    return {name for name in {*dir(Trainer), *set_by_methods} if is_private(name)}


def test_every_private_member_that_is_listed_exists():
    assert {*OVERRIDDEN, *CALLED} <= {name for name in dir(Trainer) if is_private(name)}
    assert theirs() >= ATTRIBUTES
    assert set(dir(GradientState)) >= GRADIENT_STATE


def test_the_trainer_overrides_and_uses_no_private_member_that_is_not_listed():
    own = {name for name in vars(SmartTrainer) if is_private(name)}
    assert own & theirs() == OVERRIDDEN, "an override by accident, or one that is not listed"
    listed = {*OVERRIDDEN, *CALLED, *ATTRIBUTES, *GRADIENT_STATE}
    found = {name for name in used() if is_private(name)}
    of_gradient_state = {name for name in dir(GradientState) if is_private(name)}
    assert (own | found) & (theirs() | of_gradient_state) == listed
    # what is neither listed nor our own: another library's (DeepSpeed's engine, torch's modules)
    assert found - listed - defined() == {"_copy_recovery_script", "_parameters"}


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_an_override_takes_what_the_overridden_method_takes(name):
    ours, base = (list(inspect.signature(getattr(cls, name)).parameters.values()) for cls in (SmartTrainer, Trainer))
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours):
        return  # it passes everything on
    assert [parameter.name for parameter in ours] == [parameter.name for parameter in base]


def test_transformers_is_bounded_by_the_tested_minor_version():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    bound = next(one for one in map(Requirement, project["dependencies"]) if one.name == "transformers").specifier
    major, minor = map(int, transformers.__version__.split(".")[:2])
    assert transformers.__version__ in bound and f"{major}.{minor + 1}.0" not in bound
