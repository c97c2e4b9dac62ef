"""Protocols of the encoder, the collection and the document that an evaluation takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from smart_train.config.schema import LateBlock


class Encoder(Protocol):
    """Encodes queries and documents into Embeddings; ``late.hybrid`` has the weights of the hybrid score."""

    late: LateBlock

    def encode_queries(self, contents: Sequence[Any], **options: Any) -> Any: ...

    def encode_documents(self, contents: Sequence[Any], **options: Any) -> Any: ...


class Document(Protocol):
    """A text, an image or both; ``content()`` decodes the image and returns what an encoder takes."""

    @property
    def text(self) -> str | None: ...

    @property
    def title(self) -> str | None: ...

    @property
    def image(self) -> Any: ...

    def content(self) -> Any: ...


class Collection(Protocol):
    """A corpus, queries, and qrels: query id -> document id -> grade (above 0 = relevant)."""

    @property
    def corpus(self) -> Mapping[str, Document]: ...

    @property
    def queries(self) -> Mapping[str, str]: ...

    @property
    def qrels(self) -> Mapping[str, Mapping[str, int]]: ...
