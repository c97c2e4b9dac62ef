"""Let a chat model write questions about pages, and keep its answers so that a stopped run can continue.

Each page is shown to the model by itself. Every answer that was understood is stored in ``asked/`` under a hash of the
page's content, the prompt and the model: a second run asks for what is missing, and other rules for what counts as a
question need no new answer.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.core.bounded_json import load_json
from smart_train.core.errors import DataError
from smart_train.ingest.pages import Page
from smart_train.ingest.questions.chat_model import Answer, ChatModel, Refusal, Request
from smart_train.ingest.questions.page_text import clean, squeeze, words
from smart_train.ingest.questions.question_set import Question, QuestionSet

logger = logging.getLogger(__name__)

KINDS = {
    "fact": "a specific detail that is stated there: a number, a name, a date, a setting, a step",
    "figure": "something that can only be read off a figure, a chart, a diagram or a table there",
    "concept": "how or why something works, as it is explained there",
}
PROMPT = """\
You are given one page out of a large library. People who have never seen it search the library for what it says.
Write up to {count} search queries that such people would type and that this page answers in full, of these kinds:
{kinds}
Leave a kind out where the page has nothing for it.
- A query must be clear to somebody who does not see the page: name the subject, the product, the place or the year.
- Never point at the page: no "this page", "this image", "this document", "the figure", "shown above", no page numbers.
- Use your own words as a person in a hurry would; do not copy a sentence. Write in the language of the page.
- Of a blank page, a cover, a table of contents or an index, give none.
Answer with JSON and nothing else:
{{"queries": [{{"kind": "{first}", "query": "...", "answer": "the answer in a few words"}}]}}
With none: {{"queries": []}}"""
CHECK = """\
You are given one page out of a large library, and search queries:
{queries}
Which of them does this page answer in full, so that no other page is needed, and are clear to somebody who does not
see the page? Answer with JSON and nothing else, with the numbers of the good ones: {{"good": [1]}}. With none: \
{{"good": []}}"""
TEXT = "\n\nThe page:\n<<<\n{text}\n>>>"

_THING = (
    r"(?:page|image|picture|photo(?:graph)?|document|figure|table|chart|diagram|graph|text|passage|excerpt|section|"
    r"slide|screenshot|scan|article|paragraph|illustration|author)s?\b"
)
POINTING = re.compile(
    rf"\b(?:this|these|that|those|given|provided|attached|shown|above|below|following|displayed|current)\s{_THING}|"
    rf"\b(?:in|on|by|from|of|per|to|does|do|is|are)\sthe\s(?:\w+\s)?{_THING}|\b(?:shown|mentioned|listed|described|"
    r"depicted|pictured|displayed|given|discussed)\s(?:here|above|below)\b|\b(?:figure|fig\.|table|page|section|"
    r"chapter|slide)\s\d|\bdiese[rsnm]?\s(?:seite|abbildung|grafik|tabelle|dokument|text|bild)|\bcette\s(?:page|image|"
    r"figure)|\bce\s(?:document|tableau|texte)|\best[ae]\s(?:página|imagen|documento|figura|tabla|texto)",
    re.IGNORECASE,
)
_ALIASES = {"table": "figure", "chart": "figure", "diagram": "figure", "visual": "figure", "detail": "fact"}


@dataclass(frozen=True)
class VlmOptions:
    """Options of the requests to a chat model, and of which answers are kept.

    kinds: some of KINDS
    per_page: most questions of a page
    show: image, text or both; auto = the image where the page has one, else the text
    characters: most characters of a page's text that are shown
    min_words, max_words: length of a question
    min_page_words: a page without an image and with fewer words is not asked about
    attempts: requests until an answer is the JSON that was asked for
    check: whether the model, shown the page again, judges its own questions
    patience: pages in a row without an answer before the run stops
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    per_page: int = 3
    show: str = "auto"
    characters: int = 12_000
    min_words: int = 3
    max_words: int = 40
    min_page_words: int = 20
    attempts: int = 3
    check: bool = True
    patience: int = 8

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise DataError(f"kinds: choose from {', '.join(KINDS)}, not {', '.join(unknown) or 'none'}")
        if self.show not in ("auto", "image", "text", "both"):
            raise DataError(f"show: choose auto, image, text or both, not {self.show!r}")
        for name in ("per_page", "attempts", "patience", "characters", "min_words"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.min_words > self.max_words:
            raise DataError(f"min_words is {self.min_words}, more than max_words, {self.max_words}: nothing is left")


@dataclass
class Progress:
    """Pages done, and the tokens that they took. ``str`` is one line for a terminal.

    total: pages of the corpus, where known; requests: sent to the model; cached: answered from the folder
    prompt_tokens, answer_tokens: of this run
    """

    total: int | None = None
    pages: int = 0
    questions: int = 0
    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        line = f"{self.pages}{'' if self.total is None else f'/{self.total}'} pages, {self.pages / seconds:.2f} pages/s"
        if self.total and self.pages:
            line += f", {(self.total - self.pages) * seconds / self.pages:.0f} s left"
        line += f"; {self.questions} questions; {self.requests} requests, {self.cached} from the cache; "
        return line + f"{self.prompt_tokens:,} + {self.answer_tokens:,} tokens"


def vlm(
    pages: Iterable[Page],
    model: ChatModel,
    folder: Path,
    options: VlmOptions | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> QuestionSet:
    """Return the questions that a chat model writes about each page; their rules are "vlm: fact" and so on.

    folder: what the paths of page images are relative to; answers are kept in its ``asked/``
    progress: called after each batch of pages; None = one log line every half minute

    Pages with equal content are asked about once. A question that two pages give (compared by letters and digits) is
    dropped. ``masked`` is empty, since the questions are not the page's own words.
    Raises DataError where the model says that no answer will ever come (a wrong key, say), or after ``patience`` pages
    in a row without an answer. Answers so far are kept, and the next run continues from there.
    """
    options = options or VlmOptions()
    total = len(pages) if isinstance(pages, Sized) else None
    run = _Run(model, folder, options, Progress(total))
    logged = time.monotonic()
    candidates: list[Question] = []
    rest = iter(pages)
    while batch := list(islice(rest, max(1, model.batch_size))):
        candidates += run.questions_of(batch)
        run.progress.pages += len(batch)
        run.progress.questions = len(candidates)
        if progress:
            progress(run.progress)
        elif time.monotonic() - logged > 30:
            logged = time.monotonic()
            logger.info("%s", run.progress)
    texts = Counter(squeeze(question.text) for question in candidates)
    result = QuestionSet()
    for question in candidates:
        if texts[squeeze(question.text)] > 1:
            run.counts[f"{question.rule}: not unique"] += 1
        else:
            run.counts[question.rule] += 1
            result.questions.append(question)
    run.progress.questions = len(result.questions)
    logger.info("%s", run.progress)
    result.counts = dict(sorted(run.counts.items()))
    return result


class _Run:
    """State of one run: counts, which contents were asked about, and pages in a row without an answer."""

    def __init__(self, model: ChatModel, folder: Path, options: VlmOptions, progress: Progress) -> None:
        self.model, self.folder, self.options, self.progress = model, folder, options, progress
        self.counts: Counter[str] = Counter()
        self.seen: set[str] = set()
        self.unanswered = 0
        kinds = "\n".join(f"- {kind}: {KINDS[kind]}" for kind in options.kinds)
        self.prompt = PROMPT.format(count=options.per_page, kinds=kinds, first=options.kinds[0])

    def questions_of(self, batch: list[Page]) -> list[Question]:
        wanted: list[Page] = []
        for page in batch:
            reason = self._reason_to_skip(page)
            if reason:
                self.counts[f"vlm: {reason}"] += 1
            else:
                self.seen.add(page.hash)
                wanted.append(page)
        answers = self._parsed_answers([(page, self.prompt) for page in wanted], parse_queries)
        questions = [
            (page, self._accepted(page, rows)) for page, rows in zip(wanted, answers, strict=True) if rows is not None
        ]
        if self.options.check:
            questions = self._checked([(page, found) for page, found in questions if found])
        return [question for _, found in questions for question in found]

    def _reason_to_skip(self, page: Page) -> str | None:
        if page.hash in self.seen:
            return "copy of a page"
        image, text = self._shown(page)
        if image is None and len(words(text)) < self.options.min_page_words:
            return "nothing to ask about"
        return None

    def _shown(self, page: Page) -> tuple[Path | None, str]:
        """Return the image and the text of a page that the model is shown."""
        show = self.options.show
        image = self.folder / page.image if page.image and show != "text" else None
        text = page.text if show in ("text", "both") or (show == "auto" and image is None) else ""
        return image, text.strip()

    def _parsed_answers(self, wanted: list[tuple[Page, str]], parse: Callable[[str], Any]) -> list[Any]:
        """Return what ``parse`` makes of the answer to each (page, prompt), from the cache or from the model.

        None = no answer, or none that ``parse`` understands after all attempts; both are counted.
        """
        results: list[Any] = [None] * len(wanted)
        pending: dict[int, Request] = {}
        for row, (page, prompt) in enumerate(wanted):
            image, text = self._shown(page)
            text = text[: self.options.characters]
            request = Request(prompt + (TEXT.format(text=text) if text else ""), image)
            results[row] = self._from_cache(page, request, parse)
            if results[row] is None:
                pending[row] = request
            else:
                self.unanswered = 0
        for attempt in range(self.options.attempts):
            if not pending:
                break
            requests = [Request(r.prompt, r.image, attempt) for r in pending.values()]
            for row, answer in zip(list(pending), self.model.answer(requests), strict=True):
                self.progress.requests += 1
                if isinstance(answer, Refusal):
                    self._count_refusal(wanted[row][0], answer)
                    del pending[row]
                    continue
                self.unanswered = 0
                self.progress.prompt_tokens += answer.prompt_tokens
                self.progress.answer_tokens += answer.answer_tokens
                results[row] = parse(answer.text)
                if results[row] is not None:
                    self._to_cache(wanted[row][0], pending.pop(row), answer)
        if pending:
            self.counts["vlm: not the JSON asked for"] += len(pending)
        return results

    def _count_refusal(self, page: Page, refusal: Refusal) -> None:
        self.counts[f"vlm: {refusal.reason}"] += 1
        # a page that the server does not take says nothing about the next one
        self.unanswered += not refusal.reason.startswith("refused")
        logger.warning("%s, page %d: %s (%s)", page.file, page.page, refusal.reason, refusal.detail)
        if self.unanswered >= self.options.patience:
            raise DataError(
                f"{self.model.name}: {self.unanswered} pages in a row got no answer; the last: {refusal.reason} "
                f"({refusal.detail}). Answers so far are in {self.folder / 'asked'}; run the command again to continue"
            )

    def _cache_file(self, page: Page, request: Request) -> Path:
        key = json.dumps([self.model.name, page.hash, request.prompt, request.image is not None])
        name = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self.folder / "asked" / name[:2] / f"{name}.json"

    def _from_cache(self, page: Page, request: Request, parse: Callable[[str], Any]) -> Any:
        file = self._cache_file(page, request)
        try:
            parsed = parse(load_json(file.read_text(encoding="utf-8"))["answer"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.warning("%s: not a stored answer; the model is asked again", file)
            return None
        self.progress.cached += parsed is not None
        return parsed

    def _to_cache(self, page: Page, request: Request, answer: Answer) -> None:
        file = self._cache_file(page, request)
        file.parent.mkdir(parents=True, exist_ok=True)
        tokens = [answer.prompt_tokens, answer.answer_tokens]
        row = {"model": self.model.name, "page": page.hash, "answer": answer.text, "tokens": tokens}
        with replacing(file) as part:
            part.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")

    def _accepted(self, page: Page, rows: list[tuple[str, str]]) -> list[Question]:
        """Return the questions among the (kind, query) of one answer; the others are counted with their reason."""
        accepted: dict[str, Question] = {}
        for kind, text in rows:
            rule = rule_of(kind, self.options.kinds)
            reason = "another kind" if rule is None else rejection(text, self.options)
            rule = rule or "vlm"
            if reason is None and squeeze(text) in accepted:
                reason = "said twice"
            if reason is None and len(accepted) == self.options.per_page:
                reason = "more than asked for"
            if reason:
                self.counts[f"{rule}: {reason}"] += 1
            else:
                accepted[squeeze(text)] = Question(text, page.id, rule, "", page.file, page.page)
        return list(accepted.values())

    def _checked(self, asked: list[tuple[Page, list[Question]]]) -> list[tuple[Page, list[Question]]]:
        """Return the questions that the model, shown the page again, says are answered by it.

        Without a judgement none is kept.
        """
        wanted = []
        for page, questions in asked:
            listed = "\n".join(f"{number}. {question.text}" for number, question in enumerate(questions, 1))
            wanted.append((page, CHECK.format(queries=listed)))
        checked = []
        for (page, questions), good in zip(asked, self._parsed_answers(wanted, parse_check), strict=True):
            reason = "not judged" if good is None else "not answered by the page, it says"
            kept = [question for number, question in enumerate(questions, 1) if number in (good or ())]
            self.counts.update(f"{question.rule}: {reason}" for question in questions if question not in kept)
            checked.append((page, kept))
        return checked


# ------------------------------------------------------------------------------------- what a model's answer holds


def parse_queries(text: str) -> list[tuple[str, str]] | None:
    """Return the (kind, query) pairs in a model's answer; None where it is not the JSON that was asked for."""
    for value in _json_values(text):
        rows = value.get("queries") if isinstance(value, dict) else value
        if isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("query"), str) for row in rows):
            return [(str(row.get("kind") or ""), clean(row["query"])) for row in rows]
    return None


def parse_check(text: str) -> set[int] | None:
    """Return the numbers of the good questions; None where the answer is not the JSON that was asked for."""
    for value in _json_values(text):
        good = value.get("good") if isinstance(value, dict) else None
        if isinstance(good, list) and all(type(number) is int for number in good):
            return set(good)
    return None


def _json_values(text: str) -> Iterator[Any]:
    """Yield every JSON object or list in a text, whatever the model thinks aloud or puts around it."""
    text = re.sub(r"<think>.*?</think>", " ", text, flags=re.DOTALL)
    decoder, at = json.JSONDecoder(), 0
    while (start := min((p for p in (text.find("{", at), text.find("[", at)) if p >= 0), default=-1)) >= 0:
        try:
            value, at = decoder.raw_decode(text, start)
            yield value
        except (json.JSONDecodeError, RecursionError):
            at = start + 1


def rule_of(kind: str, kinds: Sequence[str]) -> str | None:
    """Return the rule of a kind as a model writes it ("Figure or table" is "vlm: figure"); None = not one of kinds."""
    first = next(iter(words(kind.casefold())), "").rstrip("s")
    name = _ALIASES.get(first, first)
    return f"vlm: {name}" if name in kinds else None


def rejection(text: str, options: VlmOptions) -> str | None:
    """Return why a model's text is no question that can stand alone; None where it is one."""
    count = len(words(text))
    if count < options.min_words:
        return "too short"
    if count > options.max_words:
        return "too long"
    if POINTING.search(text):
        return "points at the page"
    return None
