"""Each query against its own documents: the same scores and order as a ranking of all, cut to what was given."""

from __future__ import annotations

import pytest
import torch

from smart_train.config.schema import HybridBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.core.errors import EvaluationError
from smart_train.evaluation import ranking
from smart_train.evaluation.ranking import rank_all, rank_candidates
from smart_train.evaluation.scoring import MODES, view
from smart_train.evaluation.topk import tie_hash

HYBRID = HybridBlock(pooled=0.7, late=1.9)
VIEWS = {mode: view(mode, HYBRID) for mode in MODES}


def embeddings(rows: int, seed: int, width: int = 8) -> Embeddings:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (rows,), generator=generator)
    normal = [torch.randn(n, width, generator=generator) for n in (rows, int(lengths.sum()))]
    pooled, values = (torch.nn.functional.normalize(each, dim=1) for each in normal)
    return Embeddings(pooled, Tokens(values, lengths))


def portions(whole: Embeddings, size: int):
    for begin in range(0, len(whole), size):
        yield whole.select(range(begin, min(begin + size, len(whole))))


@pytest.mark.parametrize("given_each", [3, 20])  # below and above the share from which a portion is scored whole
@pytest.mark.parametrize("size", [7, 40])
def test_it_is_the_whole_ranking_without_what_was_not_given(given_each, size, monkeypatch):
    queries, documents = embeddings(9, 1), embeddings(40, 2)
    query_ids, document_ids = [f"q{n}" for n in range(9)], [f"d{n}" for n in range(40)]
    given = {
        query: [document_ids[(7 * at + 11 * k) % 40] for k in range(given_each)] for at, query in enumerate(query_ids)
    }
    given["q0"] = given["q0"] + given["q0"][:2]  # named twice, counted once
    whole = rank_all(queries, documents, query_ids, document_ids, HYBRID, top=40)
    tiles = []
    monkeypatch.setattr(ranking, "tiles", lambda q, x, **options: tiles.append(len(q)) or TILES(q, x, **options))
    found = rank_candidates(queries, portions(documents, size), query_ids, document_ids, given, VIEWS)
    assert (max(tiles) == 1) == (given_each == 3)
    for mode in MODES:
        assert list(found[mode]) == query_ids
        for query, one in found[mode].items():
            expected = [(document, score) for document, score in whole[mode][query] if document in given[query]]
            assert [document for document, _ in one] == [document for document, _ in expected]
            assert [score for _, score in one] == pytest.approx([score for _, score in expected], abs=1e-6)


TILES = ranking.tiles


def test_equal_scores_are_ordered_by_hash_whatever_order_they_were_given_in():
    one = embeddings(1, 3)
    documents = Embeddings.cat([one] * 6)
    ids = [f"d{n}" for n in range(6)]
    expected = sorted(ids, key=lambda document: tie_hash("q", document))
    for given in (ids, ids[::-1]):
        found = rank_candidates(embeddings(1, 4), documents, ["q"], ids, {"q": given}, VIEWS)
        assert all([document for document, _ in found[mode]["q"]] == expected for mode in MODES)


def test_a_query_without_documents_and_a_document_that_is_not_there_are_named():
    queries, documents = embeddings(2, 5), embeddings(2, 6)
    with pytest.raises(EvaluationError, match="query 'q1' has no candidates"):
        rank_candidates(queries, documents, ["q0", "q1"], ["d0", "d1"], {"q0": ["d0"], "q1": []}, VIEWS)
    with pytest.raises(EvaluationError, match="query 'q1' has the candidate 'd9', which is not in the corpus"):
        rank_candidates(queries, documents, ["q0", "q1"], ["d0", "d1"], {"q0": ["d0"], "q1": ["d1", "d9"]}, VIEWS)
    documents.pooled[1] = float("nan")
    with pytest.raises(EvaluationError, match="embedding of document 'd1' is not finite"):
        rank_candidates(queries, documents, ["q0", "q1"], ["d0", "d1"], {"q0": ["d0"], "q1": ["d0"]}, VIEWS)
