"""The licence of a base, as its own card states it; never guessed.

Knows: the front matter of a README, the Hub.  Does not know: what a licence allows.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from smart_train.bases import LOCAL, BaseNotFound, resolve_base

logger = logging.getLogger(__name__)

README = "README.md"
UNKNOWN = "unknown: look at the base's own page"


def base_licence(settings: dict[str, Any]) -> str:
    """The licence in the card of a folder, of the local cache, or of the Hub at the adapter's commit; else UNKNOWN, and
    why in the log.  settings: smart_train.json as it lies here, with the base's true place."""
    base, commit = settings["base"], settings["commit"]
    text = _hosted(base, commit) if settings["fingerprint"] is None else _in_folder(base)
    stated = licence_of(text) if text is not None else None
    if text is not None and stated is None:
        logger.warning("the card of the base %s states no licence: look yourself, and say yours with --license", base)
    return stated or UNKNOWN


def licence_of(card: str) -> str | None:
    """What the front matter of a card has as its licence: its id, and the name and link that "other" comes with."""
    head, _, rest = card.removeprefix("\ufeff").partition("---")
    block, end, _ = rest.partition("\n---")
    if head.strip() or not end:
        return None
    try:
        stated = yaml.safe_load(block)
    except yaml.YAMLError:
        return None
    if not isinstance(stated, dict) or not stated.get("license"):
        return None
    found = stated["license"]
    parts = [", ".join(map(str, found)) if isinstance(found, list) else str(found)]
    parts += [str(stated[key]) for key in ("license_name", "license_link") if stated.get(key)]
    return f"{parts[0]} ({', '.join(parts[1:])})" if len(parts) > 1 else parts[0]


def _in_folder(base: str) -> str | None:
    try:
        path = Path(resolve_base(base)) / README if not base.startswith(LOCAL) else None
    except BaseNotFound:
        path = None
    if path is None or not path.is_file():
        logger.warning("the base %s has no card here, so its licence is unknown: look yourself", base)
        return None
    return path.read_text(encoding="utf8")


def _hosted(base: str, commit: str | None) -> str | None:
    """The card of a Hub base at its commit, of the cache if it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError

    from smart_train.hub import hub_id, kind, status

    try:
        return Path(hf_hub_download(hub_id(base) or base, README, revision=commit)).read_text(encoding="utf8")
    except Exception as error:
        found = kind(error)
        if found is None and not isinstance(error, EntryNotFoundError):
            raise
        reasons = {"unreachable": "the Hub cannot be reached", "gated": "its repository is gated"}
        why = reasons.get(found or "", f"the Hub answered with status {status(error)}")
        if isinstance(error, RemoteEntryNotFoundError):
            why = "it has no card"
        logger.warning("the licence of the base %s is unknown (%s): look yourself", base, why)
        return None
