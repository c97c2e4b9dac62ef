"""A reader of one's own: in Python, from a recipe, from an installed package; and what is refused."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tiny_data

from smart_train.checks.recipe import check
from smart_train.config.recipe import plain, read
from smart_train.config.schema import Component, DataBlock
from smart_train.config.typed_values import RecipeError
from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, Document, content_id
from smart_train.data.load import check_data, dev_and_test, has_test, image_column, load, no_scores, read_all
from smart_train.data.readers.base import READERS, DataProblem, Reader, find_reader
from smart_train.data.readers.beir import BeirReader
from smart_train.data.readers.page_annotations import PageAnnotationsReader
from smart_train.data.readers.rows import RowsReader
from smart_train.data.validate import validate

MODULE = '''
from pathlib import Path

from smart_train.data.collection import Collection, Document
from smart_train.data.readers.base import Reader


class NotesReader(Reader):
    """Notes: a line "? query", then lines "+ score positive" and "- score negative"."""

    def __init__(self, data, comment="#"):
        super().__init__(data)
        self.comment = comment

    @classmethod
    def detect(cls, data):
        return Path(data.path, "notes").is_file()

    def splits(self):
        return sorted(file.stem for file in Path(self.data.path).glob("*.txt"))

    def read(self, split):
        found, query = Collection(self.name, {}, {}, {}), ""
        for line in Path(self.data.path, f"{split}.txt").read_text().splitlines():
            if line.startswith(self.comment):
                continue
            mark, rest = line.split(" ", 1)
            if mark == "?":
                query = f"q{len(found.queries)} of {split}"
                found.queries[query], found.qrels[query], found.negatives[query] = rest, {}, []
                found.teacher[query] = {}
                continue
            score, text = rest.split(" ", 1)
            found.corpus[text] = Document(text, text)
            found.teacher[query][text] = float(score)
            if mark == "+":
                found.qrels[query][text] = 1
            else:
                found.negatives[query].append(text)
        return found


class Greedy(NotesReader):
    @classmethod
    def detect(cls, data):
        return True


class Plain:
    pass


class Half(Reader):
    @classmethod
    def detect(cls, data):
        return False
'''


def notes(folder: Path) -> Path:
    """Twelve training queries with a positive, a negative and scores of both; three test queries."""
    folder.mkdir()
    (folder / "notes").touch()
    for split, numbers in (("train", range(12)), ("test", range(12, 15))):
        lines = ["# a comment"]
        for n in numbers:
            lines += [f"? where is {n}", f"+ {n}.5 here is {n}", f"- -1 there is {n}"]
        (folder / f"{split}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """my_notes.py in the working directory, as a user has it beside a recipe; forgotten afterwards."""
    (tmp_path / "my_notes.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_notes", "their_notes"):
        sys.modules.pop(name, None)


@pytest.fixture
def package(module, monkeypatch):
    """package(name, class) installs a package that registers a reader, as pip leaves one behind."""
    site = module / "site"
    site.mkdir()
    shutil.move(module / "my_notes.py", site / "their_notes.py")

    def install(name: str, kind: str) -> None:
        info = site / "their_notes-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-notes\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[smart_train.readers]\n{name} = their_notes:{kind}\n")
        monkeypatch.syspath_prepend(str(site))

    return install


def block(path: Path, **change) -> DataBlock:
    return DataBlock(**({"path": str(path), "dev": 3} | change))


def test_a_reader_made_in_python_is_loaded_checked_copied_and_divided_like_any_other(module, monkeypatch):
    monkeypatch.syspath_prepend(str(module))
    reader = import_module("my_notes").NotesReader(block(notes(module / "mine"), negatives=1))
    train, dev, test = load(reader, teacher=True)
    assert (len(train.queries), len(dev.queries), len(test.queries)) == (9, 3, 3)
    assert [part.name for part in (train, dev, test)] == ["mine/train", "mine/dev", "mine/test"]
    for part in (train, dev, test):
        for query, text in part.queries.items():
            n = text.rpartition(" ")[2]
            assert part.qrels[query] == {f"here is {n}": 1} and part.negatives[query] == [f"there is {n}"]
            assert part.teacher[query] == {f"here is {n}": float(f"{n}.5"), f"there is {n}": -1.0}
    assert check_data(reader, teacher=True) == [] and has_test(reader)
    assert image_column(reader) is None and no_scores(reader) is None
    whole = read_all(reader)
    assert {split: len(qrels) for split, qrels in whole.splits.items()} == {"train": 12, "test": 3}
    assert len(whole.corpus) == 30 and all(len(found.documents) == 1 for found in whole.negatives.values())
    assert len(whole.negatives) == len(whole.teacher) == 15 and validate(whole).findings == []


def test_the_reader_of_a_recipe_is_a_path_with_options(module):
    folder = notes(module / "mine")
    (folder / "train.txt").write_text((folder / "train.txt").read_text().replace("# a", "% a"))
    data = block(folder, format={"type": "my_notes:NotesReader", "comment": "%"}, limit=5, dev=0, test=0)
    assert data.format == Component("my_notes:NotesReader", {"comment": "%"})
    (folder / "test.txt").unlink()
    train = load(data)[0]
    assert list(train.queries.values()) == [f"where is {n}" for n in range(5)]  # limit, which the reader never saw
    parts = dev_and_test(block(folder, format=data.format, dev=3, test=4))
    assert (len(parts.dev.queries), len(parts.test.queries)) == (3, 4)


def test_a_recipe_with_a_reader_of_its_own_is_checked_and_written_as_it_was_read(module, tiny_bert):
    notes(module / "mine")
    recipe = module / "recipe.yaml"
    lines = [f"model: {{base: {tiny_bert}}}", "data:", "  path: mine", "  format: my_notes:NotesReader", "  dev: 3"]
    recipe.write_text("\n".join(lines) + "\n")
    found = read(recipe)
    assert check(found) and plain(found)["data"]["format"] == "my_notes:NotesReader"
    assert len(load(found.data)[2].queries) == 3
    (module / "mine" / "train.txt").unlink()
    with pytest.raises(RecipeError, match=r"data\.split: mine has no split 'train'; there is test"):
        check(read(recipe))


def test_an_installed_reader_has_a_short_name_and_is_asked_by_auto(module, package):
    folder = notes(module / "mine")
    with pytest.raises(DataProblem, match="there is no data reader 'notes'"):
        find_reader(block(folder, format="notes"))
    package("notes", "NotesReader")
    assert "notes" in READERS.names()
    for name in ("notes", "auto"):
        assert type(find_reader(block(folder, format=name))).__name__ == "NotesReader"
        assert len(load(block(folder, format=name))[0].queries) == 9


def test_an_installed_reader_is_asked_before_rows_and_after_the_other_built_in_ones(module, package, beir_folder):
    package("all", "Greedy")  # it says yes to everything
    table = tiny_data.write_lines(module / "rows.jsonl", [{"query": "a", "positive": "b"}])
    pages = module / "questions.csv"
    pages.write_text("query,file,page\nwhere,a.txt,1\n")
    chosen = {
        str(beir_folder): "BeirReader",
        "pydocs": "PydocsReader",
        str(pages): "PageAnnotationsReader",
        str(table): "Greedy",
        "no/such/place": "Greedy",
    }
    assert {path: type(find_reader(DataBlock(path=path))).__name__ for path in chosen} == chosen
    assert type(find_reader(DataBlock(path=str(table), format="rows"))) is RowsReader


def test_rows_means_any_table_and_each_built_in_reader_can_be_named(tmp_path, beir_folder, triples_file):
    pages = tmp_path / "questions.csv"
    pages.write_text("query,file,page\nwhere,a.txt,1\n")
    (tmp_path / "a.txt").write_text("here")
    assert type(find_reader(block(pages, format="rows"))) is PageAnnotationsReader
    assert type(find_reader(block(pages, format="pages"))) is PageAnnotationsReader
    assert type(find_reader(block(triples_file, format="rows"))) is RowsReader
    assert type(find_reader(block(beir_folder, format="beir"))) is BeirReader
    (problem,) = check_data(block(triples_file, format="pages"))
    assert problem.key == "data.format" and "no table with the columns query and file" in problem.what
    (problem,) = check_data(block(beir_folder, format="mbeir"))
    assert problem.key == "data.path" and "no queries and candidate pool" in problem.what


@pytest.mark.parametrize(
    ("chosen", "what", "fix"),
    [
        ("bier", "there is no data reader 'bier'", "write beir"),
        ("no_such_module:Reader", "cannot be imported (No module named 'no_such_module')", "install its package"),
        ("my_notes:Missing", "my_notes has no Missing", "correct the name"),
        ("my_notes:Plain", "my_notes:Plain is no subclass of smart_train.data.readers.base:Reader", "derive the class"),
        ("my_notes:Half", "the reader my_notes:Half does not define read, splits", "define it"),
        ("{type: my_notes:NotesReader, commend: x}", "does not accept its options", "its options are data, comment"),
        ("{type: beir, sep: x}", "does not accept its options", "its options are data"),
        ("{type: auto, sep: x}", "auto has no options, and sep is given", "name the reader in type"),
    ],
)
def test_a_wrong_format_is_refused_with_key_line_and_fix_before_data_is_looked_at(
    module, tiny_bert, monkeypatch, chosen, what, fix
):
    recipe = module / "recipe.yaml"
    recipe.write_text(f"model: {{base: {tiny_bert}}}\ndata:\n  path: mine\n  format: {chosen}\n")
    monkeypatch.setattr(RowsReader, "__init__", lambda *_: pytest.fail("the data was looked at"))
    for data in (False, True):  # with the data: the same one line
        with pytest.raises(RecipeError) as error:
            check(read(recipe), data=data)
        (line,) = str(error.value).splitlines()
        assert line.startswith(f"{recipe}, line 4: data.format: ") and what in line and fix in line
    with pytest.raises(DataError, match=r"^data\.format: "):
        load(read(recipe).data)


def test_a_data_folder_cannot_have_code_imported(tmp_path, monkeypatch):
    """Whatever a folder that was downloaded holds, reading it runs none of it."""
    folder = tmp_path / "data"
    tiny_data.write_lines(folder / "train.jsonl", [{"query": f"q{n}", "positive": f"p{n}"} for n in range(9)])
    code = "from pathlib import Path\nPath(r'{}').touch()\n".format(tmp_path / "ran")
    for name in ("data.py", "__init__.py", "reader.py", "smart_train.py", "datasets.py", "conftest.py"):
        (folder / name).write_text(code)
    (folder / "recipe.yaml").write_text("data:\n  format: reader:Reader\n")
    (folder / "README.md").write_text("---\nbuilder_name: reader\nformat: reader:Reader\n---\n")
    info = folder / "reader-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reader\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[smart_train.readers]\nreader = reader:Reader\n")
    assert len(load(block(folder, test=0))[0].queries) == 6 and len(read_all(block(folder)).queries) == 9
    assert not (tmp_path / "ran").exists()
    monkeypatch.chdir(folder)  # the control: named by the user, the same file is imported
    with pytest.raises(DataProblem, match="reader has no Reader"):
        load(block(folder, format="reader:Reader"))
    sys.modules.pop("reader", None)
    assert (tmp_path / "ran").exists()


class Fixed(Reader):
    """Two splits in which one id has two texts."""

    @classmethod
    def detect(cls, data: DataBlock) -> bool:
        return False

    def splits(self) -> list[str]:
        return ["train", "test"]

    def read(self, split: str) -> Collection:
        key = content_id("query", split)
        return Collection(self.name, {"d": Document("d", f"text of {split}")}, {key: split}, {key: {"d": 1}})


def test_an_id_with_two_contents_in_two_splits_is_refused(tmp_path):
    with pytest.raises(DataError, match="the id 'd' of test is in another split with another content"):
        read_all(Fixed(block(tmp_path)))
