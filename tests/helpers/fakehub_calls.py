"""The calls that huggingface_hub makes to create, upload, list and download, as the Hub answers them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from fakehub_repo import LARGE, Files, Repo, faults, git_oid, sha256


class Calls:
    """What a handler of requests answers; ``user`` is who asks, None where nobody logged in does."""

    hub: Any
    user: str | None
    path: str
    headers: Any
    send: Callable[..., None]
    refuse: Callable[..., None]
    _break: Callable[[], None]

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

    def fail(self, body: bytes) -> None:
        """No call of the Hub's: lets a child process say what fails from now on; nothing = nothing fails any more."""
        if body:
            self.hub.fail(**json.loads(body))
        else:
            self.hub.failures.clear()
        self.send()

    def whoami(self, _body: bytes) -> None:
        if self.user is None:
            return self.refuse(401, "", "Invalid username or password.")
        self.send({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def validate(self, body: bytes) -> None:
        found = [{"message": fault} for fault in faults(json.loads(body)["content"])]
        self.send({"errors": found, "warnings": []}, 400 if found else 200)

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
            siblings = repo.listing(files, "blobs=true" in urlsplit(self.path).query.lower())
            gated = "auto" if repo.gated else False
            self.send({"id": name, "sha": sha, "private": repo.private, "gated": gated, "siblings": siblings})

    def tree(self, _body: bytes, kind: str, name: str, revision: str, under: str | None = None) -> None:
        if found := self.repo(kind, name, revision):
            files = {p: c for p, c in found[2].items() if under is None or p.startswith(f"{under}/")}
            if not files:
                return self.refuse(404, "EntryNotFound", f"{under} does not exist on {revision}")
            entries = [{"type": "file", "path": p, "size": len(c), "oid": git_oid(c)} for p, c in sorted(files.items())]
            if "recursive=true" not in urlsplit(self.path).query.lower():  # only what lies directly there
                start = len(under) + 1 if under else 0
                entries = [entry for entry in entries if "/" not in str(entry["path"])[start:]]
                folders = {p[: p.index("/", start)] for p in files if "/" in p[start:]}
                entries += [
                    {"type": "directory", "path": p, "size": 0, "oid": git_oid(p.encode())} for p in sorted(folders)
                ]
            self.send(entries)
        return None

    def refs(self, _body: bytes, kind: str, name: str) -> None:
        if found := self.repo(kind, name):
            repo = found[0]
            heads = {"main": repo.commits, **repo.branches}
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c[-1][0]} for n, c in heads.items()]
            tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": sha} for n, sha in repo.tags.items()]
            self.send({"branches": branches, "tags": tags, "converts": []})

    def branch(self, body: bytes, kind: str, name: str, branch: str) -> None:
        found = self.repo(kind, name, json.loads(body or b"{}").get("startingPoint"))
        if found is None or not self._may_write(name):
            return None
        repo, sha, files = found
        if repo.branch(branch) is not None:
            return self.refuse(409, "", "Reference already exists")
        repo.branches[branch] = [(sha, files)]
        return self.send({})

    def tag(self, body: bytes, kind: str, name: str, revision: str) -> None:
        found = self.repo(kind, name, revision)
        if found is None or not self._may_write(name):
            return None
        tag = json.loads(body)["tag"]
        if tag in found[0].tags:
            return self.refuse(409, "", "Tag reference exists already")
        found[0].tags[tag] = found[1]
        return self.send({})

    def _may_write(self, name: str) -> bool:
        if self.user != name.split("/")[0]:
            self.refuse(403, "", "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
            return False
        return True

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if found := self.repo(kind, name, revision):
            answers = []
            for path in (file["path"] for file in json.loads(body)["files"]):
                large, content = path.endswith(LARGE), found[2].get(path)
                oid = None if content is None else sha256(content) if large else git_oid(content)
                mode = "lfs" if large else "regular"
                answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.send({"files": answers})

    def batch(self, body: bytes, name: str) -> None:
        objects = [{"oid": asked["oid"], "size": asked["size"]} for asked in json.loads(body)["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self.hub.blobs:
                wanted["actions"] = {"upload": {"href": f"{self.hub.url}/_lfs/{wanted['oid']}", "header": {}}}
        self.send({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def blob(self, body: bytes, oid: str) -> None:
        if sha256(body) != oid:
            return self.refuse(400, "", f"what was sent is not {oid}")
        if self.hub.free is not None:
            if self.hub.free == 0:
                self.hub.released.wait(60)
                return self._break()
            self.hub.free -= 1
        self.hub.blobs[oid] = body
        self.hub.stored[oid] += 1
        return self.send()

    def commit(self, body: bytes, kind: str, name: str, revision: str) -> None:
        found = self.repo(kind, name, revision)
        if found is None:
            return None
        if not self._may_write(name):
            return None
        repo, head, files = found
        if repo.branch(revision) is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files, summary = dict(files), ""
        for line in filter(str.strip, body.decode().splitlines()):
            key, value = (part := json.loads(line))["key"], part["value"]
            summary = value["summary"] if key == "header" else summary
            if key == "header" and value.get("parentCommit") not in (None, head):
                return self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = repo.add(name, files, revision)
        self.hub.messages[sha] = summary
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
        content, headers = files[path], {"X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        headers["ETag"] = f'"{git_oid(content)}"'
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start is None:
            return self.send(content, **headers)
        headers["Content_Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
        return self.send(content[int(start[1]) :], 206, **headers)


NAME = r"(?P<name>[^/]+/[^/]+)"
REPO = rf"/api/(?P<kind>model|dataset)s/{NAME}"
AT = r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/_fail", Calls.fail),
    ("GET", "/api/whoami-v2", Calls.whoami),
    ("POST", "/api/validate-yaml", Calls.validate),
    ("POST", "/api/repos/create", Calls.create),
    ("GET", REPO, Calls.info),
    ("GET", rf"{REPO}/revision/{AT}", Calls.info),
    ("GET", rf"{REPO}/tree/{AT}(?:/(?P<under>.+))?", Calls.tree),
    ("GET", rf"{REPO}/refs", Calls.refs),
    ("POST", rf"{REPO}/branch/(?P<branch>[^/]+)", Calls.branch),
    ("POST", rf"{REPO}/tag/{AT}", Calls.tag),
    ("POST", rf"{REPO}/preupload/{AT}", Calls.preupload),
    ("POST", rf"{REPO}/commit/{AT}", Calls.commit),
    ("POST", rf"/(?:datasets/)?{NAME}\.git/info/lfs/objects/batch", Calls.batch),
    ("PUT", r"/_lfs/(?P<oid>\w+)", Calls.blob),
    ("GET HEAD", rf"/(?:(?P<kinds>datasets)/)?{NAME}/resolve/{AT}/(?P<path>.+)", Calls.resolve),
]
