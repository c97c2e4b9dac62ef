"""The contrastive terms: against sentence-transformers' losses where it has one, and who counts as what by hand."""

from __future__ import annotations

import pytest
import torch
from formula import draw
from objectives import joint_loss
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
from sentence_transformers.multi_vector_encoder.scoring import colbert_scores, mean_colbert_scores
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss, MultipleNegativesRankingLoss
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from smart_train.config.schema import HybridBlock, ObjectiveBlock, TermBlock
from smart_train.core.embeddings import Embeddings, Tokens
from smart_train.losses.contrastive import among_queries, contrastive, too_near
from smart_train.losses.joint import Loss
from smart_train.losses.labels import Labels, graded_targets

OFF = TermBlock(0.0)


def pooled_only(temperature: float = 0.05, **options) -> ObjectiveBlock:
    return ObjectiveBlock(TermBlock(1.0, temperature), OFF, OFF, **options)


def late_only(temperature: float) -> ObjectiveBlock:
    return ObjectiveBlock(OFF, TermBlock(1.0, temperature), OFF)


def loss_of(queries: Embeddings, documents: Embeddings, labels: Labels, objective: ObjectiveBlock) -> Loss:
    return joint_loss(queries, documents, labels, objective, HybridBlock())


def labels_of(queries: int, negatives: int) -> Labels:
    """One positive each, at the query's own row; then the first negatives of all queries, then the second ..."""
    relevance = torch.eye(queries, queries * (1 + negatives), dtype=torch.bool)
    return Labels(relevance, torch.arange(queries).unsqueeze(1).repeat(1, 2))


def columns_of(documents: Embeddings, queries: int) -> list[Tensor]:
    return list(documents.pooled.split(queries))


class Ready(nn.Module):
    """Stands in for a model: its 'features' are the embeddings already."""

    max_seq_length = 8

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))

    def forward(self, features, task=None):
        return features


def padded(tokens: Tokens, rows: list[int]) -> dict[str, Tensor]:
    values = pad_sequence([list(tokens.rows())[row] for row in rows], batch_first=True)
    lengths = tokens.lengths[rows]
    return {"token_embeddings": values, "attention_mask": (torch.arange(values.shape[1]) < lengths.unsqueeze(1)).long()}


# -- beside sentence-transformers


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.05, 0.02])
def test_the_pooled_term_is_sentence_transformers_own(negatives, temperature):
    queries, documents = draw([2, 3, 1, 4], 0), draw([3] * 4 * (1 + negatives), 1)
    theirs = MultipleNegativesRankingLoss(Ready(), scale=1 / temperature)
    expected = theirs.compute_loss_from_embeddings([queries.pooled, *columns_of(documents, 4)], None)
    ours = loss_of(queries, documents, labels_of(4, negatives), pooled_only(temperature))
    torch.testing.assert_close(ours.total, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.05, 0.02])
def test_the_late_term_is_sentence_transformers_own_with_its_mean_maxsim(negatives, temperature):
    queries, documents = draw([2, 3, 1, 4], 0), draw([5, 2, 7, 1] * (1 + negatives), 1)
    columns = [padded(documents.tokens, list(range(4 * c, 4 * c + 4))) for c in range(1 + negatives)]
    theirs = MultiVectorMultipleNegativesRankingLoss(Ready(), scale=1 / temperature, similarity_fct=mean_colbert_scores)
    expected = theirs([padded(queries.tokens, [0, 1, 2, 3]), *columns])
    ours = loss_of(queries, documents, labels_of(4, negatives), late_only(temperature))
    torch.testing.assert_close(ours.total, expected, atol=1e-5, rtol=0)


def test_their_sum_over_query_tokens_is_our_mean_at_a_temperature_times_the_query_length():
    """The unit is the one difference to ColBERT's score: with queries of one length it is a factor."""
    queries, documents = draw([5, 5, 5, 5], 0), draw([5, 2, 7, 1], 1)
    theirs = MultiVectorMultipleNegativesRankingLoss(Ready(), scale=1 / (5 * 0.05), similarity_fct=colbert_scores)
    expected = theirs([padded(queries.tokens, [0, 1, 2, 3]), padded(documents.tokens, [0, 1, 2, 3])])
    ours = loss_of(queries, documents, labels_of(4, 0), late_only(0.05))
    torch.testing.assert_close(ours.total, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("option", ["symmetric", "hardness", "false_negatives"])
def test_an_option_is_sentence_transformers_own_in_value_and_gradient(option, negatives):
    """Hardness there is a strength times the cosine, undivided by the temperature, on every negative; their relative
    margin with the model as its own guide is our positive-aware filter.  They normalise once more, which takes from a
    gradient the part along its vector."""
    queries = draw([1] * 5, 0, dtype=torch.float64)
    documents = draw([1] * 5 * (1 + negatives), 1, dtype=torch.float64)
    columns = columns_of(documents, 5)
    if option == "symmetric":
        objective = pooled_only(symmetric=True)
        both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
        theirs = MultipleNegativesRankingLoss(Ready(), 20, **both)
        expected = theirs.compute_loss_from_embeddings([queries.pooled, *columns], None)
    elif option == "hardness":
        objective = pooled_only(hardness=9.0)
        theirs = MultipleNegativesRankingLoss(Ready(), 20, hardness_mode="all_negatives", hardness_strength=9.0)
        expected = theirs.compute_loss_from_embeddings([queries.pooled, *columns], None)
    else:
        objective = pooled_only(false_negatives=0.9)
        more = {"margin_strategy": "relative", "contrast_anchors": False, "contrast_positives": False}
        theirs = GISTEmbedLoss(Ready(), Ready(), temperature=0.05, margin=1 - 0.9, **more)
        given = [queries.pooled, columns[0], torch.cat(columns[1:])] if negatives else [queries.pooled, columns[0]]
        expected = theirs([{"sentence_embedding": vectors} for vectors in given], None)
    ours = loss_of(queries, documents, labels_of(5, negatives), objective)
    torch.testing.assert_close(ours.total, expected, atol=1e-9, rtol=0)
    for leaf in (queries.pooled, documents.pooled):
        (mine,), (other,) = (torch.autograd.grad(total, leaf, retain_graph=True) for total in (ours.total, expected))
        along = (mine * leaf).sum(1, keepdim=True) * leaf
        torch.testing.assert_close(mine - along, other, atol=1e-9, rtol=0)


# -- who counts


def toy() -> tuple[Embeddings, Embeddings]:
    """Scores of two queries with five documents: [0.5, 0.48, 0.44, -0.2, 0.6] and [0.1, -0.1, -0.09, 0.0, -0.12]."""
    tokens = Tokens(torch.eye(5, dtype=torch.float64), torch.ones(5, dtype=torch.int64))
    scores = torch.tensor([[0.5, 0.48, 0.44, -0.2, 0.6], [0.1, -0.1, -0.09, 0.0, -0.12]], dtype=torch.float64)
    return Embeddings(scores, tokens.select([0, 1])), Embeddings(torch.eye(5, dtype=torch.float64), tokens)


def test_masked_dropped_and_left_negatives_are_counted_per_pair():
    """Query 0: documents 1 to 3 are negatives (4 is known), those above 0.95 * 0.5 = 0.475 are dropped: one.
    Query 1, with its positive at -0.1: 0, 2, 3 lie above -0.1 - 0.05 * 0.1 = -0.105, and 4 does not."""
    relevance = torch.tensor([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)
    labels = Labels(relevance, torch.tensor([[0, 0], [1, 1]]))
    parts = loss_of(*toy(), labels, pooled_only(false_negatives=0.95)).parts
    assert parts["masked"].item() == pytest.approx((1 + 0) / 2)
    assert parts["negatives"].item() == pytest.approx((3 + 4) / 2)
    assert parts["pooled/false_negatives"].item() == pytest.approx((1 + 3) / 2)
    plain = loss_of(*toy(), labels, pooled_only()).parts
    assert "pooled/false_negatives" not in plain
    assert plain["negatives"] == parts["negatives"]


def test_a_later_copy_is_no_negative_but_stays_where_it_is_the_pairs_own():
    relevance = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 0, 1, 0]], dtype=torch.bool)  # 3 is a copy of 1
    repeats = torch.tensor([False, False, False, True, False])
    pairs = Labels(relevance, torch.tensor([[0, 0], [1, 3]]), repeats=repeats)
    assert pairs.negatives.int().tolist() == [[0, 1, 1, 0, 1], [1, 0, 1, 0, 1]]
    assert pairs.own_document.int().tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    parts = loss_of(*toy(), Labels(relevance, torch.tensor([[0, 0], [1, 3]]), repeats=repeats), pooled_only()).parts
    assert parts["masked"].item() == 1
    assert parts["negatives"].item() == 3


def test_a_copy_neither_raises_the_loss_nor_gets_a_gradient():
    queries, documents = draw([1, 1], 0), draw([1, 1, 1], 1)
    relevance, positives = torch.eye(2, 3, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]])
    before = loss_of(queries, documents, Labels(relevance, positives), pooled_only()).total
    doubled = documents.select([0, 1, 2, 2])
    again = Labels(relevance[:, [0, 1, 2, 2]], positives, repeats=torch.tensor([False, False, False, True]))
    assert loss_of(queries, doubled, again, pooled_only()).total.item() == pytest.approx(before.item(), abs=1e-6)
    counted_twice = loss_of(queries, doubled, Labels(again.relevance, positives), pooled_only(0.5)).total
    assert counted_twice > loss_of(queries, documents, Labels(relevance, positives), pooled_only(0.5)).total


def test_the_limit_of_the_positive_aware_filter_lies_below_the_positive_on_either_side_of_zero():
    limits = too_near(torch.tensor([0.8, 0.0, -0.4]), 0.95)
    torch.testing.assert_close(limits, torch.tensor([0.76, 0.0, -0.42]))


def test_the_filter_is_decided_without_a_gradient_and_never_drops_an_answer():
    queries, documents = draw([1, 1, 1], 0), draw([1] * 5, 1)
    labels = Labels(torch.eye(3, 5, dtype=torch.bool), torch.tensor([[0, 0], [1, 1], [2, 2]]))
    scores = queries.pooled @ documents.pooled.T
    total, dropped = contrastive(scores, labels, 0.05, false_negatives=-10.0)  # limits below every score
    assert total.item() == 0
    assert dropped.item() == 4
    total.backward()
    assert queries.pooled.grad.abs().max() == 0


def test_graded_targets_are_shared_by_grade_and_a_document_counts_once():
    """Columns 3 and 4 are later copies: 3 of document 0 by id (so it has its grade), 4 by content under another id."""
    grades = torch.tensor([[2.0, 1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    repeats = torch.tensor([False, False, False, True, True])
    positives = torch.tensor([[0, 0], [0, 3], [1, 4], [1, 2], [2, 1]])
    expected = [
        [2 / 3, 1 / 3, 0, 0, 0],
        [2 / 3, 1 / 3, 0, 0, 0],  # drawn as column 3: its first column stands for it
        [0, 0, 1 / 4, 0, 3 / 4],  # no first column is known for the query, so the copy stays
        [0, 0, 1, 0, 0],  # a copy that was not drawn here does not count
        [0, 1, 0, 0, 0],  # a drawn document without a grade
    ]
    torch.testing.assert_close(graded_targets(grades, positives, repeats), torch.tensor(expected))
    whole = graded_targets(grades, positives[:1], None)
    torch.testing.assert_close(whole, torch.tensor([[0.4, 0.2, 0.0, 0.4, 0.0]]))


def test_with_one_known_answer_in_the_batch_graded_is_the_plain_loss():
    queries, documents = draw([1] * 4, 0), draw([1] * 8, 1)
    plain = labels_of(4, 1)
    graded = Labels(plain.relevance, plain.positives, grades=plain.relevance * 3.0)
    ours = loss_of(queries, documents, graded, pooled_only(graded=True)).total
    torch.testing.assert_close(ours, loss_of(queries, documents, plain, pooled_only()).total)


def test_a_document_that_every_query_of_a_rank_knows_has_a_finite_gradient_among_queries():
    queries, documents = draw([1, 1], 0), draw([1, 1, 1], 1)
    scores = queries.pooled @ documents.pooled.T
    pairs = Labels(torch.ones(2, 3, dtype=torch.bool), torch.tensor([[0, 0], [1, 0]]))
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    costs = among_queries(scores, pairs, nobody, 0.05)
    assert costs.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(costs.sum(), queries.pooled)
    assert gradient.isfinite().all()


def test_a_query_without_a_pair_has_no_term_in_the_sigmoid_loss():
    queries, documents = draw([1, 1, 1], 0), draw([1, 1, 1], 1)
    scores = queries.pooled @ documents.pooled.T
    options = {"loss": "sigmoid", "sigmoid_bias": -1.0}
    with_it = Labels(torch.eye(3, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]]))
    without = Labels(torch.eye(2, 3, dtype=torch.bool), torch.tensor([[0, 0], [1, 1]]))
    ours, _ = contrastive(scores, with_it, 0.05, **options)
    torch.testing.assert_close(ours, contrastive(scores[:2], without, 0.05, **options)[0])


@pytest.mark.parametrize("option", [{}, {"symmetric": True}, {"loss": "sigmoid", "sigmoid_bias": -1.0}])
def test_a_drawn_pair_is_known_whether_the_labels_say_so_or_not(option):
    queries, documents = draw([1] * 4, 0), draw([1] * 4, 1)
    labels = labels_of(4, 0)
    silent = Labels(torch.zeros_like(labels.relevance), labels.positives)
    totals = [loss_of(queries, documents, known, pooled_only(**option)).total for known in (labels, silent)]
    assert totals[0] == totals[1]
