"""The one error of publishing."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from smart_train.core.errors import PublishError
from smart_train.models.safe_loading import SETTINGS
from smart_train.publishing.card import card
from smart_train.publishing.run_record import recorded, shown
from smart_train.publishing.secrets import Files, check_private
from smart_train.publishing.upload import Target, check_access, upload
from smart_train.publishing.upload_files import check_verified, collect, find, read_json

# From a run to the Hub: what was verified goes up, without this machine's paths, with a card of measured facts.

__all__ = ["PublishError", "check_access", "prepare", "publish"]

logger = logging.getLogger(__name__)


def publish(
    source: str | Path,
    repo: str,
    private: bool = True,
    license: str | None = None,
    dry_run: bool = False,
    *,
    branch: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    examples: int = 0,
    retries: int | None = None,
    export: str | None = None,
    **options: Any,
) -> str:
    """Uploads a run's adapter, or an adapter's folder, to the Hub in one commit and returns the repository's address.

    repo: owner/name, made if it is missing; private: it must not be public then; license: of the adapter, for the
    card; dry_run: lists what would go up and what was found in it, and sends nothing; branch: made if it is missing,
    None = main; tag: of the commit; message: the commit's first line; examples: so many pairs of the data go into the
    card; retries: of requests that may pass later, None = as ``Target`` has it
    export: "merged" or "multi-vector" publishes what ``exports.export`` makes of the adapter; options: its own
    Raises PublishError: not verified, a path or a secret in a file, or what the Hub answered; and as ``export`` does.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise PublishError(f"{repo} is not the form of a repository's name; write it as owner/name; nothing was sent")
    folder, run = find(Path(source))
    check_verified(folder)
    if not dry_run:
        check_access()  # before an export, which takes its time
    with _exported(folder, export, options) as place:
        files = prepare(place, folder, run, repo, license, examples)
        if dry_run:
            from huggingface_hub import constants

            logger.info("dry run: nothing was sent")
            return f"{constants.ENDPOINT}/{repo}"
        target = Target(repo, private, branch, tag, message, **({} if retries is None else {"retries": retries}))
        address, commit = upload(files, target, folder)
    logger.info("published: %s\ncommit: %s", address, commit)
    return address


def prepare(place: Path, folder: Path, run: Path | None, repo: str, license: str | None, examples: int = 0) -> Files:
    """What goes up, listed in the log with sizes and checked for secrets.

    place: the folder that goes up; folder: the adapter's that it was made of, or the same; run: the run's, or None
    """
    files = collect(place, run)
    section = shown(run, examples) if examples else ""
    files["README.md"] = card(recorded(files, place, folder, run, repo, license, section)).encode()
    files = dict(sorted(files.items()))
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        logger.info("%14s  %s", f"{size:,}", name)
    logger.info("%14s  bytes in %d files", f"{sum(sizes.values()):,}", len(files))
    base = read_json(folder / SETTINGS)["base"]
    roots = [folder.resolve().parent, place.resolve().parent, *([Path(base)] if Path(base).is_absolute() else [])]
    for one in check_private(files, roots):
        logger.warning("look at it: %s", one)
    logger.info("no secret and no path of this machine was found in them")
    return files


@contextmanager
def _exported(folder: Path, kind: str | None, options: dict[str, Any]) -> Iterator[Path]:
    """``folder``, or what an export makes of it; that lies beside it, as /tmp may be small, and is gone afterwards."""
    if kind is None:
        if options:
            raise TypeError(f"{', '.join(options)}: of an export, and none is asked for")
        yield folder
        return
    from smart_train.publishing.exporter import export

    with TemporaryDirectory(prefix=".publishing-", dir=folder.resolve().parent) as made:
        yield export(folder, kind, Path(made) / kind, **options)
