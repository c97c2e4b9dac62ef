"""Define the protocol of a chat model that writes questions about pages, and load one by name.

``LocalChatModel`` (transformers, on this machine) and ``ChatEndpoint`` (an OpenAI-style server) are such models. Any
class with the three members of ``ChatModel`` serves as well: ``smart-train ingest --questions my_package.mine:MyModel``
makes one without arguments. Answers are cached, parsed and checked by ``vlm.py``, whoever gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from smart_train.core.errors import ExtensionError
from smart_train.core.registry import Registry

CHAT_MODELS = Registry("chat model", "smart_train.chat_models", {})


@dataclass(frozen=True)
class Request:
    """One question to a chat model about one page.

    prompt: all of the text; image: file of the page image to show, or None
    attempt: 0, or the number of the repetition after answers that were not understood; another attempt should give
        another answer
    """

    prompt: str
    image: Path | None = None
    attempt: int = 0


@dataclass(frozen=True)
class Answer:
    """text: as the model wrote it; prompt_tokens (image included), answer_tokens: 0 where they are not known."""

    text: str
    prompt_tokens: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True)
class Refusal:
    """One request that got no answer. reason: a few fixed words, counted in the report; detail: any text, logged.

    A reason that begins with "refused" says that the page is at fault; any other one counts towards stopping the run.
    """

    reason: str
    detail: str = ""


class ChatModel(Protocol):
    """Protocol of a model that answers requests about pages.

    name: model and settings that change its answers; part of the cache's key
    batch_size: how many requests one call takes best
    answer: one Answer or Refusal for each request, in their order. Raise DataError where no request will ever be
        answered (a wrong key, say); what was answered before is kept.
    """

    @property
    def name(self) -> str: ...

    @property
    def batch_size(self) -> int: ...

    def answer(self, requests: Sequence[Request]) -> list[Answer | Refusal]: ...


def load_chat_model(name: str) -> ChatModel:
    """Import the class ``package.module:Class`` (or one that an installed package registers) and make one.

    Raises ExtensionError where it cannot be imported, or lacks a member of ``ChatModel``.
    """
    model: ChatModel = CHAT_MODELS.resolve(name)()
    missing = [member for member in ("name", "batch_size", "answer") if not hasattr(model, member)]
    if missing:
        raise ExtensionError(f"the chat model {name!r} has no {', '.join(missing)}", f"see {__name__}.ChatModel")
    return model
