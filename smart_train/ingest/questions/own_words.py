"""Which words of a page are a question that the page answers: one function per rule, and what is no question.

Every rule gives candidates with the words they were taken from; ``fault`` says why one is no question.  The words that
rules look for (Figure, Tabelle, "is a", "how") are English and, where a rule is as safe, those of some neighbours;
rules that follow the form alone (outlines, numbered headings, Markdown) know no language.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from smart_train.core.errors import DataError
from smart_train.data.collection import hash_id
from smart_train.ingest.questions.queries import PageLike, Question, Written
from smart_train.ingest.questions.wording import (
    LABEL,
    Span,
    bare,
    clean,
    has_leaders,
    lines,
    sentences,
    squeeze,
    unlabelled,
    without,
    words,
)


def _set(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


RULES = ("outline", "title", "heading", "question", "caption", "definition")  # the first to find a text has it

_CAPTION = re.compile(
    r"^(?:(?:figure|fig|table|tab|listing|algorithm|chart|diagram|plate|scheme|exhibit|box|map|abbildung|abb|tabelle|"
    r"schaubild|tableau|schéma|figura|tabla|tabela|gráfico|figuur|tabell)\b\.?|[图表圖])\s*"
    r"(?:[A-Z]?\d+(?:[.\-–]\d+)*|[A-Z](?:\.\d+)+|[IVXLC]+\b)[a-z]?\s*(?P<mark>[:.–—|\-：]|(?=\s)|$)\s*(?P<rest>.*)$",
    re.IGNORECASE,
)
_ASKS = _set(
    "how what why when where which who whom whose can could does do did is are was were should shall will would may "
    "must has have am wie was warum wieso wann wo wer wem wen welche welcher welches welchen kann können darf muss "
    "ist sind gibt hat comment pourquoi quand où qui que quel quelle quels quelles est peut cómo qué por cuándo dónde "
    "quién cuál cuáles cuánto cuánta puede come perché quando dove chi quale como quem onde"
)
_Q = re.compile(r"^\s*(?:q|question|frage|faq)\s*\d*\s*[:.)]\s*", re.IGNORECASE)
_DEFINES = re.compile(
    r"^(?:(?:In|For|Within|On)\s[^,.;]{3,40},\s)?(?P<term>(?:(?:An?|The)\s)?\S+(?:\s\S+){0,5}?)(?:,?\s\([^)]{1,40}\))?\s"
    r"(?:(?:is|are)\s(?:an?|the|any|one\sof|defined\s(?:as|to\sbe)|called|known\sas|the\sname\s(?:of|for))|refers?\sto|"
    r"means|denotes?|stands\sfor|describes|consists?\sof|specif(?:y|ies)|represents?)\s"
    r"(?!(?:(?:an?|the)\s)?(?:good|bad|better|best|slow|common|difficult|easy|simple|matter|case)\b)"
)
_POINTS = _set(
    "this that these those it its they he she we you i there here what which who such all some many most one both "
    "each if when although since however note also another other next see then thus so but as by with to "
    "at from where while because for not no any only after before even our your their his her "
    "should would could can must may might will shall do does did"
)
_VAGUE = _set(
    "result results value values default following first latter former main last second third same aim purpose reason "
    "idea problem point answer difference simplest easiest best above below previous current argument arguments output "
    "input rest remainder goal effect example examples option options name case return object"
)
_LEANS = re.compile(
    r"\b(?:above|below|following|previous|preceding|earlier|later|aforementioned|here|this|these|those|herein)\b|"
    r"\b(?:figure|fig|table|section|chapter|appendix|page|equation|eq|example|listing)s?\.?\s*\(?\d|§\s*\d|\[\d+\]",
    re.IGNORECASE,
)
_GENERIC = _set(
    "a about abbreviations abstract acknowledgement acknowledgements acknowledgments acknowledgment acronyms an and "
    "annex appendices appendix appendixes argument arguments at author authors background basic basics bibliography "
    "by bug bugs change changelog changes chapter chapters cited conclusion conclusions content contents continued "
    "copyright credits description detail details discussion document documentation end example examples faq figure "
    "figures final for foreword from function further general getting glossary guide history how i ii iii in index "
    "information introduction introductory inhalt inhaltsverzeichnis einleitung vorwort anhang literatur license "
    "licence list main manual material methods misc miscellaneous more name names note notes notice of on or other "
    "others overview page pages part preface preliminaries problems publications questions reading reference "
    "references related remark remarks requirement requirements resources result results revision scope section "
    "sections see also some source sources start started summary support synopsis table tables terms the this title "
    "to topics usage use used using value values variable variables version versions warning warnings with works "
    "table des matières sommaire introduction conclusion annexes índice introducción"
)
_LEGAL = re.compile(
    r"©|\(c\)\s*\d|copyright|all rights reserved|permission is granted|https?:|www\.|@\w|isbn|issn|left intentionally|"
    r"intentionally left|continued\)|doi:",
    re.IGNORECASE,
)
_CODE = re.compile(r"<-|->|[{}=;$|\\<>~^]|::|\.\.\.|…|\w\(|\w_\w|%\w|#|\s[.+*/]\s|[a-z]\.[a-z]")
_HANGING = _set("and or of the a an to in for with by on at as from und oder der die das von et ou de du y e")
_LISTED = re.compile(r"[A-Za-z)\"'],?\s(?:\d{1,4}(?:[–-]\d+)?,\s?)*\d{1,4}$")
_NUMBERED = re.compile(r"\d|chapter|appendix|kapitel|anhang|annexe", re.IGNORECASE)
_SURELY = re.compile(r"[\dA-Z]\.\d|chapter|appendix|kapitel|anhang|annexe", re.IGNORECASE)
_CLOSED = re.compile(r"[.!?:;。！？：]['\")\]]*$")


@dataclass(frozen=True)
class Candidate:
    """A text that may be a question; source: the words of the page it was taken from."""

    text: str
    rule: str
    source: str


class Sheet:
    """A page and its lines, read once.

    bare: of each line, see ``wording.bare``; listing: it is a table of contents or an index, which is where a third
    of its lines, and five at least, end in page numbers
    """

    def __init__(self, page: PageLike) -> None:
        self.page = page
        self.lines = lines(page.text)
        self.bare = [bare(line.text) for line in self.lines]
        listed = sum(bool(has_leaders(line.text) or _LISTED.search(line.text)) for line in self.lines)
        self.listing = listed >= 5 and 3 * listed >= len(self.lines)


def candidates(sheet: Sheet, outlined: bool, definitions: int) -> Iterator[Candidate]:
    """Of all rules, in the rules' order; the same text may come more than once.

    outlined: the file has an outline, which is to be believed before numbers at the beginning of lines
    """
    page, found = sheet.page, sheet.lines
    for entry in page.outline:
        yield _from_outline(entry.title, sheet)
    if page.title and page.kind != "image" and page.title not in (entry.title for entry in page.outline):
        yield Candidate(unlabelled(clean(page.title)), "title" if page.page == 1 else "heading", clean(page.title))
    yield from headings(found, outlined)
    yield from questions(found)
    yield from captions(found)
    yield from definition_sentences(page.text, found, definitions)


def _from_outline(entry: str, sheet: Sheet) -> Candidate:
    """A bookmark; of a short one the rest of its line, where that is a heading ("lm  Fitting Linear Models").  A text
    file's first one is its title."""
    title, page = clean(entry), sheet.page
    rule = "title" if page.kind == "text" and page.page == 1 and entry == page.title else "outline"
    text = unlabelled(title)
    source = next((line.text for line, key in zip(sheet.lines, sheet.bare, strict=True) if key == bare(title)), title)
    if text and len(words(text)) < 3 and not _labelled(source):
        for line in sheet.lines:
            rest = line.text.removeprefix(text + " ")
            if rest != line.text and 2 <= len(words(rest)) <= 12 and rest[0].isupper() and not _CLOSED.search(rest):
                return Candidate(rest if len(words(rest)) > 2 else line.text, rule, line.text)
    return Candidate(text, rule, source)


def _labelled(line: str) -> bool:
    """Whether a number such as 2.1 or Chapter 2 stands before it; a single number may be a page's."""
    label = LABEL.match(line)
    return bool(label and _SURELY.search(label[0]))


def headings(found: list[Span], outlined: bool) -> Iterator[Candidate]:
    """Lines with a number such as 2.1 before them; marked headings of a text file are in its outline.

    A single number begins footnotes, lists and rows of tables as well: it counts where the file has no outline, no
    neighbouring line begins with a number, and the line could not be a sentence's beginning.
    """
    for place, line in enumerate(found):
        text = line.text
        label = LABEL.match(text)
        if not label or not _NUMBERED.search(label[0]) or has_leaders(text) or place == len(found) - 1:
            continue
        rest = unlabelled(text)
        single = not _labelled(text)
        if single and (outlined or len(words(rest)) > 8 or text[0] == "("):
            continue
        near = [one.text for one in (*found[max(0, place - 1) : place], found[place + 1])]
        if single and (any(_NUMBERED.match(one) for one in near) or not near[-1][:1].isupper()):
            continue
        whole = rest and (rest[0].isupper() or not rest[0].isascii()) and not _CLOSED.search(rest.removesuffix("?"))
        if whole and not rest.endswith((",", "?")) and not rest[-1].isdigit() and rest.count(",") < 3:
            yield Candidate(rest, "heading", text)


def questions(found: list[Span]) -> Iterator[Candidate]:
    """Of one to three whole lines, ended by a question mark, with something behind them: as a FAQ has them."""
    for place, line in enumerate(found):
        stripped = LABEL.sub("", _Q.sub("", line.text), count=1).lstrip("¿ ")
        marked = stripped != line.text
        if not stripped or not (stripped[0].isupper() or not stripped[0].isascii()):
            continue
        if stripped.split()[0].casefold().rstrip(",'s") not in _ASKS and stripped[0].isascii():
            continue
        if not marked and place and not _CLOSED.search(found[place - 1].text) and len(found[place - 1].text) > 60:
            continue  # the middle of a sentence
        parts = [stripped]
        for more in range(3):
            if parts[-1].endswith(("?", "？")) or place + more + 1 >= len(found):
                break
            parts.append(found[place + more + 1].text)
        whole = " ".join(parts)
        if not whole.endswith(("?", "？")) or re.search(r"[?？.!]\s", whole[:-1]):
            continue
        if len(words(" ".join(one.text for one in found[place + len(parts) :]))) >= 15:
            yield Candidate(whole, "question", " ".join([line.text, *parts[1:]]))


def captions(found: list[Span]) -> Iterator[Candidate]:
    """Figure 3: ... and Table 2 ... up to the end of the first sentence; "Figure 3 shows" is none."""
    for place, line in enumerate(found):
        match = _CAPTION.match(line.text)
        if not match or has_leaders(line.text):
            continue
        first, behind = match["rest"], found[place + 1 : place + 4]
        if not match["mark"] and first and not (first[0].isupper() or first[0] in "\"'("):
            continue
        label = line.text[: match.start("rest")].rstrip()
        if not first and behind:  # the label has a line of its own
            first, behind = behind[0].text, behind[1:]
        rest = first
        while (stop := next(sentences(rest), None)) is None and behind and not _CAPTION.match(behind[0].text):
            if len(rest) <= 40:  # a full line goes on in the next one
                break
            rest, behind = f"{rest} {behind[0].text}", behind[1:]
        text = rest[: stop.end] if stop else first  # without an end it runs into the text
        yield Candidate(text.strip(" .:–—"), "caption", f"{label} {text}")


def definition_sentences(text: str, found: list[Span], most: int) -> Iterator[Candidate]:
    """Sentences such as "A data frame is a list of ...", that say what a thing is and can stand alone."""
    given = 0
    for start, end in _paragraphs(found):
        for sentence in sentences(text[start:end]):
            if given < most and _defines(sentence.text):
                given += 1
                yield Candidate(sentence.text, "definition", sentence.text)


def _paragraphs(found: list[Span]) -> Iterator[tuple[int, int]]:
    """(start, end) of lines that may be one text: a line that ends early begins a new one, and so does a label."""
    if not found:
        return
    full = 0.7 * sorted(len(line.text) for line in found)[int(0.9 * (len(found) - 1))]
    begin = found[0].start
    for before, line in zip(found, found[1:], strict=False):
        if len(before.text) < full or LABEL.match(line.text) or _CAPTION.match(line.text):
            yield begin, before.end
            begin = line.start
    yield begin, found[-1].end


def _defines(sentence: str) -> bool:
    match = _DEFINES.match(sentence)
    if not match or not sentence[0].isupper() or sentence[-1] != "." or not 8 <= len(words(sentence)) <= 30:
        return False
    term = [w.casefold() for w in words(match["term"]) if w.casefold() not in ("a", "an", "the")]
    if not any(len(w) > 2 for w in term) or not _POINTS.isdisjoint(term) or re.search("[,:;]", match["term"]):
        return False
    if term[0].endswith("ly"):  # normally, usually, often enough the rest is no term
        return False
    return _VAGUE.isdisjoint(term) and not _LEANS.search(sentence) and not _CODE.search(sentence)


def fault(candidate: Candidate, fewest: int, most: int) -> str | None:
    """Why this is no question, in a few words; None where it is one."""
    text, found = candidate.text, words(candidate.text)
    if len(found) < fewest:
        return "too short"
    if len(found) > most:
        return "too long"
    if _LEGAL.search(text):
        return "legal or address"
    if all(w.casefold() in _GENERIC for w in found):
        return "says nothing of its own"
    letters = sum(c.isalpha() or c.isspace() for c in text)
    if letters < 0.75 * len(text) or sum(len(w) == 1 for w in found) > len(found) / 2:
        return "not words"
    if found[-1].casefold() in _HANGING or text.endswith((",", "-", "(")) or text.count("(") != text.count(")"):
        return "cut off"
    return None


def on_page(candidate: Candidate, page: PageLike) -> bool:
    """Whether half of a bookmark's words stand on the page it points to (a destination may be a page off)."""
    have = squeeze(page.text)
    wanted = [squeeze(w) for w in words(candidate.text) if len(w) > 2]
    return not have or 2 * sum(w in have for w in wanted) >= len(wanted)


# Questions in the documents' own words: outlines, headings, captions, FAQs, definitions; no model, nothing invented.

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
