"""Read paths as people write them, the same everywhere: recipes, commands, Python."""

from __future__ import annotations

from pathlib import Path


def expand_home(path: str) -> str:
    """Return a path with its home folder in place of ``~`` or ``~USER``; any other text is returned unchanged.

    >>> expand_home("data/mine"), expand_home("me/pages"), expand_home("")
    ('data/mine', 'me/pages', '')
    """
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # no such user, so it is a name
        return path
