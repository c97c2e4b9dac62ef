"""The commands and Python blocks that README and docs/ show, as a reader would copy them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = (
    "smart-train",
    "accelerate",
    "deepspeed",
    "torchrun",
    "sbatch",
    "make",
    "pip",
    "uv",
    "python",
    "mteb",
    "mkdocs",
)
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ +)*(?:{'|'.join(PROGRAMS)}|(?:launch|tools|tests)/\S+\.sh)\b(?! *[\d:=(])")


@dataclass(frozen=True)
class Command:
    """page, line: where it stands; words: as a shell splits them, without variables set before it and comments."""

    page: str
    line: int
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def code_lines(text: str) -> list[tuple[int, str]]:
    """(line number, line) of every code block that is no Python, YAML or JSON; continued lines (\\) joined."""
    lines, fence, found = text.splitlines(), None, []
    number = 0
    while number < len(lines):
        line, begun = lines[number], number + 1
        number += 1
        if mark := re.match(r"\s*```(\w*)", line):
            fence = None if fence is not None else mark[1]
            continue
        if fence in ("", "bash", "sh", "console", "shell") or (fence is None and line.startswith("    ")):
            while line.endswith("\\") and number < len(lines):
                line = line[:-1] + " " + lines[number].strip()
                number += 1
            found.append((begun, line.strip().removeprefix("$ ")))
    return found


def commands(page: Path) -> list[Command]:
    found = []
    for number, line in code_lines(page.read_text(encoding="utf8")):
        if not COMMAND.match(line):
            continue
        for part in re.split(r" && | \|\| | ; ", line):
            words = shlex.split(part, comments=True)
            variables = []
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                variables.append((name, value))
            if words and COMMAND.match(shlex.join(words)):
                found.append(Command(page.relative_to(ROOT).as_posix(), number, tuple(words), tuple(variables)))
    return found


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """(line number, source) of every fenced block of Python."""
    text = page.read_text(encoding="utf8")
    return [
        (text.count("\n", 0, block.start()) + 1, block[1])
        for block in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]
