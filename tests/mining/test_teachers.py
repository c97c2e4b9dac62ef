"""Built-in teachers against plain formulas, and ``smart-train score`` from a folder to a loss."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_data
import torch
from sentence_transformers import CrossEncoder
from word_encoder import words_collection

from smart_train.cli.main import score as command
from smart_train.config.schema import DataBlock
from smart_train.core.errors import ExtensionError, SmartTrainError
from smart_train.data.collection import Collection, Document
from smart_train.data.load import load
from smart_train.mining import folder as mining_folder_module
from smart_train.mining.folder import score_folder
from smart_train.mining.pair_scores import prepare
from smart_train.mining.teachers import BM25Teacher, EncoderTeacher, EnsembleTeacher, check_teacher, made_teacher
from smart_train.models.encoder import SmartEncoder

TEXTS = ["a harbour for ships", "the violin is played with a bow", "rivers flow to the sea", "a chart of sales"]
PAIRS = [("where do ships rest", TEXTS[0]), ("where do ships rest", TEXTS[1]), ("music", TEXTS[1]), ("music", TEXTS[3])]


@pytest.mark.parametrize("mode", ["pooled", "late", "hybrid"])
def test_an_encoder_gives_each_pair_the_score_of_its_whole_matrix(mode, tiny_bert):
    encoder = SmartEncoder(str(tiny_bert), device="cpu")
    teacher = EncoderTeacher(encoder, mode=mode)
    matrix = encoder.score(["where do ships rest", "music"], TEXTS, mode)
    expected = [matrix[0, 0], matrix[0, 1], matrix[1, 1], matrix[1, 3]]
    assert teacher(PAIRS) == pytest.approx([float(one) for one in expected], abs=1e-6)
    assert teacher(list(reversed(PAIRS))) == pytest.approx([float(one) for one in reversed(expected)], abs=1e-6)


def test_a_document_that_was_encoded_is_not_encoded_again(tiny_bert, monkeypatch):
    teacher = EncoderTeacher(SmartEncoder(str(tiny_bert), device="cpu"), mode="pooled")
    encoded: list[str] = []
    encode = teacher.encoder.encode_documents
    monkeypatch.setattr(
        teacher.encoder, "encode_documents", lambda contents, **o: (encoded.extend(contents), encode(contents, **o))[1]
    )
    teacher(PAIRS)
    teacher(PAIRS)
    assert sorted(encoded) == sorted({text for _, text in PAIRS})


def test_a_cross_encoder_scores_as_plain_sentence_transformers(tiny_bert):
    found = made_teacher({"type": "cross_encoder", "model": str(tiny_bert), "num_labels": 1})
    assert isinstance(found.model, CrossEncoder)  # the head of a base is drawn at random: the object itself is compared
    assert np.allclose(found(PAIRS), found.model.predict(PAIRS))
    with pytest.raises(ExtensionError, match="reads texts, and a document has an image"):
        found([("a", {"text": "b", "image": object()})])


def test_bm25_is_lucenes_formula():
    documents = {f"d{n}": Document(f"d{n}", text) for n, text in enumerate(TEXTS)}
    collection = Collection("demo", documents, {"q": "ships sea"}, {"q": {"d0": 1}})
    teacher = BM25Teacher()
    prepare(teacher, collection)
    words = [
        [w for w in re.findall(r"\b\w\w+\b", t.lower()) if w not in ("the", "is", "with", "to", "of", "for")]
        for t in TEXTS
    ]
    mean = sum(map(len, words)) / len(words)
    expected = []
    for row in words:
        score = 0.0
        for word in ("ships", "sea"):
            n = sum(word in other for other in words)
            idf = math.log(1 + (len(words) - n + 0.5) / (n + 0.5))
            score += idf * row.count(word) / (row.count(word) + 1.5 * (1 - 0.75 + 0.75 * len(row) / mean))
        expected.append(score)
    assert teacher([("ships sea", text) for text in TEXTS]) == pytest.approx(expected, abs=1e-5)
    assert teacher([("ships sea", {"text": TEXTS[0], "image": None})]) == pytest.approx(expected[:1], abs=1e-5)


@pytest.mark.parametrize("how", ["minmax", "zscore", "none"])
def test_an_ensemble_adds_what_was_brought_to_one_unit_query_by_query(how):
    def length(pairs):
        return [float(len(text)) for _, text in pairs]

    def vowels(pairs):
        return np.array([sum(text.count(v) for v in "aeiou") for _, text in pairs])

    teacher = EnsembleTeacher([length, vowels], [1.0, 0.5], how)
    expected = []
    for pairs in (PAIRS[:2], PAIRS[2:]):
        total = np.zeros(len(pairs))
        for scorer, weight in ((length, 1.0), (vowels, 0.5)):
            row = np.array(scorer(pairs), dtype=float)
            if how == "minmax":
                row = (row - min(row)) / (max(row) - min(row)) if max(row) > min(row) else row * 0
            elif how == "zscore":
                deviation = math.sqrt(sum((one - row.mean()) ** 2 for one in row) / len(row))
                row = (row - row.mean()) / deviation if deviation else row * 0
            total += weight * row
        expected += total.tolist()
    assert teacher(PAIRS).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("teachers", "weights", "told"),
    [
        (["late"], None, "write late:MODEL"),
        (["cross_encoder:"], None, "write cross_encoder:MODEL"),
        (["nothing"], None, "there is no teacher 'nothing'"),
        (["no_such_package:judge"], None, "cannot be imported"),
        (["bm25"], [1.0, 2.0], "1 teachers and 2 weights"),
        (["bm25", "bm25"], [0.0, 0.0], "one of them above 0"),
        (["bm25"], [float("nan")], "finite numbers"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_before_anything_is_loaded(teachers, weights, told):
    with pytest.raises(ExtensionError, match=told):
        check_teacher(teachers, weights)


# -- a folder


@pytest.fixture
def run(capsys):
    """run(arguments ...) -> what ``smart-train score`` prints."""

    def start(*arguments) -> str:
        parser = argparse.ArgumentParser()
        command.add(parser.add_subparsers())
        options = parser.parse_args(["score", *map(str, arguments)])
        options.run(options)
        return capsys.readouterr().out

    return start


def test_a_folder_gets_scores_and_random_negatives_that_a_recipe_reads(run, tmp_path):
    folder = tiny_data.write_beir(tmp_path / "beir")
    before, dev, test = load(DataBlock(path=str(folder)))
    printed = run(folder, "--teacher", "bm25", "--ways", 5)
    after, *_ = load(DataBlock(path=str(folder), negatives=2), teacher=True)
    held_out = {d for split in (dev, test) for row in split.qrels.values() for d in row} - set(before.qrels)
    for query, row in after.teacher.items():
        positives = before.relevant(query)
        assert len(row) == max(5, len(positives)) and positives <= row.keys()
        assert set(after.negatives[query]) == row.keys() - positives
        assert not held_out & (row.keys() - positives)
    assert f"{len(after.teacher):,} queries" in printed and "random documents" in printed
    again = run(folder, "--teacher", "bm25", "--ways", 5)  # the same documents: nothing more is drawn
    assert "random documents" not in again
    assert load(DataBlock(path=str(folder)), teacher=True)[0].teacher == after.teacher


def test_without_sampling_only_what_was_mined_is_scored_and_more_ways_cut_nothing(run, tmp_path):
    folder = tiny_data.write_beir(tmp_path / "beir")
    with pytest.raises(SmartTrainError, match="mine hard negatives first"):
        run(folder, "--teacher", "bm25", "--no-sample")
    run(folder, "--teacher", "bm25", "--ways", 6)
    assert "hard negatives beyond --ways" in run(folder, "--teacher", "bm25", "--ways", 3)
    assert all(len(row) == 3 for row in load(DataBlock(path=str(folder)), teacher=True)[0].teacher.values())


def test_a_call_that_was_stopped_pays_for_no_score_twice(tmp_path, monkeypatch):
    folder = tiny_data.write_beir(tmp_path / "beir")
    monkeypatch.setattr("smart_train.mining.pair_scores.PAIRS", 8)
    calls: list[int] = []

    def judge(pairs, stop=0):
        calls.append(len(pairs))
        if stop and len(calls) == stop:
            raise KeyboardInterrupt
        return [float(len(query) + len(text)) for query, text in pairs]

    with pytest.raises(KeyboardInterrupt):
        score_folder(DataBlock(path=str(folder)), lambda pairs: judge(pairs, stop=3), ways=4)
    assert not (folder / "teacher").exists()
    paid = sum(calls[:2])
    calls.clear()
    whole = score_folder(DataBlock(path=str(folder)), lambda pairs: judge(pairs), ways=4)
    assert whole.pairs - paid <= sum(calls) <= whole.pairs - paid + 4  # 4: the first query is compared


def test_a_random_negative_is_no_answer_of_the_query_and_no_copy_of_one():
    collection = words_collection(6)
    excluded = mining_folder_module.ExcludedDocuments(collection)
    for query in collection.queries:
        banned = {*excluded.of(query), *collection.relevant(query)}
        drawn = mining_folder_module._random_documents(list(collection.corpus), 50, set(banned), {"d3"}, query)
        assert not set(drawn) & {*banned, "d3"} and len(drawn) == len(set(drawn))
        assert set(drawn) == set(collection.corpus) - banned - {"d3"}


def test_the_path_of_a_trained_adapter_is_a_teacher(tiny_bert, tmp_path):
    encoder = SmartEncoder(str(tiny_bert), adapter={"r": 2}, device="cpu")
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    saved = Path(encoder.save_pretrained(tmp_path / "adapter"))
    teacher = made_teacher(f"late:{saved}")
    expected = encoder.score(["music"], TEXTS[:1], "late")
    assert teacher([("music", TEXTS[0])]) == pytest.approx(expected[0].tolist(), abs=1e-5)
