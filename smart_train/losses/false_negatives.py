"""Who is who in a batch: which documents, of whatever rank, are known answers or copies and so never negatives.

Of B queries with K known answers in all, and N documents (this rank's, or those of all ranks), memory is O(B*N + K):
keys are compared by sorting, never K against N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smart_train.core.embeddings import KEYS, Known


def grades(known: Known, keys: Tensor) -> Tensor:
    """[B, N] float32: the known grade (above 0) of every document for every query, 0 where none is known.

    keys: [N, 4] int64; documents are compared by id alone.  Where a query knows a document twice, the larger counts.
    """
    owner = _owners(known, keys)
    ids, column = torch.unique(keys[:, 0], return_inverse=True)
    place, there = _find(known.keys[:, 0], ids)
    table = known.grades.new_zeros(len(known.lengths), len(ids) + 1, dtype=torch.float32)
    spot = owner * table.shape[1] + torch.where(there, place, len(ids))  # the last column is for those not here
    table.view(-1).scatter_reduce_(0, spot, known.grades.float(), "amax")
    return table[:, column]


def shared(grades: Tensor, keys: Tensor) -> Tensor:
    """[B, N] grades -> the same, where copies by content all have the largest of theirs.

    So the column that a document stands in first has its grade, whichever of its ids the query knows.
    """
    _check_keys(keys)
    unique, column = torch.unique(keys[:, 1], return_inverse=True)
    table = grades.new_zeros(len(grades), len(unique))
    table.scatter_reduce_(1, column.expand_as(grades), grades, "amax")
    return torch.where(keys[:, 1] != 0, table[:, column], grades)


def relevance(known: Known, keys: Tensor, neighbour_pages: int | None = None) -> Tensor:
    """[B, N] bool: documents that never count as negatives of a query.

    keys: [N, 4] int64, see KEYS.  True where the document's id is known for the query; where its content is that of a
    known answer (0 = not known, and never alike); and, with ``neighbour_pages``, where it is a page of the same file
    (0 = none) at most so many pages away from a known answer.  An answer that is itself among the documents brings
    its content, file and page along, which its entry in ``known`` may lack.
    """
    found = grades(known, keys) > 0
    row, place = found.nonzero(as_tuple=True)
    rows = torch.cat([_owners(known, keys), row])
    answers = torch.cat([known.keys, keys[place]])
    found |= _same_content(rows, answers[:, 1], keys[:, 1], len(found))
    if neighbour_pages is not None:
        found |= _near(rows, answers[:, 2:], keys[:, 2:], len(found), neighbour_pages)
    return found


def repeats(keys: Tensor) -> Tensor:
    """[N] bool: True for every later copy of a document that stands before it (same id, or same content).

    keys: [N, 4] int64, see KEYS; content 0 is not known, and no copy of anything
    """
    _check_keys(keys)
    return _later(keys[:, 0]) | (_later(keys[:, 1]) & (keys[:, 1] != 0))


def _later(values: Tensor) -> Tensor:
    """[N] bool: the value stands further ahead already."""
    unique, place = torch.unique(values, return_inverse=True)
    order = torch.arange(len(values), device=values.device)
    first = torch.full_like(unique, len(values)).scatter_reduce_(0, place, order, "amin")
    return first[place] < order


def _same_content(rows: Tensor, answers: Tensor, contents: Tensor, queries: int) -> Tensor:
    """[B, N] bool from contents of answers [A] of the queries ``rows`` [A], and of documents [N]."""
    unique, column = torch.unique(contents, return_inverse=True)
    place, there = _find(answers, unique)
    there = there & (answers != 0)
    table = torch.zeros(queries, len(unique), dtype=torch.bool, device=contents.device)
    table[rows[there], place[there]] = True
    return table[:, column]


def _near(rows: Tensor, answers: Tensor, pages: Tensor, queries: int, window: int) -> Tensor:
    """[B, N] bool from (file, page) of answers [A, 2] of the queries ``rows`` [A], and of documents [N, 2].

    Documents in the order of file and page: those near an answer are one stretch.  Every answer adds 1 where its
    stretch starts and takes it off where it ends, and a running sum covers all of them at once, however long they are.
    """
    numbered = ((pages[:, 0] != 0) & (pages[:, 1] >= 0)).nonzero().squeeze(1)
    files, file = torch.unique(pages[numbered, 0], return_inverse=True)
    levels, level = torch.unique(pages[numbered, 1], return_inverse=True)
    spot, order = torch.sort(file * (len(levels) + 1) + level)  # small numbers, whatever the hashes and pages are

    place, there = _find(answers[:, 0], files)
    there = there & (answers[:, 0] != 0) & (answers[:, 1] >= 0)
    rows, place, page = rows[there], place[there] * (len(levels) + 1), answers[there, 1]
    begin = torch.searchsorted(spot, place + torch.searchsorted(levels, page - window))
    end = torch.searchsorted(spot, place + torch.searchsorted(levels, page + window, right=True))

    one = torch.ones_like(rows, dtype=torch.int32)
    cover = torch.zeros(queries, len(numbered) + 1, dtype=torch.int32, device=pages.device)
    cover.index_put_((rows, begin), one, accumulate=True).index_put_((rows, end), -one, accumulate=True)
    cover = cover.cumsum_(1)[:, :-1] > 0
    found = torch.zeros(queries, len(pages), dtype=torch.bool, device=pages.device)
    found[:, numbered[order]] = cover
    return found


def _find(values: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Places of values [A] in the sorted, unique ``among`` [U], and whether they are there at all (else 0)."""
    if not len(among):
        return torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    place = torch.searchsorted(among, values.contiguous()).clamp_(max=len(among) - 1)
    there = among[place] == values
    return place * there, there


def _owners(known: Known, keys: Tensor) -> Tensor:
    """[K] int64: the query row of each known answer.  Raises ValueError where shapes do not fit."""
    _check_keys(keys)
    _check_keys(known.keys)
    rows = torch.arange(len(known.lengths), device=known.keys.device)
    owner = rows.repeat_interleave(known.lengths)
    if not len(owner) == len(known.keys) == len(known.grades):
        raise ValueError(
            f"the lengths of the known answers add up to {len(owner)}, but there are {len(known.keys)} keys and "
            f"{len(known.grades)} grades"
        )
    return owner


def _check_keys(keys: Tensor) -> None:
    if keys.dim() != 2 or keys.shape[1] != len(KEYS) or keys.dtype != torch.int64:
        raise ValueError(
            f"keys are [rows, {len(KEYS)}] int64 ({', '.join(KEYS)}), got {tuple(keys.shape)} {keys.dtype}"
        )
