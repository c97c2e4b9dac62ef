"""Split a collection into train, dev and test, with whole files in one split, so that nothing leaks."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from smart_train.core.errors import DataError
from smart_train.data.arrow_shards import Ints
from smart_train.data.collection import Collection, hash_id
from smart_train.data.identity import plain, shown_hashes
from smart_train.data.split_stored import TARGETS, StoredSplit, cap_rows, load_split, save_split, unnamed_target
from smart_train.data.stored_collection import StoredCollection

logger = logging.getLogger(__name__)

OVERSHOOT = 1.25  # a file that would take a split beyond this multiple of the wanted number is skipped
LARGEST_FILE = 0.5  # a file with more than this share of the wanted number is skipped: several files, not one
LARGEST_TEST = 0.2  # at most this share of all documents is held out only to reach the documents to rank


@dataclass
class FileGroup:
    """Files that stay together because they answer the same query; mostly one file."""

    name: str
    documents: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)


def split(
    collection: Collection,
    dev: float | int,
    test: float | int,
    seed: int = 0,
    test_documents: int | None = None,
    dev_documents: int | None = None,
) -> tuple[Collection, Collection, Collection]:
    """Split into (train, dev, test) so that no file, no document and no query is in two of them.

    A file is ``Document.file``, or the document itself where it has none; files that answer one and the same query, or
    have an answer that shows the same, stay together. The order of files is a hash of the seed and their name, so a
    file that is added or removed moves few others.

    dev, test: a share of the queries (below 1) or a number of queries.  Whole files are taken in hash order until
        the number is reached; a file that would overshoot it by more than a quarter, or that alone is more than
        half of it, is skipped while there are others, so that one large package does not become the test.
        With a number, exactly that many queries are kept: the other queries of the chosen files are in no split
        (they are never trained on), while their documents stay as distractors.  With a share, all are kept.
    test_documents, dev_documents: the most documents to rank.  Relevant ones are always in, even beyond it.  Whole
        files are taken until this many are there, though no more than a fifth of all documents for that reason.
        None = all documents of the chosen files.

    Documents that answer no query go to the split whose queries name them as a negative (train, where several do);
    the others fill up test and dev, then are distributed in proportion.  Queries without a relevant document in the
    corpus are in no split, and negatives that are in another split are removed from the lists; both are logged.

    Raises DataError where the wanted number cannot be held out without breaking up a file.
    """
    if isinstance(collection, StoredCollection) and collection.part.is_whole():
        return _split_stored(collection, dev, test, seed, {"test": test_documents, "dev": dev_documents})
    groups, free = file_groups(collection)
    wanted = _wanted_numbers(collection, dev, test, sum(len(g.queries) for g in groups))
    limit = {"test": test_documents, "dev": dev_documents}
    share = {"test": test, "dev": dev}
    left = sorted(groups, key=lambda g: (hash_id(f"{seed}\n{g.name}"), g.name))
    splits: dict[str, list[FileGroup]] = {}
    spare = sum(len(g.documents) for g in free)
    for target in ("test", "dev"):
        missing = max(0, (limit[target] or 0) - spare)  # what documents without a query cannot fill
        aim = min(missing, int(LARGEST_TEST * len(collection.corpus)))
        spare = max(0, spare - (limit[target] or 0))
        sizes = [len(g.queries) for g in left], [len(g.documents) for g in left]
        taken = _choose(*sizes, wanted[target], aim, target, collection.name, [g.name for g in left].__getitem__)
        splits[target] = [left[place] for place in taken]
        gone = set(taken)
        left = [g for place, g in enumerate(left) if place not in gone]
    splits["train"] = left

    queries = {target: [q for g in chosen for q in g.queries] for target, chosen in splits.items()}
    documents = {target: [d for g in chosen for d in g.documents] for target, chosen in splits.items()}
    for target in ("test", "dev"):
        if isinstance(share[target], int) or share[target] >= 1:
            queries[target] = sorted(queries[target], key=lambda q: (hash_id(f"{seed}\n{q}"), q))[: wanted[target]]
    if not queries["train"]:
        raise DataError(f"{collection.name}: dev and test leave nothing to train on; lower data.dev or data.test")
    _place(collection, free, queries, documents, limit, seed)
    for target in ("test", "dev"):
        documents[target] = cap(collection, queries[target], documents[target], limit[target], seed)
    parts = {name: _part(collection, name, queries[name], documents[name]) for name in splits}
    return parts["train"], parts["dev"], parts["test"]


def _split_stored(
    collection: StoredCollection, dev: float | int, test: float | int, seed: int, limit: dict[str, int | None]
) -> tuple[Collection, Collection, Collection]:
    """The same for a collection on disk, where groups, queries and documents are numbers."""
    near = hash_id(json.dumps(sorted(collection.near.items()))) if collection.near else 0
    key = json.dumps([dev, test, seed, limit] + [near] * bool(near))
    found = load_split(collection, key)
    if found is None:
        found = _divided(collection, dev, test, seed, limit)
        save_split(collection, key, *found)
    queries, side = found
    parts: dict[str, Collection] = {}
    for number, target in enumerate(TARGETS):
        part = collection.select_rows(queries[target], collection.mask(np.flatnonzero(side == number)))
        kept = None if target == "train" else cap_rows(part, queries[target], limit[target], seed)
        if kept is not None:
            part = collection.select_rows(queries[target], kept)
        part.name = f"{collection.name}/{target}"
        named = collection.select_rows(queries[target], None).count_related("negatives")[0]
        _warn_of_lost(part, named)
        parts[target] = part
    return parts["train"], parts["dev"], parts["test"]


def _divided(
    collection: StoredCollection, dev: float | int, test: float | int, seed: int, limit: dict[str, int | None]
) -> tuple[dict[str, Any], Any]:
    """Return (target -> rows of its queries, [N] the number of every document's target)."""
    work = StoredSplit(collection, seed)
    share = {"test": test, "dev": dev}
    wanted = _wanted_numbers(collection, dev, test, int(work.queries.sum()))
    left, spare = work.order, work.spare
    chosen: dict[str, Any] = {}
    for target in ("test", "dev"):
        missing = max(0, (limit[target] or 0) - spare)
        aim = min(missing, int(LARGEST_TEST * len(collection.corpus)))
        spare = max(0, spare - (limit[target] or 0))
        of_queries, of_documents = work.queries[left], work.documents[left]
        name = partial(work.name, left)
        places = _choose(of_queries, of_documents, wanted[target], aim, target, collection.name, name)
        chosen[target], left = left[places], np.delete(left, places)
    chosen["train"] = left
    queries = {target: work.rows(groups) for target, groups in chosen.items()}
    for target in ("test", "dev"):
        if isinstance(share[target], int) or share[target] >= 1:
            queries[target] = work.by_hash(queries[target], wanted[target])
    if not len(queries["train"]):
        raise DataError(f"{collection.name}: dev and test leave nothing to train on; lower data.dev or data.test")
    return queries, work.sides(chosen, queries, limit)


def halves(collection: Collection, seed: int = 0) -> tuple[list[str], list[str], str]:
    """Divide the queries into two halves; return their ids, and what is kept together: "file" or "document".

    Queries that share a file stay together; where documents have no file, or one file would make a half nearly alone,
    queries that share a document do.  Both halves search the whole corpus.
    Raises DataError where even documents that answer the same queries leave less than a quarter to one half.
    """
    without = {id: replace(document, file=None) for id, document in collection.corpus.items()}
    loose = Collection(collection.name, without, collection.queries, collection.qrels, near=collection.near)
    in_files = collection.count_files() > 0
    for kept, view in (("file", collection), ("document", loose)) if in_files else (("document", loose),):
        parts: tuple[list[str], list[str]] = ([], [])
        for group in sorted(
            file_groups(view)[0], key=lambda g: (-len(g.queries), hash_id(f"{seed}\n{g.name}"), g.name)
        ):
            min(parts, key=len).extend(group.queries)
        if 4 * min(map(len, parts)) >= sum(map(len, parts)) > 0:
            return sorted(parts[0]), sorted(parts[1]), kept
    raise DataError(
        f"{collection.name}: its {len(collection.queries)} queries can't be divided: the same documents answer most of "
        "them, so that what is chosen by some would be reported on the same; give it a dev split of its own"
    )


def _wanted(target: str, value: float | int, total: int) -> int:
    if isinstance(value, bool) or value < 0 or (value >= 1 and value != int(value)):
        raise DataError(f"data.{target} is {value}; give a share of the queries (0.05) or a number of them (300)")
    return int(value) if value >= 1 or value == 0 else max(1, round(value * total))


def file_groups(collection: Collection) -> tuple[list[FileGroup], list[FileGroup]]:
    """Return (groups with queries, groups without), by a union-find over the files that each query is answered in.

    Answers that show the same under two ids, and queries of the same words, count as one: what is trained on would else
    be ranked.  Copies that answer no query join nothing, so that a blank page does not join all files.
    """
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    def join(first: str, second: str) -> None:
        low, high = sorted((find(first), find(second)))  # the smaller name leads: no matter in which order
        parent[high] = low

    unit = {d.id: f"file:{d.file}" if d.file is not None else f"document:{d.id}" for d in collection.corpus.values()}
    parent.update((name, name) for name in unit.values())
    home: dict[str, str] = {}
    for query, judged in collection.qrels.items():
        if query not in collection.queries:
            continue
        files = [unit[d] for d, grade in judged.items() if grade > 0 and d in unit]
        for file in files:
            join(files[0], file)
        if files:
            home[query] = files[0]
    answers = dict.fromkeys(d for q in home for d, grade in collection.qrels[q].items() if grade > 0 and d in unit)
    shown: dict[int, str] = {}
    hashes = shown_hashes((collection.corpus[d] for d in answers), collection.near)
    for document, hash in zip(answers, hashes, strict=True):
        if hash:
            join(shown.setdefault(hash, unit[document]), unit[document])
    asked: dict[str, str] = {}
    for query, file in home.items():
        if words := plain(collection.queries[query]):
            join(asked.setdefault(words, file), file)
    groups: dict[str, FileGroup] = {}
    for document, name in unit.items():
        root = find(name)
        groups.setdefault(root, FileGroup(root)).documents.append(document)
    for query, name in home.items():
        groups[find(name)].queries.append(query)
    lost = len(collection.queries) - len(home)
    if lost:
        logger.warning("%s: %d queries have no relevant document and are in no split", collection.name, lost)
    return [g for g in groups.values() if g.queries], [g for g in groups.values() if not g.queries]


def _wanted_numbers(collection: Collection, dev: float | int, test: float | int, total: int) -> dict[str, int]:
    wanted = {"test": _wanted("test", test, total), "dev": _wanted("dev", dev, total)}
    if sum(wanted.values()) >= max(total, 1):
        raise DataError(
            f"{collection.name}: dev ({wanted['dev']}) and test ({wanted['test']}) leave none of {total} queries to "
            "train on; lower data.dev or data.test"
        )
    return wanted


def _choose(
    queries_of: Sequence[int] | Ints,
    documents_of: Sequence[int] | Ints,
    queries: int,
    aim: int,
    target: str,
    name: str,
    group: Callable[[int], str],
) -> list[int]:
    """Return places of groups with about this many queries and, where that is more, ``aim`` documents.

    queries_of, documents_of: sizes of the groups, in the order in which they are taken; group: place -> name
    """
    if not queries:
        return []
    chosen: list[int] = []
    have_queries = have_documents = 0
    for place, (size, more) in enumerate(zip(map(int, queries_of), map(int, documents_of), strict=True)):
        if have_queries >= queries and have_documents >= aim:
            break
        fits_queries = size <= max(1, LARGEST_FILE * queries) and have_queries + size <= OVERSHOOT * queries
        fits_documents = aim > queries and more <= LARGEST_FILE * aim and have_documents + more <= OVERSHOOT * aim
        if fits_queries or fits_documents:
            chosen.append(place)
            have_queries, have_documents = have_queries + size, have_documents + more
    if have_queries < queries:  # only large files are left: the smaller ones first
        taken = set(chosen)
        rest = (place for place in range(len(queries_of)) if place not in taken)
        for place in sorted(rest, key=lambda place: int(queries_of[place])):
            if have_queries >= queries:
                break
            chosen.append(place)
            have_queries += int(queries_of[place])
    total = int(sum(queries_of))
    if have_queries == total or have_queries > max(OVERSHOOT * queries, total / 2):
        largest = max(range(len(queries_of)), key=lambda place: int(queries_of[place]))
        raise DataError(
            f"{name}: {queries} queries cannot be held out for {target}: {queries_of[largest]} of {total} queries "
            f"belong together ({group(largest)}; whole files stay in one split, and files that answer the same query, "
            f"or with the same answer, stay together). Lower data.{target}, set it to 0, or give the data a {target} "
            "split of its own"
        )
    return chosen


def _place(
    collection: Collection,
    free: list[FileGroup],
    queries: dict[str, list[str]],
    documents: dict[str, list[str]],
    limit: dict[str, int | None],
    seed: int,
) -> None:
    """Add the documents that answer no query to the splits, in place."""
    named: dict[str, str] = {}
    for target in ("test", "dev", "train"):  # train last: it wins, since it trains on its negatives
        for query in queries[target]:
            named.update((document, target) for document in collection.negatives.get(query, ()))
    rank = {"train": 2, "dev": 1, "test": 0}
    total = sum(map(len, queries.values()))
    shares = {target: len(queries[target]) / total for target in ("test", "dev")}
    for group in sorted(free, key=lambda g: (hash_id(f"{seed}\n{g.name}"), g.name)):
        splits = [named[d] for d in group.documents if d in named]
        if splits:
            documents[max(splits, key=rank.__getitem__)] += group.documents
            continue
        counts = {target: len(documents[target]) for target in ("test", "dev")}
        documents[unnamed_target(seed, group.name, shares, counts, limit)] += group.documents


def cap(collection: Collection, queries: Iterable[str], documents: list[str], most: int | None, seed: int) -> list[str]:
    """Return at most this many of the documents: positives (always), then hard negatives, then the others by hash."""
    if most is None or len(documents) <= most:
        return documents
    urgency: dict[str, int] = defaultdict(lambda: 2)
    for query in queries:
        for document in collection.negatives.get(query, ()):
            urgency[document] = min(urgency[document], 1)
        for document, grade in collection.qrels.get(query, {}).items():
            if grade > 0:
                urgency[document] = 0
    kept = sorted(documents, key=lambda d: (urgency[d], hash_id(f"{seed}\n{d}"), d))
    relevant = sum(urgency[d] == 0 for d in documents)
    return kept[: max(most, relevant)]


def _part(collection: Collection, target: str, queries: list[str], documents: list[str]) -> Collection:
    part = collection.select(queries, documents)
    part.name = f"{collection.name}/{target}"
    _warn_of_lost(part, sum(len(collection.negatives.get(q, ())) for q in queries))
    return part


def _warn_of_lost(part: Collection, named: int) -> None:
    """named: how many negatives the queries have in all splits."""
    lost = named - part.count_related("negatives")[0]
    if lost:
        logger.warning("%s: dropped %d hard negatives that belong to another split", part.name, lost)
