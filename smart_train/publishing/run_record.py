"""Read what a run and its adapter's folder recorded, for the card: metrics, facts, licence of the base, examples."""

from __future__ import annotations

import logging
import math
import re
from heapq import nsmallest
from pathlib import Path
from typing import Any

import yaml

from smart_train.core.bounded_json import load_json
from smart_train.core.bounded_yaml import load_yaml
from smart_train.core.errors import BaseNotFound, PublishError
from smart_train.core.hub import LOCAL, resolve_base
from smart_train.core.secrets import Files, header
from smart_train.data.collection import Collection, Document, hash_id
from smart_train.models.safe_loading import SETTINGS, VERIFIED
from smart_train.models.verification import encoder_files
from smart_train.publishing.card import MODES, CardFacts, read_log
from smart_train.publishing.upload_files import FACTS, read_json

logger = logging.getLogger(__name__)

README = "README.md"
UNKNOWN = "unknown: look at the base's own page"


def base_licence(settings: dict[str, Any]) -> str:
    """Return the licence that the base's own card states, or UNKNOWN with the reason in the log.

    settings: smart_train.json as it is here, with the base's true place
    """
    base, commit = settings["base"], settings["commit"]
    text = _hosted(base, commit) if settings["fingerprint"] is None else _in_folder(base)
    stated = licence_in_card(text) if text is not None else None
    if text is not None and stated is None:
        logger.warning("the card of the base %s states no licence; look it up, and give your own", base)
    return stated or UNKNOWN


def licence_in_card(card: str) -> str | None:
    """Return the licence in the front matter of a card: its id, and the name and link of "other"."""
    block = re.match(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", card, re.DOTALL)
    try:
        stated = load_yaml(block.group(1)) if block else None
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
        logger.warning("the base %s has no card here, so its licence is unknown; look it up", base)
        return None
    return path.read_text(encoding="utf8")


def _hosted(base: str, commit: str | None) -> str | None:
    """The card of a Hub base at its commit, of the cache if it is there."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RemoteEntryNotFoundError

    from smart_train.core.hub import error_kind, http_status, hub_id, limit_waiting

    limit_waiting()
    try:
        return Path(hf_hub_download(hub_id(base) or base, README, revision=commit)).read_text(encoding="utf8")
    except Exception as error:
        found = error_kind(error)
        if found is None and not isinstance(error, EntryNotFoundError):
            raise
        reasons = {
            "unreachable": "the Hub cannot be reached",
            "silent": "the Hub does not answer",
            "gated": "its repository is gated",
        }
        why = reasons.get(found or "", f"the Hub answered with status {http_status(error)}")
        if isinstance(error, RemoteEntryNotFoundError):
            why = "it has no card"
        logger.warning("the licence of the base %s is unknown (%s); look it up", base, why)
        return None


# Examples of the data ------------------------------------------------------------------------------------------------

WIDTH = 200  # characters of a query or of a document that are shown


def examples_section(run: Path | None, count: int) -> str:
    """Return a section with ``count`` training pairs: the query, and the start of its document.

    The data are read again, where the recipe says they are, and must be what the run was of.  A page's image is never
    shown: its file's name and number are.  Raises PublishError where there is no run, no data, or other data.
    """
    if run is None or not (run / "recipe.yaml").is_file():
        raise PublishError("examples need the run's folder, whose recipe.yaml names the data; leave them out")
    train = _data(run)
    pairs = nsmallest(count, train.pairs(), key=lambda pair: (hash_id("\n".join(pair)), pair))
    lines = [f"- {_line(train.queries[query])}\n  - {_document(train.corpus[document])}" for query, document in pairs]
    section = "\n".join(
        ["### Examples", "", "Pairs that were trained on: a query, and the document that answers it.", "", *lines]
    )
    logger.info("%d of %d pairs will be public, as they stand here:\n\n%s\n", len(pairs), len(train.pairs()), section)
    return section


def _data(run: Path) -> Collection:
    from smart_train.checks.mining import data_of
    from smart_train.config.recipe import read
    from smart_train.core.errors import DataError
    from smart_train.data.load import load

    recipe = read(run / "recipe.yaml")
    if recipe.data.streaming:
        raise PublishError("no examples: the run streamed its rows, and they are not read as a whole; leave them out")
    try:
        train = load(data_of(recipe))[0]
    except (DataError, OSError) as error:
        raise PublishError(f"no examples: the data of {run} cannot be read ({error}); leave them out") from None
    versions = run / "versions.json"
    stored = load_json(versions.read_text(encoding="utf8")).get("data") if versions.is_file() else None
    if stored and stored["train"] != train.fingerprint():
        what = f"{recipe.data.path} holds other data than {run} was trained on"
        raise PublishError(f"no examples: {what}; leave them out, or put the data back")
    return train


def _line(text: str) -> str:
    """One line of a list, and no Markdown of the data's own."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= WIDTH else flat[: WIDTH - 3] + "..."
    return "`" + short.replace("`", "'") + "`"


def _document(document: Document) -> str:
    if document.text is not None:
        return _line(document.text)
    place = ", ".join(
        [*([document.file] if document.file else []), *([f"page {document.page}"] if document.page else [])]
    )
    return f"an image ({_line(place)})" if place else "an image"


# The card's facts ------------------------------------------------------------------------------------------------

FIGURES = ("metrics.json", "evaluation.json", FACTS)


def read_facts(
    files: Files, place: Path, folder: Path, run: Path | None, repo: str, license: str | None, examples: str
) -> CardFacts:
    """files: what goes up, with smart_train.json as others may read it; place: the folder that does

    folder: the adapter's that ``place`` was made of, or the same; run: None for an adapter without one
    Raises PublishError where a file is no JSON.
    """
    from smart_train.config.recipe import stored

    settings = read_json(place / SETTINGS)
    there = {name: run / name for name in (*FIGURES, "recipe.yaml", "log.jsonl") if run and (run / name).is_file()}
    modules = read_json(place / "modules.json") if "modules.json" in files else []
    pooled = next((module["path"] for module in modules if module["type"].endswith(".Pooling")), None)
    public = files[SETTINGS]
    figures = {name: read_json(path) for name, path in there.items() if name in FIGURES}
    if "metrics.json" in figures:
        _check_figures(figures["metrics.json"], there["metrics.json"])
    return CardFacts(
        repo,
        settings=load_json(public) if isinstance(public, bytes) else settings,
        verified=read_json(place / VERIFIED),
        licence=license,
        base_licence=base_licence(settings),
        modules=modules,
        pooling=read_json(place / pooled / "config.json") if pooled is not None else None,
        figures=figures,
        log=read_log(_lines(there["log.jsonl"])) if "log.jsonl" in there else {},
        recipe=stored(there["recipe.yaml"]) if "recipe.yaml" in there else {},
        trained=_trained(folder),
        picture="curve.png" in files,
        examples=examples,
    )


def _check_figures(metrics: Any, path: Path) -> None:
    """Raises PublishError where metrics.json is not rows of modes of nDCGs with intervals, as every run writes it."""
    for row, modes in metrics.items() if isinstance(metrics, dict) else [("of the file", None)]:
        for mode in MODES:
            measures = modes.get(mode) if isinstance(modes, dict) else None
            found = [one for name, one in measures.items() if name.startswith("ndcg@")] if measures else []
            if not found or not all(isinstance(one, dict) and {"value", "low", "high"} <= one.keys() for one in found):
                what = f"{path}: the row {row} has no {mode} nDCG with an interval"
                raise PublishError(f"{what}; no run wrote it; move it away, or evaluate again")


def _trained(folder: Path) -> int:
    """Return the number of trained parameters; 0 = not known, for whole weights that an adapter was added to."""
    if read_json(folder / SETTINGS).get("export"):
        return 0
    return sum(_numbers(path) for path in encoder_files(folder)[0] if path.suffix == ".safetensors")


def _lines(log: Path) -> list[dict[str, Any]]:
    """A run that was killed may have left the last line by half; any other line must be one."""
    lines = log.read_text(encoding="utf8").splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(load_json(line))
        except ValueError:
            if number < len(lines):
                raise PublishError(f"{log}, line {number} is not JSON; delete it, or move the log away") from None
    return [line for line in found if line]


def _numbers(path: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    tensors = (value for name, value in header(path.name, path).items() if name != "__metadata__")
    return sum(math.prod(tensor["shape"]) for tensor in tensors)
