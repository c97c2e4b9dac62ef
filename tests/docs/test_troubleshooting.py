"""Every message that docs/troubleshooting.md quotes is one that the package says."""

from __future__ import annotations

import ast
import re

import pytest
from pages import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf8")
OTHERS = {"SyntaxError", "stopped.json", "dev/constant", "local:NAME", "MultiVectorEncoder"}  # no sentences of ours


def said() -> str:
    """All texts of the sources, a line each; what an f-string fills in is a gap."""
    texts = []
    for path in (ROOT / "smart_train").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def quoted() -> list[str]:
    """The messages in first columns of tables of messages."""
    found = []
    for table in re.findall(r"^\| message \|.*\n\|.*\n((?:\|.*\n)+)", PAGE, re.M):
        for row in table.splitlines():
            found += [one for one in re.findall(r"`([^`]+)`", row.split(" | ")[0]) if one not in OTHERS]
    return found


SAID = said()


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_said(message):
    for part in re.split(r"\s*\.\.\.\s*", message):
        assert part in SAID or part in {"negative, negative_1", "or negatives"}, part


def test_an_invented_message_would_be_noticed():
    assert len(quoted()) > 40
    assert "the encoder is out of luck" not in SAID
