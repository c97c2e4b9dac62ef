"""An OpenAI-compatible chat endpoint (vLLM, llama.cpp, a hosted one) that answers requests about pages.

The key goes into one header of one host: it is in no name, no message and no file, and no redirect is followed.
"""

from __future__ import annotations

import base64
import http.client
import json
import logging
import mimetypes
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from smart_train.core.errors import DataError
from smart_train.ingest.questions.asking import Answer, Refusal, Request

logger = logging.getLogger(__name__)

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # worth another try
FINAL = {
    401: "the key is wrong or missing",
    403: "the key may not do this",
    404: "there is no such address or no such model",
    405: "this address takes no chat requests",
}
LONGEST_WAIT = 300.0  # seconds, whatever the server asks for


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None  # urllib would send the key to wherever it is sent


@dataclass
class EndpointAsker:
    """url: up to and with ``/v1``; model: as the server calls it; key: a secret, or None
    parallel: requests under way at once; tokens: the most of an answer; timeout: seconds of one try
    tries: of one request, with a wait of ``wait`` seconds before the second and twice as long before each further one
        (drawn from half to the whole of it, so that not all come back at once), or as long as the server asks for
    json_mode: asks the server to write nothing but JSON; a server that knows no such thing is asked without
    more: further keys of the request, over those that are set here

    Raises DataError for an address that is none.
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
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise DataError(f"{self.url!r} is no address; write it as http://localhost:8000/v1")
        if parts.username or parts.password:
            raise DataError("an address with a password in it ends up in logs; give the key by itself")
        if min(self.parallel, self.tokens, self.tries) < 1 or self.timeout <= 0:
            raise DataError("parallel, tokens and tries are 1 or more, and timeout is above 0")
        self.url = self.url.rstrip("/").removesuffix("/chat/completions")
        # In clear text, or to this machine, nothing goes through a proxy that the environment names: it would read the
        # pages and the key.  (https goes through one unread.)
        direct = parts.scheme == "http" or parts.hostname in ("localhost", "127.0.0.1", "::1")
        handlers = [urllib.request.ProxyHandler({})] if direct else []
        self._open = urllib.request.build_opener(_NoRedirect(), *handlers).open

    @property
    def name(self) -> str:
        """The model and what else changes an answer; not where it runs."""
        more = f" {json.dumps(self.more, sort_keys=True)}" if self.more else ""
        return f"{self.model} max_tokens={self.tokens}{more}"

    @property
    def at_once(self) -> int:
        return 4 * self.parallel  # the slowest of a few is waited for, so there are some more

    def ask(self, requests: Sequence[Request]) -> list[Answer | Refusal]:
        """In the requests' order.  Raises DataError where no request can get an answer: a wrong key, address, model."""
        with ThreadPoolExecutor(self.parallel) as pool:
            waiting = [pool.submit(self._one, request) for request in requests]
            try:
                return [one.result() for one in waiting]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, request: Request) -> Answer | Refusal:
        last, wait = Refusal("no answer"), self.wait
        for attempt in range(self.tries):
            plain = not self.json_mode
            try:
                return _answer(self._post(request))
            except urllib.error.HTTPError as error:
                told = _told(error)
                if error.code in FINAL:
                    raise DataError(f"{self.url} ({self.model}): {FINAL[error.code]} ({error.code}: {told})") from None
                last = Refusal(f"status {error.code}", told)
                if error.code in (400, 422) and not plain and "response_format" in told:
                    logger.info("%s takes no response_format; it is left out from here on", self.url)
                    self.json_mode = False
                    return self._one(request)
                if error.code not in PASSING:
                    return Refusal(f"refused with status {error.code}", told)
                pause = _asked_for(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:  # URLError, time out, reset
                last, pause = (
                    Refusal("no connection", str(getattr(error, "reason", error)) or type(error).__name__),
                    None,
                )
            except ValueError as error:  # not JSON, or not of the shape that was agreed
                last, pause = Refusal("not a chat answer", str(error)), None
            if attempt + 1 < self.tries:
                self.sleep(min(LONGEST_WAIT, wait * random.uniform(0.5, 1.0) if pause is None else pause))
                wait *= 2
        return Refusal(f"{last.reason} after {self.tries} tries", last.detail)

    def _post(self, request: Request) -> Any:
        content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt}]
        if request.image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": data_uri(request.image)}})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.tokens,
            # the same request gives the same answer, and an attempt after a wrong one another
            "temperature": 0.0 if request.attempt == 0 else 0.7,
            "seed": request.attempt,
        }
        if self.json_mode:
            body["response_format"] = {"type": "json_object"}
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        data = json.dumps({**body, **self.more}).encode()
        post = urllib.request.Request(f"{self.url}/chat/completions", data, headers, method="POST")
        with self._open(post, timeout=self.timeout) as response:
            return json.loads(response.read())


def data_uri(image: Path) -> str:
    """The bytes of an image file as they are, for ``image_url``.  Raises DataError where it cannot be read."""
    kind = mimetypes.guess_type(image.name)[0] or "image/jpeg"
    try:
        return f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"
    except OSError as error:
        raise DataError(f"{image}: the image of a page cannot be read ({error}); ingest the folder again") from error


def _answer(body: Any) -> Answer:
    """Raises ValueError where the body is no chat completion."""
    try:
        content = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no choices[0].message.content: {str(body)[:200]}") from error
    if isinstance(content, list):  # some servers answer in parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    usage = body.get("usage") or {}
    return Answer(content or "", int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0))


def _told(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(500).decode("utf-8", "replace").split()) or str(error.reason)
    except OSError:
        return str(error.reason)


def _asked_for(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
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
