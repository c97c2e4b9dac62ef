"""A corpus in shards that do not depend on how many processes there are: what each encodes, and reads from a store.

Knows: documents by id, ranks that meet, a store.  Does not know: how a document is encoded (encoding.py), scores.

Shards are whole batches of like length, and ranks take whole shards, so a document is encoded in the same batch in
however many processes: its vectors, and the rankings, are the same to the last bit.  (Rows dealt one by one, as in
training, balance small corpora better; there a document's neighbours in the batch, and with them the last bits of
its vectors, change with the number of ranks.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smart_train.evaluation.metrics import EvaluationError
from smart_train.evaluation.shares import Document, Meetings
from smart_train.evaluation.store import Shard, Store

TEXT_ROWS = 128  # texts of a shard, in whole batches of any usual size
TEXT_CHARACTERS = 1 << 20  # of a shard of long texts: about 250,000 tokens, 2 GB at a width of 4096 in float16
IMAGE_ROWS = 64  # pages of a shard: 0.2 GB at 750 tokens of width 2048


@dataclass(frozen=True)
class Part:
    """Documents that are encoded, or read, together.

    stored: the shard that has them, and ``rows`` where in it they are; None = to be encoded
    """

    ids: list[str]
    stored: str | None = None
    rows: tuple[int, ...] = ()
    whole: bool = True  # all of the stored shard's rows, in order


def plan(corpus: Mapping[str, Document], meetings: Meetings, store: Store | None = None) -> list[Part]:
    """This rank's documents; a collective where there are several ranks.

    What the store has comes first.  Raises EvaluationError as ``Store.open``, on every rank.
    """
    stored: list[Part] = []
    left = dict.fromkeys(corpus)
    if store is not None:
        known = {key(id, document): id for id, document in corpus.items()}
        # One rank looks: a shard that another one has just written must not be there for some ranks only.
        for shard in _listed(store, meetings):
            found = [(row, known[k]) for row, k in enumerate(shard.keys) if k in known and known[k] in left]
            if found:
                rows, ids = zip(*found, strict=True)
                stored.append(Part(list(ids), shard.name, rows, rows == tuple(range(len(shard.keys)))))
                for id in ids:
                    del left[id]
    parts = stored[meetings.rank :: meetings.world]
    return parts + [Part(ids) for ids in _cut(corpus, list(left))[meetings.rank :: meetings.world]]


def _listed(store: Store, meetings: Meetings) -> list[Shard]:
    found: list[Shard] | None = None
    if meetings.first:
        store.open()
        found = store.shards()
    listed = meetings.meet(found)[0]
    if not meetings.first:
        store.open(first=False)
    return list(listed)


def _cut(corpus: Mapping[str, Document], ids: Sequence[str]) -> list[list[str]]:
    """Texts by length, longest first; then images in their order."""
    texts = sorted((id for id in ids if corpus[id].image is None), key=lambda id: -len(corpus[id].text or ""))
    images = [id for id in ids if corpus[id].image is not None]
    shards = []
    at = 0
    while at < len(texts):
        fit = max(1, TEXT_CHARACTERS // max(1, len(corpus[texts[at]].text or "")))
        rows = min(TEXT_ROWS, 1 << (fit.bit_length() - 1))  # a power of two: whole batches of usual sizes
        shards.append(texts[at : at + rows])
        at += rows
    return shards + [images[at : at + IMAGE_ROWS] for at in range(0, len(images), IMAGE_ROWS)]


def key(id: str, document: Document) -> str:
    """What tells a document and its content: 128 bits over id, text, and the image's hash, its bytes or,
    for a file, its name, size and time of change (so that no image is opened to look it up)."""
    told = hashlib.blake2b(digest_size=16)
    for part in (id, document.text, _mark(document)):
        raw = b"\0" if part is None else b"\1" + part.encode("utf-8", "surrogatepass")
        told.update(len(raw).to_bytes(8, "little") + raw)
    return told.hexdigest()


def _mark(document: Document) -> str | None:
    image = document.image
    if image is None:
        return None
    known = getattr(document, "hash", None)
    if known:
        return f"hash {known}"
    if isinstance(image, str | Path):
        try:
            facts = Path(image).stat()
        except OSError as error:
            raise EvaluationError(f"the image {image} cannot be read ({error.strerror}); restore it") from error
        return f"file {Path(image).name} {facts.st_size} {facts.st_mtime_ns}"
    if hasattr(image, "content_id"):
        return str(image.content_id())
    if not hasattr(image, "tobytes"):  # something that is loaded
        content = document.content()
        image = content["image"] if isinstance(content, dict) else content
    return f"pixels {image.mode} {image.size} {hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()}"
