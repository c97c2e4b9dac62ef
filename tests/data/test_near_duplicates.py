"""Nearly the same queries: what counts as one, and that the index misses none that comparing every pair finds."""

from __future__ import annotations

import random

import pytest

import smart_train.data.near_duplicates as near_duplicates_module
from smart_train.data.near_duplicates import near_duplicates, numbers, shingles, words


def alike(first: str, second: str) -> bool:
    return near_duplicates({"a": first}, {"b": second}) == {"a": "b"}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("What is a harbour?", "what is a HARBOUR", True),
        ("capital of France", "France, capital of", True),
        ("how do the large ships enter a harbour", "how do the large ships enter a harbor", True),
        ("how do ships enter the harbours of a city", "how do ships enter the harbour of a city", True),
        ("how do ships enter the harbours of a city", "how do trains leave the harbours of a city", False),
        ("total revenue of the company in 2019", "total revenue of the company in 2020", False),
        ("install the package on a server", "remove the package from a server", False),
        ("what is a harbour", "what is a bridge", False),
        ("ｆｕｌｌ　ｗｉｄｔｈ text", "full width text", True),
        ("東京の人口は何人ですか", "東京の人口は、何人ですか？", True),
        ("東京の人口は何人ですか", "大阪の面積はどのくらい", False),
        ("???", "???", True),
        ("???", "!!!", False),
    ],
)
def test_what_counts_as_the_same_question(first, second, expected):
    assert alike(first, second) is expected and alike(second, first) is expected


def plain(queries: dict[str, str], others: dict[str, str], least: float) -> set[str]:
    """Every pair compared, as the docstring has it."""
    found = set()
    for key, text in queries.items():
        for other in others.values():
            mine, theirs = words(text), words(other)
            one, two = shingles(" ".join(mine)), shingles(" ".join(theirs))
            close = numbers(mine) == numbers(theirs) and len(one & two) / len(one | two) >= least - 1e-12
            if sorted(mine) == sorted(theirs) or close:
                found.add(key)
    return found


@pytest.mark.parametrize("least", [0.5, 0.7, 0.8, 1.0])
def test_the_index_finds_what_comparing_every_pair_finds(least):
    draw = random.Random(int(least * 10))
    vocabulary = ["harbour", "harbours", "ship", "ships", "of", "the", "in", "2019", "2020", "sea", "seas", "x1"]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(1, 6))) for _ in range(400)]
    queries = {f"q{n}": text for n, text in enumerate(texts[:250])}
    others = {f"o{n}": text for n, text in enumerate(texts[250:])}
    found = near_duplicates(queries, others, least)
    expected = plain(queries, others, least)
    assert set(found) == expected and 10 < len(expected) < 250
    for key, other in found.items():
        assert plain({key: queries[key]}, {other: others[other]}, least) == {key}


def test_of_all_pairs_few_are_compared(monkeypatch):
    draw = random.Random(0)
    names = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(4000)]
    compared: list[int] = []
    candidates = near_duplicates_module._Index._candidates

    def counted(index, *arguments):
        rows = candidates(index, *arguments)
        compared.append(len(rows))
        return rows

    monkeypatch.setattr(near_duplicates_module._Index, "_candidates", counted)

    def pairs(count: int) -> int:  # one template, as generated questions have it
        first, second = (
            {f"{n}": f"which page tells about the {draw.choice(names)} {draw.choice(names)}" for n in range(count)}
            for _ in range(2)
        )
        compared.clear()
        near_duplicates(first, second)
        return sum(compared)

    assert 0 < pairs(8000) < 0.002 * 8000**2


def test_a_threshold_that_makes_no_sense_is_refused():
    for least in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            near_duplicates({}, {"b": "x"}, least)
