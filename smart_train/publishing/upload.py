"""Upload a verified adapter to the Hub in one commit, and report errors of the Hub in one sentence.

huggingface_hub repeats requests that send files. Any other failure ends the upload with a sentence; publishing again
continues where it stopped, because the Hub has what was sent.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_train.core import hub
from smart_train.core.errors import Message, PublishError, Setting, error_chain
from smart_train.core.secrets import Files
from smart_train.models.safe_loading import SETTINGS
from smart_train.models.verification import NAMES, SUFFIXES, TEMPLATES
from smart_train.publishing.upload_files import verified_digests

logger = logging.getLogger(__name__)

DEFAULT_MESSAGE = "Adapter, settings and card by smart-train"
ADAPTER_FILES = (*NAMES, "recipe.yaml", "curve.png")  # besides files with the suffixes of weights and settings
# Where an adapter has files: the root, and folders as sentence-transformers names a module's.
ADAPTER_PLACES = rf"(?:(?:\d+_\w+|{TEMPLATES})/)?[^/]+"


@dataclass(frozen=True)
class Target:
    """Repository that an adapter is published to.

    repo: owner/name; private: it must not be public; branch: None = main; tag: of the commit; message: first line of
    the commit
    """

    repo: str
    private: bool = True
    branch: str | None = None
    tag: str | None = None
    message: str | None = None


def check_access() -> None:
    """Raise PublishError if no upload can work from here. Asks nothing of the network."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise PublishError("publishing needs the network, and HF_HUB_OFFLINE is set; unset it, or publish later")
    if get_token() is None:
        raise PublishError(f"publishing needs a Hub token with write access, and this machine has none; {hub.LOGIN}")


def upload(files: Files, target: Target, folder: Path) -> tuple[str, str]:
    """Create the repository if it is missing, commit the files, tag the commit, and delete an older adapter's files.

    folder: what is published, for messages
    Returns the repository's address and the commit. Raises PublishError.
    """
    from huggingface_hub import HfApi

    api, repo = HfApi(), target.repo
    with explained(repo, f"{folder} is unchanged; publish it again: what was sent is not sent twice"):
        address = str(api.create_repo(repo, private=target.private, exist_ok=True))
        if target.branch is not None:
            api.create_branch(repo, branch=target.branch, exist_ok=True)
        info = api.model_info(repo, revision=target.branch, files_metadata=True)
        stale = sorted(check_target(repo, info, target.private) - files.keys())
        tags = {tag.name: str(tag.target_commit) for tag in api.list_repo_refs(repo).tags} if target.tag else {}
        tagged = tags.get(target.tag or "")
        complete = holds(info, files) and not stale
        if tagged is not None and not (complete and tagged == info.sha):
            what = f"{repo} already has a tag {target.tag}, of commit {tagged}"
            raise PublishError(f"{what}; choose another name; nothing was sent")
        commit = str(info.sha)
        if complete:
            logger.info("%s holds all of this already, in commit %s", repo, commit)
        else:
            if stale:
                logger.info("deleted, of the adapter that was there: %s", ", ".join(stale))
            commit = hub.commit_files(
                repo,
                files,
                verified_digests(files),
                stale,
                message=target.message or DEFAULT_MESSAGE,
                error=PublishError,
                revision=target.branch,
                parent_commit=info.sha,  # refused if anything else was committed since
            )
        if target.tag is not None and tagged is None:
            api.create_tag(repo, tag=target.tag, revision=commit, exist_ok=True)
            logger.info("tag %s: %s", target.tag, commit)
    return address, commit


def check_target(repo: str, info: Any, private: bool) -> set[str]:
    """Return the files of the adapter that the repository holds. Raises PublishError if it is no place for this one.

    info: of the repository, with its files' metadata; private: it must not be public
    """
    if private and not info.private:
        public = Setting("publish.private", False)
        raise PublishError(
            f"{repo} exists and everyone can read it; if you want that, ", public, ", or name another; nothing was sent"
        )
    if info.private and not private:
        logger.info("%s exists and stays private; make it public on its page", repo)
    there = {file.rfilename for file in info.siblings or []}
    weights = [name for name in there if name.endswith(SUFFIXES)]
    if weights and SETTINGS not in there:
        raise PublishError(
            f"{repo} holds another model ({sorted(weights)[0]} ...); choose another name; nothing was sent"
        )
    ours = (name for name in there if name.endswith(SUFFIXES) or name.rpartition("/")[2] in ADAPTER_FILES)
    return {name for name in ours if re.fullmatch(ADAPTER_PLACES, name)}


def holds(info: Any, files: Files) -> bool:
    """Return whether the repository has every file with this content."""
    there = {file.rfilename: file for file in info.siblings or []}
    return all(name in there and _same(there[name], file) for name, file in files.items())


def _same(remote: Any, file: Path | bytes) -> bool:
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    if remote.size != size:
        return False
    if remote.lfs is not None:
        return bool(remote.lfs.sha256 == _hash("sha256", b"", file))
    return bool(remote.blob_id == _hash("sha1", f"blob {size}\0".encode(), file))  # git's hash of a content


def _hash(kind: str, head: bytes, file: Path | bytes) -> str:
    digest = hashlib.new(kind, head, usedforsecurity=False)
    if isinstance(file, bytes):
        digest.update(file)
        return digest.hexdigest()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def explained(repo: str, unchanged: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a PublishError of one sentence; other errors pass unchanged.

    unchanged: what did not change, and how to continue
    """
    log, addresses = logging.getLogger("huggingface_hub.utils._http"), _WithoutAddresses()
    log.addFilter(addresses)
    hub.limit_waiting()
    try:
        yield
    except PublishError:
        raise
    except Exception as error:
        reason = explain(error)
        if reason is None:
            raise
        logger.debug("%s", repo, exc_info=True)
        raise PublishError(f"{repo}: ", reason, f"; {unchanged}") from None
    finally:
        log.removeFilter(addresses)


class _WithoutAddresses(logging.Filter):
    """Remove the addresses from huggingface_hub's lines about its retries: they are signed, and give write access."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"https?://[^\s'\"]+", "the Hub", record.getMessage()), ()
        return True


def explain(error: BaseException) -> Message | None:
    """Return what went wrong and what to do; None for an error that does not come from the Hub."""
    status, kind = hub.http_status(error), hub.error_kind(error)
    said = _server_message(error)
    if kind == "name":
        return "this is not the form of a repository's name; write it as owner/name"
    if kind == "gated":
        return "access to this repository is given on request; ask for it on its page, or name one of your own"
    if status == 401 and kind != "missing":
        return "the Hub does not accept your token for this (401); ", hub.MESSAGES["token"][1]
    if status == 403:
        what = f"your token may not write there (403{said})"
        return f"{what}; use one with write access, or a name of your own: {hub.LOGIN}"
    if kind == "revision":
        return "the repository has no such branch, tag or commit (404); correct it"
    if status in (401, 404):
        what = f"there is no such repository, or your token may not see it ({status})"
        return f"{what}; correct the name, or {hub.LOGIN}"
    if status in (409, 412):
        return f"someone else changed the repository meanwhile ({status}); look at it, then publish again"
    if status == 429:
        wait = hub.retry_after(error)
        when = f"in {wait:g} s" if wait is not None else "in some minutes"
        return f"the Hub asks for fewer requests (429); publish again {when}"
    if status is not None:
        return f"the Hub answered with status {status}{said}; publish again later"
    if isinstance(error, ValueError) and re.match(r"Invalid metadata|LFS batch API|Bad request", str(error)):
        return "the Hub does not accept it: " + " ".join(str(error).split())
    if kind == "silent":
        return hub.MESSAGES["silent"][0], "; publish again later"
    if kind == "unreadable":
        return "the Hub's answer cannot be read; publish again later"
    return "the connection to the Hub failed; publish again when it is back" if kind == "unreachable" else None


def _server_message(error: BaseException) -> str:
    found = next((m for one in error_chain(error) if (m := getattr(one, "server_message", None))), "")
    text = " ".join(str(found).split())
    return f": {text[:200]}" if text else ""
