"""Where a model's files are: a Hub id, a local folder, or a folder that an installed Python package carries.

Knows: paths and installed packages.  Does not know: torch, transformers, the network.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGE = "package:"
LOCAL = "local:"  # in a published adapter: the base was a folder of its publisher's, of which only the name is told


class BaseNotFound(ValueError):
    """A base that is not there or cannot be used. what: the reason; fix: what to do."""

    def __init__(self, what: str, fix: str) -> None:
        self.what, self.fix = what, fix
        super().__init__(f"{what}; {fix}")


def resolve_base(base: str) -> str:
    """The base as sentence-transformers takes it: a folder's path, or a Hub id.

    base: ``package:NAME/FOLDER`` (NAME as it is imported) gives the absolute path of that folder in the installed
        package, which is found without being imported; ``~`` is expanded; everything else is returned unchanged.
    Raises BaseNotFound where the form is wrong, the package is not installed or has no such folder, and for the
    ``local:NAME`` of a published adapter.
    """
    if base.startswith("~"):
        return str(Path(base).expanduser())
    if base.startswith(LOCAL):
        what = f"{base}: the base was a folder on the machine that this adapter was trained on"
        raise BaseNotFound(what, "if you have it, name it: from_pretrained(..., base=FOLDER)")
    if not base.startswith(PACKAGE):
        return base
    name, _, folder = base.removeprefix(PACKAGE).partition("/")
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise BaseNotFound(f"{base} is not of the form package:NAME/FOLDER", "write it as package:my_models/minilm")
    spec = importlib.util.find_spec(module)
    if spec is None or not (spec.submodule_search_locations or spec.origin):
        install = module.replace("_", "-")
        raise BaseNotFound(f"{base}: the package {module} is not installed", f"install it: pip install {install}")
    roots = [Path(root) for root in spec.submodule_search_locations or [str(Path(str(spec.origin)).parent)]]
    for root in roots:
        path = (root / folder).resolve()
        if path.is_dir():
            return str(path)
    there = sorted(p.name for root in roots for p in root.iterdir() if p.is_dir() and not p.name.startswith("_"))
    raise BaseNotFound(
        f"{base}: the package {module} has no folder {folder!r}", f"its folders are: {', '.join(there) or 'none'}"
    )


def told_name(given: str) -> str:
    """A model or an adapter as people are told of it: a folder's last part, of RUN/adapter both, else what was given.
    Where it lies on this machine is nobody's business."""
    if not Path(given).exists():
        return given
    path = Path(given).resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("adapter", "model", "encoder") else path.name
