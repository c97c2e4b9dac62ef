"""Group documents that are near copies: most runs of four words of one are in the other (``data.near_duplicates``).

A page that was edited, an answer with a sentence more, two versions of one manual: near copies have no words in common
as a whole, so ``identity.content_hash`` keeps them apart, and what is trained on would be ranked with a few words
changed.  Everyone who asks ``identity`` takes a group for one document (``Collection.near``).

The containment of A in B is the share of A's shingles (runs of SHINGLE words) that B has (Broder 1997).  Pairs are
found by prefix filtering (Chaudhuri et al. 2006), with row numbers in numpy arrays: of A's n shingles B has at least
ceil(share n), so one of the rarest n - ceil(share n) + 1 is among them, and only what has one of these is compared.
Nothing is estimated.  For 20,000 texts of 60 words this takes 2 s and 60 MB, for 100,000 15 s and 260 MB; MinHash with
128 permutations and LSH (datasketch 2.0) took 15 s and 190 MB for 20,000, before any of its candidates was compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from smart_train.core.errors import DataError
from smart_train.core.progress_log import ProgressLog
from smart_train.data.arrow_shards import Ints
from smart_train.data.collection import Collection, Document, first_few, hash_id
from smart_train.data.near_duplicates import words

logger = logging.getLogger(__name__)

SHINGLE = 4  # words
SHARE = 0.7  # least containment of a near copy
LEAST_WORDS = 8  # a shorter text is in many others by chance; its exact copies count all the same
MOST_TEXT = 600_000_000  # characters, about 100 million words: 4 GB of memory while they are compared
POSTINGS = 256  # documents with one and the same shingle that are looked at: those around a document
CANDIDATES = 1024  # documents that one is compared with, those with most of its rare shingles first
LARGE = 0.05  # a group with more than this share of the documents is warned of

_ODD = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5], np.uint64)


@dataclass(frozen=True)
class NearGroups:
    """Groups of near copies.

    ids: of every group its documents, in the order of the data, the group of the first document first
    compared: documents with words enough; cut: documents that had more candidates than are compared
    """

    ids: list[list[str]]
    compared: int = 0
    cut: int = 0

    def hashes(self) -> dict[str, int]:
        """Return document id -> the hash that its group shares, for ``Collection.near``; the same on every rank."""
        return {id: hash_id(f"near\n{min(group)}") or 1 for group in self.ids for id in group}


def mark_near(name: str, collections: Sequence[Collection]) -> NearGroups:
    """Find the near copies among all documents of the splits of one data set, and set ``Collection.near`` of each.

    Raises DataError, before anything is compared, for more text than fits the memory.
    """
    documents = (d for collection in collections for d in collection.corpus.values())
    distinct = len({id(collection.corpus) for collection in collections}) > 1
    texts = _distinct(documents) if distinct else ((d.id, d.text or "") for d in documents)
    large = sum(_characters(collection) for collection in collections)
    if large > MOST_TEXT:
        what = f"{name} has {large:,} characters of text, and near copies are looked for in memory, up to {MOST_TEXT:,}"
        raise DataError(f"data.near_duplicates: {what}; write keep")
    groups = near_groups(texts, name=name, total=sum(len(collection.corpus) for collection in collections))
    near = groups.hashes()
    for collection in collections:
        collection.near = near
    report(name, groups)
    return groups


def report(name: str, groups: NearGroups) -> None:
    """Log how many near copies there are, and warn where chains of them hold much of the data together."""
    sizes = [len(group) for group in groups.ids]
    shown = "; ".join(" ~ ".join(group[:2]) for group in groups.ids[:2])
    logger.info(
        "%s: %d of %d documents of %d words or more are near copies, in %d groups that stay together%s",
        name,
        sum(sizes),
        groups.compared,
        LEAST_WORDS,
        len(sizes),
        f" (the largest has {max(sizes)}): {shown}" if sizes else "",
    )
    if groups.cut:
        what = "documents have rare words in common with very many others, and were compared with the likeliest"
        logger.info("%s: %d %s %d of them", name, groups.cut, what, CANDIDATES)
    if sizes and max(sizes) > max(LARGE * groups.compared, 10):
        largest = max(groups.ids, key=len)
        logger.warning(
            "%s: %d documents count as one, since each is a near copy of another of them (%s): a template, or a short "
            "text that many have. None of them is a negative of a query that another answers, and all that answer a "
            "query are in one split; write data.near_duplicates: keep if they are different answers",
            name,
            len(largest),
            first_few(largest),
        )


def _characters(collection: Collection) -> int:
    part = getattr(collection, "part", None)  # of a collection on disk; lengths are in a column
    if part is not None:
        return sum(int(part.store.documents.numbers(rows, "length").sum()) for rows in part.document_parts())
    return sum(len(document.text or "") for document in collection.corpus.values())


def _distinct(documents: Iterable[Document]) -> Iterator[tuple[str, str]]:
    seen = set[str]()
    for document in documents:
        if document.id not in seen:
            seen.add(document.id)
            yield document.id, document.text or ""


def near_groups(
    texts: Iterable[tuple[str, str]], share: float = SHARE, name: str = "documents", total: int = 0
) -> NearGroups:
    """Return the groups of near copies among (id, text), of two or more documents each.

    share: above 0, at most 1; two texts are near copies if at least this share of the shingles of one of them are
        the other's.  Texts of less than LEAST_WORDS words are in no group; case, punctuation, spacing don't count.
    name, total: for the progress lines, every 10 seconds: what is compared, and how many there are, if that is known

    Groups are connected components: if A is a near copy of B, and B of C, all three are in one group, although A and C
    may have little in common.

    >>> page = "to reach the harbour take the road along the coast and turn left at the second bridge"
    >>> near_groups([("a", page), ("b", page + " near the mill"), ("c", "nothing of it is in this text at all")]).ids
    [['a', 'b']]
    """
    ids, held, sizes = _shingles(texts, name, total)
    shared, starts = _shared(held, sizes)
    del held
    index = _Index(shared, starts, sizes, share)
    members = index.groups(name)
    found = sorted((sorted(rows) for rows in members), key=lambda rows: rows[0])
    return NearGroups([[ids[row] for row in rows] for rows in found], len(ids), index.cut)


def _shingles(
    texts: Iterable[tuple[str, str]], name: str, total: int
) -> tuple[list[str], NDArray[np.uint64], NDArray[np.int64]]:
    """Return (ids of the texts with words enough, [E] hashes of their distinct shingles, [N] how many each has)."""
    ids, blocks, sizes = list[str](), [np.empty(0, np.uint64)], list[int]()
    pace = ProgressLog(f"{name}: texts divided into runs of words", total, every=10.0 if total else float("inf"))
    for id, text in texts:
        if len(text) >= 2 * LEAST_WORDS - 1 or not text.isascii():
            found = words(text)
            if len(found) >= LEAST_WORDS:
                blocks.append(_hashes(found))
                ids.append(id)
                sizes.append(len(blocks[-1]))
        pace.add(1)
        if len(blocks) > 4096:
            blocks = [np.concatenate(blocks)]
    return ids, np.concatenate(blocks), np.array(sizes, np.int64)


def _hashes(found: list[str]) -> NDArray[np.uint64]:
    """Return the distinct hashes of all runs of SHINGLE words."""
    of_words = np.fromiter((crc32(word.encode("utf-8", "surrogatepass")) for word in found), np.uint64, len(found))
    runs = len(found) - SHINGLE + 1
    total = np.zeros(runs, np.uint64)
    for place, odd in enumerate(_ODD):
        total = (total ^ of_words[place : place + runs]) * odd
        total ^= total >> np.uint64(29)
    return np.unique(total)


def _shared(held: NDArray[np.uint64], sizes: Ints) -> tuple[Ints, Ints]:
    """Return (numbers of the shingles that several texts have, one text after another; [N + 1] where each begins)."""
    order = np.argsort(held, kind="stable")
    first = np.r_[True, held[order][1:] != held[order][:-1]] if len(held) else np.empty(0, np.bool_)
    number = np.cumsum(first) - 1
    several = np.bincount(number)[number] > 1 if len(held) else first
    kept = np.zeros(len(held), np.bool_)
    kept[order[several]] = True
    code = np.empty(len(held), np.int32)
    code[order] = number
    ends = np.cumsum(sizes)
    counts = np.r_[0, np.cumsum(kept)][np.r_[0, ends]]
    _, shared = np.unique(code[kept], return_inverse=True)
    return shared.astype(np.int32), counts


class _Index:
    """Texts by the shingles that several of them have.

    shared, starts: as ``_shared`` returns them; sizes: [N] shingles of each text, those that no other has included
    """

    def __init__(self, shared: Ints, starts: Ints, sizes: Ints, share: float) -> None:
        self.shared, self.starts = shared, starts
        self.sizes = sizes
        self.needed = np.ceil(share * sizes - 1e-9).astype(np.int64)  # 0.7 * 10 is 7.000000000000001
        self.counts = np.bincount(shared) if len(shared) else np.empty(0, np.int64)
        self.begins = np.r_[0, np.cumsum(self.counts)]
        owner = np.repeat(np.arange(len(sizes), dtype=np.int32), np.diff(starts))
        self.texts = owner[np.argsort(shared, kind="stable")]  # of every shingle the texts that have it, in order
        self.group = np.arange(len(sizes), dtype=np.int32)
        self.members: dict[int, list[int]] = {}
        self.own = np.zeros(len(self.counts), np.bool_)
        self.cut = 0

    def groups(self, name: str) -> list[list[int]]:
        """Compare every text that may be contained in another; return the groups of several rows."""
        rows = np.flatnonzero(np.diff(self.starts) >= np.maximum(self.needed, 1))
        pace = ProgressLog(f"{name}: documents compared for near copies", len(rows), every=10.0)
        for row in rows.tolist():
            self._compare(row)
            pace.add(1)
        return list(self.members.values())

    def _compare(self, row: int) -> None:
        """Join the group of a text with those of the texts that it is contained in."""
        mine = self.shared[self.starts[row] : self.starts[row + 1]]
        needed = int(self.needed[row])
        rarest = mine[np.argsort(self.counts[mine], kind="stable")][: len(mine) - needed + 1]
        found = []
        crowded = False
        for shingle in rarest.tolist():
            texts = self.texts[self.begins[shingle] : self.begins[shingle + 1]]
            if len(texts) > POSTINGS:
                at = int(np.searchsorted(texts, row))
                begin = min(max(at - POSTINGS // 2, 0), len(texts) - POSTINGS)
                texts, crowded = texts[begin : begin + POSTINGS], True
            found.append(texts)
        candidates, hits = np.unique(np.concatenate(found), return_counts=True)
        open = (self.group[candidates] != self.group[row]) & (self.sizes[candidates] >= needed)
        candidates, hits = candidates[open], hits[open]
        if len(candidates) > CANDIDATES:
            candidates, crowded = candidates[np.argsort(-hits, kind="stable")[:CANDIDATES]], True
        self.cut += crowded and len(candidates) > 0
        if not len(candidates):
            return
        begins, sizes = self.starts[candidates], self.starts[candidates + 1] - self.starts[candidates]
        ends = np.cumsum(sizes)
        at = np.arange(int(ends[-1])) + np.repeat(begins - (ends - sizes), sizes)
        self.own[mine] = True
        both = np.add.reduceat(self.own[self.shared[at]], ends - sizes, dtype=np.int64)
        self.own[mine] = False
        for other in candidates[both >= needed].tolist():
            self._join(row, other)

    def _join(self, row: int, other: int) -> None:
        """Unite two groups; the smaller one is renamed, so that all joins together take N log N."""
        one, two = int(self.group[row]), int(self.group[other])
        if one == two:
            return
        left, right = self.members.pop(one, [one]), self.members.pop(two, [two])
        if len(left) < len(right):
            left, right, one = right, left, two
        self.group[right] = one
        left += right
        self.members[one] = left
