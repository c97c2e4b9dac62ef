"""One pass over the documents: every layer's scores by hand, portions let go, stopped and gone on with."""

from __future__ import annotations

import functools
import logging
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from smart_train.config.schema import LateBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.core.progress_log import ProgressLog
from smart_train.evaluation import encode as encoding
from smart_train.probing import layer_scores as module
from smart_train.probing.layer_scores import layer_of, layer_scores

WIDTH, LAYERS = 6, 3


def vector(word: str, layer: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(int.from_bytes(f"{layer}{word}".encode(), "big") % 10**9)
    drawn = torch.randn(WIDTH, generator=draw)
    return drawn / drawn.norm()


class Layered:
    """Tokens: a vector of each word in each layer, side by side; pooled: their mean in the last."""

    def __init__(self, stop: str = "") -> None:
        self.late, self.stop, self.encoded, self.alive = LateBlock(), stop, [], []

    def _encode(self, contents: list[Any], **_options: Any) -> Embeddings:
        rows = [torch.stack([torch.cat([vector(w, k) for k in range(LAYERS)]) for w in c.split()]) for c in contents]
        pooled = torch.stack([row[:, -WIDTH:].mean(0) / row[:, -WIDTH:].mean(0).norm() for row in rows])
        return Embeddings(pooled, Tokens(torch.cat(rows), torch.tensor([len(row) for row in rows])))

    encode_queries = _encode

    def encode_documents(self, contents: list[Any], dtype: torch.dtype = torch.float32, **_options: Any) -> Embeddings:
        if self.stop in contents:
            raise KeyboardInterrupt
        self.encoded += contents
        found = self._encode(contents)
        tokens = found.tokens.to(dtype)
        self.alive.append(weakref.ref(tokens))
        assert sum(one() is not None for one in self.alive) <= 2  # this portion, and the one before for a moment
        return Embeddings(found.pooled, tokens)


@dataclass
class Page:
    text: str
    image: None = None
    title: str | None = None

    def content(self) -> str:
        return self.text


@dataclass
class Some:
    corpus: dict[str, Page]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]] = field(default_factory=dict)


def sides(apart: bool = False) -> dict[str, Some]:
    words = ["apple", "bear", "cat", "dog", "egg", "fig", "goat", "hat", "ink", "jam", "kite", "lime"]
    corpus = {f"d{i:02d}": Page(" ".join(words[(i * s) % 12] for s in range(1, 2 + i % 5))) for i in range(40)}
    dev = {f"q{i}": f"{words[i]} {words[i + 3]}" for i in range(3)}
    test = {f"t{i}": f"{words[i + 2]} {words[i + 5]} {words[i]}" for i in range(4)}
    first = dict(list(corpus.items())[:25])
    return {
        "dev": Some(first if apart else corpus, dev, {q: {f"d{i:02d}": 1} for i, q in enumerate(dev)}),
        "test": Some(corpus, test, {q: {f"d{i + 5:02d}": 2, "d00": 0} for i, q in enumerate(test)}),
    }


def expected(query: str, document: str) -> list[float]:
    """Pooled, then the late score of each layer, in float64 by hand; documents are kept in float16."""
    q, x = Layered()._encode([query]), Layered()._encode([document])
    scores = [float(q.pooled[0].double() @ x.pooled[0].double())]
    for at in range(LAYERS):
        asked, there = layer_of(q, at, LAYERS).tokens.values, layer_of(x, at, LAYERS).tokens.values.half()
        best = [max(float(t.double() @ u.double()) for u in there) for t in asked]
        scores.append(sum(best) / len(best))
    return scores


def scored(folder, given=None, encoder=None, batch_size=4, **options):
    given, encoder = given or sides(), encoder or Layered()
    return layer_scores(encoder, given, LAYERS, folder / "scores", {"of": "test"}, batch_size=batch_size, **options)


@pytest.mark.parametrize("apart", [False, True])
def test_every_pair_has_its_pooled_score_and_every_layers_late_score(tmp_path, apart):
    given = sides(apart)
    found = scored(tmp_path, given)
    for name, side in found.splits.items():
        assert side.query_ids == list(given[name].queries) and side.document_ids == list(given[name].corpus)
        assert side.done.all()
        for n, document in enumerate(side.document_ids):
            for b, query in enumerate(side.query_ids):
                by_hand = expected(given[name].queries[query], given[name].corpus[document].text)
                assert side.scores[:, n, b].tolist() == pytest.approx(by_hand, abs=2e-6)


def test_a_document_of_both_sides_is_encoded_once(tmp_path):
    encoder = Layered()
    scored(tmp_path, sides(apart=True), encoder)
    assert sorted(encoder.encoded) == sorted(page.text for page in sides()["test"].corpus.values())


def test_portions_are_so_much_smaller_as_tokens_are_wider_and_each_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 6)
    encoder = Layered()
    scored(tmp_path, encoder=encoder, batch_size=2)
    assert len(encoder.alive) == 10  # 40 documents in portions of 6 * 2 / 3; the stub counts those that are alive


def test_blocks_give_all_pairs_once_and_answers_those_that_are_judged(tmp_path, monkeypatch):
    found = scored(tmp_path)
    side = found.splits["test"]
    whole = [side.scores[at].T for at in range(1 + LAYERS)]
    monkeypatch.setattr(module, "READ", 30)
    for layer in range(LAYERS):
        parts = list(side.blocks(layer))
        assert len(parts) == 6  # 7 documents of 4 queries each
        assert np.array_equal(torch.cat([pooled for *_, pooled, _ in parts], 1).numpy(), whole[0])
        assert np.array_equal(torch.cat([late for *_, late in parts], 1).numpy(), whole[1 + layer])
        assert [part.start for _, part, *_ in parts] == list(range(0, 40, 7))
    assert side.relevant_scores(2).tolist() == [side.scores[2, 5 + b, b] for b in range(4)]  # grade 0 is no answer


def test_the_sample_has_the_same_token_of_each_layer_and_other_seeds_draw_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 10)
    found = scored(tmp_path / "a")
    texts = {id: page.text for id, page in sides()["test"].corpus.items()}
    assert len(found.sample.place) == 10
    for document, at in found.sample.place.items():
        row = Layered()._encode([texts[document]])
        assert found.sample.vectors(0)[at] == pytest.approx(row.pooled[0].numpy(), abs=1e-6)
        tokens = row.tokens.values.half().float()
        wide = np.concatenate([found.sample.vectors(1 + layer)[at] for layer in range(LAYERS)])
        assert min(float(abs(token.numpy() - wide).max()) for token in tokens) < 1e-6
    other = scored(tmp_path / "b", seed=1)
    assert other.sample.place != found.sample.place


def test_a_pass_that_was_stopped_goes_on_and_gives_the_same_scores(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 3)
    whole = scored(tmp_path / "whole", batch_size=4)
    last = sorted(sides()["test"].corpus.values(), key=lambda page: -len(page.text))[30].text
    stopped = Layered(stop=last)
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path / "again", encoder=stopped)
    assert len(stopped.encoded) >= 20
    later = Layered()
    with caplog.at_level(logging.INFO):
        again = scored(tmp_path / "again", encoder=later)
    assert f"{len(stopped.encoded)} of 40 documents were scored before" in caplog.text
    assert sorted(stopped.encoded + later.encoded) == sorted(page.text for page in sides()["test"].corpus.values())
    for name, side in again.splits.items():
        assert np.array_equal(side.scores, whole.splits[name].scores)
    assert np.array_equal(again.sample.values, whole.sample.values)
    final = Layered()
    scored(tmp_path / "again", encoder=final)
    assert final.encoded == []
    again.files.finish()
    assert not (tmp_path / "again" / "scores").exists()


def test_where_there_is_no_bar_lines_tell_how_far_it_is_and_how_long_it_takes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "ProgressLog", functools.partial(ProgressLog, every=0.0))
    monkeypatch.setattr(encoding, "TEXT_BATCHES", 6)
    with caplog.at_level(logging.INFO):
        scored(tmp_path, batch_size=5)
    told = [line for line in caplog.messages if line.startswith("documents scored in all layers: ")]
    assert [line.split(": ")[1].split(",")[0] for line in told] == ["10 of 40", "20 of 40", "30 of 40", "40 of 40"]
    assert all(line.endswith(" left") for line in told)


def test_scores_of_something_else_are_not_gone_on_with(tmp_path, caplog):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "mine.txt").write_text("somebody's own")
    scored(tmp_path)
    encoder = Layered()
    with caplog.at_level(logging.INFO):
        layer_scores(encoder, sides(), LAYERS, tmp_path / "scores", {"of": "another model"})
    assert len(encoder.encoded) == 40 and "starting again" in caplog.text
    assert (tmp_path / "scores" / "mine.txt").read_text() == "somebody's own"


def test_what_cannot_be_scored_is_told(tmp_path, monkeypatch):
    given = sides()
    given["dev"].queries["t0"] = "apple"
    with pytest.raises(EvaluationError, match="1 queries are in two splits, such as 't0'"):
        scored(tmp_path, given)
    given = sides()
    given["dev"].qrels = {query: {"d00": 0} for query in given["dev"].queries}
    with pytest.raises(EvaluationError, match="dev has no query with a relevant document in its corpus"):
        scored(tmp_path, given)
    given = sides(apart=True)
    given["dev"].corpus["d03"] = Page("something else")
    with pytest.raises(EvaluationError, match="'d03' has two contents"):
        scored(tmp_path, given)
    with pytest.raises(EvaluationError, match="GB are free; name a folder on another disk"):
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
        scored(tmp_path)


def test_a_value_that_is_not_finite_names_its_document(tmp_path):
    encoder = Layered()
    original = encoder.encode_documents

    def broken(contents, **options):
        found = original(contents, **options)
        found.tokens.values[0, 0] = float("nan")
        return found

    encoder.encode_documents = broken
    with pytest.raises(EvaluationError, match=r"the embedding of document 'd\d\d' is not finite"):
        scored(tmp_path, encoder=encoder)
