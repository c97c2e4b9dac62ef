"""What is wrong with a data set: each kind is found, named and taken out, and nothing else is."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_data
from PIL import Image

from smart_train.config.schema import DataBlock
from smart_train.data.collection import Document, HardNegatives, RetrievalDataset
from smart_train.data.load import read_all
from smart_train.data.readers.beir import read_beir
from smart_train.data.store import write_dataset
from smart_train.data.validate import KINDS, validate

PLACES = ["harbour", "bridge", "violin", "lantern", "garden", "copper", "mountain", "kitchen"]


def whole(**change) -> RetrievalDataset:
    """Eight files of two pages, a query for each file; four are trained on, two are dev, two are test."""
    corpus = {
        f"{place}{page}": Document(f"{place}{page}", f"{page} about the {place}", None, f"{place}.pdf", page)
        for place in PLACES
        for page in (1, 2)
    }
    queries = {f"q{n}": f"where is the {place} of this {place}" for n, place in enumerate(PLACES)}
    sides = {"train": range(4), "dev": range(4, 6), "test": range(6, 8)}
    splits = {side: {f"q{n}": {f"{PLACES[n]}1": 1} for n in numbers} for side, numbers in sides.items()}
    made = RetrievalDataset("places", corpus, queries, splits)
    made.negatives = {"q0": HardNegatives(("bridge1", "bridge2"), (0.5, 0.4), 0.9, "tiny")}
    made.teacher = {"q0": {"harbour1": 9.0, "bridge1": 2.0}}
    return replace(made, **change)


def kinds(found) -> dict[str, list[str]]:
    return {finding.kind: finding.ids for finding in found.findings}


def dropped(found) -> dict[str, int]:
    return {what: count for what, (count, _) in found.drops().items() if count}


def test_nothing_is_found_where_nothing_is_wrong():
    data = whole()
    found = validate(data)
    assert found.findings == [] and found.clean == data and dropped(found) == {}


def test_a_query_that_stays_in_one_split_and_is_a_copy_in_another_is_not_lost():
    data = whole()
    data.queries["again"] = data.queries["q1"]
    data.splits["train"]["again"] = {"bridge1": 1}
    data.splits["other"] = {"again": {"bridge2": 1}, "q1": {"bridge1": 1}}
    found = validate(data)
    assert kinds(found) == {"duplicate-query": ["again = q1"]}
    assert found.clean.splits["other"] == {"q1": {"bridge1": 1, "bridge2": 1}} and "q1" in found.clean.splits["train"]


def test_ids_that_dangle_are_found_in_qrels_negatives_and_scores():
    data = whole()
    data.splits["train"] |= {"nobody": {"harbour1": 1}}
    data.splits["train"]["q1"]["gone"] = 1
    data.negatives = {
        "q0": HardNegatives(("bridge1", "lost", "bridge2"), (3.0, 2.0, 1.0)),
        "who": HardNegatives(("bridge1",)),
    }
    data.teacher["q0"]["away"] = 1.0
    found = validate(data)
    assert kinds(found) == {
        "query-id": ["nobody"],
        "corpus-id": ["gone"],
        "negative-id": ["q0 -> lost", "who"],
        "teacher-id": ["q0 -> away"],
    }
    assert found.clean.negatives == {"q0": HardNegatives(("bridge1", "bridge2"), (3.0, 1.0))}
    assert found.clean.splits["train"]["q1"] == {"bridge1": 1} and "nobody" not in found.clean.splits["train"]
    assert dropped(found) == {"train queries": 1, "judgements": 2, "negatives": 2, "scores": 1}


def test_empty_texts_go_and_take_what_only_they_answered_along():
    data = whole()
    data.corpus["bridge1"] = Document("bridge1", " \n", None, "bridge.pdf", 1)
    data.queries["q2"] = " "
    found = validate(data)
    assert kinds(found) == {
        "empty-document": ["bridge1 (bridge.pdf, page 1)"],
        "empty-query": ["q2"],
        "unanswered": ["q1"],
    }
    assert found.clean.splits["train"].keys() == {"q0", "q3"} and not {"q1", "q2"} & found.clean.queries.keys()
    assert found.clean.negatives["q0"].documents == ("bridge2",)


def test_broken_and_missing_images_are_named_with_why(tmp_path):
    data = whole()
    page = tiny_data.draw_page(1)
    page.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:200])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("whole", "cut", "text", "nowhere"):
        data.corpus[name] = Document(name, None, str(tmp_path / f"{name}.png"), "scan.pdf", 3)
    found = validate(data, jobs=2)
    assert [told.partition(" ")[0] for told in kinds(found)["image"]] == ["cut", "text", "nowhere"]
    assert "cut (scan.pdf, page 3): " in kinds(found)["image"][0] and "truncated" in kinds(found)["image"][0]
    assert found.clean.corpus.keys() == whole().corpus.keys() | {"whole"}
    assert validate(data, images=False).findings == []


def test_copies_are_found_by_what_they_show_and_the_first_takes_over_their_judgements(tmp_path):
    data = whole()
    page = tiny_data.draw_page(5)
    for name, kind in (("one", "PNG"), ("two", "BMP")):
        page.save(tmp_path / name, kind)
        data.corpus[name] = Document(name, None, str(tmp_path / name))
    data.corpus["words"] = Document("words", "1 about the harbour", None, "other.pdf", 7)
    data.splits["train"]["q1"] |= {"two": 2, "one": 1}
    data.splits["train"]["q2"] = {"words": 1}
    data.negatives["q3"] = HardNegatives(("two", "words", "harbour1", "one"), (4.0, 3.0, 2.0, 1.0))
    data.teacher["q3"] = {"one": 1.0, "two": 5.0}
    found = validate(data)
    assert kinds(found) == {"duplicate": ["two = one", "words (other.pdf, page 7) = harbour1 (harbour.pdf, page 1)"]}
    assert found.clean.splits["train"]["q1"] == {"bridge1": 1, "one": 2}
    assert found.clean.splits["train"]["q2"] == {"harbour1": 1}
    assert found.clean.negatives["q3"] == HardNegatives(("one", "harbour1"), (4.0, 3.0))
    assert found.clean.teacher["q3"] == {"one": 1.0}


def test_a_negative_that_answers_its_query_is_none():
    data = whole()
    data.negatives["q0"] = HardNegatives(("bridge1", "harbour1"), (0.5, 0.9))
    found = validate(data)
    assert kinds(found) == {"negative-relevant": ["q0 -> harbour1"]}
    assert found.clean.negatives["q0"] == HardNegatives(("bridge1",), (0.5,))


def test_what_is_ranked_later_is_not_trained_on_by_query_page_or_file():
    data = whole()
    data.queries["q0"] = "Where is the mountain of this mountain?"  # as q6, of test
    data.splits["train"]["q1"]["garden1"] = 1  # the page of q4, of dev
    data.splits["train"]["q2"] = {"kitchen2": 1}  # the file of q7, of test
    found = validate(data)
    told = {(finding.kind, finding.where): finding.ids for finding in found.findings}
    assert told == {
        ("leak-query", "train and test"): ["q0 ~ q6"],
        ("leak-page", "train and dev"): ["q1 -> garden1 (garden.pdf, page 1)"],
        ("leak-file", "train and test"): ["q2 -> kitchen.pdf"],
    }
    assert found.clean.splits == whole().splits | {"train": {"q3": data.splits["train"]["q3"]}}
    assert not {"q0", "q1", "q2"} & found.clean.queries.keys() and found.clean.negatives == {}


def test_a_query_of_two_splits_stays_in_the_one_that_is_ranked_last():
    data = whole()
    data.splits["train"]["q6"] = data.splits["dev"]["q6"] = {"mountain1": 1}
    found = validate(data)
    assert {(f.kind, f.where) for f in found.findings} == {
        (kind, where) for kind in ("leak-query", "leak-page") for where in ("train and test", "dev and test")
    }
    assert found.clean.splits == whole().splits and found.clean.queries == data.queries


def test_splits_that_are_neither_dev_nor_test_are_not_compared():
    data = whole()
    data.splits = {"english": data.splits["train"], "german": dict(data.splits["train"])}
    assert validate(data).findings == []


def test_a_page_without_a_relevant_judgement_answers_nothing_and_leaks_nothing():
    data = whole()
    data.splits["train"]["q0"]["mountain1"] = 0
    data.splits["train"]["q1"] = {"bridge1": 0}
    found = validate(data)
    assert kinds(found) == {"unanswered": ["q1"]}


def test_kinds_are_ignored_by_name_and_others_are_still_found():
    data = whole()
    data.splits["train"]["q2"] = {"kitchen2": 1}
    data.queries["q1"] = ""
    found = validate(data, ignore=["leak-file"])
    assert kinds(found) == {"empty-query": ["q1"]} and "q2" in found.clean.splits["train"]
    with pytest.raises(ValueError, match="leaks: no such kind"):
        validate(data, ignore=["leaks"])


def spoilt(seed: int, folder: Path) -> RetrievalDataset:
    """Data with every kind of fault in many places at once."""
    draw = random.Random(seed)
    data = whole()
    for n in range(12):
        name, text = f"x{n}", draw.choice([None, "", " ", "1 about the violin", f"text {n % 5}"])
        file = draw.choice([None, "a.pdf", "garden.pdf"])
        image = None
        if draw.random() < 0.4:
            path = folder / f"{seed}-{n}.png"
            tiny_data.draw_page(n % 3).save(path)
            if draw.random() < 0.4:
                path.write_bytes(path.read_bytes()[:150])
            image, text = str(path), (text or "").strip() or None  # as every reader has it
        data.corpus[name] = Document(name, text, image, file, n)
    documents = [*data.corpus, "gone", "lost"]
    for n in range(30):
        data.queries[f"x{n}"] = draw.choice(["", f"which one is {n}", f"find page {n % 7}", data.queries[f"q{n % 8}"]])
    queries = [*data.queries, "nobody"]
    for qrels in data.splits.values():
        for query in draw.sample(queries, 10):
            qrels.setdefault(query, {})[draw.choice(documents)] = draw.choice([0, 1, 2])
    data.negatives |= {
        q: HardNegatives(tuple(draw.sample(documents, 4)), (4.0, 3.0, 2.0, 1.0)) for q in draw.sample(queries, 10)
    }
    data.teacher |= {q: {d: draw.random() for d in draw.sample(documents, 4)} for q in draw.sample(queries, 10)}
    data.conflicts = ["q0 harbour1"]
    return data


@pytest.mark.parametrize("seed", range(8))
def test_what_is_left_is_clean_also_after_it_was_written_and_read(tmp_path, seed):
    data = spoilt(seed, tmp_path)
    found = validate(data, jobs=2)
    assert len(kinds(found)) > 8 and validate(found.clean).findings == []
    found.clean.splits = {split: qrels for split, qrels in found.clean.splits.items() if qrels}
    write_dataset(found.clean, tmp_path / "out")
    again = read_all(DataBlock(path=str(tmp_path / "out")))
    assert (
        validate(again).findings == []
        and again.splits == found.clean.splits
        and again.negatives == found.clean.negatives
    )
    for split in again.splits:
        read_beir(tmp_path / "out", split).check()
    for kind in KINDS:  # ignoring one kind is no mistake in another
        left = kinds(validate(data, ignore=[kind]))
        assert kind not in left
        assert not kinds(validate(validate(data, ignore=[kind]).clean, ignore=[kind]))


def test_images_are_decoded_a_few_at_a_time_and_counted_as_they_are(monkeypatch):
    waiting, most = set[int](), 0

    class Page:
        def __init__(self, number: int) -> None:
            self.number = number

        def load(self):
            return Image.new("RGB", (4, 4), (self.number, 0, 0))

    data = RetrievalDataset("pages", {f"{n}": Document(f"{n}", None, Page(n)) for n in range(50)}, {}, {})

    def progress(documents, total):
        assert total == 50
        for document in documents:
            waiting.add(document.id)
            yield document

    real = Page.load

    def load(self):
        nonlocal most
        most = max(most, len(waiting) - self.number)
        return real(self)

    monkeypatch.setattr(Page, "load", load)
    assert validate(data, jobs=2, progress=progress).findings == []
    assert len(waiting) == 50 and most <= 6
