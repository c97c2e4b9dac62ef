"""Kept tokens as words that a person reads: sub-words joined, control tokens and raw ids nowhere.

Knows: tokenizers.  Does not know: models, vectors, pictures.

What a token stands for is what it adds to the decoded text of the tokens before it; so byte-level BPE, WordPiece and
SentencePiece are read alike, and a letter of several bytes belongs to the token that completes it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

WINDOW = 4  # tokens decoded together: a letter has at most 4 bytes, and at worst each is a token
WORD = re.compile(r"\w+(?:[-'’.,_@/]\w+)*|[^\w\s]+")
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")  # Thai to Han: no blanks
BREAK, BLANK = "↵", "␣"  # what stands for a token of white space
HALF = "\ufffd"  # what decoders put for the bytes of half a letter


@dataclass(frozen=True)
class Word:
    """One word of a row.

    text: as it is shown; tokens: its rows among the kept tokens; own: it is of the content itself, not of the prompt
    or the chat template around it (which count in a late score all the same)
    """

    text: str
    tokens: tuple[int, ...]
    own: bool = True


def words(tokenizer: Any, ids: Sequence[int], rows: Sequence[int | None], content: str) -> list[Word]:
    """The words of one row of tokens, in order.

    ids: the row as it went through the model, without padding; rows: for each of them its row among the kept tokens,
    None = not kept or not text; content: the row's own text.
    Every row is in exactly one word.
    """
    pieces, unfinished = _pieces(tokenizer, ids)
    joined, own = _joined(pieces, unfinished), _own(pieces, content)
    groups: list[list[int]] = []
    for at, row in enumerate(rows):
        if row is None:
            continue
        if groups and joined[at] and groups[-1][-1] == at - 1:
            groups[-1].append(at)
        else:
            groups.append([at])
    return [
        Word(
            _shown([pieces[at] for at in group]),
            tuple(row for at in group if (row := rows[at]) is not None),
            own[group[-1]],
        )
        for group in groups
    ]


def _pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[list[str], list[bool]]:
    """The text that each token adds, with the blank before it where there is one, and whether it ends within a
    letter, which the next one goes on with."""

    def text(begin: int, end: int) -> str:
        return str(
            tokenizer.decode(list(ids[begin:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    pieces, unfinished = [], []
    for at in range(len(ids)):
        begin = max(0, at - WINDOW)
        before, here = text(begin, at).rstrip(HALF), text(begin, at + 1)
        same = len(commonprefix([before, here]))
        pieces.append(here[same:].replace(HALF, ""))
        unfinished.append(here.endswith(HALF))
    return pieces, unfinished


def _joined(pieces: Sequence[str], unfinished: Sequence[bool]) -> list[bool]:
    """Whether a token goes on with the word of the token before it."""
    text = "".join(pieces)
    inside = [False] * (len(text) + 1)  # at a place of the text: a word runs over it
    for match in WORD.finditer(text):
        for place in range(match.start() + 1, match.end()):
            inside[place] = not (UNSPACED.match(text[place - 1]) or UNSPACED.match(text[place]))
    joined, place = [], 0
    for at, piece in enumerate(pieces):
        blank = at > 0 and pieces[at - 1] == " " and not piece[:1].isspace()  # a blank of its own, before its word
        joined.append(at > 0 and (unfinished[at - 1] or inside[place] or blank))
        place += len(piece)
    return joined


def _own(pieces: Sequence[str], content: str) -> list[bool]:
    """Whether a token lies in the content: none where it has no text, all where it can't be found (cut, spelt anew)."""
    letters = [(letter, at) for at, piece in enumerate(pieces) for letter in _plain(piece)]
    wanted = _plain(content)
    begin = "".join(letter for letter, _ in letters).rfind(wanted)
    if begin < 0 or not wanted:
        return [bool(wanted)] * len(pieces)
    places = [at for _, at in letters[begin : begin + len(wanted)]]
    return [places[0] <= at <= places[-1] for at in range(len(pieces))]


def _plain(text: str) -> str:
    """Letters without case, accents and blanks, which tokenizers change."""
    spelt = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in spelt if not c.isspace() and not unicodedata.combining(c))


def _shown(pieces: Sequence[str]) -> str:
    text = "".join(pieces)
    return text.strip() or (BREAK if "\n" in text else BLANK)
