"""Questions that a model asks about pages, one page at a time, and the cache that lets it be stopped anywhere.

Every answer is stored under a hash of the page's content, the prompt and the model, as soon as it has been
understood: a run that is killed goes on where it was, and other rules for what is a question cost no new answer.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sized
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from smart_train.core.atomic_io import replacing
from smart_train.core.errors import DataError
from smart_train.ingest.questions.asking import (
    CHECK,
    KINDS,
    PROMPT,
    TEXT,
    Answer,
    Asker,
    Asking,
    Progress,
    Refusal,
    Request,
    fault,
    kind_of,
    parse_check,
    parse_queries,
)
from smart_train.ingest.questions.queries import PageLike, Question, Written
from smart_train.ingest.questions.wording import squeeze, words

logger = logging.getLogger(__name__)


def vlm(
    pages: Iterable[PageLike],
    asker: Asker,
    folder: Path,
    options: Asking | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Written:
    """Questions of a model about every page, each page shown by itself; rules are "vlm: fact" and so on.

    folder: what the images' paths are relative to; answers are kept in its ``asked/``
    progress: called when a few pages are done; else the log says it every half minute

    Pages with the same content are asked about once; a question that two pages give is dropped, with its text
    compared as letters and digits.  ``masked`` is empty: these are not the page's words.
    Raises DataError where the asker says that nothing will come (a wrong key, say), or after ``patience`` pages in a
    row without an answer; what was answered is kept, and the next run goes on from there.
    """
    options = options or Asking()
    total = len(pages) if isinstance(pages, Sized) else None
    state = _Run(asker, folder, options, Progress(total, prices=options.prices))
    told = time.monotonic()
    found: list[Question] = []
    for group in _groups(pages, max(1, asker.at_once)):
        found += state.of_pages(group)
        state.progress.pages += len(group)
        state.progress.questions = len(found)
        if progress:
            progress(state.progress)
        elif time.monotonic() - told > 30:
            told = time.monotonic()
            logger.info("%s", state.progress)
    texts = Counter(squeeze(question.text) for question in found)
    written = Written()
    for question in found:
        if texts[squeeze(question.text)] > 1:
            state.counts[f"{question.rule}: not unique"] += 1
        else:
            state.counts[question.rule] += 1
            written.questions.append(question)
    state.progress.questions = len(written.questions)
    logger.info("%s", state.progress)
    written.counts = dict(sorted(state.counts.items()))
    return written


def _groups(pages: Iterable[PageLike], size: int) -> Iterator[list[PageLike]]:
    rest = iter(pages)
    while group := list(islice(rest, size)):
        yield group


class _Run:
    def __init__(self, asker: Asker, folder: Path, options: Asking, progress: Progress) -> None:
        self.asker, self.folder, self.options, self.progress = asker, folder, options, progress
        self.counts: Counter[str] = Counter()
        self.seen: set[str] = set()
        self.silent = 0  # pages in a row without an answer
        kinds = "\n".join(f"- {kind}: {KINDS[kind]}" for kind in options.kinds)
        self.prompt = PROMPT.format(count=options.a_page, kinds=kinds, first=options.kinds[0])

    def of_pages(self, group: list[PageLike]) -> list[Question]:
        asked: list[PageLike] = []
        for page in group:
            reason = self._not_asked(page)
            if reason:
                self.counts[f"vlm: {reason}"] += 1
            else:
                self.seen.add(page.hash)
                asked.append(page)
        answers = self._understood([(page, self.prompt) for page in asked], parse_queries)
        found = [
            (page, self._questions(page, items))
            for page, items in zip(asked, answers, strict=True)
            if items is not None
        ]
        if self.options.check:
            found = self._checked([(page, questions) for page, questions in found if questions])
        return [question for _, questions in found for question in questions]

    def _not_asked(self, page: PageLike) -> str | None:
        if page.hash in self.seen:
            return "copy of a page"
        image, text = self._shown(page)
        if image is None and len(words(text)) < self.options.least:
            return "nothing to ask about"
        return None

    def _shown(self, page: PageLike) -> tuple[Path | None, str]:
        show = self.options.show
        image = self.folder / page.image if page.image and show != "text" else None
        text = page.text if show in ("text", "both") or (show == "auto" and image is None) else ""
        return image, text.strip()

    def _understood(self, wanted: list[tuple[PageLike, str]], parse: Callable[[str], Any]) -> list[Any]:
        """What ``parse`` makes of the answer to each (page, prompt); None where none could be had, which is counted."""
        found: list[Any] = [None] * len(wanted)
        open_: dict[int, Request] = {}
        for place, (page, prompt) in enumerate(wanted):
            image, text = self._shown(page)
            text = text[: self.options.characters]
            request = Request(prompt + (TEXT.format(text=text) if text else ""), image)
            found[place] = self._remembered(page, request, parse)
            if found[place] is None:
                open_[place] = request
            else:
                self.silent = 0
        for attempt in range(self.options.attempts):
            if not open_:
                break
            requests = [Request(r.prompt, r.image, attempt) for r in open_.values()]
            for place, answer in zip(list(open_), self.asker.ask(requests), strict=True):
                self.progress.asked += 1
                if isinstance(answer, Refusal):
                    self._refused(wanted[place][0], answer)
                    del open_[place]
                    continue
                self.silent = 0
                self.progress.read += answer.read
                self.progress.written += answer.written
                found[place] = parse(answer.text)
                if found[place] is not None:
                    self._remember(wanted[place][0], open_.pop(place), answer)
        self.counts["vlm: not the JSON asked for"] += len(open_)
        self.counts += Counter()  # takes zeros out
        return found

    def _refused(self, page: PageLike, refusal: Refusal) -> None:
        self.counts[f"vlm: {refusal.reason}"] += 1
        # a page that the server will not take says nothing about the next one
        self.silent += not refusal.reason.startswith("refused")
        logger.warning("%s, page %d: %s (%s)", page.file, page.page, refusal.reason, refusal.detail)
        if self.silent >= self.options.patience:
            raise DataError(
                f"{self.asker.name}: {self.silent} pages in a row got no answer; the last: {refusal.reason} "
                f"({refusal.detail}). Answers so far are kept in {self.folder / 'asked'}; run it again to go on"
            )

    def _file(self, page: PageLike, request: Request) -> Path:
        key = json.dumps([self.asker.name, page.hash, request.prompt, request.image is not None])
        name = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self.folder / "asked" / name[:2] / f"{name}.json"

    def _remembered(self, page: PageLike, request: Request, parse: Callable[[str], Any]) -> Any:
        file = self._file(page, request)
        try:
            parsed = parse(json.loads(file.read_text(encoding="utf-8"))["answer"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            logger.warning("%s cannot be read and is asked for again", file)
            return None
        self.progress.cached += parsed is not None
        return parsed

    def _remember(self, page: PageLike, request: Request, answer: Answer) -> None:
        file = self._file(page, request)
        file.parent.mkdir(parents=True, exist_ok=True)
        tokens = [answer.read, answer.written]
        row = {"model": self.asker.name, "page": page.hash, "answer": answer.text, "tokens": tokens}
        with replacing(file) as part:
            part.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")

    def _questions(self, page: PageLike, items: list[tuple[str, str]]) -> list[Question]:
        found: dict[str, Question] = {}
        for kind, text in items:
            rule, reason = kind_of(kind, self.options.kinds), None
            if rule is None:
                rule, reason = "vlm", "another kind"
            reason = reason or fault(text, self.options) or ("said twice" if squeeze(text) in found else None)
            if reason is None and len(found) == self.options.a_page:
                reason = "more than asked for"
            if reason:
                self.counts[f"{rule}: {reason}"] += 1
            else:
                found[squeeze(text)] = Question(text, page.id, rule, "", page.file, page.page)
        return list(found.values())

    def _checked(self, found: list[tuple[PageLike, list[Question]]]) -> list[tuple[PageLike, list[Question]]]:
        """Those that the model, shown the page again, says are answered; without a judgement none is."""
        wanted = []
        for page, questions in found:
            listed = "\n".join(f"{number}. {question.text}" for number, question in enumerate(questions, 1))
            wanted.append((page, CHECK.format(queries=listed)))
        kept = []
        for (page, questions), good in zip(found, self._understood(wanted, parse_check), strict=True):
            reason = "not judged" if good is None else "not answered by the page, it says"
            for number, question in enumerate(questions, 1):
                self.counts[f"{question.rule}: {reason}"] += number not in (good or ())
            kept.append((page, [q for number, q in enumerate(questions, 1) if number in (good or ())]))
        self.counts += Counter()
        return kept
