"""Read the documentation of the installed Python packages: a real corpus that is on every machine.

A document is a docstring's body, its query the summary (the docstring's first paragraph).  14,600 files are read and
4,200 of them parsed in about 14 s on one core, which gives 23,000 pairs from 166 packages.
"""

from __future__ import annotations

import ast
import gc
import inspect
import logging
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError
from smart_train.core.modality import text_fault
from smart_train.data.collection import Collection, Document, first_few, hash_id
from smart_train.data.readers.base import Reader

logger = logging.getLogger(__name__)

SUMMARY_WORDS = (4, 40)  # fewer say nothing ("Return self."), more are no summary
BODY_WORDS = 20  # at least
SPARSE = 6_000  # a file with less than one candidate per so many bytes is not parsed: half the time, 6 of 7 pairs
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "smart_train"}

# A docstring right after a colon: cheap to find in bytes, so that most files need no parser.  It may find strings
# that are no docstrings; what is kept is decided by `ast`.
_DOCSTRING = re.compile(
    rb":[ \t]*(?:#[^\n]*)?\r?\n\s*[rRuU]?"
    rb'(?:"""([^"]*(?:"(?!"")[^"]*)*)"""|\'\'\'([^\']*(?:\'(?!\'\')[^\']*)*)\'\'\')'
)
_BLANK = re.compile(rb"\n[ \t]*\r?\n")


class PydocsReader(Reader):
    """Read docstring summaries as queries, and the rest of each docstring as the document."""

    has_splits = False

    @classmethod
    def detect(cls, data: DataBlock) -> bool:
        return data.path == "pydocs" and not Path(data.path).exists()

    @property
    def name(self) -> str:
        return "pydocs"

    def splits(self) -> list[str]:
        return [self.data.split]  # whatever its name: there is one body of pairs

    def read(self, split: str) -> Collection:
        return read_pydocs()

    def read_first(self, split: str, limit: int) -> Collection:
        """Read a fixed sample over all packages, since the first pairs are of one package."""
        whole = self.read(split)
        if limit >= len(whole.queries):
            return whole
        queries = sorted(sorted(whole.queries, key=lambda q: (hash_id(q), q))[:limit])
        return whole.select(queries, [d for q in queries for d in whole.qrels[q]])

    def no_negatives(self) -> str | None:
        return "docstrings have no hard negatives"

    def no_scores(self) -> str | None:
        return "docstrings have no scores"


@dataclass(frozen=True)
class _Pair:
    id: str
    package: str
    summary: str
    body: str


def read_pydocs(roots: list[Path] | None = None) -> Collection:
    """Read docstring summaries (queries) and bodies (documents) of the standard library and installed packages.

    Kept where summary (4 to 40 words) and body (20 words or more) are each unique over all that was read, compared
    in lower case with white space normalised, and the body does not contain the summary; so neither of a
    package and its vendored copy is kept.  Left out: test folders, this package, files that hardly have documentation.
    ``Document.file`` is the top-level package; ids are ``package/module.py:Class.method``.  Sorted by id: the same
    installed packages give the same collection.  Files that cannot be parsed are counted in a warning.

    roots: folders of packages; None = the interpreter's own standard library and site-packages.
    Raises DataError where not one pair is found.
    """
    roots = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")] if roots is None else roots
    found: dict[str, _Pair] = {}
    broken: list[str] = []
    collecting = gc.isenabled()
    gc.disable()  # syntax trees are millions of objects without cycles: collecting costs a quarter of the time
    try:
        for root in dict.fromkeys(roots):
            for file in _files(root):
                for pair in _pairs(root, file, broken):
                    found[pair.id] = pair
    finally:
        if collecting:
            gc.enable()
    if broken:
        logger.warning("pydocs: %d files cannot be parsed and are left out: %s", len(broken), first_few(broken))
    kept = _unique(list(found.values()))
    if not kept:
        raise DataError(f"pydocs: no documented Python files in {first_few([str(r) for r in roots])}")
    logger.info("pydocs: %d of %d candidates in %d packages", len(kept), len(found), len({p.package for p in kept}))
    corpus = {p.id: Document(p.id, p.body, file=p.package) for p in kept}
    queries = {f"summary of {p.id}": p.summary for p in kept}
    return Collection("pydocs", corpus, queries, {f"summary of {p.id}": {p.id: 1} for p in kept})


def _files(root: Path) -> Iterator[Path]:
    """Sorted, so that the order does not depend on the file system."""
    if not root.is_dir():
        return
    for entry in sorted(root.iterdir()):
        if entry.is_dir():
            if entry.name not in SKIPPED and not entry.is_symlink() and not entry.name.startswith("."):
                yield from _files(entry)
        elif entry.suffix == ".py" and not entry.name.startswith("test_") and entry.stem != "smart_train":
            yield entry


def _candidates(source: bytes) -> int:
    count = 0
    for match in _DOCSTRING.finditer(source):
        parts = _BLANK.split((match[1] or match[2] or b"").strip(), maxsplit=1)
        count += len(parts) == 2 and len(parts[0].split()) >= SUMMARY_WORDS[0] and len(parts[1].split()) >= BODY_WORDS
    return count


def _pairs(root: Path, file: Path, broken: list[str]) -> Iterator[_Pair]:
    source = file.read_bytes()
    if len(source) > SPARSE * _candidates(source):
        return
    relative = file.relative_to(root)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        broken.append(f"{relative} ({error})")
        return
    package = relative.parts[0].removesuffix(".py")
    seen: Counter[str] = Counter()
    for name, docstring in _docstrings(tree.body, ""):
        pair = _divide(docstring)
        if pair:
            place = f"{relative.as_posix()}:{name}"
            seen[place] += 1
            yield _Pair(place if seen[place] == 1 else f"{place}#{seen[place]}", package, *pair)


def _docstrings(body: list[ast.stmt], above: str) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of classes and functions, also below if and try; not of functions in functions."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                text = first.value.value
                if isinstance(text, str):
                    yield above + node.name, text
            if isinstance(node, ast.ClassDef):
                yield from _docstrings(node.body, f"{above}{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from _docstrings(node.body, above)
            for handler in getattr(node, "handlers", []):
                yield from _docstrings(handler.body, above)
            yield from _docstrings(node.orelse, above)


def _divide(docstring: str) -> tuple[str, str] | None:
    """(summary, body), white space normalised; None where one is too short or the body repeats the summary."""
    parts = re.split(r"\n\s*\n", inspect.cleandoc(docstring), maxsplit=1)
    if len(parts) < 2:
        return None
    summary, body = (" ".join(part.split()) for part in parts)
    words = len(summary.split())
    if not SUMMARY_WORDS[0] <= words <= SUMMARY_WORDS[1] or len(body.split()) < BODY_WORDS:
        return None
    if text_fault(f"{summary} {body}"):  # no tokenizer can read them
        return None
    return None if summary.lower().rstrip(".") in body.lower() else (summary, body)


def _unique(pairs: list[_Pair]) -> list[_Pair]:
    summaries = Counter(p.summary.lower() for p in pairs)
    bodies = Counter(p.body.lower() for p in pairs)
    kept = [p for p in pairs if summaries[p.summary.lower()] == 1 and bodies[p.body.lower()] == 1]
    return sorted(kept, key=lambda p: p.id)
