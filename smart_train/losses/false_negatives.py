"""Find false negatives: documents of a batch, on any rank, that are known positives of a query, or copies of one.

Of B queries with K known positives in all, and N documents (this rank's, or those of all ranks), memory is
O(B*N + K): keys are compared by sorting, never K against N.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smart_train.core.embeddings import KEYS, KnownPositives


def grade_matrix(known: KnownPositives, keys: Tensor) -> Tensor:
    """Return the grade (above 0) of every document for every query, 0 where it is no known positive.

    keys: [N, 4] int64; documents are compared by id alone -> [B, N] float32
    Where a query lists a document twice, the larger grade counts.
    """
    owner = _owners(known, keys)
    ids, column = torch.unique(keys[:, 0], return_inverse=True)
    place, present = _find(known.keys[:, 0], ids)
    table = known.grades.new_zeros(len(known.lengths), len(ids) + 1, dtype=torch.float32)
    spot = owner * table.shape[1] + torch.where(present, place, len(ids))  # the last column is for those not here
    table.view(-1).scatter_reduce_(0, spot, known.grades.float(), "amax")
    return table[:, column]


def share_grades(grades: Tensor, keys: Tensor) -> Tensor:
    """Give all copies of a document, by content, the largest of their grades.

    grades: [B, N]; keys: [N, 4] int64 -> [B, N]
    So the first column of a document has its grade, whichever of its ids the query lists.
    """
    _check_keys(keys)
    unique, column = torch.unique(keys[:, 1], return_inverse=True)
    table = grades.new_zeros(len(grades), len(unique))
    table.scatter_reduce_(1, column.expand_as(grades), grades, "amax")
    return torch.where(keys[:, 1] != 0, table[:, column], grades)


def relevance_mask(known: KnownPositives, keys: Tensor, neighbour_pages: int | None = None) -> Tensor:
    """Return which documents never count as negatives of a query.

    keys: [N, 4] int64, see KEYS -> [B, N] bool
    True where the document's id is that of a known positive; where its content is that of one (0 = not known, and
    never alike); and, with ``neighbour_pages``, where it is a page of the same file (0 = none) at most so many pages
    away from one. A positive that is itself among the documents brings its content, file and page along, which its
    entry in ``known`` may lack.

    One query whose positive has id 7 and content 5; document 8 shows the same content:

    >>> known = KnownPositives(torch.tensor([[7, 5, 0, -1]]), torch.ones(1), torch.tensor([1]))
    >>> relevance_mask(known, torch.tensor([[7, 5, 0, -1], [8, 5, 0, -1], [9, 6, 0, -1]]))
    tensor([[ True,  True, False]])
    """
    listed = grade_matrix(known, keys) > 0
    row, place = listed.nonzero(as_tuple=True)
    rows = torch.cat([_owners(known, keys), row])
    positives = torch.cat([known.keys, keys[place]])
    mask = listed | _same_content(rows, positives[:, 1], keys[:, 1], len(listed))
    if neighbour_pages is not None:
        mask |= _near(rows, positives[:, 2:], keys[:, 2:], len(listed), neighbour_pages)
    return mask


def repeated_documents(keys: Tensor) -> Tensor:
    """Return which documents are copies of an earlier one: the same id, or the same content.

    keys: [N, 4] int64, see KEYS -> [N] bool; content 0 is not known, and no copy of anything
    """
    _check_keys(keys)
    return _later(keys[:, 0]) | (_later(keys[:, 1]) & (keys[:, 1] != 0))


def _later(values: Tensor) -> Tensor:
    """[N] bool: an earlier place has the same value."""
    unique, place = torch.unique(values, return_inverse=True)
    order = torch.arange(len(values), device=values.device)
    first = torch.full_like(unique, len(values)).scatter_reduce_(0, place, order, "amin")
    return first[place] < order


def _same_content(rows: Tensor, positives: Tensor, contents: Tensor, queries: int) -> Tensor:
    """[B, N] bool from contents of positives [A] of the queries ``rows`` [A], and of documents [N]."""
    unique, column = torch.unique(contents, return_inverse=True)
    place, present = _find(positives, unique)
    present = present & (positives != 0)
    table = torch.zeros(queries, len(unique), dtype=torch.bool, device=contents.device)
    table[rows[present], place[present]] = True
    return table[:, column]


def _near(rows: Tensor, positives: Tensor, pages: Tensor, queries: int, window: int) -> Tensor:
    """[B, N] bool from (file, page) of positives [A, 2] of the queries ``rows`` [A], and of documents [N, 2].

    In the order of file and page, the documents near a positive are one interval. Every positive adds 1 where its
    interval starts and subtracts it where it ends, so one running sum covers all intervals, however long they are.
    """
    numbered = ((pages[:, 0] != 0) & (pages[:, 1] >= 0)).nonzero().squeeze(1)
    files, file = torch.unique(pages[numbered, 0], return_inverse=True)
    levels, level = torch.unique(pages[numbered, 1], return_inverse=True)
    spot, order = torch.sort(file * (len(levels) + 1) + level)  # small numbers, whatever the hashes and pages are

    place, present = _find(positives[:, 0], files)
    present = present & (positives[:, 0] != 0) & (positives[:, 1] >= 0)
    rows, place, page = rows[present], place[present] * (len(levels) + 1), positives[present, 1]
    begin = torch.searchsorted(spot, place + torch.searchsorted(levels, page - window))
    end = torch.searchsorted(spot, place + torch.searchsorted(levels, page + window, right=True))

    one = torch.ones_like(rows, dtype=torch.int32)
    cover = torch.zeros(queries, len(numbered) + 1, dtype=torch.int32, device=pages.device)
    cover.index_put_((rows, begin), one, accumulate=True).index_put_((rows, end), -one, accumulate=True)
    cover = cover.cumsum_(1)[:, :-1] > 0
    near = torch.zeros(queries, len(pages), dtype=torch.bool, device=pages.device)
    near[:, numbered[order]] = cover
    return near


def _find(values: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Places of values [A] in the sorted, unique ``among`` [U], and whether each is present (its place is 0 if not)."""
    if not len(among):
        return torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
    place = torch.searchsorted(among, values.contiguous()).clamp_(max=len(among) - 1)
    present = among[place] == values
    return place * present, present


def _owners(known: KnownPositives, keys: Tensor) -> Tensor:
    """[K] int64: the query row of each known positive. Raises ValueError where shapes do not fit."""
    _check_keys(keys)
    _check_keys(known.keys)
    rows = torch.arange(len(known.lengths), device=known.keys.device)
    owner = rows.repeat_interleave(known.lengths)
    if not len(owner) == len(known.keys) == len(known.grades):
        raise ValueError(
            f"the lengths of the known positives add up to {len(owner)}, but there are {len(known.keys)} keys and "
            f"{len(known.grades)} grades"
        )
    return owner


def _check_keys(keys: Tensor) -> None:
    if keys.dim() != 2 or keys.shape[1] != len(KEYS) or keys.dtype != torch.int64:
        raise ValueError(
            f"keys are [rows, {len(KEYS)}] int64 ({', '.join(KEYS)}), got {tuple(keys.shape)} {keys.dtype}"
        )
