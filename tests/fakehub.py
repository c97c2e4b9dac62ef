"""A Hub on loopback: repositories with commits, private and gated ones, tokens, uploads, and failures on demand.

Knows: the calls that huggingface_hub makes to create, upload, list and download.  Does not know: smart_train.

    with FakeHub() as hub:
        commit = hub.put("me/base", folder)
        subprocess.run(..., env=hub.environment(tmp_path))     # the client reads its settings when it is imported

By hand: python tests/fakehub.py [PORT]
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_me"
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".gguf", ".png")
Files = dict[str, bytes]


@dataclass
class Repo:
    """The commits of a repository, oldest first; the last one is main."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, Files]] = field(default_factory=list)

    def add(self, name: str, files: Files) -> str:
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())
        sha = hashlib.sha1(repr((name, len(self.commits), content)).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, Files] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class Failure:
    """Calls by one of these methods to a path that matches get ``status``; 0 breaks the connection instead."""

    method: str
    path: str
    status: int
    message: str


class FakeHub:
    """``calls`` lists "METHOD /path" as they came in; ``repos`` holds (kind, "owner/name") -> Repo."""

    def __init__(self, port: int = 0) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: Files = {}
        self.calls: list[str] = []
        self.failures: list[Failure] = []
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

    def fail(self, method: str, path: str, status: int, message: str = "failed as it was told to") -> None:
        self.failures.append(Failure(method, path, status, message))

    def put(self, name: str, source: Path | Files, kind: str = "model", **repo: bool) -> str:
        """Commits the files of a folder (or of a dict) as they are and returns the commit."""
        if isinstance(source, Path):
            found = (path for path in sorted(source.rglob("*")) if path.is_file())
            source = {path.relative_to(source).as_posix(): path.read_bytes() for path in found}
        return self.repos.setdefault((kind, name), Repo(**repo)).add(name, source)

    def files(self, name: str, kind: str = "model") -> Files:
        """What main holds."""
        return self.repos[kind, name].commits[-1][1]


class _Handler(BaseHTTPRequestHandler):
    """One request: who asks, may they, and the call's answer."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silent: pytest's output is for the tests."""

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.hub.calls.append(f"{self.command} {path}")
        for failure in self.hub.failures:
            if self.command in failure.method.split() and re.search(failure.path, path):
                return self._fail(failure)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        self.user = self.hub.tokens.get(token)
        for method, pattern, call in ROUTES:
            found = re.fullmatch(pattern, path)
            if self.command in method.split() and found:
                return call(self, body, **found.groupdict())
        return self.refuse(404, "RepoNotFound", f"no route for {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _fail(self, failure: Failure) -> None:
        if failure.status:
            return self.refuse(failure.status, "", failure.message)
        self.close_connection = True
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
        raw = isinstance(content, bytes)
        body = content if raw else json.dumps(content).encode()
        self.send_response(status)
        headers.setdefault("Content-Type", "application/octet-stream" if raw else "application/json")
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str, **headers: str) -> None:
        named = {"X_Error_Code": code} if code else {}
        self.send({"error": message}, status, X_Error_Message=message, **named, **headers)

    def repo(self, kind: str, name: str, revision: str | None = None) -> tuple[Repo, str, Files] | None:
        """The repository at a revision; None, and the refusal sent, where there is none for this user."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and self.user != name.split("/")[0]):
            # As the Hub does: who is not logged in is not told whether it exists.
            self.refuse(404 if self.user else 401, "RepoNotFound", "Repository not found")
            return None
        found = repo.at(revision or "main")
        if found is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, *found

    # -- calls

    def fail(self, body: bytes) -> None:
        """No call of the Hub's: lets a child process say what fails from now on."""
        self.hub.fail(**json.loads(body))
        self.send()

    def whoami(self, _body: bytes) -> None:
        if self.user is None:
            return self.refuse(401, "", "Invalid username or password.")
        self.send({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate(self, _body: bytes) -> None:
        self.send({"errors": [], "warnings": []})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        kind, owner = asked.get("type") or "model", asked.get("organization") or self.user
        name = f"{owner}/{asked['name']}"
        if self.user is None:
            return self.refuse(401, "", "Invalid username or password.")
        if self.user != owner:
            return self.refuse(403, "", f"You don't have the rights to create a model under the namespace {owner}")
        url = f"{self.hub.url}/{name}" if kind == "model" else f"{self.hub.url}/{kind}s/{name}"
        if (kind, name) in self.hub.repos:
            return self.send({"error": f"You already created this {kind} repo", "url": url}, 409)
        self.hub.put(name, {".gitattributes": b""}, kind, private=asked.get("visibility") == "private")
        self.send({"url": url, "name": name, "id": name})

    def info(self, _body: bytes, kind: str, name: str, revision: str | None = None) -> None:
        if found := self.repo(kind, name, revision):
            repo, sha, files = found
            siblings = [{"rfilename": path} for path in sorted(files)]
            gated = "auto" if repo.gated else False
            self.send({"id": name, "sha": sha, "private": repo.private, "gated": gated, "siblings": siblings})

    def tree(self, _body: bytes, kind: str, name: str, revision: str, under: str | None = None) -> None:
        if found := self.repo(kind, name, revision):
            files = {p: c for p, c in found[2].items() if under is None or p.startswith(f"{under}/")}
            if not files:
                return self.refuse(404, "EntryNotFound", f"{under} does not exist on {revision}")
            entries = [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in sorted(files.items())]
            if "recursive=true" not in urlsplit(self.path).query.lower():  # only what lies directly there
                start = len(under) + 1 if under else 0
                entries = [entry for entry in entries if "/" not in str(entry["path"])[start:]]
                folders = {p[: p.index("/", start)] for p in files if "/" in p[start:]}
                entries += [
                    {"type": "directory", "path": p, "size": 0, "oid": _oid(p.encode())} for p in sorted(folders)
                ]
            self.send(entries)
        return None

    def refs(self, _body: bytes, kind: str, name: str) -> None:
        if found := self.repo(kind, name):
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": found[1]}
            self.send({"branches": [main], "tags": [], "converts": []})

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if self.repo(kind, name, revision):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [(path, "lfs" if path.endswith(LARGE) else "regular") for path in paths]
            self.send({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False, "oid": None} for p, m in modes]})

    def batch(self, body: bytes, name: str) -> None:
        objects = [{"oid": asked["oid"], "size": asked["size"]} for asked in json.loads(body)["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self.hub.blobs:
                wanted["actions"] = {"upload": {"href": f"{self.hub.url}/_lfs/{wanted['oid']}", "header": {}}}
        self.send({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def blob(self, body: bytes, oid: str) -> None:
        self.hub.blobs[oid] = body
        self.send()

    def commit(self, body: bytes, kind: str, name: str, revision: str) -> None:
        found = self.repo(kind, name, revision)
        if found is None:
            return None
        if self.user != name.split("/")[0]:
            return self.refuse(403, "", "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        repo, head, files = found
        files = dict(files)
        for line in filter(str.strip, body.decode().splitlines()):
            key, value = (part := json.loads(line))["key"], part["value"]
            if key == "header" and value.get("parentCommit") not in (None, head):
                return self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repo.add(name, files)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        return self.send({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, _body: bytes, name: str, revision: str, path: str, kinds: str | None = None) -> None:
        found = self.repo(kinds[:-1] if kinds else "model", name, revision)
        if found is None:
            return None
        repo, sha, files = found
        if repo.gated and self.user != name.split("/")[0]:
            message = f"Access to model {name} is restricted and you are not in the authorized list."
            return self.refuse(403 if self.user else 401, "GatedRepo", message)
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=sha)
        return self.send(files[path], X_Repo_Commit=sha, ETag=f'"{_oid(files[path])}"', Accept_Ranges="bytes")


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


NAME = r"(?P<name>[^/]+/[^/]+)"
REPO = rf"/api/(?P<kind>model|dataset)s/{NAME}"
AT = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/_fail", _Handler.fail),
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", REPO, _Handler.info),
    ("GET", rf"{REPO}/revision/{AT}", _Handler.info),
    ("GET", rf"{REPO}/tree/{AT}(?:/(?P<under>.+))?", _Handler.tree),
    ("GET", rf"{REPO}/refs", _Handler.refs),
    ("POST", rf"{REPO}/preupload/{AT}", _Handler.preupload),
    ("POST", rf"{REPO}/commit/{AT}", _Handler.commit),
    ("POST", rf"/(?:datasets/)?{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/_lfs/(?P<oid>\w+)", _Handler.blob),
    ("GET HEAD", rf"/(?:(?P<kinds>datasets)/)?{NAME}/resolve/{AT}/(?P<path>.+)", _Handler.resolve),
]


if __name__ == "__main__":
    with FakeHub(int(sys.argv[1]) if len(sys.argv) > 1 else 8123) as served:
        print(served.url, flush=True)
        threading.Event().wait()
