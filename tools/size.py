"""Print how large a Python package is and how its modules hang together, folder by folder.

    python tools/size.py             the package smart_train of this checkout
    python tools/size.py FOLDER      another package, for example one of an older commit

Columns of the table:

    modules     Python files
    code lines  lines that hold code: no blank line, comment or docstring
    docs        lines of comments and docstrings, as a share of these and the code lines
    one user    modules that exactly one other module of the package imports

Below it: the import circles (groups of modules that reach each other through imports) and the file names that occur
more than once. An import counts wherever it stands: inside a function and under ``if TYPE_CHECKING`` as well.
Standard library only.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


@dataclass
class Module:
    """One Python file: its folder within the package, its line counts, and the modules of the package it imports."""

    name: str
    folder: str
    is_package: bool
    code: int
    docs: int
    imports: set[str] = field(default_factory=set)


def main() -> None:
    folder = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parent.parent / "smart_train"
    if not (folder / "__init__.py").is_file():
        sys.exit(f"{folder} is no Python package: it has no __init__.py")
    print(report(read_package(folder)))


def read_package(folder: Path) -> dict[str, Module]:
    """Return module name -> Module for every Python file below ``folder``."""
    files = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    modules = {}
    for name, path in files.items():
        source = path.read_text(encoding="utf-8")
        inner = path.relative_to(folder).parts
        modules[name] = Module(
            name,
            inner[0] if len(inner) > 1 else "(root)",
            path.name == "__init__.py",
            *count_lines(source),
            imports=imported_modules(source, name, path.name == "__init__.py", set(files)) - {name},
        )
    return modules


def count_lines(source: str) -> tuple[int, int]:
    """Return (lines that hold code, lines that hold only a comment or a docstring) of a Python source text."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    lines = source.splitlines()
    code -= docstrings  # blank lines inside a string stay: they are part of what the program says
    written = {line for line in docstrings if lines[line - 1].strip()}
    return len(code), len((comments - code) | written)


def imported_modules(source: str, name: str, is_package: bool, known: set[str]) -> set[str]:
    """Return the modules among ``known`` that a source text imports, wherever the import stands.

    ``from package import name`` means ``package.name`` if that is a module, else ``package``.
    """
    package = name if is_package else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return found & known


def import_circles(modules: dict[str, Module]) -> list[list[str]]:
    """Return the groups of two or more modules that reach each other through imports, largest first (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(modules[name].imports):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                circles.append(sorted(stack[at:]))
            del stack[at:]

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * len(modules) + 1000))
    for name in sorted(modules):
        if name not in index:
            visit(name)
    return sorted(circles, key=lambda circle: (-len(circle), circle))


def repeated_names(modules: dict[str, Module]) -> dict[str, list[str]]:
    """Return file name -> modules, for the names that more than one file has; ``__init__.py`` is left out."""
    names: dict[str, list[str]] = {}
    for name, module in sorted(modules.items()):
        if not module.is_package:
            names.setdefault(name.rpartition(".")[2], []).append(name)
    return {base: group for base, group in names.items() if len(group) > 1}


def report(modules: dict[str, Module]) -> str:
    """Return the table, the circles and the repeated names as text."""
    users = Counter(target for module in modules.values() for target in module.imports)
    folders: dict[str, list[Module]] = {}
    for module in modules.values():
        folders.setdefault(module.folder, []).append(module)
    rows = [(folder, *_sums(group, users)) for folder, group in sorted(folders.items())]
    rows.append(("total", *_sums(list(modules.values()), users)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':{width}}  modules  code lines  docs  one user"]
    for folder, count, code, share, single in rows:
        lines.append(f"{folder:{width}}  {count:7}  {code:10,}  {share:3.0f}%  {single:8}")
    circles = import_circles(modules)
    lines.append("")
    lines.append(f"import circles: {len(circles)}" + (f", the largest of {len(circles[0])} modules" if circles else ""))
    lines += [f"  {' <-> '.join(circle)}" for circle in circles]
    repeated = repeated_names(modules)
    lines.append(f"file names that occur more than once: {len(repeated)}")
    lines += [f"  {base}: {', '.join(group)}" for base, group in repeated.items()]
    return "\n".join(lines)


def _sums(group: list[Module], users: Counter[str]) -> tuple[int, int, float, int]:
    """Return (modules, code lines, share of documentation in percent, modules with one user) of some modules."""
    code, docs = sum(module.code for module in group), sum(module.docs for module in group)
    return len(group), code, 100 * docs / max(code + docs, 1), sum(users[module.name] == 1 for module in group)


if __name__ == "__main__":
    main()
