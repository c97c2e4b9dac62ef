"""Pages, and a chat model whose answers a function gives, for tests of questions that a model writes."""

from __future__ import annotations

import json

from smart_train.ingest.pages import Page
from smart_train.ingest.questions.chat_model import Answer, Refusal, Request

TEXT = "The harbour of Vik freezes in January, and then the ferry to Holm carries forty barrels of copper each week. "


def page(number: int, text: str = TEXT, image: str | None = None, file: str = "a.pdf", hash: str = "") -> Page:
    digest = hash or f"{number:04d}"
    return Page(f"f-{number:05d}", file, number, 9, None, f"{text} {number}", None, (), image, digest, "pdf")


def answer(*rows: tuple[str, str]) -> str:
    return json.dumps({"queries": [{"kind": kind, "query": query, "answer": "yes"} for kind, query in rows]})


class Scripted:
    """A chat model whose answers a function gives; it keeps the requests."""

    name, batch_size = "scripted", 3

    def __init__(self, reply) -> None:
        self.reply, self.requests = reply, []

    def answer(self, requests):
        self.requests += requests
        return [r if isinstance(r, Refusal) else Answer(r, 100, 10) for r in map(self.reply, requests)]


def about(request: Request) -> str:
    """Two questions with the page's number in them, and all found good."""
    if "search queries:" in request.prompt:
        return '{"good": [1, 2]}'
    number = request.prompt.split()[-2]
    return answer(("fact", f"barrels carried by ferry {number}"), ("concept", f"why does harbour {number} freeze"))
