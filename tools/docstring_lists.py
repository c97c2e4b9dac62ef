"""For the API reference: lines "name: what it is" of a docstring become a list, as they are read in the source."""

from __future__ import annotations

import re
from typing import Any

import griffe

FLAG = re.compile(r" *# doctest: \+\w+")
ENTRY = re.compile(r"^(\w+(?:, \w+)*): +(\S.*)$")


class DocstringLists(griffe.Extension):
    """mkdocs.yml names this file; griffe calls it with every object that has a docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_lists(FLAG.sub("", obj.docstring.value))


def with_lists(text: str) -> str:
    """Turn entries that begin a line into list items; their indented continuation stays with them.

    >>> print(with_lists("Cut rows.\\n\\nwidth: of a row,\\n    at most 5\\nfirst, last: of the rows"))
    Cut rows.
    <BLANKLINE>
    - `width`: of a row,
        at most 5
    - `first, last`: of the rows
    """
    lines = text.split("\n")
    made = []
    for number, line in enumerate(lines):
        entry = ENTRY.match(line)
        if entry and not line.startswith(("Raises:", "Args:", "Returns:", "Note:", "Example:")):
            before = lines[number - 1] if number else ""
            if before.strip() and not ENTRY.match(before) and not before.startswith("    "):
                made.append("")  # a list begins after an empty line
            line = f"- `{entry[1]}`: {entry[2]}"
        made.append(line)
    return "\n".join(made)
