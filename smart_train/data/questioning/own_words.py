"""Questions in the documents' own words: outlines, headings, captions, FAQs, definitions; no model, nothing invented.

Knows: pages by file, what is said once and what is said everywhere.
Does not know: what one page's words look like (own_rules.py), models, how the result is stored.

A question's words are taken out of its page's text, and lines that merely repeat it (running headers, a table of
contents) out of the other pages of its file: so finding the page again is not copying a string.  A page's image shows
them still.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from smart_train.data.ids import DataError, hash_id
from smart_train.data.questioning.own_rules import RULES, Candidate, Sheet, candidates, fault, on_page
from smart_train.data.questioning.wording import bare, squeeze, without, words
from smart_train.data.questions import PageLike, Question, Written

logger = logging.getLogger(__name__)

OUTLINED = 5  # entries from which on a file has an outline to believe
EDGE = 2  # lines at the top and at the foot of a page that may be running headers and footers


@dataclass(frozen=True)
class OwnWords:
    """rules: which of own_rules.RULES are used
    fewest, most: words of a question; definitions, a_page: the most of a page, over all rules
    left: words of a text page that must be left when the question's are taken out
    repeated: pages of a file that may have a line before it is boilerplate (outline entries aside)
    """

    rules: tuple[str, ...] = RULES
    fewest: int = 3
    most: int = 40
    definitions: int = 2
    a_page: int = 8
    left: int = 20
    repeated: int = 3

    def __post_init__(self) -> None:
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown or not self.rules:
            raise DataError(f"rules are some of {', '.join(RULES)}, not {', '.join(unknown) or 'none'}")
        if (
            not 1 <= self.fewest <= self.most
            or min(self.a_page, self.repeated) < 1
            or min(self.definitions, self.left) < 0
        ):
            raise DataError(f"these numbers leave no question: {self}")


def own_words(pages: Iterable[PageLike], options: OwnWords | None = None) -> Written:
    """Questions of a corpus, and its texts without them; the same pages give the same questions.

    pages: in order of (file, page), gone through twice: a sequence, or an object that starts anew at each ``iter``.
        Memory is one file's text, all candidates, and the texts that are masked.

    A text that two pages give (by content: a copy of a page counts once, and is asked about once) is no question;
    within a file the earlier rule of RULES has it.  What is dropped is counted by reason.
    Raises DataError where the pages cannot be gone through twice, or a file's pages lie apart.
    """
    options = options or OwnWords()
    if iter(pages) is pages:
        raise DataError("own_words goes through the pages twice; give a list, or an object that can be iterated anew")
    counts: Counter[str] = Counter()
    said: dict[int, set[str]] = defaultdict(set)  # squeezed text -> page contents it was found on
    found: list[tuple[int, str, Question]] = []
    for group in _files(pages):
        for page, key, candidate in _of_file(group, options, counts):
            said[key].add(page.hash)
            found.append(
                (
                    key,
                    page.hash,
                    Question(candidate.text, page.id, candidate.rule, candidate.source, page.file, page.page),
                )
            )
    written = Written()
    asked: set[int] = set()
    asked_on: Counter[str] = Counter()
    for key, _, question in found:
        reason = None
        if len(said[key]) > 1:
            reason = "not unique"
        elif key in asked:
            reason = "asked of a copy of the page"
        elif asked_on[question.document] == options.a_page:
            reason = "page has enough"
        counts[question.rule + (f": {reason}" if reason else "")] += 1
        if reason is None:
            asked.add(key)
            asked_on[question.document] += 1
            written.questions.append(question)
    written.masked = mask(pages, written.questions)
    written.counts = dict(sorted(counts.items()))
    logger.info("own words: %d questions on %d pages", len(written.questions), len(asked_on))
    return written


def _files(pages: Iterable[PageLike]) -> Iterator[list[PageLike]]:
    seen: set[str] = set()
    for file, group in groupby(pages, key=lambda page: page.file):
        if file in seen:
            raise DataError(f"{file}: its pages do not follow each other; sort the pages by file and page")
        seen.add(file)
        yield list(group)


def _of_file(
    pages: list[PageLike], options: OwnWords, counts: Counter[str]
) -> Iterator[tuple[PageLike, int, Candidate]]:
    """What is left of one file's candidates when all that can be seen within the file is dropped and counted."""
    sheets = [Sheet(page) for page in pages]
    outlined = sum(len(page.outline) for page in pages) >= OUTLINED
    repeats = _repeats(sheets)
    kept: list[tuple[PageLike, str, Candidate]] = []
    for sheet in sheets:
        for candidate in candidates(sheet, outlined, options.definitions):
            if candidate.rule in options.rules:
                reason = _reason(candidate, sheet, repeats, options)
                if reason:
                    counts[f"{candidate.rule}: {reason}"] += 1
                else:
                    kept.append((sheet.page, squeeze(candidate.text), candidate))
    yield from _once(kept, counts)


def _once(
    kept: list[tuple[PageLike, str, Candidate]], counts: Counter[str]
) -> Iterator[tuple[PageLike, int, Candidate]]:
    """Of one file's candidates those of the first rule that found them, and whole: a heading that runs over two lines
    is found as one line too."""
    best: dict[str, int] = {}
    whole: dict[str, list[str]] = defaultdict(list)
    for page, key, candidate in kept:
        best[key] = min(best.get(key, len(RULES)), RULES.index(candidate.rule))
        whole[page.id].append(key)
    given: set[tuple[str, str]] = set()
    for page, key, candidate in kept:
        reason = None
        if RULES.index(candidate.rule) > best[key] or (key, page.id) in given:
            reason = "found by another rule"
        elif candidate.rule == "heading" and any(k.startswith(key) and k != key for k in whole[page.id]):
            reason = "part of a longer one"
        if reason:
            counts[f"{candidate.rule}: {reason}"] += 1
        else:
            given.add((key, page.id))
            yield page, hash_id(key), candidate


def _reason(candidate: Candidate, sheet: Sheet, repeats: _Repeats, options: OwnWords) -> str | None:
    """Why a page's candidate is dropped, cheapest first; None where it is kept."""
    reason = "on a contents page" if sheet.listing else fault(candidate, options.fewest, options.most)
    if reason:
        return reason
    line = bare(candidate.source)
    if candidate.rule not in ("outline", "title") and repeats.anywhere[line] > options.repeated:
        return "boilerplate"
    if candidate.rule == "heading" and repeats.edges[line] > 1 and line in _edges(sheet):
        return "running header"
    page = sheet.page
    if candidate.rule in ("outline", "title") and not on_page(candidate, page):
        return "not on its page"
    if page.text and not page.image and len(words(page.text)) - len(words(candidate.source)) < options.left:
        return "little else on the page"
    return None


@dataclass(frozen=True)
class _Repeats:
    """Of one file, contents pages aside: bare line -> pages that have it, and that have it at their top or foot."""

    anywhere: Counter[str]
    edges: Counter[str]


def _repeats(sheets: list[Sheet]) -> _Repeats:
    found = _Repeats(Counter(), Counter())
    for sheet in sheets:
        if not sheet.listing:
            found.anywhere.update({*sheet.bare} - {""})
            found.edges.update(_edges(sheet))
    return found


def _edges(sheet: Sheet) -> set[str]:
    return {*sheet.bare[:EDGE], *sheet.bare[-EDGE:]} - {""}


def mask(pages: Iterable[PageLike], questions: Iterable[Question]) -> dict[str, str]:
    """page id -> its text without its questions' words and without lines that are a question of its file again; only
    of pages that lose something.

    Pages whose content is that of an asked page lose the same words.
    """
    taken: dict[str, list[str]] = defaultdict(list)  # page -> words
    titles: dict[str, set[str]] = defaultdict(set)  # file -> bare lines
    for question in questions:
        taken[question.document] += [question.text, question.source]
        titles[question.file].add(squeeze(question.text))
    masked: dict[str, str] = {}
    copies: dict[str, list[str]] = {}  # content -> words taken from it
    for page in pages:
        if page.id in taken:
            copies[page.hash] = taken[page.id]
    for page in pages:
        mine = copies.get(page.hash, [])
        if page.text and (mine or titles[page.file]):
            text = without(page.text, mine, titles[page.file])
            if text != page.text:
                masked[page.id] = text
    return masked
