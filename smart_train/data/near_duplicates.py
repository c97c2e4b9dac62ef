"""Find queries that are nearly the same text, exactly and without comparing every pair."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from math import ceil
from unicodedata import normalize

SIZE = 4  # characters of a shingle: a changed letter changes 4 of them, a changed word of 6 letters 9
WORD = re.compile(r"[^\W_]+")
IDEOGRAPH = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")  # written without spaces: each is a word


def words(text: str) -> list[str]:
    """Return the words of a text without case, width, punctuation and spacing; the text itself where it has none.

    >>> words("What IS a harbour?")
    ['what', 'is', 'a', 'harbour']
    """
    return WORD.findall(IDEOGRAPH.sub(r" \1 ", normalize("NFKC", text).casefold())) or [text.strip()]


def shingles(text: str) -> set[str]:
    """Return all runs of SIZE characters of a text, with a space added at both ends."""
    padded = f" {text} "
    return {padded[i : i + SIZE] for i in range(max(1, len(padded) - SIZE + 1))}


def numbers(found: list[str]) -> tuple[str, ...]:
    return tuple(sorted(word for word in found if any(c.isdigit() for c in word)))


def near_duplicates(queries: Mapping[str, str], others: Mapping[str, str], least: float = 0.8) -> dict[str, str]:
    """Return id of a query -> id of one of the others that is nearly the same text; queries without one are left out.

    Two texts are nearly the same where they have the same words, in whatever order, case and punctuation, or where
    they have the same numbers and the Jaccard index of their shingles is at least ``least``: "revenue in 2019" and
    "revenue in 2020" are two questions.

    Pairs are found by prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007): of two sets with that much in
    common, the rarest few elements of each must meet, so only those are looked up.  Nothing is missed.
    """
    index = _Index(others, least)
    known: dict[str, str | None] = {}
    found: dict[str, str] = {}
    for key, text in queries.items():
        parts = words(text)
        form = " ".join(parts)
        if form not in known:
            known[form] = index.find(parts)
        other = known[form]
        if other is not None:
            found[key] = other
    return found


class _Index:
    """An index of texts by their numbers, which must be equal, and their rarest shingles."""

    def __init__(self, texts: Mapping[str, str], least: float) -> None:
        if not 0 < least <= 1:
            raise ValueError(f"the least similarity is {least}; it must be above 0 and at most 1")
        self.least = least
        self.same: dict[tuple[str, ...], str] = {}
        distinct: dict[str, tuple[str, tuple[str, ...]]] = {}
        for key, text in texts.items():
            parts = words(text)
            self.same.setdefault(tuple(sorted(parts)), key)
            distinct.setdefault(" ".join(parts), (key, numbers(parts)))
        self.sets = [(key, group, shingles(form)) for form, (key, group) in distinct.items()]
        self.count = Counter(shingle for _, _, held in self.sets for shingle in held)
        self.rows: dict[tuple[tuple[str, ...], str], list[int]] = defaultdict(list)
        for row, (_, group, held) in enumerate(self.sets):
            for shingle in self._rarest(held):
                self.rows[group, shingle].append(row)

    def _rarest(self, held: set[str]) -> list[str]:
        most = len(held) - ceil(self.least * len(held) - 1e-9) + 1  # 0.7 * 10 is 7.000000000000001
        return sorted(held, key=lambda s: (self.count[s], s))[:most]

    def _candidates(self, held: set[str], group: tuple[str, ...]) -> list[int]:
        """Return the rows to compare with a text, in order."""
        return sorted({row for shingle in self._rarest(held) for row in self.rows.get((group, shingle), ())})

    def find(self, parts: list[str]) -> str | None:
        """Return the id of the first text that is nearly the same, or None."""
        exact = self.same.get(tuple(sorted(parts)))
        if exact is not None:
            return exact
        held = shingles(" ".join(parts))
        for row in self._candidates(held, numbers(parts)):
            key, _, other = self.sets[row]
            if self.least * max(len(held), len(other)) <= min(len(held), len(other)):
                both = len(held & other)
                if both >= self.least * (len(held) + len(other) - both):
                    return key
        return None
