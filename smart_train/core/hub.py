"""Where a model's files are: a Hub id, a local folder, or a folder that an installed Python package carries."""

from __future__ import annotations

import errno
import importlib.util
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from smart_train.core.errors import BaseNotFound, Message, Setting

PACKAGE = "package:"
LOCAL = "local:"  # in a published adapter: the base was a folder of its publisher's, of which only the name is told


def resolve_base(base: str) -> str:
    """The base as sentence-transformers takes it: a folder's path, or a Hub id.

    base: ``package:NAME/FOLDER`` (NAME as it is imported) gives the absolute path of that folder in the installed
        package, which is found without being imported; ``~`` is expanded; everything else is returned unchanged.
    Raises BaseNotFound where the form is wrong, the package is not installed or has no such folder, and for the
    ``local:NAME`` of a published adapter.
    """
    if base.startswith("~"):
        return str(Path(base).expanduser())
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


def told_name(given: str) -> str:
    """A model or an adapter as people are told of it: a folder's last part, of RUN/adapter both, else what was given.
    Where it lies on this machine is nobody's business."""
    if not Path(given).exists():
        return given
    path = Path(given).resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("adapter", "model", "encoder") else path.name


# Models on the Hub: which id, which commit, and one clear sentence where something can't be had.

logger = logging.getLogger(__name__)

LOGIN = "run: hf auth login"
KINDS: list[tuple[str, set[str]]] = [  # what went wrong, by the names of the errors' classes; the first that fits
    ("gated", {"GatedRepoError"}),
    ("revision", {"RevisionNotFoundError"}),
    ("missing", {"RepositoryNotFoundError"}),
    ("name", {"HFValidationError"}),
]
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no room; over a quota; too large for this kind of disk
UNREACHABLE = {
    "TransportError",  # of httpx: no connection, a time-out, a connection that broke
    "ConnectionError",  # Python's own; OfflineModeIsEnabled is one
    "LocalEntryNotFoundError",
    "RevisionResolutionError",
}
_REVISION = Setting("model.revision", python="model.revision in a recipe")
READING: dict[str, tuple[Message, Message]] = {  # kind -> what is wrong, what to do
    "gated": ("access to this repository is given on request", f"ask for it on its page on the Hub, then {LOGIN}"),
    "revision": (
        "the repository has no such revision",
        ("correct the revision (", _REVISION, ")"),
    ),
    "missing": ("there is no such model on the Hub, or it is private", f"correct the id, or {LOGIN}"),
    "name": ("this is neither a folder that is there nor the form of a Hub id", "correct it"),
    "token": ("the Hub does not accept your token", f"make a new one and {LOGIN} (or correct HF_TOKEN)"),
    "full": (
        "the disk that the Hub's cache is on takes no more",
        "make room there, or set HF_HOME to a folder of a larger one, and load it again: it goes on where it stopped",
    ),
    "unreachable": (
        "the Hub cannot be reached and the model is not in the local cache, so whether it exists is not known",
        "go online (unset HF_HUB_OFFLINE), or download it elsewhere and copy the cache, or name a local folder",
    ),
}


def hub_id(place: str) -> str | None:
    """The Hub id that ``place`` (from ``resolve_base``) stands for, None for a folder that is there.

    A name without an owner is one of sentence-transformers' own, as SentenceTransformer reads it.
    Raises BaseNotFound for a path that is not there.
    """
    folder = Path(place)
    if folder.is_dir():
        return None
    if folder.is_absolute() or place.startswith(".") or place.count("/") > 1:
        fix = "correct the path, or give a Hub id such as Qwen/Qwen3-Embedding-0.6B"
        raise BaseNotFound(f"there is no folder {place}", fix)
    if not re.fullmatch(r"[\w.-]+", place):
        return place
    from sentence_transformers.util import ORIGINAL_TRANSFORMER_MODELS

    return place if place.lower() in ORIGINAL_TRANSFORMER_MODELS else f"sentence-transformers/{place}"


def located(base: str, revision: str | None) -> tuple[str, str | None]:
    """(folder, None) or (Hub id, commit) of a base: ``revision`` (None = the newest) resolved once, so that every file
    that is read afterwards is of one commit.

    Where the Hub can't be reached, it is the last commit that the local cache knows of, which is told where nobody
    asked for it (HF_HUB_OFFLINE).  Raises BaseNotFound.
    """
    place = resolve_base(base)
    repo = hub_id(place)
    if repo is None:
        return place, None
    from huggingface_hub import HfApi, is_offline_mode

    failed: list[Exception] = []

    class Asking(HfApi):
        """Notes what resolve_revision passes over when it falls back on the cache."""

        def repo_info(self, *args: Any, **options: Any) -> Any:
            try:
                return super().repo_info(*args, **options)
            except Exception as error:
                failed.append(error)
                raise

    with explained(base, revision):
        commit = Asking().resolve_revision(repo, revision=revision).resolved
    if failed and not is_offline_mode():
        what = f"{happened(failed[0])}: {base} is read from the local cache, at commit {commit}"
        logger.warning("%s, which may not be the newest", what)
    return repo, commit


def fetch(repo: str, commit: str, marker: str) -> Path | None:
    """The local copy of a repository that has the file ``marker``; None, and nothing downloaded, where it has not.

    Never downloads code or pickles.  Raises BaseNotFound.
    """
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    known = try_to_load_from_cache(repo, marker, revision=commit)
    if known is not None and not isinstance(known, str):
        return None  # the cache remembers that there is no such file
    with explained(repo, commit):
        try:
            hf_hub_download(repo, marker, revision=commit)
        except LocalEntryNotFoundError:
            raise  # offline, and never asked before: a guess could drop a head without a word
        except EntryNotFoundError:
            return None
        kept = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]
        return Path(snapshot_download(repo, revision=commit, allow_patterns=kept))


@contextmanager
def explained(base: str, revision: str | None = None) -> Iterator[None]:
    """Turns what the Hub's client raises into a BaseNotFound of one sentence; other errors pass unchanged."""
    try:
        yield
    except Exception as error:
        found = reason(error)
        if found is None:
            raise
        logger.debug("%s", base, exc_info=True)
        what, fix = found
        at = "" if revision is None else f" at revision {revision}"
        # The client's chained tracebacks are 60 lines that say the same thing.
        raise BaseNotFound((f"{base}{at}: ", what), fix) from None


def reason(error: BaseException) -> tuple[Message, Message] | None:
    """What is wrong and what to do, for an error of a download; None where the Hub has nothing to do with it."""
    found = kind(error)
    if found == "failed":
        wait = wanted_wait(error)
        return happened(error), "try again later" if wait is None else f"try again in {wait:g} s"
    return READING[found] if found is not None else None


def kind(error: BaseException) -> str | None:
    """gated, revision, missing, name, token, full, failed (see ``status``), unreachable, or None: not of the Hub.

    Found by the classes of the error and of what lies beneath: transformers and others wrap them.
    """
    names = {cls.__name__ for one in chain(error) for cls in type(one).__mro__}
    for found, classes in KINDS:
        if names & classes:
            return found
    if any(isinstance(one, OSError) and one.errno in FULL for one in chain(error)):
        return "full"
    answered = status(error)
    if answered is not None:
        return "token" if answered == 401 else "failed"
    return "unreachable" if names & UNREACHABLE else None


def status(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with, None where it did not answer."""
    answers = (getattr(getattr(one, "response", None), "status_code", None) for one in chain(error))
    return next((answer for answer in answers if isinstance(answer, int)), None)


def happened(error: BaseException) -> str:
    """What went wrong with a request, in half a sentence."""
    answered = status(error)
    if answered == 429:
        return "the Hub asks for fewer requests (429)"
    return f"the Hub answered with status {answered}" if answered is not None else "the connection to the Hub failed"


def wanted_wait(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait (Retry-After, in seconds or as a date); None where it does not say."""
    for one in chain(error):
        headers: Any = getattr(getattr(one, "response", None), "headers", None)
        value = str(headers.get("Retry-After") or "").strip() if headers is not None else ""
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
        if value:
            try:
                return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
            except ValueError:
                return None
    return None


def chain(error: BaseException) -> list[BaseException]:
    """The error and what lies beneath it: transformers and others wrap what the Hub's client raises."""
    found: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in found:
        found.append(step)
        step = step.__cause__ or step.__context__
    return found
