"""Which documents are trained on, chosen by, and reported on: whole files on one side."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from smart_train.core.errors import DataError
from smart_train.data.collection import Collection, hash_id

logger = logging.getLogger(__name__)

OVERSHOOT = 1.25  # a file that would take a side beyond this multiple of what is wanted is passed over
LARGEST_FILE = 0.5  # a file with more than this share of what is wanted is passed over: several files, not one
LARGEST_TEST = 0.2  # at most this share of the documents is held out only to reach the number of documents to rank


@dataclass
class _Group:
    """Files that hang together because a query is answered in each of them; mostly one file."""

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
    """(train, dev, test): no file, no document and no query is on two sides.

    A file is ``Document.file``, or the document itself where it has none; files that answer one and the same query
    stay together.  The order of files is a hash of the seed and their name, so a file that is added or removed moves
    few others.

    dev, test: a share of the queries (below 1) or a number of queries.  Whole files are taken in hash order until
        the number is reached; a file that would overshoot it by more than a quarter, or that alone is more than
        half of it, is passed over while there are others, so that one large package does not become the test.
        With a number, exactly that many queries are kept: the other queries of the chosen files are in no side
        (they are never trained on), while their documents stay as distractors.  With a share, all are kept.
    test_documents, dev_documents: the most documents to rank.  Relevant ones are always in, even beyond it.  Whole
        files are taken until this many are there, though no more than a fifth of all documents for that reason.
        None = all documents of the chosen files.

    Documents that answer no query follow the queries that name them as a negative (where several sides do, train);
    the others fill up test and dev, then are shared out in proportion.  Queries without a relevant document in the
    corpus are on no side, negatives that lie on another side are taken out of the lists; both are counted and logged.

    Raises DataError where the wanted number cannot be held out without breaking up a file.
    """
    groups, free = _groups(collection)
    total = sum(len(g.queries) for g in groups)
    wanted = {"test": _wanted("test", test, total), "dev": _wanted("dev", dev, total)}
    if sum(wanted.values()) >= max(total, 1):
        raise DataError(
            f"{collection.name}: dev ({wanted['dev']}) and test ({wanted['test']}) leave none of {total} queries to "
            "train on; lower data.dev or data.test"
        )
    limit = {"test": test_documents, "dev": dev_documents}
    share = {"test": test, "dev": dev}
    left = sorted(groups, key=lambda g: (hash_id(f"{seed}\n{g.name}"), g.name))
    sides: dict[str, list[_Group]] = {}
    spare = sum(len(g.documents) for g in free)
    for side in ("test", "dev"):
        room = max(0, (limit[side] or 0) - spare)  # what documents without a query cannot fill
        aim = min(room, int(LARGEST_TEST * len(collection.corpus)))
        spare = max(0, spare - (limit[side] or 0))
        sides[side] = _choose(left, wanted[side], aim, collection.name, side)
        taken = {g.name for g in sides[side]}
        left = [g for g in left if g.name not in taken]
    sides["train"] = left

    queries = {side: [q for g in chosen for q in g.queries] for side, chosen in sides.items()}
    documents = {side: [d for g in chosen for d in g.documents] for side, chosen in sides.items()}
    for side in ("test", "dev"):
        if isinstance(share[side], int) or share[side] >= 1:
            queries[side] = sorted(queries[side], key=lambda q: (hash_id(f"{seed}\n{q}"), q))[: wanted[side]]
    if not queries["train"]:
        raise DataError(f"{collection.name}: dev and test leave nothing to train on; lower data.dev or data.test")
    _place(collection, free, queries, documents, limit, seed)
    for side in ("test", "dev"):
        documents[side] = cap(collection, queries[side], documents[side], limit[side], seed)
    return tuple(_side(collection, side, queries[side], documents[side]) for side in ("train", "dev", "test"))  # type: ignore[return-value]


def halves(collection: Collection, seed: int = 0) -> tuple[list[str], list[str], str]:
    """The ids of the queries in two halves, and what is kept together: "file", or "document" where documents have no
    file or one file would make a half nearly alone.  No two queries that share one are apart; the corpus is whole.

    Raises DataError where even documents that answer the same queries leave less than a quarter to one half.
    """
    loose = replace(collection, corpus={id: replace(d, file=None) for id, d in collection.corpus.items()})
    in_files = any(document.file is not None for document in collection.corpus.values())
    for kept, part in (("file", collection), ("document", loose)) if in_files else (("document", loose),):
        sides: tuple[list[str], list[str]] = ([], [])
        for group in sorted(_groups(part)[0], key=lambda g: (-len(g.queries), hash_id(f"{seed}\n{g.name}"), g.name)):
            min(sides, key=len).extend(group.queries)
        if 4 * min(map(len, sides)) >= sum(map(len, sides)) > 0:
            return sorted(sides[0]), sorted(sides[1]), kept
    raise DataError(
        f"{collection.name}: its {len(collection.queries)} queries can't be divided: the same documents answer most of "
        "them, so that what is chosen by some would be reported on the same; give it a dev split of its own"
    )


def _wanted(side: str, value: float | int, total: int) -> int:
    if isinstance(value, bool) or value < 0 or (value >= 1 and value != int(value)):
        raise DataError(f"data.{side} is {value}; give a share of the queries (0.05) or a number of them (300)")
    return int(value) if value >= 1 or value == 0 else max(1, round(value * total))


def _groups(collection: Collection) -> tuple[list[_Group], list[_Group]]:
    """(groups with queries, groups without); a union-find over the files that each query is answered in."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    unit = {d.id: f"file:{d.file}" if d.file is not None else f"document:{d.id}" for d in collection.corpus.values()}
    parent.update((name, name) for name in unit.values())
    home: dict[str, str] = {}
    for query, judged in collection.qrels.items():
        if query not in collection.queries:
            continue
        files = [unit[d] for d, grade in judged.items() if grade > 0 and d in unit]
        for file in files:
            first, second = sorted((find(files[0]), find(file)))  # the smaller name leads: no matter in which order
            parent[second] = first
        if files:
            home[query] = files[0]
    groups: dict[str, _Group] = {}
    for document, name in unit.items():
        root = find(name)
        groups.setdefault(root, _Group(root)).documents.append(document)
    for query, name in home.items():
        groups[find(name)].queries.append(query)
    lost = len(collection.queries) - len(home)
    if lost:
        logger.warning("%s: %d queries have no relevant document and are on no side", collection.name, lost)
    return [g for g in groups.values() if g.queries], [g for g in groups.values() if not g.queries]


def _choose(groups: list[_Group], queries: int, aim: int, name: str, side: str) -> list[_Group]:
    """Groups, in the given order, with about this many queries and, where that is more, ``aim`` documents."""
    if not queries:
        return []
    chosen: list[_Group] = []
    have_queries = have_documents = 0
    for group in groups:
        if have_queries >= queries and have_documents >= aim:
            break
        size, more = len(group.queries), len(group.documents)
        fits_queries = size <= max(1, LARGEST_FILE * queries) and have_queries + size <= OVERSHOOT * queries
        fits_documents = aim > queries and more <= LARGEST_FILE * aim and have_documents + more <= OVERSHOOT * aim
        if fits_queries or fits_documents:
            chosen.append(group)
            have_queries, have_documents = have_queries + size, have_documents + more
    if have_queries < queries:  # only large files are left: the smaller ones first
        taken = {g.name for g in chosen}
        for group in sorted((g for g in groups if g.name not in taken), key=lambda g: len(g.queries)):
            if have_queries >= queries:
                break
            chosen.append(group)
            have_queries += len(group.queries)
    total = sum(len(g.queries) for g in groups)
    if have_queries == total or have_queries > max(OVERSHOOT * queries, total / 2):
        largest = max(groups, key=lambda g: len(g.queries))
        raise DataError(
            f"{name}: {queries} queries cannot be held out for {side}: {len(largest.queries)} of {total} queries "
            f"belong together ({largest.name}; whole files stay on one side, and files that answer the same query "
            f"stay together). Lower data.{side}, set it to 0, or give the data a {side} split of its own"
        )
    return chosen


def _place(
    collection: Collection,
    free: list[_Group],
    queries: dict[str, list[str]],
    documents: dict[str, list[str]],
    limit: dict[str, int | None],
    seed: int,
) -> None:
    """Adds the documents that answer no query to the sides, in place."""
    named: dict[str, str] = {}
    for side in ("test", "dev", "train"):  # train last: it wins, since it is taught from its negatives
        for query in queries[side]:
            named.update((document, side) for document in collection.negatives.get(query, ()))
    rank = {"train": 2, "dev": 1, "test": 0}
    total = sum(map(len, queries.values()))
    bounds = {side: len(queries[side]) / total for side in ("test", "dev")}
    for group in sorted(free, key=lambda g: (hash_id(f"{seed}\n{g.name}"), g.name)):
        sides = [named[d] for d in group.documents if d in named]
        if sides:
            documents[max(sides, key=rank.__getitem__)] += group.documents
            continue
        short = [s for s in ("test", "dev") if queries[s] and len(documents[s]) < (limit[s] or 0)]
        drawn = (hash_id(f"{seed}\nside\n{group.name}") % 2**32) / 2**32
        if short:
            side = short[0]
        elif drawn < bounds["test"] and limit["test"] is None:
            side = "test"
        elif bounds["test"] <= drawn < bounds["test"] + bounds["dev"] and limit["dev"] is None:
            side = "dev"
        else:
            side = "train"
        documents[side] += group.documents


def cap(collection: Collection, queries: Iterable[str], documents: list[str], most: int | None, seed: int) -> list[str]:
    """At most this many of the documents: relevant ones (always), then named negatives, then the others by hash."""
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


def _side(collection: Collection, side: str, queries: list[str], documents: list[str]) -> Collection:
    part = collection.select(queries, documents)
    part.name = f"{collection.name}/{side}"
    lost = sum(len(collection.negatives.get(q, ())) for q in queries) - sum(map(len, part.negatives.values()))
    if lost:
        logger.warning("%s: %d negatives lie on another side and are not used here", part.name, lost)
    return part
