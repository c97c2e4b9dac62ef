"""The Hub: a repository, one commit of what was verified, a tag; whatever breaks off can be done again.

Knows: huggingface_hub.  Does not know: what the files are.
Large files are sent first, each under its hash, and the Hub says which of them it has: an upload that broke off goes on
with the others.  The commit comes last and holds all files or none.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_train import hub
from smart_train.model.files import SETTINGS
from smart_train.model.sealing import NAMES, SUFFIXES, TEMPLATES
from smart_train.publishing.errors import PublishError
from smart_train.publishing.patience import RETRIES, explained, passes, patiently, pause, retelling
from smart_train.publishing.private import Files

logger = logging.getLogger(__name__)

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
