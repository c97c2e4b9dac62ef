"""Answer requests about pages with an OpenAI-compatible chat endpoint (vLLM, llama.cpp, a hosted one).

The key goes into one header of one host. It is in no name, no message and no file, and no redirect is followed.
"""

from __future__ import annotations

import base64
import json
import logging
import mimetypes
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from smart_train.core.errors import DataError
from smart_train.ingest.questions.chat_model import Answer, Refusal, Request

logger = logging.getLogger(__name__)

TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that may pass
FINAL = {  # statuses that every further request would get, too
    401: "the key is wrong or missing",
    403: "the key may not do this",
    404: "there is no such address or no such model",
    405: "this address takes no chat requests",
}
LONGEST_WAIT = 300.0  # seconds, whatever the server asks for


@dataclass
class ChatEndpoint:
    """A chat model behind an OpenAI-compatible server.

    url: address up to and with ``/v1``
    model: the model's name on that server
    key: secret, or None
    parallel: requests under way at once
    tokens: most tokens of an answer
    timeout: seconds without a byte before one try is given up
    tries: of one request
    wait: seconds before the second try, doubled before each further one, and drawn from half to the whole of that so
        that not all requests come back at once; a server's Retry-After goes before
    json_mode: ask the server to write nothing but JSON; switched off where the server does not know it
    more: further keys of the request body, which replace those that are set here

    Raises DataError for an address that is not valid, or that holds a password.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    parallel: int = 8
    tokens: int = 600
    timeout: float = 180.0
    tries: int = 6
    wait: float = 1.0
    json_mode: bool = True
    more: dict[str, Any] = field(default_factory=dict)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise DataError(f"{self.url!r} is no address ({error}); write it as http://localhost:8000/v1") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise DataError(f"{self.url!r} is no address; write it as http://localhost:8000/v1")
        if url.userinfo:
            raise DataError("the address holds a password, which would end up in logs; give the key by itself")
        if min(self.parallel, self.tokens, self.tries) < 1 or self.timeout <= 0:
            raise DataError("parallel, tokens and tries must be 1 or more, and timeout above 0")
        self.url = self.url.rstrip("/").removesuffix("/chat/completions")
        # In clear text, or to this machine, nothing goes through a proxy that the environment names: it would read the
        # pages and the key. (https goes through one unread.)
        direct = url.scheme == "http" or url.host in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.Client(
            timeout=self.timeout,
            limits=httpx.Limits(max_connections=self.parallel),
            trust_env=not direct,
            follow_redirects=False,  # the key would go to wherever the redirect leads
        )

    @property
    def name(self) -> str:
        """Return the model and the options that change an answer, without its address."""
        more = f" {json.dumps(self.more, sort_keys=True)}" if self.more else ""
        return f"{self.model} max_tokens={self.tokens}{more}"

    @property
    def batch_size(self) -> int:
        return 4 * self.parallel  # a call ends with its slowest request, so it has more than run at once

    def answer(self, requests: Sequence[Request]) -> list[Answer | Refusal]:
        """Answer requests, in their order. Raises DataError for a wrong key, address or model."""
        self._fatal: DataError | None = None
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting = [pool.submit(self._answer_one, request) for request in requests]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _answer_one(self, request: Request) -> Answer | Refusal:
        last, wait = Refusal("no answer"), self.wait
        for attempt in range(self.tries):
            if self._fatal is not None:  # every other request would fail as that one did
                raise self._fatal
            pause = None
            json_mode = self.json_mode
            try:
                response = self._post(request, json_mode)
                if response.is_success:
                    return _parse_answer(response.json())
                status, text = response.status_code, " ".join(response.text.split())[:500] or response.reason_phrase
                if status in FINAL:
                    self._fatal = DataError(f"{self.url} ({self.model}): {FINAL[status]} ({status}: {text})")
                    raise self._fatal
                if status in (400, 422) and json_mode and "response_format" in text:
                    logger.info("%s takes no response_format; it is left out from here on", self.url)
                    self.json_mode = False
                    return self._answer_one(request)
                if status not in TRY_AGAIN:
                    return Refusal(f"refused with status {status}", text)
                last, pause = Refusal(f"status {status}", text), _retry_after(response.headers.get("Retry-After"))
            except httpx.HTTPError as error:  # no connection, time out, reset
                last = Refusal("no connection", str(error) or type(error).__name__)
            except DataError:
                raise
            except ValueError as error:  # not JSON, or not a chat completion
                last = Refusal("not a chat answer", str(error))
            if attempt + 1 < self.tries:
                self.sleep(min(LONGEST_WAIT, wait * random.uniform(0.5, 1.0) if pause is None else pause))
                wait *= 2
        return Refusal(f"{last.reason} after {self.tries} tries", last.detail)

    def _post(self, request: Request, json_mode: bool) -> httpx.Response:
        content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt}]
        if request.image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": data_uri(request.image)}})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.tokens,
            # the same request gets the same answer, and a repetition after a wrong one another
            "temperature": 0.0 if request.attempt == 0 else 0.7,
            "seed": request.attempt,
        }
        if json_mode:
            body["response_format"] = {"type": "json_object"}
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return self._client.post(f"{self.url}/chat/completions", json={**body, **self.more}, headers=headers)


def data_uri(image: Path) -> str:
    """Return an image file as a data URI, for ``image_url``. Raises DataError where it cannot be read."""
    kind = mimetypes.guess_type(image.name)[0] or "image/jpeg"
    try:
        return f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"
    except OSError as error:
        raise DataError(f"{image}: the image of a page cannot be read ({error}); ingest the folder again") from error


def _parse_answer(body: Any) -> Answer:
    """Return the text and token counts of a chat completion. Raises ValueError where it is none."""
    try:
        content = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no choices[0].message.content: {str(body)[:200]}") from error
    if isinstance(content, list):  # some servers answer in parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    usage = body.get("usage") or {}
    return Answer(content or "", int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))


def _retry_after(header: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
