"""Publish a run's verified adapter on the Hub: its files, without this machine's paths, and a card of what was
measured."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from smart_train.core.errors import AdapterError, BaseNotFound, PublishError, checks
from smart_train.core.secrets import Files, check_private
from smart_train.models.safe_loading import SETTINGS, VERIFIED
from smart_train.publishing.card import kind_of, write_card
from smart_train.publishing.run_record import examples_section, read_facts
from smart_train.publishing.upload import Target, check_access, upload
from smart_train.publishing.upload_files import check_verified, collect, find_adapter, freeze, read_json

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder

__all__ = ["PublishError", "check_access", "prepare", "publish", "publish_encoder"]

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
    export: str | None = None,
    **options: Any,
) -> str:
    """Upload an adapter to the Hub in one commit, and return the repository's address.

    source: a run's folder, or an adapter's
    repo: owner/name, created if it is missing; private: the repository must not be public
    license: of the adapter, for the card; dry_run: list what would be uploaded, show the card, and send nothing
    branch: created if it is missing, None = main; tag: of the commit; message: first line of the commit
    examples: how many pairs of the training data the card shows
    export: publish the adapter exported as "merged" or "multi-vector"; options: those of ``exporter.export``
    Raises PublishError if the adapter is not verified, a file holds a path or a secret, or the Hub refuses it, and
    AdapterError if plain sentence-transformers reads other vectors from it.
    """
    with checks():
        check_name(repo)
        folder, run = find_adapter(Path(source))
        check_verified(folder)
        if not dry_run:
            check_access()
    with _exported(folder, export, options) as place:
        files = prepare(place, folder, run, repo, license, examples)
        if export is None:
            check_read_plainly(folder)
        if dry_run:
            from huggingface_hub import constants

            card = files["README.md"]
            logger.info(
                "\nREADME.md, the card:\n\n%s\n", card.decode() if isinstance(card, bytes) else card.read_text("utf8")
            )
            logger.info("dry run: nothing was sent")
            return f"{constants.ENDPOINT}/{repo}"
        target = Target(repo, private, branch, tag, message)
        address, commit = upload(files, target, folder)
    logger.info("published: %s\ncommit: %s", address, commit)
    return address


def publish_encoder(encoder: SmartEncoder, repo: str, **options: Any) -> str:
    """Save an encoder that is in memory, verify it, and publish it; return the repository's address.

    The card has no measurements: those are in a run's folder, which ``publish`` takes.
    options: those of ``publish``
    Raises AdapterError where the reloaded encoder gives other vectors, and what ``publish`` raises.
    """
    with checks():
        check_name(repo)
        if not options.get("dry_run"):
            check_access()
    from smart_train.models.verification import reference_inputs, verify

    with TemporaryDirectory(prefix="smart-train-") as made:
        folder = encoder.save_pretrained(Path(made) / "adapter")
        contents = dict(reference_inputs(encoder))
        verify(encoder, folder, contents["query"], contents["document"])
        return publish(folder, repo, **options)


def check_name(repo: str) -> None:
    """Raise PublishError for what cannot name a repository."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise PublishError(f"{repo} is no name of a repository; write it as owner/name; nothing was sent")


def check_read_plainly(folder: Path) -> None:
    """Have plain sentence-transformers read a folder whose verification did not include that: one of an older version,
    or verified with ``SMART_TRAIN_READ_PLAINLY=off``.

    A warning says where the folder's base is not here, so that nothing could be compared.
    Raises AdapterError as ``read_plainly`` does.
    """
    if isinstance(read_json(folder / VERIFIED).get("plain"), dict) or kind_of(read_json(folder / SETTINGS)) == "frozen":
        return
    from smart_train.models.encoder import SmartEncoder
    from smart_train.models.verification import SWITCH, read_plainly, reference_inputs

    if os.environ.get(SWITCH) == "off":
        logger.warning("%s was never read by plain sentence-transformers (%s is off)", folder, SWITCH)
        return
    try:
        encoder = SmartEncoder.from_pretrained(folder)
    except (AdapterError, BaseNotFound) as error:
        logger.warning("%s was never read by plain sentence-transformers, and cannot be here: %s", folder, error)
        return
    logger.info("read by plain sentence-transformers: %s", read_plainly(encoder, folder, reference_inputs(encoder)))


def prepare(place: Path, folder: Path, run: Path | None, repo: str, license: str | None, examples: int = 0) -> Files:
    """Return the files to upload, with the card, checked for secrets; list them in the log with their sizes.

    place: the folder to upload; folder: the adapter that it was exported from, or the same; run: the run's, or None
    """
    files = freeze(collect(place, run))
    section = examples_section(run, examples) if examples else ""
    files["README.md"] = write_card(read_facts(files, place, folder, run, repo, license, section)).encode()
    files = dict(sorted(files.items()))
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        logger.info("%14s  %s", f"{size:,}", name)
    logger.info("%14s  bytes in %d files", f"{sum(sizes.values()):,}", len(files))
    base = read_json(folder / SETTINGS)["base"]
    roots = [folder.resolve().parent, place.resolve().parent, *([Path(base)] if Path(base).is_absolute() else [])]
    for one in check_private(files, roots):
        logger.warning("check this: %s", one)
    logger.info("no secret and no path of this machine was found in them")
    return files


@contextmanager
def _exported(folder: Path, kind: str | None, options: dict[str, Any]) -> Iterator[Path]:
    """Yield the folder, or a temporary export of it beside it (/tmp may be small)."""
    if kind is None:
        if options:
            raise PublishError(f"{', '.join(options)}: only with export; leave it out")
        yield folder
        return
    from smart_train.publishing.exporter import export

    with TemporaryDirectory(prefix=".publishing-", dir=folder.resolve().parent) as made:
        yield export(folder, kind, Path(made) / kind, **options)
