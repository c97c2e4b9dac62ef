"""Find a model's files: a local folder, a folder of an installed Python package, or a commit of a Hub repository.

What huggingface_hub raises becomes a BaseNotFound of one sentence; its client repeats failed downloads itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from smart_train.core.disk import FULL
from smart_train.core.errors import BaseNotFound, Message, Setting, error_chain

logger = logging.getLogger(__name__)

PACKAGE = "package:"
LOCAL = "local:"  # in a published adapter: the base was a folder of its publisher's, of which only the name is given
LONGEST = 1000  # characters of a path; systems take a few thousand at most
LOGIN = "run: hf auth login"
SNAPSHOT = 64 << 20  # bytes; a file up to this size is sent from memory
KINDS: list[tuple[str, set[str]]] = [  # what went wrong, by the names of the errors' classes; the first that fits
    ("gated", {"GatedRepoError"}),
    ("revision", {"RevisionNotFoundError"}),
    ("missing", {"RepositoryNotFoundError"}),
    ("name", {"HFValidationError"}),
    ("silent", {"TimeoutException", "TimeoutError", "ServerTimeoutError", "FSTimeoutError"}),
]
# Seconds without one byte, after which a connection counts as dead.  The Hub's own gateway gives up a call after 60.
SILENCE = 90.0
PROBE = 30.0  # seconds for the answer to an empty question
CONNECT = 10.0  # seconds to a connection, as huggingface_hub allows where it sets a limit at all
UNREACHABLE = {
    "TransportError",  # of httpx: no connection, a time-out, a connection that broke
    "ConnectionError",  # Python's own; OfflineModeIsEnabled is one
    "LocalEntryNotFoundError",
    "RevisionResolutionError",
}
MESSAGES: dict[str, tuple[Message, Message]] = {  # kind -> what is wrong, what to do
    "gated": ("access to this repository is given on request", f"ask for it on its page on the Hub, then {LOGIN}"),
    "revision": (
        "the repository has no such revision",
        ("correct the revision (", Setting("model.revision", python="model.revision in a recipe"), ")"),
    ),
    "missing": ("there is no such model on the Hub, or it is private", f"correct the id, or {LOGIN}"),
    "name": ("this is neither a folder that is there nor the form of a Hub id", "correct it"),
    "token": ("the Hub does not accept your token", f"make a new one and {LOGIN} (or correct HF_TOKEN)"),
    "unreadable": ("a file of it, or the Hub's answer, is no JSON", "try again later, or copy the folder again"),
    "full": (
        "the disk of the Hub's cache is full",
        "free space there, or set HF_HOME to a folder on a larger disk, and load again: the download resumes",
    ),
    "silent": (
        "the Hub (or a proxy before it) accepted the connection and did not answer in time",
        "try again later, or check HF_ENDPOINT and the proxy",
    ),
    "unreachable": (
        "the Hub cannot be reached and the model is not in the local cache, so whether it exists is not known",
        "go online (unset HF_HUB_OFFLINE), or download it elsewhere and copy the cache, or name a local folder",
    ),
}


def resolve_base(base: str) -> str:
    """Return the base as sentence-transformers takes it: a folder's path, or a Hub id.

    base: ``package:NAME/FOLDER`` (NAME as it is imported) gives the absolute path of that folder in the installed
        package, which is found without being imported; ``~`` is expanded; everything else is returned unchanged.
    Raises BaseNotFound where the form is wrong, the package is not installed or has no such folder, and for the
    ``local:NAME`` of a published adapter.
    """
    if len(base) > LONGEST or "\0" in base:
        raise BaseNotFound(f"{base[:40]!r}...: this is neither a path nor a Hub id", "correct it")
    if base.startswith("~"):
        try:
            return str(Path(base).expanduser())
        except RuntimeError as error:  # no such user
            raise BaseNotFound(f"{base}: {error}", "write the path out") from None
    if base.startswith(LOCAL):
        what = f"{base}: the base was a folder on the machine that this adapter was trained on"
        raise BaseNotFound(what, ("if you have it, ", Setting("model.base", "FOLDER", python="pass base=FOLDER")))
    if not base.startswith(PACKAGE):
        return base
    name, _, folder = base.removeprefix(PACKAGE).partition("/")
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise BaseNotFound(f"{base} is not of the form package:NAME/FOLDER", "write it as package:my_models/minilm")
    spec = importlib.util.find_spec(module)
    if spec is None or not (spec.submodule_search_locations or spec.origin):
        install = module.replace("_", "-")
        raise BaseNotFound(f"{base}: the package {module} is not installed", f"install it: pip install {install}")
    roots = [Path(root) for root in spec.submodule_search_locations or [str(Path(str(spec.origin)).parent)]]
    for root in roots:
        path = (root / folder).resolve()
        if path.is_dir():
            return str(path)
    there = sorted(p.name for root in roots for p in root.iterdir() if p.is_dir() and not p.name.startswith("_"))
    raise BaseNotFound(
        f"{base}: the package {module} has no folder {folder!r}", f"its folders are: {', '.join(there) or 'none'}"
    )


def display_name(source: str) -> str:
    """Return the name of a model or adapter for reports, without the folders of this machine.

    It is a folder's last part (of RUN/adapter both parts), and any other source as it is.
    """
    if not Path(source).exists():
        return source
    path = Path(source).resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("adapter", "model", "encoder") else path.name


def hub_id(place: str) -> str | None:
    """Return the Hub id that ``place`` (from ``resolve_base``) is; None for a folder that exists.

    A name without an owner is one of sentence-transformers' own, as SentenceTransformer reads it.
    Raises BaseNotFound for a path that does not exist.
    """
    folder = Path(place)
    try:
        if folder.is_dir():
            return None
    except OSError as error:  # a part of the path is longer than the system takes
        raise BaseNotFound(f"{place[:40]}...: {error.strerror}", "correct the path") from None
    if folder.is_absolute() or place.startswith(".") or place.count("/") > 1:
        fix = "correct the path, or give a Hub id such as Qwen/Qwen3-Embedding-0.6B"
        raise BaseNotFound(f"there is no folder {place}", fix)
    if not re.fullmatch(r"[\w.-]+", place):
        return place
    from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS

    return place if place.lower() in ORIGINAL_TRANSFORMER_MODELS else f"sentence-transformers/{place}"


def locate(base: str, revision: str | None) -> tuple[str, str | None]:
    """Return (folder, None) or (Hub id, commit) of a base.

    ``revision`` (None = the newest) is resolved once, so that every file that is read afterwards is of one commit.
    Where the Hub can't be reached, it is the last commit in the local cache; a warning says so, unless the user works
    offline on purpose (HF_HUB_OFFLINE).  Raises BaseNotFound.
    """
    place = resolve_base(base)
    repo = hub_id(place)
    if repo is None:
        return place, None
    from huggingface_hub import HfApi, is_offline_mode

    failed: list[Exception] = []

    class RecordingApi(HfApi):
        """Keeps the error that resolve_revision hides when it falls back on the cache."""

        def repo_info(self, *args: Any, **options: Any) -> Any:
            try:
                return super().repo_info(*args, **options)
            except Exception as error:
                failed.append(error)
                raise

    with hub_errors(base, revision):
        commit = RecordingApi().resolve_revision(repo, revision=revision).resolved
    if failed and not is_offline_mode():
        what = f"{describe_failure(failed[0])}: {base} is read from the local cache, at commit {commit}"
        logger.warning("%s, which may not be the newest", what)
    return repo, commit


def fetch(repo: str, commit: str, marker: str) -> Path | None:
    """Download a repository that has the file ``marker``, and return its local folder; None where it does not have it.

    Code and pickles are never downloaded.  Raises BaseNotFound.
    """
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    known = try_to_load_from_cache(repo, marker, revision=commit)
    if known is not None and not isinstance(known, str):
        return None  # the cache remembers that there is no such file
    with hub_errors(repo, commit):
        try:
            hf_hub_download(repo, marker, revision=commit)
        except LocalEntryNotFoundError:
            raise  # offline, and not known: a guess could drop a head silently
        except EntryNotFoundError:
            return None
        kept = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
        return Path(snapshot_download(repo, revision=commit, allow_patterns=kept))


def commit_files(
    repo: str,
    files: Mapping[str, Path | bytes],
    digests: Mapping[str, str],
    delete: Iterable[str] = (),
    *,
    message: str,
    error: Callable[[str], Exception],
    **options: Any,
) -> str:
    """Send files and commit them, if the bytes that were sent are those that were checked; return the commit.

    files: path in the repository -> content, or a file.  A file up to ``SNAPSHOT`` bytes is read once, compared and
        sent from memory.  A larger one is compared before and after it is sent (about a second per gigabyte each time).
    digests: path -> SHA-256 of what was checked; contents in memory need none
    delete: paths to delete in the same commit; error: makes the error for a file that has changed; options: those of
        HfApi.create_commit
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()

    def checked(name: str, file: Path) -> bytes | str:
        try:
            content = str(file) if file.stat().st_size > SNAPSHOT else file.read_bytes()
            found = sha256_of(file) if isinstance(content, str) else hashlib.sha256(content).hexdigest()
        except OSError as problem:
            what = f"can no longer be read ({problem.strerror})"
        else:
            if found == digests[name]:
                return content
            what = "changed on the disk"
        fix = "see what writes there, then run this again; nothing was committed"
        raise error(f"{name} {what} after it was checked; {fix}")

    sent = {name: file if isinstance(file, bytes) else checked(name, file) for name, file in files.items()}
    additions = [CommitOperationAdd(name, content) for name, content in sent.items()]
    place = {key: options[key] for key in ("repo_type", "revision") if key in options}
    api.preupload_lfs_files(repo, additions, **place, free_memory=False)
    for name, content in sent.items():
        if isinstance(content, str):
            checked(name, Path(content))
    operations: list[Any] = [*additions, *(CommitOperationDelete(name) for name in delete)]
    return str(api.create_commit(repo, operations, commit_message=message, **options).oid)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits (about a second per gigabyte)."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def limit_waiting() -> None:
    """Give every call of the Hub's client a time limit.  Whatever calls the Hub calls this first; it is cheap.

    huggingface_hub asks for none (``timeout=None``, in its client and in most calls), except for downloads: a server
    that accepts a connection and never answers would be waited for without end.  A limit that a call has stays.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    make = getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) or _http.default_client_factory

    def limit(request: Any) -> None:
        given = {name: seconds for name, seconds in request.extensions.get("timeout", {}).items() if seconds}
        request.extensions["timeout"] = {"connect": CONNECT, "read": SILENCE, "write": SILENCE, "pool": SILENCE} | given

    def limited() -> Any:
        client = make()
        client.event_hooks = {**client.event_hooks, "request": [*client.event_hooks.get("request", []), limit]}
        return client

    set_client_factory(limited)


@cache
def check_answers() -> None:
    """Raise the client's time-out where the Hub accepts a connection and does not answer; ask once in a process.

    transformers and datasets ask for one file after another, each six times: without this, minutes go by.  Other
    failures are left to those calls, since what they need may be in the local cache.
    """
    from huggingface_hub import constants, get_session, is_offline_mode

    limit_waiting()
    if is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=min(PROBE, SILENCE))
    except Exception as error:
        if error_kind(error) == "silent":
            raise


@contextmanager
def hub_errors(base: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the Hub's client raises into a BaseNotFound of one sentence; other errors pass unchanged."""
    limit_waiting()
    try:
        yield
    except Exception as error:
        found = explain(error)
        if found is None:
            raise
        logger.debug("%s", base, exc_info=True)
        what, fix = found
        at = "" if revision is None else f" at revision {revision}"
        # The client's chained tracebacks are 60 lines that say the same thing.
        raise BaseNotFound((f"{base}{at}: ", what), fix) from None


def explain(error: BaseException) -> tuple[Message, Message] | None:
    """Return what is wrong and what to do, for an error of a download; None for an error that is not of the Hub."""
    found = error_kind(error)
    if found == "failed":
        wait = retry_after(error)
        return describe_failure(error), "try again later" if wait is None else f"try again in {wait:g} s"
    return MESSAGES[found] if found is not None else None


def error_kind(error: BaseException) -> str | None:
    """Return gated, revision, missing, name, silent, token, full, failed (see ``http_status``), unreadable (no JSON),
    unreachable, or None: not of the Hub.

    The classes of the error and of its causes decide: transformers and others wrap them.
    """
    names = {cls.__name__ for one in error_chain(error) for cls in type(one).__mro__}
    for found, classes in KINDS:
        if names & classes:
            return found
    if any(isinstance(one, OSError) and one.errno in FULL for one in error_chain(error)):
        return "full"
    answered = http_status(error)
    if answered is not None:
        return "token" if answered == 401 else "failed"
    if isinstance(error, json.JSONDecodeError):  # itself: as a cause it is of a damaged file, which others say better
        return "unreadable"
    return "unreachable" if names & UNREACHABLE else None


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that the Hub answered with; None where it did not answer."""
    answers = (getattr(getattr(one, "response", None), "status_code", None) for one in error_chain(error))
    return next((answer for answer in answers if isinstance(answer, int)), None)


def describe_failure(error: BaseException) -> str:
    """Return what went wrong with a request, in half a sentence."""
    answered = http_status(error)
    if answered == 429:
        return "the Hub asks for fewer requests (429)"
    if answered is not None:
        return f"the Hub answered with status {answered}"
    return str(MESSAGES["silent"][0]) if error_kind(error) == "silent" else "the connection to the Hub failed"


def retry_after(error: BaseException) -> float | None:
    """Return the seconds that the Hub asks to wait (Retry-After); None where it does not say."""
    for one in error_chain(error):
        headers: Any = getattr(getattr(one, "response", None), "headers", None)
        value = str(headers.get("Retry-After") or "").strip() if headers is not None else ""
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
    return None
