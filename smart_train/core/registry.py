"""Look up extensions by name: built-in, registered by an installed package, or ``package.module:Name``.

A registry is one extension point (loss terms, heads, readers ...). Three kinds of names reach it:

    late                          a short name of this package
    their_term                    a name that an installed package registers through an entry point
    my_package.module:MyTerm      a path to import

Names come from the user's own recipe, command line or program. A name that comes with a download (an adapter's
settings, a data folder) is given to ``resolve`` with ``trusted=False``: it may be a short name of this package and
nothing else, so that a download can never make this process import code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from smart_train.core.errors import ExtensionError

__all__ = ["Registry"]


class Registry:
    """One extension point.

    kind: what it holds, for messages ("loss term"); group: the entry point group of other packages
    ("smart_train.losses"); builtin: short name -> "module:Name", imported when it is first asked for.

    >>> registry = Registry("pooling", "smart_train.examples", {"ordered": "collections:OrderedDict"})
    >>> registry.resolve("ordered").__name__
    'OrderedDict'
    >>> registry.resolve("collections:Counter").__name__
    'Counter'
    """

    def __init__(self, kind: str, group: str, builtin: Mapping[str, str]) -> None:
        self.kind, self.group, self.builtin = kind, group, dict(builtin)

    def names(self) -> list[str]:
        """Short names: those of this package, then those that installed packages register."""
        return [*self.builtin, *sorted({point.name for point in entry_points(group=self.group)} - set(self.builtin))]

    def resolve(self, name: str, *, trusted: bool = True) -> Any:
        """Return the object that ``name`` stands for.

        trusted: whether the name is the user's own; False allows the short names of this package alone
        Raises ExtensionError where there is no such name, it cannot be imported, or it is not trusted.
        """
        if name in self.builtin:
            return _imported(self.builtin[name], self.kind)
        if not trusted:
            raise ExtensionError(
                f"the {self.kind} {name!r} is code of another package, and a downloaded file may not name any",
                "name it yourself if you trust it (docs/extending.md, Load what you trust)",
            )
        for point in entry_points(group=self.group):
            if point.name == name:
                return _imported(point.value, self.kind)
        if ":" in name:
            return _imported(name, self.kind)
        near, known = get_close_matches(name, self.names(), 1, 0.5), ", ".join(self.names())
        hint = f"write {near[0]}, or " if near else f"choose from {known}, or " if known else ""
        raise ExtensionError(f"there is no {self.kind} {name!r}", f"{hint}write package.module:Name")

    def create(self, name: str, options: Mapping[str, Any], /, *arguments: Any, trusted: bool = True) -> Any:
        """Return ``resolve(name)(*arguments, **options)``.

        arguments: what the caller gives every object of this kind; options: the recipe's own
        Raises ExtensionError as ``resolve`` does, and where the object does not accept these options.

        >>> Registry("counter", "smart_train.examples", {"counter": "collections:Counter"}).create("counter", {"a": 2})
        Counter({'a': 2})
        """
        made = self.resolve(name, trusted=trusted)
        self._check_options(name, made, options, arguments)
        return made(*arguments, **options)

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Raise ExtensionError where ``create`` would, without making the object."""
        self._check_options(name, self.resolve(name), options, None)

    def _check_options(
        self, name: str, made: Any, options: Mapping[str, Any], arguments: tuple[Any, ...] | None
    ) -> None:
        try:
            accepted = signature(made)
        except ValueError:  # some classes written in C have no signature
            return
        try:
            accepted.bind_partial(*(arguments or ()))
        except TypeError:
            count = len(arguments or ())
            what = f"the {self.kind} {name!r} does not accept the {count} arguments that every {self.kind} gets"
            raise ExtensionError(what, "compare it with the example in docs/extending.md") from None
        try:
            accepted.bind_partial(**options) if arguments is None else accepted.bind(*arguments, **options)
        except TypeError as error:
            kinds = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
            parameters = [p.name for p in list(accepted.parameters.values())[len(arguments or ()) :] if p.kind in kinds]
            fix = f"its options are {', '.join(parameters)}" if parameters else "it has no options"
            raise ExtensionError(f"the {self.kind} {name!r} does not accept its options ({error})", fix) from None


def _imported(path: str, kind: str) -> Any:
    """The object at ``package.module:Name``; modules beside the working directory are found, as Python scripts find
    theirs."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ExtensionError(f"the {kind} {path!r} is no path", "write package.module:Name")
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ExtensionError(
            f"the {kind} {path!r} cannot be imported ({error})",
            "install its package, or start the command in the folder that holds it",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            what = f"the {kind} {path!r} cannot be imported: {module_name} has no {attribute}"
            raise ExtensionError(what, "correct the name after the colon") from None
    return found
