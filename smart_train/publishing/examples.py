"""Examples of the data in a card: only where they are asked for, and only after they were shown.

Knows: a run's recipe, collections.  Does not know: the Hub, models.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from smart_train.data.records import Collection, Document, hash_id
from smart_train.publishing.errors import PublishError

logger = logging.getLogger(__name__)

WIDTH = 200  # characters of a query or of a document that are shown
FLAG = "--include-examples"


def shown(run: Path | None, count: int) -> str:
    """A section with ``count`` pairs that were trained on: the query, and how its document begins.

    The data are read again, where the recipe says they are, and must be what the run was of.  A page's image is never
    shown: its file's name and number are.  Raises PublishError where there is no run, no data, or other data.
    """
    if run is None or not (run / "recipe.yaml").is_file():
        raise PublishError(f"{FLAG} needs the run's folder: which data they were is in its recipe.yaml")
    train = _data(run)
    pairs = sorted(train.pairs(), key=lambda pair: (hash_id("\n".join(pair)), pair))[:count]
    lines = [f"- {_line(train.queries[query])}\n  - {_document(train.corpus[document])}" for query, document in pairs]
    section = "\n".join(
        ["### Examples", "", "Pairs that were trained on: a query, and the document that answers it.", "", *lines]
    )
    logger.info("%d of %d pairs will be public, as they stand here:\n\n%s\n", len(pairs), len(train.pairs()), section)
    return section


def _data(run: Path) -> Collection:
    from smart_train.data.formats import load
    from smart_train.data.ids import DataError
    from smart_train.recipe import read
    from smart_train.recipe_check_mining import data_of

    recipe = read(run / "recipe.yaml")
    try:
        train = load(data_of(recipe))[0]
    except (DataError, OSError) as error:
        raise PublishError(f"{FLAG}: the data of {run} can't be read any more ({error}); leave it out") from None
    versions = run / "versions.json"
    stored = json.loads(versions.read_text(encoding="utf8")).get("data") if versions.is_file() else None
    if stored and stored["train"] != train.fingerprint():
        what = f"{recipe.data.path} holds other data than {run} was trained on"
        raise PublishError(f"{FLAG}: {what}; leave it out, or put the data back")
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
