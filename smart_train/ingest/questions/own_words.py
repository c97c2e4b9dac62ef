"""Take queries from the documents' own words, without a model: outlines, headings, captions, FAQs, definitions.

Each rule gives candidates with the words that they were taken from; ``rejection`` and ``_reason`` say why one is no
question. The words that rules look for (Figure, Tabelle, "is a", "how") are English and, where a rule is as safe, those
of some neighbouring languages. Rules that follow the form alone (outlines, numbered headings) know no language.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from smart_train.core.errors import DataError
from smart_train.data.collection import hash_id
from smart_train.ingest.pages import Page
from smart_train.ingest.questions.page_text import (
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
from smart_train.ingest.questions.question_set import Question, QuestionSet


def _set(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


RULES = ("outline", "title", "heading", "question", "caption", "definition")  # of two that find one text, the first
MIN_OUTLINE = 5  # entries of an outline that is trusted more than numbers at the beginning of lines
EDGE = 2  # lines at the top and at the foot of a page that may be running headers and footers

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
class OwnWordsOptions:
    """Which rules are used, and what they may give.

    rules: some of RULES
    min_words, max_words: length of a question
    definitions: most definitions of a page
    per_page: most questions of a page, over all rules
    min_words_left: words of a page without an image that must be left when those of a question are taken out
    max_repeats: pages of a file that may have the same line before it is boilerplate (outline entries aside)
    """

    rules: tuple[str, ...] = RULES
    min_words: int = 3
    max_words: int = 40
    definitions: int = 2
    per_page: int = 8
    min_words_left: int = 20
    max_repeats: int = 3

    def __post_init__(self) -> None:
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown or not self.rules:
            raise DataError(f"rules: choose from {', '.join(RULES)}, not {', '.join(unknown) or 'none'}")
        if not 1 <= self.min_words <= self.max_words:
            raise DataError(f"min_words {self.min_words} and max_words {self.max_words} leave no question")
        for name, least in (("per_page", 1), ("max_repeats", 1), ("definitions", 0), ("min_words_left", 0)):
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}; give {least} or more")


def own_words(pages: Iterable[Page], options: OwnWordsOptions | None = None) -> QuestionSet:
    """Return the questions of a corpus, and its texts without them. Equal pages give equal questions.

    pages: in order of (file, page), iterated twice: a sequence, or an object that starts anew at each ``iter``.
        Memory is the text of one file, all candidates, and the masked texts.

    A text that two pages give is no question (pages with equal content count as one, and are asked about once). Within
    a file the earlier rule of RULES has it. Every dropped candidate is counted with its reason.
    Raises DataError where the pages can't be iterated twice, or the pages of a file do not follow each other.
    """
    options = options or OwnWordsOptions()
    if iter(pages) is pages:
        raise DataError("own_words iterates the pages twice; give a list, or an object that can be iterated anew")
    counts: Counter[str] = Counter()
    contents: dict[int, set[str]] = defaultdict(set)  # hash of a squeezed text -> contents of the pages that give it
    found: list[tuple[int, Question]] = []
    for file_pages in _files(pages):
        for page, key, candidate in _of_file(file_pages, options, counts):
            contents[key].add(page.hash)
            found.append(
                (key, Question(candidate.text, page.id, candidate.rule, candidate.source, page.file, page.page))
            )
    result = QuestionSet()
    taken: set[int] = set()
    per_page: Counter[str] = Counter()
    for key, question in found:
        reason = None
        if len(contents[key]) > 1:
            reason = "not unique"
        elif key in taken:
            reason = "asked of a copy of the page"
        elif per_page[question.document] == options.per_page:
            reason = "page has enough"
        counts[question.rule + (f": {reason}" if reason else "")] += 1
        if reason is None:
            taken.add(key)
            per_page[question.document] += 1
            result.questions.append(question)
    result.masked = mask(pages, result.questions)
    result.counts = dict(sorted(counts.items()))
    return result


def _files(pages: Iterable[Page]) -> Iterator[list[Page]]:
    """Yield the pages of each file."""
    seen: set[str] = set()
    for file, group in groupby(pages, key=lambda page: page.file):
        if file in seen:
            raise DataError(f"{file}: its pages do not follow each other; sort the pages by file and page")
        seen.add(file)
        yield list(group)


def _of_file(
    pages: list[Page], options: OwnWordsOptions, counts: Counter[str]
) -> Iterator[tuple[Page, int, Candidate]]:
    """Yield (page, key, candidate) of one file, without what can be dropped by looking at that file alone."""
    sheets = [PageLines(page) for page in pages]
    outlined = sum(len(page.outline) for page in pages) >= MIN_OUTLINE
    repeats = _repeats(sheets)
    kept: list[tuple[Page, str, Candidate]] = []
    for sheet in sheets:
        for candidate in candidates(sheet, outlined, options.definitions):
            if candidate.rule in options.rules:
                reason = _reason(candidate, sheet, repeats, options)
                if reason:
                    counts[f"{candidate.rule}: {reason}"] += 1
                else:
                    kept.append((sheet.page, squeeze(candidate.text), candidate))
    yield from _once(kept, counts)


def _once(kept: list[tuple[Page, str, Candidate]], counts: Counter[str]) -> Iterator[tuple[Page, int, Candidate]]:
    """Keep one candidate of each text: that of the first rule, and of a heading over two lines the longer one."""
    first_rule: dict[str, int] = {}
    on_page: dict[str, list[str]] = defaultdict(list)
    for page, key, candidate in kept:
        first_rule[key] = min(first_rule.get(key, len(RULES)), RULES.index(candidate.rule))
        on_page[page.id].append(key)
    yielded: set[tuple[str, str]] = set()
    for page, key, candidate in kept:
        reason = None
        if RULES.index(candidate.rule) > first_rule[key] or (key, page.id) in yielded:
            reason = "found by another rule"
        elif candidate.rule == "heading" and any(k.startswith(key) and k != key for k in on_page[page.id]):
            reason = "part of a longer one"
        if reason:
            counts[f"{candidate.rule}: {reason}"] += 1
        else:
            yielded.add((key, page.id))
            yield page, hash_id(key), candidate


def _reason(candidate: Candidate, sheet: PageLines, repeats: _Repeats, options: OwnWordsOptions) -> str | None:
    """Return why a candidate of a page is dropped, cheapest test first; None where it is kept."""
    reason = "on a contents page" if sheet.listing else rejection(candidate, options.min_words, options.max_words)
    if reason:
        return reason
    line = bare(candidate.source)
    if candidate.rule not in ("outline", "title") and repeats.anywhere[line] > options.max_repeats:
        return "boilerplate"
    if candidate.rule == "heading" and repeats.edges[line] > 1 and line in _edges(sheet):
        return "running header"
    page = sheet.page
    if candidate.rule in ("outline", "title") and not stands_on_page(candidate, page):
        return "not on its page"
    if page.text and not page.image and len(words(page.text)) - len(words(candidate.source)) < options.min_words_left:
        return "little else on the page"
    return None


@dataclass(frozen=True)
class _Repeats:
    """Line as ``bare`` gives it -> pages of one file, contents pages aside, that have it: anywhere, or at an edge."""

    anywhere: Counter[str]
    edges: Counter[str]


def _repeats(sheets: list[PageLines]) -> _Repeats:
    repeats = _Repeats(Counter(), Counter())
    for sheet in sheets:
        if not sheet.listing:
            repeats.anywhere.update({*sheet.bare} - {""})
            repeats.edges.update(_edges(sheet))
    return repeats


def _edges(sheet: PageLines) -> set[str]:
    return {*sheet.bare[:EDGE], *sheet.bare[-EDGE:]} - {""}


def mask(pages: Iterable[Page], questions: Iterable[Question]) -> dict[str, str]:
    """Return the texts of pages without the words of their questions, and without lines that repeat a question of
    their file; only pages that lose something are in the result.

    Pages with the same content lose the same words.
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
        own = copies.get(page.hash, [])
        if page.text and (own or titles[page.file]):
            text = without(page.text, own, titles[page.file])
            if text != page.text:
                masked[page.id] = text
    return masked


# ------------------------------------------------------------------------------ what on a page may be a question


@dataclass(frozen=True)
class Candidate:
    """A text that may be a question. source: the words of the page that it was taken from."""

    text: str
    rule: str
    source: str


class PageLines:
    """A page and its lines, parsed once.

    bare: each line as ``page_text.bare`` gives it
    listing: whether it is a table of contents or an index: a third of its lines, and at least five, end in page numbers
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.lines = lines(page.text)
        self.bare = [bare(line.text) for line in self.lines]
        listed = sum(bool(has_leaders(line.text) or _LISTED.search(line.text)) for line in self.lines)
        self.listing = listed >= 5 and 3 * listed >= len(self.lines)


def candidates(sheet: PageLines, outlined: bool, definitions: int) -> Iterator[Candidate]:
    """Yield the candidates of all rules, in the rules' order; the same text may come more than once.

    outlined: whether the file has an outline, which is trusted more than numbers at the beginning of lines
    """
    page, spans = sheet.page, sheet.lines
    for entry in page.outline:
        yield _from_outline(entry.title, sheet)
    if page.title and page.kind != "image" and page.title not in (entry.title for entry in page.outline):
        yield Candidate(unlabelled(clean(page.title)), "title" if page.page == 1 else "heading", clean(page.title))
    yield from headings(spans, outlined)
    yield from questions(spans)
    yield from captions(spans)
    yield from definition_sentences(page.text, spans, definitions)


def _from_outline(entry: str, sheet: PageLines) -> Candidate:
    """Return the candidate of a bookmark. Of a short one it is the rest of its line, where that is a heading ("lm
    Fitting Linear Models"). The first one of a text file is its title."""
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
    """Return whether a number such as 2.1 or Chapter 2 stands before a line; a single number may be a page's."""
    label = LABEL.match(line)
    return bool(label and _SURELY.search(label[0]))


def headings(spans: list[Span], outlined: bool) -> Iterator[Candidate]:
    """Yield lines with a number such as 2.1 before them. (Marked headings of a text file are in its outline.)

    A single number begins footnotes, lists and rows of tables as well. It counts where the file has no outline, no
    neighbouring line begins with a number, and the line cannot be the beginning of a sentence.
    """
    for place, line in enumerate(spans):
        text = line.text
        label = LABEL.match(text)
        if not label or not _NUMBERED.search(label[0]) or has_leaders(text) or place == len(spans) - 1:
            continue
        rest = unlabelled(text)
        single = not _labelled(text)
        if single and (outlined or len(words(rest)) > 8 or text[0] == "("):
            continue
        near = [one.text for one in (*spans[max(0, place - 1) : place], spans[place + 1])]
        if single and (any(_NUMBERED.match(one) for one in near) or not near[-1][:1].isupper()):
            continue
        whole = rest and (rest[0].isupper() or not rest[0].isascii()) and not _CLOSED.search(rest.removesuffix("?"))
        if whole and not rest.endswith((",", "?")) and not rest[-1].isdigit() and rest.count(",") < 3:
            yield Candidate(rest, "heading", text)


def questions(spans: list[Span]) -> Iterator[Candidate]:
    """Yield questions as a FAQ has them: one to four whole lines that end in a question mark, with text behind them."""
    for place, line in enumerate(spans):
        stripped = LABEL.sub("", _Q.sub("", line.text), count=1).lstrip("¿ ")
        marked = stripped != line.text
        if not stripped or not (stripped[0].isupper() or not stripped[0].isascii()):
            continue
        if stripped.split()[0].casefold().rstrip(",'s") not in _ASKS and stripped[0].isascii():
            continue
        if not marked and place and not _CLOSED.search(spans[place - 1].text) and len(spans[place - 1].text) > 60:
            continue  # the middle of a sentence
        parts = [stripped]
        for more in range(3):
            if parts[-1].endswith(("?", "？")) or place + more + 1 >= len(spans):
                break
            parts.append(spans[place + more + 1].text)
        whole = " ".join(parts)
        if not whole.endswith(("?", "？")) or re.search(r"[?？.!]\s", whole[:-1]):
            continue
        if len(words(" ".join(one.text for one in spans[place + len(parts) :]))) >= 15:
            yield Candidate(whole, "question", " ".join([line.text, *parts[1:]]))


def captions(spans: list[Span]) -> Iterator[Candidate]:
    """Yield captions ("Figure 3: ...") up to the end of their first sentence; "Figure 3 shows" begins none."""
    for place, line in enumerate(spans):
        match = _CAPTION.match(line.text)
        if not match or has_leaders(line.text):
            continue
        first, behind = match["rest"], spans[place + 1 : place + 4]
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


def definition_sentences(text: str, spans: list[Span], most: int) -> Iterator[Candidate]:
    """Yield at most ``most`` sentences that say what a thing is and stand alone ("A data frame is a list of ...")."""
    count = 0
    for start, end in _paragraphs(spans):
        for sentence in sentences(text[start:end]):
            if count < most and _defines(sentence.text):
                count += 1
                yield Candidate(sentence.text, "definition", sentence.text)


def _paragraphs(spans: list[Span]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of lines that may be one paragraph; a line that ends early ends it, and a label begins one."""
    if not spans:
        return
    full = 0.7 * sorted(len(line.text) for line in spans)[int(0.9 * (len(spans) - 1))]
    begin = spans[0].start
    for before, line in zip(spans, spans[1:], strict=False):
        if len(before.text) < full or LABEL.match(line.text) or _CAPTION.match(line.text):
            yield begin, before.end
            begin = line.start
    yield begin, spans[-1].end


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


def rejection(candidate: Candidate, min_words: int, max_words: int) -> str | None:
    """Return why a candidate's text is no question, in a few words; None where it is one."""
    text, parts = candidate.text, words(candidate.text)
    if len(parts) < min_words:
        return "too short"
    if len(parts) > max_words:
        return "too long"
    if _LEGAL.search(text):
        return "legal or address"
    if all(w.casefold() in _GENERIC for w in parts):
        return "says nothing of its own"
    letters = sum(c.isalpha() or c.isspace() for c in text)
    if letters < 0.75 * len(text) or sum(len(w) == 1 for w in parts) > len(parts) / 2:
        return "not words"
    if parts[-1].casefold() in _HANGING or text.endswith((",", "-", "(")) or text.count("(") != text.count(")"):
        return "cut off"
    return None


def stands_on_page(candidate: Candidate, page: Page) -> bool:
    """Return whether half of a bookmark's words are on the page that it points to; some bookmarks are a page off."""
    have = squeeze(page.text)
    wanted = [squeeze(w) for w in words(candidate.text) if len(w) > 2]
    return not have or 2 * sum(w in have for w in wanted) >= len(wanted)
