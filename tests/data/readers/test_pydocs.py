"""The docstring corpus on packages made here, and on this interpreter's own standard library."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import pytest

from smart_train.core.errors import DataError
from smart_train.data.readers.pydocs import read_pydocs

BODY = " ".join(f"word{n}" for n in range(25))


def doc(summary: str, body: str, indent: str = "    ") -> str:
    return f'{indent}"""{summary}\n\n{indent}{body}\n{indent}"""\n'


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def function(name: str, summary: str, body: str) -> str:
    return f"def {name}():\n{doc(summary, body)}\n"


def test_summary_and_body_become_query_and_document_with_stable_ids(tmp_path):
    source = (
        function("walk", "Walk over all\n    of the nodes.", f"{BODY}\n\n    and\tmore   after")
        + "class Tree:\n"
        + doc("A tree of many nodes.", f"tree {BODY}")
        + "    def grow(self):\n"
        + doc("Grow one branch at random.", f"grow {BODY}", "        ")
        + "if True:\n    try:\n        async def late():\n"
        + doc("Come late to the party.", f"late {BODY}", "            ")
        + "    except ImportError:\n        pass\n"
    )
    write(tmp_path, "woods/deep/trees.py", source)
    write(tmp_path, "alone.py", function("single", "A module without a package.", f"single {BODY}"))
    found = read_pydocs([tmp_path])
    assert list(found.corpus) == [
        "alone.py:single",
        "woods/deep/trees.py:Tree",
        "woods/deep/trees.py:Tree.grow",
        "woods/deep/trees.py:late",
        "woods/deep/trees.py:walk",
    ]
    walk = found.corpus["woods/deep/trees.py:walk"]
    assert walk.text == f"{BODY} and more after" and walk.file == "woods"
    assert found.corpus["alone.py:single"].file == "alone"
    ((query, judged),) = [(q, r) for q, r in found.qrels.items() if walk.id in r]
    assert found.queries[query] == "Walk over all of the nodes." and judged == {walk.id: 1}
    assert found.check() is found and len(found.pairs()) == 5


@pytest.mark.parametrize(
    ("summary", "body", "kept"),
    [
        ("Four words are enough.", BODY, True),
        ("Three are not.", BODY, False),
        ("Too many words " * 14, BODY, False),
        ("Four words are enough.", " ".join(["word"] * 19), False),
        ("Four words are enough.", f"{BODY} four words ARE enough again", False),
    ],
)
def test_only_pairs_that_are_long_enough_and_do_not_repeat_themselves_are_kept(tmp_path, summary, body, kept):
    write(tmp_path, "a.py", function("f", summary, body) + function("g", "This one is always there.", f"other {BODY}"))
    assert ("a.py:f" in read_pydocs([tmp_path]).corpus) is kept


def test_of_what_is_there_twice_neither_is_kept(tmp_path):
    twice = function("copy", "A summary that is vendored.", f"vendored {BODY}")
    write(tmp_path, "one.py", twice + function("same_query", "Summaries may be the same.", f"first {BODY}"))
    write(
        tmp_path, "two/vendor/one.py", twice + function("same_query", "summaries may be\n    THE same.", f"2nd {BODY}")
    )
    write(tmp_path, "three.py", function("f", "One body for two summaries.", f"shared {BODY}"))
    write(tmp_path, "four.py", function("f", "Another summary, same body.", f"Shared  {BODY}"))
    write(tmp_path, "five.py", function("f", "This one is not repeated.", f"alone {BODY}"))
    assert list(read_pydocs([tmp_path]).corpus) == ["five.py:f"]


def test_a_name_that_is_defined_twice_keeps_both(tmp_path):
    write(
        tmp_path,
        "a.py",
        function("f", "Defined here at first.", f"1 {BODY}") + function("f", "And again down here.", BODY),
    )
    assert list(read_pydocs([tmp_path]).corpus) == ["a.py:f", "a.py:f#2"]


def test_tests_this_package_and_files_without_documentation_are_left_out(tmp_path):
    for n, name in enumerate(
        [
            "a/tests/b.py",
            "a/test_b.py",
            "smart_train/c.py",
            "a/.hidden/d.py",
            "a/e.txt",
            "a/site-packages/x.py",
            "a/ok.py",
        ]
    ):
        write(tmp_path, name, function("f", f"Summary with number {n}.", f"{n} {BODY}"))
    write(tmp_path, "a/sparse.py", function("f", "Lost in a big file.", f"sparse {BODY}") + "x = 1\n" * 3000)
    assert list(read_pydocs([tmp_path]).corpus) == ["a/ok.py:f"]


def test_files_that_do_not_parse_are_counted_and_named(tmp_path, caplog):
    good = function("f", "A summary of four.", BODY)
    write(tmp_path, "good.py", good)
    write(tmp_path, "python2.py", function("g", "Another summary of five.", f"2 {BODY}") + 'print "hello"\n')
    write(tmp_path, "nul.py", function("g", "One more summary of five.", f"3 {BODY}") + "\0\n")
    assert list(read_pydocs([tmp_path]).corpus) == ["good.py:f"]
    assert "2 files cannot be parsed" in caplog.text
    assert "python2.py" in caplog.text and "nul.py" in caplog.text


def test_nothing_is_imported_and_an_empty_place_is_an_error(tmp_path):
    write(tmp_path, "bomb.py", "raise SystemExit\n" + function("f", "A summary of four.", BODY))
    assert len(read_pydocs([tmp_path]).corpus) == 1
    with pytest.raises(DataError, match="no documented Python files"):
        read_pydocs([tmp_path / "nowhere"])


@pytest.fixture(scope="module")
def some_packages(tmp_path_factory) -> Path:
    """The standard library's asyncio, email, xml and a few modules, linked file by file."""
    root, stdlib = tmp_path_factory.mktemp("lib"), Path(sysconfig.get_path("stdlib"))
    for pattern in ("asyncio/*.py", "email/*.py", "xml/*/*.py", "a*.py", "s*.py"):
        for file in stdlib.glob(pattern):
            target = root / file.relative_to(stdlib)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    return root


def test_reading_twice_gives_the_same_fingerprint(some_packages):
    first, second = read_pydocs([some_packages]), read_pydocs([some_packages])
    assert first.fingerprint() == second.fingerprint() and len(first.corpus) > 100


def test_real_docstrings_agree_with_a_plain_walk_over_the_syntax_tree(some_packages):
    found = read_pydocs([some_packages])
    words: dict[str, set[str]] = {}
    for file in some_packages.rglob("*.py"):
        place = file.relative_to(some_packages).as_posix()
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                words.setdefault(f"{place}:{node.name}", set()).add(text)
    assert len({q.lower() for q in found.queries.values()}) == len(found.queries)
    assert len({d.text.lower() for d in found.corpus.values()}) == len(found.corpus)
    for query, document in found.pairs():
        place, name = document.split("#")[0].rsplit(":", 1)
        text = f"{found.queries[query]} {found.corpus[document].text}"
        assert text in words[f"{place}:{name.rsplit('.', 1)[-1]}"]
        assert found.corpus[document].file == place.split("/")[0].removesuffix(".py")
