"""A Hub on loopback: repositories with commits, private and gated ones, tokens, uploads, and failures on demand.

    with FakeHub() as hub:
        commit = hub.put("me/base", folder)
        subprocess.run(..., env=hub.environment(tmp_path))     # the client reads its settings when it is imported

By hand: python tests/helpers/fakehub.py [PORT]
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fakehub_calls import ROUTES, Calls
from fakehub_repo import Files, Repo

TOKEN = "hf_of_me"


@dataclass
class Failure:
    """Calls by one of these methods to a path that matches get ``status``; 0 breaks the connection instead.

    times: so often, None = always; late: does what was asked for first, then fails; half: breaks in the middle of what
    is sent to the Hub, or by it; code: X-Error-Code; headers: of the answer, Retry-After for one
    """

    method: str
    path: str
    status: int
    message: str = "failed as it was told to"
    times: int | None = None
    late: bool = False
    half: bool = False
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class FakeHub:
    """``calls`` lists "METHOD /path" as they came in; ``repos`` holds (kind, "owner/name") -> Repo.

    stored: hash of a large file -> how often it was sent whole; messages: commit -> its first line.
    """

    def __init__(self, port: int = 0) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: Files = {}
        self.calls: list[str] = []
        self.failures: list[Failure] = []
        self.stored: Counter[str] = Counter()
        self.messages: dict[str, str] = {}
        self.free: int | None = None  # large files that are taken before the next has to wait
        self.released = threading.Event()
        self.tokens = {TOKEN: "me"}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN, **more: str) -> dict[str, str]:
        """The environment of a child process that takes this for the Hub."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "SENTENCE_"))}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home)}
        ours |= {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "PROGRESS_BARS")}
        return {**kept, **ours, **({"HF_TOKEN": token} if token else {}), **more}

    def fail(self, method: str, path: str, status: int, **more: Any) -> None:
        """more: of ``Failure``"""
        self.failures.append(Failure(method, path, status, **more))

    def failing(self, method: str, path: str) -> Failure | None:
        for failure in self.failures:
            if method in failure.method.split() and re.search(failure.path, path) and failure.times != 0:
                if failure.times is not None:
                    failure.times -= 1
                return failure
        return None

    def hold(self, free: int) -> None:
        """Large files after the ``free``-th are read and not answered until ``release``."""
        self.free = free

    def release(self) -> None:
        self.free = None
        self.released.set()

    def put(self, name: str, source: Path | Files, kind: str = "model", **repo: bool) -> str:
        """Commits the files of a folder (or of a dict) as they are and returns the commit."""
        if isinstance(source, Path):
            found = (path for path in sorted(source.rglob("*")) if path.is_file())
            source = {path.relative_to(source).as_posix(): path.read_bytes() for path in found}
        return self.repos.setdefault((kind, name), Repo(**repo)).add(name, source)

    def files(self, name: str, kind: str = "model") -> Files:
        """What main holds."""
        return self.repos[kind, name].commits[-1][1]


class _Handler(Calls, BaseHTTPRequestHandler):
    """One request: who asks, may they, and the call's answer."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"
    mute = cut = False  # nothing is sent; half of it is

    def log_message(self, *_: Any) -> None:
        """Silent: pytest's output is for the tests."""

    def answer(self) -> None:
        raw = urlsplit(self.path).path
        path = unquote(raw)
        self.hub.calls.append(f"{self.command} {path}")
        self.cut, failure = False, self.hub.failing(self.command, path)
        if failure is not None and failure.half and self.command in ("PUT", "POST"):
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            return self._break()
        body = self._body()
        if failure is not None and failure.half:
            self.cut = True
        elif failure is not None:
            if failure.late:
                self.mute = True
                self._route(raw, body)
            self.mute = False
            return self._fail(failure)
        return self._route(raw, body)

    def _route(self, raw: str, body: bytes) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        self.user = self.hub.tokens.get(token)
        for method, pattern, call in ROUTES:
            found = re.fullmatch(pattern, raw)
            if self.command in method.split() and found:
                groups = {name: value and unquote(value) for name, value in found.groupdict().items()}
                return call(self, body, **groups)
        return self.refuse(404, "RepoNotFound", f"no route for {self.command} {raw}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _fail(self, failure: Failure) -> None:
        if failure.status:
            return self.refuse(failure.status, failure.code, failure.message, **failure.headers)
        return self._break()

    def _break(self) -> None:
        self.close_connection = True
        with suppress(OSError):  # who asked may be gone
            self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, content: Any = b"", status: int = 200, **headers: str) -> None:
        if self.mute:
            return None
        raw = isinstance(content, bytes)
        body = content if raw else json.dumps(content).encode()
        self.send_response(status)
        headers.setdefault("Content-Type", "application/octet-stream" if raw else "application/json")
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        self.wfile.write(body[: len(body) // 2] if self.cut else body)
        return self._break() if self.cut else None

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        named = {"X_Error_Code": code} if code else {}
        self.send({"error": message}, status, X_Error_Message=message, **named, **headers)


if __name__ == "__main__":
    with FakeHub(int(sys.argv[1]) if len(sys.argv) > 1 else 8123) as served:
        print(served.url, flush=True)
        threading.Event().wait()
