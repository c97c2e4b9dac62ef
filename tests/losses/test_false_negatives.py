"""False negatives and copies, against loops over every query, known positive and document."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from smart_train.core.embeddings import KnownPositives
from smart_train.losses.false_negatives import grade_matrix, relevance_mask, repeated_documents, share_grades

Key = tuple[int, int, int, int]
BIG = 2**63 - 1
ids = st.sampled_from([-BIG - 1, -3, 0, 1, 2, 3, 4, BIG])
contents = st.sampled_from([0, 0, 5, 6, -7, BIG])
files = st.sampled_from([0, 8, 9, -BIG])
pages = st.sampled_from([-1, 0, 1, 2, 3, 7, 2**40])
keys = st.tuples(ids, contents, files, pages)
answers = st.lists(st.lists(st.tuples(keys, st.sampled_from([0.5, 1.0, 2.0])), max_size=4), max_size=4)
documents = st.lists(keys, max_size=8)
windows = st.sampled_from([None, 0, 1, 3, 2**41])
many = settings(max_examples=300, deadline=None)


def tensors(rows: list[list[tuple[Key, float]]], columns: list[Key]) -> tuple[KnownPositives, Tensor]:
    flat = [answer for row in rows for answer in row]
    known = KnownPositives(
        torch.tensor([key for key, _ in flat], dtype=torch.int64).view(-1, 4),
        torch.tensor([grade for _, grade in flat], dtype=torch.float32),
        torch.tensor([len(row) for row in rows], dtype=torch.int64),
    )
    return known, torch.tensor(columns, dtype=torch.int64).view(-1, 4)


def loop(row: list[tuple[Key, float]], columns: list[Key], window: int | None) -> list[bool]:
    """A document is no negative where it is a known positive, shows the same, or is a page near one."""
    there = [key for key, _ in row] + [c for c in columns if any(c[0] == key[0] for key, _ in row)]

    def like(document: Key, answer: Key) -> bool:
        near = window is not None and document[2] == answer[2] != 0 and min(document[3], answer[3]) >= 0
        return (
            document[0] == answer[0]
            or document[1] == answer[1] != 0
            or (near and abs(document[3] - answer[3]) <= (window or 0))
        )

    return [any(like(document, answer) for answer in there) for document in columns]


@many
@given(answers, documents, windows)
def test_relevance_is_what_a_loop_over_all_answers_finds(rows, columns, window):
    found = relevance_mask(*tensors(rows, columns), window)
    assert found.dtype == torch.bool and found.shape == (len(rows), len(columns))
    assert found.tolist() == [loop(row, columns, window) for row in rows]


@many
@given(answers, documents)
def test_grades_are_by_id_and_the_larger_of_two(rows, columns):
    found = grade_matrix(*tensors(rows, columns))
    assert found.dtype == torch.float32 and found.shape == (len(rows), len(columns))
    expected = [
        [max([g for key, g in row if key[0] == document[0]], default=0.0) for document in columns] for row in rows
    ]
    assert found.tolist() == expected


@many
@given(answers, documents)
def test_copies_share_the_largest_of_their_grades(rows, columns):
    known, keys = tensors(rows, columns)
    before = grade_matrix(known, keys)
    expected = [
        [max(row[m] for m, b in enumerate(columns) if m == n or b[1] == a[1] != 0) for n, a in enumerate(columns)]
        for row in before.tolist()
    ]
    assert share_grades(before, keys).tolist() == expected


@many
@given(documents)
def test_repeats_are_documents_that_an_earlier_one_equals_in_id_or_content(columns):
    expected = [any(b[0] == a[0] or b[1] == a[1] != 0 for a in columns[:i]) for i, b in enumerate(columns)]
    assert repeated_documents(tensors([], columns)[1]).tolist() == expected


@pytest.mark.parametrize(
    ("answer", "document", "window", "expected"),
    [
        ((1, 0, 0, -1), (1, 0, 0, -1), None, True),
        ((1, 5, 0, -1), (2, 5, 0, -1), None, True),
        ((1, 0, 0, -1), (2, 0, 0, -1), None, False),  # two unknown contents are not the same content
        ((1, 5, 8, 3), (2, 6, 8, 3), None, False),  # pages count only where asked for
        ((1, 5, 8, 3), (2, 6, 8, 3), 0, True),
        ((1, 5, 8, 3), (2, 6, 8, 4), 0, False),
        ((1, 5, 8, 3), (2, 6, 8, 4), 1, True),
        ((1, 5, 8, 3), (2, 6, 8, 2), 1, True),
        ((1, 5, 8, 3), (2, 6, 8, 5), 1, False),
        ((1, 5, 8, 3), (2, 6, 9, 3), 1, False),  # another file
        ((1, 5, 0, 3), (2, 6, 0, 3), 1, False),  # no file
        ((1, 5, 8, 0), (2, 6, 8, -1), 1, False),  # no page, though the numbers are neighbours
        ((1, 5, 8, -1), (2, 6, 8, -1), 1, False),
    ],
)
def test_one_answer_and_one_document(answer, document, window, expected):
    known, columns = tensors([[(answer, 1.0)]], [document])
    assert relevance_mask(known, columns, window).tolist() == [[expected]]


def test_an_answer_in_the_batch_lends_its_content_to_its_copies():
    # The qrels know document 1 by its id; its picture is hashed only where it is loaded, and rank 2 has a copy of it.
    known, columns = tensors([[((1, 0, 0, -1), 1.0)], [((3, 0, 0, -1), 1.0)]], [(1, 5, 0, -1), (2, 5, 0, -1)])
    assert relevance_mask(known, columns).tolist() == [[True, True], [False, False]]
    # Only a copy is in the batch: the answer's content has to be among what is known.
    known, columns = tensors([[((1, 5, 0, -1), 1.0)]], [(2, 5, 0, -1), (3, 6, 0, -1)])
    assert relevance_mask(known, columns).tolist() == [[True, False]]


def test_a_large_batch_is_compared_without_every_answer_against_every_document():
    queries, count, answers_each = 1024, 8192, 10
    largest = 0
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> Tensor:
        high = torch.tensor([20_000, 20_000, 3, 5_000])
        return (torch.rand(rows, 4, generator=generator) * high).long()

    known = KnownPositives(
        draw(queries * answers_each), torch.ones(queries * answers_each), torch.full((queries,), answers_each)
    )
    columns = draw(count)

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple) else (made,):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel() * tensor.element_size())
            return made

    with Sizes():
        found = relevance_mask(known, columns, neighbour_pages=50)
        copies = repeated_documents(columns)
    assert largest <= 4 * queries * (count + 1)  # one float32 or int32 a pair of query and document
    rows = [0, 1, 511, 1023]
    for row in rows:
        own = known.keys[row * answers_each : (row + 1) * answers_each]
        lent = torch.isin(columns[:, 0], own[:, 0])
        own = torch.cat([own, columns[lent]])
        same = (columns[:, None, :2] == own[None, :, :2]) & (torch.tensor([True, False]) | (own[None, :, :2] != 0))
        near = (columns[:, None, 2] == own[:, 2]) & (own[:, 2] != 0) & ((columns[:, None, 3] - own[:, 3]).abs() <= 50)
        assert torch.equal(found[row], (same.any(-1) | near).any(1))
    assert 0 < int(copies.sum()) < count


def test_keys_and_answers_of_wrong_shapes_are_refused():
    known, columns = tensors([[((1, 0, 0, -1), 1.0)]], [(1, 0, 0, -1)])
    with pytest.raises(ValueError, match=r"\[rows, 4\] int64"):
        relevance_mask(known, columns[:, :3])
    with pytest.raises(ValueError, match=r"\[rows, 4\] int64"):
        repeated_documents(columns.int())
    with pytest.raises(ValueError, match="add up to 2, but there are 1 keys"):
        grade_matrix(KnownPositives(known.keys, known.grades, known.lengths + 1), columns)
