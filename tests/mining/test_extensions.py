"""Negative miners, rerankers and teachers of users: what they get, what they change, and how they are refused."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import tiny_data
import torch
from word_encoder import WordEncoder, words_collection

from smart_train.checks.mining import check_mining, data_of
from smart_train.cli.main import mine as command
from smart_train.config.recipe import read
from smart_train.config.schema import Component, DataBlock, MiningBlock, Recipe
from smart_train.core.errors import ExtensionError, ExtensionResultError, SmartTrainError
from smart_train.data.collection import Collection, HardNegatives
from smart_train.data.load import load
from smart_train.mining import pair_scores
from smart_train.mining.extensions import MINERS, RERANKERS, TEACHERS, load_callable
from smart_train.mining.miner import MiningResult, MiningTask, mine, mine_by_score
from smart_train.mining.pair_scores import teacher_scores
from smart_train.mining.selection import MiningOptions
from smart_train.training.run import run as train

MODULE = """
from functools import cache

from sentence_transformers import CrossEncoder


def shortest(task, most=3):
    \"\"\"The shortest documents that are not excluded.\"\"\"
    found = {}
    for query in task.query_ids:
        excluded = task.excluded(query)
        ids = sorted(task.document_ids, key=lambda name: (len(task.collection.corpus[name].text), name))
        found[query] = [name for name in ids if name not in excluded][:most]
    return found


@cache
def model():
    return CrossEncoder(BASE, num_labels=1)


def cross_encoder(pairs):
    return model().predict(pairs)


class Overlap:
    def __init__(self, scale=1.0):
        self.scale = scale

    def __call__(self, pairs):
        return [self.scale * len(set(query.split()) & set(text.split())) for query, text in pairs]


class Uncallable:
    pass


def of_two(pairs, more):
    return []


NUMBER = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch, tiny_bert):
    """A user's own module, beside the working directory."""
    (tmp_path / "my_mining.py").write_text(MODULE.replace("BASE", repr(str(tiny_bert))))
    monkeypatch.chdir(tmp_path)
    yield "my_mining"
    sys.modules.pop("my_mining", None)


def scores_of(encoder: WordEncoder, pairs) -> list[float]:
    """The encoder's own hybrid score of each pair, one by one."""
    found = []
    for query, text in pairs:
        of_query, of_document = encoder.encode_queries([query]), encoder.encode_documents([text], dtype=torch.float16)
        pooled = float((of_query.pooled @ of_document.pooled.T)[0, 0])
        late = float((of_query.tokens.values @ of_document.tokens.values.float().T).amax(1).mean())
        weights = encoder.late.hybrid
        found.append((weights.pooled * pooled + weights.late * late) / (weights.pooled + weights.late))
    return found


# -- miners


def test_a_miner_gets_the_task_and_its_negatives_are_the_result(module):
    collection = words_collection(40)
    miner = load_callable(MINERS, Component(f"{module}:shortest", {"most": 2}))
    result = mine(collection, WordEncoder(), MiningOptions(k=2), miner=miner, held_out={"d3", "d4"}, signature="mine")
    positives = {d for query in collection.queries for d in collection.relevant(query)}
    by_length = sorted(collection.corpus.values(), key=lambda document: (len(document.text), document.id))
    for query, mined in result.negatives.items():
        kept_out = collection.relevant(query) | ({"d3", "d4"} - positives)
        texts = {collection.corpus[d].text for d in collection.relevant(query)}
        expected = [one.id for one in by_length if one.id not in kept_out and one.text not in texts]
        assert list(mined.documents) == expected[:2] and mined.miner == "mine" and not mined.scores
    assert result.counts["mined"] == 2 * len(collection.queries) and result.counts["short"] == 0
    assert result.ratios is None


def test_the_built_in_miner_is_one_like_any_other():
    collection, encoder, options = words_collection(40), WordEncoder(), MiningOptions(k=4, max_relative=0.9)
    expected = mine(collection, encoder, options)
    named = mine(collection, encoder, options, miner=load_callable(MINERS, "by_score"))
    assert named.negatives == expected.negatives and named.counts == expected.counts

    def without_details(task: MiningTask):
        return mine_by_score(task).negatives

    again = mine(collection, encoder, options, miner=without_details)
    assert again.negatives == expected.negatives and again.ratios.quantiles() == expected.ratios.quantiles()
    for name in ("queries", "mined", "short", "none", "documents"):
        assert again.counts[name] == expected.counts[name]


QUERY = "q0"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (["d1"], r"the negative miner returned a list; return \{query id: \[document ids, hardest first\]\}"),
        ({QUERY: "d1"}, "returned 'd1' for the query 'q0'; return"),
        ({QUERY: [1, 2]}, r"returned '\[1, 2\]' for the query 'q0'; return"),
        ({QUERY: ["gone"]}, "gave the query 'q0' the document 'gone', that the corpus does not have"),
        ({QUERY: ["POSITIVE"]}, "gave the query 'q0' the document '.*', that is a positive of it"),
        ({QUERY: ["HELD"]}, "that is held out for another split"),
        ({QUERY: ["FREE", "FREE"]}, "twice"),
        ({"q99": ["FREE"]}, "1 queries not in task.query_ids, such as 'q99'"),
        (
            MiningResult(MiningOptions(), {QUERY: HardNegatives(("gone",))}),
            "the document 'gone', that the corpus does not have",
        ),
    ],
)
def test_a_wrong_result_of_a_miner_names_the_query_and_what_to_return(returned, said):
    collection = words_collection(40)
    judged = {d for query in collection.queries for d in collection.relevant(query)}
    free, held = sorted(collection.corpus.keys() - judged)[:2]
    names = {"POSITIVE": next(iter(collection.relevant(QUERY))), "HELD": held, "FREE": free}
    if isinstance(returned, dict):
        returned = {
            query: [names.get(d, d) for d in ids] if isinstance(ids, list) else ids for query, ids in returned.items()
        }
    with pytest.raises(ExtensionResultError, match=said) as raised:
        mine(collection, WordEncoder(), miner=lambda task: returned, held_out={held})
    assert raised.value.status == 1


# -- rerankers


def test_a_reranker_that_scores_as_the_encoder_does_changes_nothing():
    collection, encoder = words_collection(60), WordEncoder()
    options = MiningOptions(k=5, max_relative=0.9, margin=0.2, range=(1, 30), skip_top=1)
    expected = mine(collection, encoder, options)
    found = mine(collection, encoder, options, reranker=lambda pairs: scores_of(encoder, pairs))
    assert found.document_ids() == expected.document_ids() and any(expected.document_ids().values())
    assert found.counts == expected.counts


@pytest.mark.parametrize("pairs", [1, 70, 100_000])  # a call a query, a few calls, one call
def test_a_rerankers_scores_decide_in_place_of_the_encoders(pairs, monkeypatch):
    """By loops: the encoder's ranks, the reranker's thresholds."""
    monkeypatch.setattr(pair_scores, "PAIRS", pairs)
    collection, encoder = words_collection(60), WordEncoder()
    options = MiningOptions(k=6, max_relative=0.8, range=(2, 25))
    draw = Random(3)
    table = {(q, d.text): draw.random() for q in collection.queries.values() for d in collection.corpus.values()}
    calls: list[int] = []

    def reranker(asked):
        calls.append(len(asked))
        return np.array([table[pair] for pair in asked], dtype=np.float64)

    found = mine(collection, encoder, options, reranker=reranker)
    everything = MiningOptions(k=100, max_relative=None, range=(0, 100))
    ranked = mine(collection, encoder, everything).document_ids()
    assert (len(calls) == 1) == (pairs == 100_000) and (len(calls) == len(collection.queries)) == (pairs == 1)
    for query, text in collection.queries.items():
        positive = max(table[text, collection.corpus[d].text] for d in collection.relevant(query))
        scores = {d: table[text, collection.corpus[d].text] for d in ranked[query][2:25]}
        expected = [d for d, score in scores.items() if score < 0.8 * positive][:6]
        assert found.negatives[query].documents == tuple(expected)
        assert found.negatives[query].scores == tuple(scores[d] for d in expected)
        assert found.negatives[query].positive == positive
    assert found.document_ids() != mine(collection, encoder, options).document_ids()


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda pairs: [0.5], r"the reranker returned 1 scores for \d+ pairs; return one number a pair: .*query 'q0'"),
        (lambda pairs: 0.5, "returned a float that is not a list of numbers"),
        (lambda pairs: ["high"] * len(pairs), "returned a list that is not a list of numbers"),
        (lambda pairs: torch.zeros(len(pairs), 2), "returned a Tensor that is not a list of numbers"),
        (
            lambda pairs: [0.1, float("nan")] + [0.1] * (len(pairs) - 2),
            "gave the query 'q0' and the document 'd.*' the score nan; return a finite number",
        ),
    ],
)
def test_a_wrong_result_of_a_reranker_names_the_query_and_what_to_return(returned, said):
    with pytest.raises(ExtensionResultError, match=said):
        mine(words_collection(40), WordEncoder(), reranker=returned)


# -- teachers


def test_a_teacher_scores_positives_and_negatives(module):
    collection = words_collection(30)
    negatives = {"q0": ["d1", "d2"], "q1": []}
    collection.qrels["q0"]["gone"] = 1  # relevant, and not in the corpus
    found = teacher_scores(
        collection, negatives, load_callable(TEACHERS, Component(f"{module}:Overlap", {"scale": 0.5}))
    )
    assert found.keys() == negatives.keys()
    for query, ids in negatives.items():
        assert found[query].keys() == {*ids, *(collection.relevant(query) - {"gone"})}
        for document, score in found[query].items():
            words = set(collection.queries[query].split()) & set(collection.corpus[document].text.split())
            assert score == 0.5 * len(words)


# -- names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_mining:gone", "cannot be imported: my_mining has no gone"),
        ("no_such_package:f", "cannot be imported .*no_such_package"),
        ("my_mining:NUMBER", "is a int and cannot be called; name a function of one argument"),
        ("my_mining:Uncallable", "is a class without __call__ and cannot be called"),
        ("my_mining:of_two", "cannot be called with one argument and no options .*'more'"),
        ("nothing", "there is no reranker 'nothing'"),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(module, name, said):
    with pytest.raises(ExtensionError, match=said) as raised:
        load_callable(RERANKERS, name)
    assert raised.value.status == 2
    (problem,) = [
        one for one in check_mining(Recipe(mining=MiningBlock(reranker=Component(name)))) if "reranker" in one.key
    ]
    assert problem.key == "mining.reranker"


def test_options_that_it_does_not_have_are_refused(module):
    with pytest.raises(ExtensionError, match="cannot be called with one argument and the options least .*least"):
        load_callable(MINERS, Component(f"{module}:shortest", {"least": 1}))
    with pytest.raises(ExtensionError, match="cannot be called with the options most"):
        load_callable(RERANKERS, Component(f"{module}:Overlap", {"most": 1}))


# -- the command and a recipe


@pytest.fixture
def run(capsys):
    """run(arguments ...) -> what ``smart-train mine`` prints."""

    def start(*arguments) -> str:
        parser = argparse.ArgumentParser()
        command.add(parser.add_subparsers())
        options = parser.parse_args(["mine", *map(str, arguments)])
        options.run(options)
        return capsys.readouterr().out

    return start


def test_the_command_takes_all_three_and_readers_find_the_teachers_scores(module, run, tiny_bert, tmp_path):
    folder = tiny_data.write_beir(tmp_path / "beir")
    names = ("--reranker", f"{module}:cross_encoder", "--teacher", f"{module}:cross_encoder")
    printed = run(folder, "--model", tiny_bert, "-k", 3, "--no-max-relative", *names)
    assert "teacher scores: " in printed
    found, *_ = load(DataBlock(path=str(folder), negatives=2))
    from my_mining import model

    for query, ids in found.negatives.items():
        assert f"reranker {module}:cross_encoder, hybrid" in found.scored_negatives[query].miner
        assert found.teacher[query].keys() == {*ids, *found.relevant(query)}
        documents = [*ids, *found.relevant(query)]
        direct = model().predict([(found.queries[query], found.corpus[d].text) for d in documents])
        assert [found.teacher[query][d] for d in documents] == pytest.approx(direct.tolist(), abs=1e-5)
        assert list(found.scored_negatives[query].scores) == pytest.approx(
            [found.teacher[query][d] for d in ids], abs=1e-5
        )
    run(folder, "--model", tiny_bert, "--miner", f"{module}:shortest")
    again, *_ = load(DataBlock(path=str(folder), negatives=2))
    assert again.negatives != found.negatives and all(len(row) == 3 for row in again.negatives.values())
    assert json.loads((folder / "mining" / "report.json").read_text())["counts"]["mined"] == 3 * len(again.negatives)


@pytest.mark.parametrize("flag", ["--miner", "--reranker", "--teacher"])
def test_a_wrong_name_costs_no_time(flag, module, run, tmp_path):
    """Neither the data nor the model is there, and the name is refused first."""
    with pytest.raises(ExtensionError, match="has no gone") as raised:
        run(tmp_path / "no data", "--model", tmp_path / "no model", flag, f"{module}:gone")
    assert isinstance(raised.value, SmartTrainError) and raised.value.status == 2


def test_a_recipes_rounds_are_mined_by_its_own_miner(module, tiny_qwen3, beir_folder, tmp_path):
    lines = f"""
output: {tmp_path / "run"}
model: {{base: {tiny_qwen3}}}
adapter: {{r: 2}}
data: {{path: {beir_folder}, dev: 4, negatives: 2}}
mining: {{rounds: 1, start: true, miner: {{type: "{module}:shortest", most: 2}}}}
training: {{max_steps: 2, per_device_train_batch_size: 4, use_cpu: true, save_strategy: "no", logging_steps: 1}}
evaluation: {{during: false, before: false, after: false, calibrate: false}}
"""
    path = tmp_path / "own.yaml"
    path.write_text(lines)
    recipe = read(path)
    train(recipe)
    side, *_ = load(data_of(recipe))
    for file in (tmp_path / "run" / "negatives").glob("step-*.json"):
        mined = json.loads(file.read_text())
        assert mined.keys() == side.queries.keys()
        shortest = sorted(side.corpus.values(), key=lambda document: (len(document.text), document.id))
        for query, ids in mined.items():
            assert len(ids) == 2 and not set(ids) & side.relevant(query)
            assert max(len(side.corpus[d].text) for d in ids) <= len(shortest[len(side.corpus) // 2].text)
    assert isinstance(side, Collection) and len(list(Path(tmp_path / "run" / "negatives").glob("step-*.json"))) == 2


def test_the_examples_of_the_page_work(tmp_path, monkeypatch, tiny_bert):
    """The miner and the cross-encoder of docs/mining.md, as files beside the working directory."""
    page = (Path(__file__).parents[2] / "docs" / "mining.md").read_text(encoding="utf8")
    for name in ("my_models", "my_miners"):
        (code,) = re.findall(rf"```python\n(# {name}\.py\n.*?)```", page, flags=re.DOTALL)
        model = f'CrossEncoder("{tiny_bert}", num_labels=1)'
        (tmp_path / f"{name}.py").write_text(
            code.replace('CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")', model), encoding="utf8"
        )
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    collection, encoder = words_collection(30), WordEncoder()
    miner = load_callable(MINERS, "my_miners:shortest")
    assert all(len(ids) == 3 for ids in mine(collection, encoder, miner=miner).document_ids().values())
    scorer = load_callable(RERANKERS, "my_models:cross_encoder")
    options = MiningOptions(k=2, max_relative=None)
    reranked = mine(collection, encoder, options, reranker=scorer)
    query, mined = next(iter(reranked.negatives.items()))
    scores = teacher_scores(collection, {query: mined.documents}, scorer)[query]
    assert list(mined.scores) == pytest.approx([scores[d] for d in mined.documents], abs=1e-5)
    for name in ("my_models", "my_miners"):
        monkeypatch.delitem(sys.modules, name)
