"""Name the optional packages, and say in one sentence how to install one that is missing.

An extra is a part of ``pip install 'smart-train[EXTRA]'``. docs/install.md says what each is for, and how large it is.
"""

from __future__ import annotations

from importlib.util import find_spec

from smart_train.core.errors import MissingPackage

EXTRAS = {  # module -> the extra that brings it
    "bitsandbytes": "qlora",
    "deepspeed": "deepspeed",
    "late_interaction_kernels": "kernels",
    "mteb": "benchmarks",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}


def installed(module: str) -> bool:
    """Return whether a module can be found; nothing is imported.

    >>> installed("torch"), installed("no_such_package")
    (True, False)
    """
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing, or it was put aside in sys.modules
        return False


def how_to_install(module: str, package: str | None = None) -> str:
    """Return the command that installs a module.

    package: its name on the package index, where no extra brings it and it is not the module's own

    >>> how_to_install("deepspeed"), how_to_install("comet_ml", "comet-ml")
    ("pip install 'smart-train[deepspeed]'", 'pip install comet-ml')
    """
    extra = EXTRAS.get(module)
    return f"pip install 'smart-train[{extra}]'" if extra else f"pip install {package or module}"


def require(module: str, what: str, package: str | None = None) -> None:
    """Raise MissingPackage if a module is not installed.

    what: what needs it, the subject of the sentence; package: as for ``how_to_install``

    >>> require("torch", "training")
    """
    if not installed(module):
        fix = how_to_install(module, package)
        raise MissingPackage(f"{what} needs the package {module}, which is not installed: {fix}")
