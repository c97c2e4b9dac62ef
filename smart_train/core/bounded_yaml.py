"""Read YAML of unknown origin in bounded time and memory, with a line number in every error.

PyYAML shares what an alias names, but whoever walks through the values walks through every copy: half a kilobyte of
aliases of aliases becomes millions of values.  Its composer recurses without a limit, and its constructors raise errors
of their own (ValueError, KeyError, AttributeError) for scalars such as ``2024-13-45`` or ``!!bool maybe``.
"""

from __future__ import annotations

from typing import Any

import yaml

MAX_DEPTH = 50
MAX_VALUES = 50_000  # with every alias written out, in a file that has aliases


class BoundedLoader(yaml.SafeLoader):
    """SafeLoader that raises yaml.MarkedYAMLError for everything that it cannot read, or that is too deep or too large.

    >>> yaml.load("date: 2024-13-45", Loader=BoundedLoader)
    Traceback (most recent call last):
    yaml.constructor.ConstructorError: '2024-13-45' cannot be read as a timestamp
      in "<unicode string>", line 1, column 7:
        date: 2024-13-45
              ^
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = 0
        self._aliases = False

    def fetch_more_tokens(self) -> Any:
        try:
            return super().fetch_more_tokens()
        except (ValueError, OverflowError) as error:  # "\U00110000" is no character
            raise yaml.scanner.ScannerError(None, None, str(error), self.get_mark()) from None

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self._aliases = True
            return super().compose_node(parent, index)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels deep", event.start_mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        # The number of values in it, with aliases written out. A node that an alias of its own is in has none yet.
        node.size = 1 + sum(getattr(child, "size", 1) for child in _children(node))
        if self._aliases and node.size > MAX_VALUES:
            what = f"its aliases stand for more than {MAX_VALUES:,} values"
            raise yaml.composer.ComposerError(None, None, what, event.start_mark)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, OverflowError, KeyError, AttributeError, TypeError):
            shown, kind = str(node.value)[:40], str(node.tag).rpartition(":")[2]
            what = f"{shown!r} cannot be read as {_article(kind)} {kind}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None


def load_yaml(text: str) -> Any:
    """Return the values of a YAML document.  Raises yaml.YAMLError, and nothing else, for what cannot be read."""
    return yaml.load(text, Loader=BoundedLoader)  # noqa: S506 - a SafeLoader


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _article(word: str) -> str:
    return "an" if word[:1] in "aeiou" else "a"
