"""What the Hub answers: what passes is waited for and told, what does not is one sentence that says what to do.

Knows: huggingface_hub's errors and its own retries.  Does not know: what is sent.
huggingface_hub tries again by itself where files are sent (5 times within half a minute), and nowhere else.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from smart_train import hub
from smart_train.publishing.errors import PublishError

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRIES = 4  # after the first try; waits 1, 2, 4 and 8 seconds
LONGEST = 300  # seconds that a Hub may ask to be waited for; more is told instead
PASSING = {408, 429, 500, 502, 503, 504}
THEIRS = "huggingface_hub.utils._http"  # the logger of its retries, which tell signed addresses


def patiently(call: Callable[[], T], retries: int = RETRIES) -> T:
    """``call()``, again where what went wrong may pass: no connection, a broken one, statuses 408, 429 and 5xx.

    Waits as long as the Hub asks for, or twice as long each time.  What huggingface_hub has tried again by itself is
    not tried again here.  Raises the last error.
    """
    for attempt in range(retries + 1):
        try:
            return call()
        except Exception as error:
            if attempt == retries or not passes(error):
                raise
            pause(error, attempt, retries)
    raise AssertionError("unreachable")


def pause(error: BaseException, attempt: int, retries: int) -> None:
    """Tells what went wrong and waits.  attempt: 0 for the first try."""
    wait = hub.wanted_wait(error)
    seconds = 2.0**attempt if wait is None else wait
    logger.warning("%s; trying again in %g s (%d of %d)", hub.happened(error), seconds, attempt + 1, retries)
    time.sleep(seconds)


def passes(error: BaseException) -> bool:
    """Whether the same request may do better soon, and nobody has tried that yet."""
    if (hub.wanted_wait(error) or 0) > LONGEST:
        return False
    if hub.status(error) in PASSING or (hub.status(error) is None and hub.kind(error) == "unreachable"):
        return not _retried(error)
    return False


def _retried(error: BaseException) -> bool:
    """Whether huggingface_hub tried it again by itself, as it does with requests of some kinds."""
    for one in hub.chain(error):
        request: Any = getattr(getattr(one, "response", None), "request", None) or _request(one)
        if request is not None:
            path = request.url.path
            return bool(request.method == "PUT" or "/preupload/" in path or path.endswith("/objects/batch"))
    return False


def _request(error: BaseException) -> Any:
    try:
        return getattr(error, "request", None)
    except RuntimeError:  # httpx has the attribute, and raises where it was never set
        return None


@contextmanager
def retelling(name: str = THEIRS) -> Iterator[None]:
    """Within: huggingface_hub's lines about its own retries become lines of this log, without addresses."""
    log, told = logging.getLogger(name), _Retold()
    log.addFilter(told)
    try:
        yield
    finally:
        log.removeFilter(told)


class _Retold(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.why: dict[int | None, str] = {}  # thread -> what went wrong in it: files are sent in several at once

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if failed := re.match(r"HTTP Error (\d+) thrown while requesting", text):
            self.why[record.thread] = f"the Hub answered with status {failed[1]}"
        elif "thrown while requesting" in text:
            self.why[record.thread] = "the connection to the Hub failed"
        elif again := re.search(r"(?:Retrying in|Waiting) ([\d.]+)s.*\[Retry (\d+)/(\d+)\]", text):
            why = self.why.get(record.thread, "a file was not sent")
            logger.warning("%s; trying again in %g s (%s of %s)", why, float(again[1]), again[2], again[3])
        else:
            return True
        return False


# In a sentence --------------------------------------------------------------------------------------------------------


@contextmanager
def explained(repo: str, kept: str) -> Iterator[None]:
    """Turns what the Hub's client raises into a PublishError of one line; other errors pass unchanged.

    kept: what is as it was, and how it goes on
    """
    try:
        yield
    except PublishError:
        raise
    except Exception as error:
        found = trouble(error)
        if found is None:
            raise
        logger.debug("%s", repo, exc_info=True)
        raise PublishError(f"{repo}: {found}; {kept}") from None


def trouble(error: BaseException) -> str | None:
    """What went wrong and what to do; None for an error that is none of the Hub's."""
    status, kind = hub.status(error), hub.kind(error)
    said = _said(error)
    if kind == "name":
        return "this is not the form of a repository's name; write it as owner/name"
    if kind == "gated":
        return "access to this repository is given on request; ask for it on its page, or name one of your own"
    if status == 401 and kind != "missing":
        return "the Hub does not accept your token for this (401); " + hub.READING["token"][1]
    if status == 403:
        what = f"your token may not write there (403{said})"
        return f"{what}; use one with write access, or a name of your own: {hub.LOGIN}"
    if kind == "revision":
        return "the repository has no such branch, tag or commit (404); correct --revision"
    if status in (401, 404):
        what = f"there is no such repository, or your token may not see it ({status})"
        return f"{what}; correct the name, or {hub.LOGIN}"
    if status in (409, 412):
        return f"someone else changed it meanwhile ({status}); look at it, then publish again"
    if status == 429:
        wait = hub.wanted_wait(error)
        when = f"in {wait:g} s" if wait is not None else "in some minutes"
        return f"the Hub asks for fewer requests (429); publish again {when}"
    if status is not None:
        return f"the Hub answered with status {status}{said}; publish again later"
    if isinstance(error, ValueError) and re.match(r"Invalid metadata|LFS batch API|Bad request", str(error)):
        return "the Hub takes it not: " + " ".join(str(error).split())
    return "the connection to the Hub failed; publish again when it is back" if kind == "unreachable" else None


def _said(error: BaseException) -> str:
    found = next((m for one in hub.chain(error) if (m := getattr(one, "server_message", None))), "")
    text = " ".join(str(found).split())
    return f": {text[:200]}" if text else ""
