"""To the Hub and back: a stand-in on loopback takes a data set, images inside, and gives it to every reader."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import datasets
import fakehub
import pytest
import tiny_data
from PIL import PngImagePlugin

from smart_train.core.errors import DataError
from smart_train.data import hub_transfer as share
from smart_train.data import store
from smart_train.data.collection import Collection, Document, HardNegatives, RetrievalDataset
from smart_train.data.readers.beir import read_beir

ROOT = Path(__file__).parents[2]


def mine(folder: Path) -> Path:
    """Pages, pages with a text, texts; a train and a test split; mined negatives and a teacher."""
    corpus = {
        f"d{n}": Document(
            f"d{n}",
            tiny_data.passage(n) if n % 3 else None,
            None if n % 3 == 1 else tiny_data.draw_page(n),
            f"{n // 4}",
            n,
        )
        for n in range(10)
    }
    queries = {f"q{n}": f"what stands beside the {tiny_data.TOPICS[n]}" for n in range(10)}
    mined = {"q1": HardNegatives(("d9", "d8"), (0.5, 0.4), 0.9, "tiny")}
    train = {f"q{n}": {f"d{n}": 1, "d9": 0} for n in range(6)}
    sides = Collection("mine", corpus, queries, train, {"q1": ["d9", "d8"]}, {"q2": {"d2": 7.5}}, mined)
    store.write(sides, folder, "train", {"label": {"d1": "iv"}})
    store.write_qrels(folder, "test", {f"q{n}": {f"d{n}": 2} for n in range(6, 10)})
    return folder


def child(
    hub: fakehub.FakeHub, home: Path, code: str, token: str | None = fakehub.TOKEN
) -> subprocess.CompletedProcess:
    before = "from smart_train.data.hub_transfer import pull, push\nfrom smart_train.data.load import *\n"
    before += "from smart_train.config.schema import DataBlock\nfrom smart_train.core.errors import DataError\n"
    env = hub.environment(home, token, PYTHONPATH=str(ROOT))
    return subprocess.run([sys.executable, "-c", before + code], env=env, capture_output=True, text=True)


def test_a_data_set_goes_to_the_hub_and_comes_back_the_same(tmp_path, hub):
    folder = mine(tmp_path / "mine")
    code = f"""
print(push({str(folder)!r}, "me/mine"))
data = DataBlock(path="me/mine", negatives=1, dev=0)
print(check_data(data, teacher=True), image_column(data), has_test(data))
train, _, test = load(data, teacher=True)
print(sorted(train.queries), sorted(test.queries), train.negatives, train.teacher, train.corpus["d3"].content().size)
pull("me/mine", {str(tmp_path / "back")!r})
"""
    done = child(hub, tmp_path / "home", code)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[0] == f"{hub.url}/datasets/me/mine" and told[1] == "[] image True"
    assert told[2] == (
        f"{[f'q{n}' for n in range(6)]} {[f'q{n}' for n in range(6, 10)]} {{'q1': ['d9', 'd8']}} "
        f"{{'q2': {{'d2': 7.5}}}} {tiny_data.draw_page(3).size}"
    )
    assert hub.repos["dataset", "me/mine"].private
    assert sum(call.startswith("POST") and "/commit/" in call for call in hub.calls) == 1
    for split in ("train", "test"):
        sent, back = (read_beir(place, split) for place in (folder, tmp_path / "back"))
        assert sent.fingerprint() == back.fingerprint() and sent.scored_negatives == back.scored_negatives
        assert all(sent.corpus[d].content() == document.content() for d, document in back.corpus.items())
    assert store.read_parquet(tmp_path / "back" / "corpus" / "corpus.parquet")[1]["label"] == "iv"
    assert {p.name for p in (tmp_path / "back" / "images").iterdir()} == {p.name for p in (folder / "images").iterdir()}


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (
            lambda hub: hub.put("me/mine", {"README.md": b""}, "dataset"),
            "everyone can read it; .*, pass private=False",
        ),
        (
            lambda hub: hub.put("me/mine", {"data/train.parquet": b"PAR1"}, "dataset", private=True),
            r"holds other data \(data/train\.parquet",
        ),
        (lambda hub: hub.fail("POST", "/commit/", 412), "someone else changed it meanwhile"),
        (lambda hub: hub.fail("POST", "/api/repos/create", 503), "answered with status 503"),
        (lambda hub: hub.tokens.clear(), "does not accept your token"),
        (lambda hub: hub.tokens.update({fakehub.TOKEN: "you"}), "your token may not write there"),
    ],
    ids=["public", "other", "changed", "down", "token", "owner"],
)
def test_what_the_hub_refuses_is_one_sentence_and_changes_nothing(tmp_path, hub, prepare, told):
    prepare(hub)
    before = {name: list(repo.commits) for name, repo in hub.repos.items()}
    code = f"""
try:
    push({str(mine(tmp_path / "mine"))!r}, "me/mine")
except DataError as error:
    print(error)
"""
    done = child(hub, tmp_path / "home", code)
    (line,) = done.stdout.splitlines()
    assert pytest.raises(DataError, match=told).matches(DataError(line)), done.stderr
    assert all(hub.repos[name].commits == commits for name, commits in before.items())


def test_files_are_cut_by_size_and_read_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(share, "SHARD", 2000)
    monkeypatch.setattr(share, "GROUP", 3)
    corpus = {f"d{n}": Document(f"d{n}", None, tiny_data.draw_page(n)) for n in range(20)}
    splits = {"test": {"q": {"d1": 1}}, "test_hard": {"q": {"d2": 1}}}
    share.export(RetrievalDataset("pages", corpus, {"q": "what"}, splits), tmp_path / "out")
    assert len(list((tmp_path / "out" / "corpus").iterdir())) > 3
    card = (tmp_path / "out" / "README.md").read_text()
    found = datasets.load_dataset(str(tmp_path / "out"), "corpus", split="corpus")
    assert found["corpus-id"][:] == list(corpus) and found[7]["image"].convert("RGB") == tiny_data.draw_page(7)
    assert card.count("qrels/test-0000.parquet") == 1 and card.count("qrels/test_hard-0000.parquet") == 1
    assert datasets.load_dataset(str(tmp_path / "out"), "qrels", split="test")["corpus-id"][:] == ["d1"]
    with pytest.raises(DataError, match="no splits called 'test-hard'"):
        share.export(
            RetrievalDataset("pages", corpus, {"q": "what"}, {"test-hard": splits["test"]}), tmp_path / "other"
        )


def test_a_missing_image_is_named_before_anything_is_sent(tmp_path, hub):
    folder = mine(tmp_path / "mine")
    next((folder / "images").iterdir()).unlink()
    code = f"""
try:
    push({str(folder)!r}, "me/mine")
except DataError as error:
    print(error)
"""
    done = child(hub, tmp_path / "home", code)
    assert "cannot be read" in done.stdout and "smart-train data check" in done.stdout, done.stderr
    assert not any("/commit/" in call for call in hub.calls)


def test_languages_of_one_repository_are_chosen_by_subset(tmp_path, monkeypatch):
    from smart_train.config.schema import DataBlock
    from smart_train.data.load import check_data, load

    card = ["---", "configs:"]
    for language in ("en", "de"):
        parts = {
            f"{language}-corpus": {"_id": "d1", "text": f"a text in {language}"},
            f"{language}-queries": {"_id": "q1", "text": f"a query in {language}"},
            f"{language}-qrels": {"query-id": "q1", "corpus-id": "d1", "score": 1},
        }
        for name, row in parts.items():
            file = tmp_path / "owner" / "many" / name / "test.jsonl"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(row) + "\n")
            card += [f"- config_name: {name}", "  data_files:", "  - split: test", f"    path: {name}/test.jsonl"]
    (tmp_path / "owner" / "many" / "README.md").write_text("\n".join([*card, "---", ""]))
    for name in ("get_dataset_config_names", "get_dataset_split_names", "load_dataset_builder", "load_dataset"):
        real = getattr(datasets, name)
        local = lambda path, *args, real=real, revision=None, **more: real(str(tmp_path / path), *args, **more)  # noqa: E731
        monkeypatch.setattr(datasets, name, local)
    monkeypatch.chdir(tmp_path / "owner")
    data = DataBlock(path="owner/many", subset="de", split="test", dev=0, test=0)
    assert check_data(data) == []
    found = load(data)[0]
    assert found.queries == {"q1": "a query in de"} and found.corpus["d1"].text == "a text in de"
    (problem,) = check_data(DataBlock(path="owner/many", split="test"))
    assert problem.key == "data.subset" and problem.what.endswith("several configurations: en, de")
    (problem,) = check_data(DataBlock(path="owner/many", subset="dee", split="test"))
    assert problem.fix == "write data.subset: de"


SECRET = "hf_" + "aB3dE5fG7hI9jK1mN0pQ2rS4tU6vW8xYzZ"


def holds(folder: Path, where: str) -> Path:
    """A data set with a secret in one place; returns the folder that would be uploaded."""
    text, picture = tiny_data.passage(0), tiny_data.draw_page(0)
    documents = {"d0": Document("d0", text, None), "d1": Document("d1", None, picture)}
    queries, columns = {"q0": "what"}, {}
    if where == "a text":
        documents["d0"] = Document("d0", f"{text}\n{SECRET}", None)
    elif where == "a query":
        queries["q0"] = SECRET
    elif where == "a column":
        columns = {"note": {"d0": f"token: {SECRET}"}}
    elif where == "a nested column":
        columns = {"note": {"d0": ["x", SECRET]}}
    elif where == "an image":
        buffer, texts = io.BytesIO(), PngImagePlugin.PngInfo()
        texts.add_text("Comment", SECRET)
        picture.save(buffer, "PNG", pnginfo=texts)
        (folder / "a.png").parent.mkdir(parents=True)
        (folder / "a.png").write_bytes(buffer.getvalue())
        documents["d1"] = Document("d1", None, str(folder / "a.png"))
    elif where == "a file's name":
        documents["d0"] = Document("d0", text, None, f"/home/someone/{text}.pdf", 1)
    dataset = RetrievalDataset("x", documents, queries, {"test": {"q0": {"d0": 1}}}, document_columns=columns)
    share.export(dataset, folder / "out")
    return folder / "out"


PLACES = ["a text", "a query", "a column", "a nested column", "an image", "a file's name"]


@pytest.mark.parametrize("where", PLACES)
def test_a_secret_in_the_data_is_named_by_row_and_not_uploaded_unless_allowed(tmp_path, caplog, where):
    out = holds(tmp_path / "data", where)
    with pytest.raises(DataError, match=r"parquet, row \d+ \([dq]\d\), \w+.*allow_secrets") as error:
        share._check_secrets(out, tmp_path / "data", False)
    assert SECRET not in str(error.value)
    share._check_secrets(out, tmp_path / "data", True)
    assert "uploaded all the same" in caplog.text and SECRET not in caplog.text


def test_plain_data_give_no_alarm(tmp_path):
    share._check_secrets(holds(tmp_path / "data", "nowhere"), tmp_path / "data", False)
