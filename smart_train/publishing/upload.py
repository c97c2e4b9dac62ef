"""What the Hub answers: what passes is waited for and told, what does not is one sentence that says what to do."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from smart_train.core import hub
from smart_train.core.errors import PublishError, written
from smart_train.models.safe_loading import SETTINGS
from smart_train.models.verification import NAMES, SUFFIXES, TEMPLATES
from smart_train.publishing.secrets import Files

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
    wait = hub.retry_after(error)
    seconds = 2.0**attempt if wait is None else wait
    logger.warning("%s; trying again in %g s (%d of %d)", hub.describe_failure(error), seconds, attempt + 1, retries)
    time.sleep(seconds)


def passes(error: BaseException) -> bool:
    """Whether the same request may do better soon, and nobody has tried that yet."""
    if (hub.retry_after(error) or 0) > LONGEST:
        return False
    if hub.http_status(error) in PASSING or (hub.http_status(error) is None and hub.error_kind(error) == "unreachable"):
        return not _retried(error)
    return False


def _retried(error: BaseException) -> bool:
    """Whether huggingface_hub tried it again by itself, as it does with requests of some kinds."""
    for one in hub.error_chain(error):
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
    status, kind = hub.http_status(error), hub.error_kind(error)
    said = _said(error)
    if kind == "name":
        return "this is not the form of a repository's name; write it as owner/name"
    if kind == "gated":
        return "access to this repository is given on request; ask for it on its page, or name one of your own"
    if status == 401 and kind != "missing":
        return "the Hub does not accept your token for this (401); " + written(hub.MESSAGES["token"][1])
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
        wait = hub.retry_after(error)
        when = f"in {wait:g} s" if wait is not None else "in some minutes"
        return f"the Hub asks for fewer requests (429); publish again {when}"
    if status is not None:
        return f"the Hub answered with status {status}{said}; publish again later"
    if isinstance(error, ValueError) and re.match(r"Invalid metadata|LFS batch API|Bad request", str(error)):
        return "the Hub takes it not: " + " ".join(str(error).split())
    return "the connection to the Hub failed; publish again when it is back" if kind == "unreachable" else None


def _said(error: BaseException) -> str:
    found = next((m for one in hub.error_chain(error) if (m := getattr(one, "server_message", None))), "")
    text = " ".join(str(found).split())
    return f": {text[:200]}" if text else ""


# The Hub: a repository, one commit of what was verified, a tag; whatever breaks off can be done again.

MESSAGE = "Adapter, settings and card by smart-train"
OURS = (*NAMES, "recipe.yaml", "curve.png")  # beside what ends as weights and settings do


PLACES = rf"(?:(?:\d+_\w+|{TEMPLATES})/)?[^/]+"  # the root, and folders as sentence-transformers names a module's


@dataclass(frozen=True)
class Target:
    """repo: owner/name; private: it must not be public; branch: None = main; tag: of the commit; message: its first
    line; retries: after a first try of a request that may pass later"""

    repo: str
    private: bool = True
    branch: str | None = None
    tag: str | None = None
    message: str | None = None
    retries: int = RETRIES


def check_access() -> None:
    """Raises PublishError where no upload can work from here; asks nothing of the network."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise PublishError("publishing needs the network, and HF_HUB_OFFLINE is set; unset it, or publish later")
    if get_token() is None:
        raise PublishError(f"publishing needs a Hub token with write access, and this machine has none; {hub.LOGIN}")


def upload(files: Files, target: Target, folder: Path) -> tuple[str, str]:
    """Makes the repository if need be, commits the files, tags the commit; what an older adapter left there is deleted.

    Returns the repository's address and the commit.  folder: what is published, for messages.  Raises PublishError.
    """
    from huggingface_hub import HfApi

    api, repo = HfApi(), target.repo
    kept = f"{folder} is as it was and can be published again: what was sent is not sent twice"
    with explained(repo, kept), retelling():
        address = str(patiently(lambda: api.create_repo(repo, private=target.private, exist_ok=True), target.retries))
        if target.branch is not None:
            patiently(lambda: api.create_branch(repo, branch=str(target.branch), exist_ok=True), target.retries)
        info = _info(api, target)
        stale = check_target(repo, info, target.private) - files.keys()
        commit = str(info.sha)
        tagged = _tags(api, target).get(target.tag) if target.tag is not None else None
        if holds(info, files) and not stale:
            logger.info("%s holds all of this already, in commit %s", repo, commit)
        elif tagged is not None:
            what = f"{repo} has a tag {target.tag} already, of commit {tagged}"
            raise PublishError(f"{what}; choose another name for this one; nothing was sent")
        else:
            commit = _commit(api, target, files, stale, info)
        if target.tag is not None:
            _tag(api, target, commit, tagged)
    return address, commit


def _info(api: Any, target: Target) -> Any:
    return patiently(lambda: api.model_info(target.repo, revision=target.branch, files_metadata=True), target.retries)


def check_target(repo: str, info: Any, private: bool) -> set[str]:
    """The files of the adapter that is there; raises PublishError where it is no place for this one."""
    if private and not info.private:
        fix = "say so with --public (publish.private: false), or choose another name"
        raise PublishError(f"{repo} is there and everyone can read it; {fix}; nothing was sent")
    if info.private and not private:
        logger.info("%s is there and stays private: make it public on its page", repo)
    there = {file.rfilename for file in info.siblings or []}
    weights = [name for name in there if name.endswith(SUFFIXES)]
    if weights and SETTINGS not in there:
        raise PublishError(
            f"{repo} holds another model ({sorted(weights)[0]} ...); choose another name; nothing was sent"
        )
    ours = (name for name in there if name.endswith(SUFFIXES) or name.rpartition("/")[2] in OURS)
    return {name for name in ours if re.fullmatch(PLACES, name)}  # not what its owner keeps in folders of their own


def holds(info: Any, files: Files) -> bool:
    """Whether every file is there, with just this content."""
    there = {file.rfilename: file for file in info.siblings or []}
    return all(name in there and _same(there[name], file) for name, file in files.items())


def _same(remote: Any, file: Path | bytes) -> bool:
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    if remote.size != size:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == _hash("sha256", b"", file))
    return bool(remote.blob_id == _hash("sha1", f"blob {size}\0".encode(), file))  # as git names a content


def _hash(kind: str, head: bytes, file: Path | bytes) -> str:
    digest = hashlib.new(kind, head, usedforsecurity=False)
    if isinstance(file, bytes):
        digest.update(file)
        return digest.hexdigest()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _commit(api: Any, target: Target, files: Files, stale: set[str], info: Any) -> str:
    """One commit on top of ``info.sha``: if anything else was committed since, it is refused.

    The answer of a commit that was made can be lost: before the commit is tried again, the repository is looked at.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    added = [CommitOperationAdd(name, file) for name, file in files.items()]
    deleted = [CommitOperationDelete(name) for name in sorted(stale)]
    if deleted:
        logger.info("deleted, of the adapter that was there: %s", ", ".join(sorted(stale)))
    for attempt in range(target.retries + 1):
        try:
            made = api.create_commit(
                target.repo,
                [*added, *deleted],
                commit_message=target.message or MESSAGE,
                revision=target.branch,
                parent_commit=info.sha,
            )
            return str(made.oid)
        except Exception as error:
            if attempt == target.retries or not passes(error):
                raise
            pause(error, attempt, target.retries)
        now = _info(api, target)
        if now.sha != info.sha:
            if not holds(now, files):
                raise PublishError(
                    f"{target.repo}: someone else changed it meanwhile (commit {now.sha}); look at it, then publish "
                    "again; nothing of theirs was touched"
                )
            logger.info("the commit was made: only its answer was lost")
            return str(now.sha)
    raise AssertionError("unreachable")


def _tags(api: Any, target: Target) -> dict[str, str]:
    refs = patiently(lambda: api.list_repo_refs(target.repo), target.retries)
    return {tag.name: str(tag.target_commit) for tag in refs.tags}


def _tag(api: Any, target: Target, commit: str, tagged: str | None) -> None:
    if tagged == commit:
        return
    if tagged is not None:
        what = f"{target.repo} has a tag {target.tag} already, of commit {tagged}"
        raise PublishError(f"{what}, not of {commit}, which holds this adapter; choose another name")
    patiently(lambda: api.create_tag(target.repo, tag=str(target.tag), revision=commit, exist_ok=True), target.retries)
    logger.info("tag %s: %s", target.tag, commit)
