"""What the Hub on loopback keeps: commits, branches, tags; and what it finds fault with in a card."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import yaml

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".parquet", ".gguf", ".png")  # kept by git-lfs
LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-nc-4.0", "openrail", "other")  # a few of those it knows
Files = dict[str, bytes]


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pointer(content: bytes) -> bytes:
    """What git itself keeps of a large file."""
    return f"version 1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()


@dataclass
class Repo:
    """commits: of main, oldest first, each (sha, path -> content); branches: the same of others; tags: name -> sha"""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, Files]] = field(default_factory=list)
    branches: dict[str, list[tuple[str, Files]]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def branch(self, revision: str) -> list[tuple[str, Files]] | None:
        return self.commits if revision == "main" else self.branches.get(revision)

    def add(self, name: str, files: Files, branch: str = "main") -> str:
        commits = self.branch(branch)
        assert commits is not None
        content = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())
        made = sum(map(len, [self.commits, *self.branches.values()]))
        sha = hashlib.sha1(repr((name, made, content)).encode()).hexdigest()
        commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, Files] | None:
        """The last commit of a branch, the commit of a tag, or a commit itself."""
        commits = self.branch(revision)
        if commits:
            return commits[-1]
        wanted = self.tags.get(revision, revision)
        every = [commit for line in (self.commits, *self.branches.values()) for commit in line]
        return next((commit for commit in every if commit[0] == wanted), None)

    def listing(self, files: Files, blobs: bool) -> list[dict]:
        """As a model's information has its files; blobs: with sizes and hashes."""
        found: list[dict] = []
        for path, content in sorted(files.items()):
            entry: dict = {"rfilename": path}
            if blobs:
                large = path.endswith(LARGE)
                entry |= {"size": len(content), "blobId": git_oid(pointer(content) if large else content)}
                if large:
                    size = len(pointer(content))
                    entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": size}
            found.append(entry)
        return found


def faults(card: str) -> list[str]:
    """What the Hub would refuse in the front matter of a README."""
    parts = card.split("---\n")
    if not card.startswith("---\n") or len(parts) < 3:
        return []
    try:
        about = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(about, dict):
        return ["the metadata are no mapping"]
    found = []
    licence = about.get("license")
    if licence is not None and licence not in LICENCES:
        found.append(f'"license" must be one of {", ".join(LICENCES)}')
    for name in ("tags", "datasets"):
        if name in about and not all(isinstance(one, str) for one in about[name]):
            found.append(f'"{name}" must be a list of texts')
    for name in ("pipeline_tag", "library_name", "base_model_relation", "base_model"):
        if name in about and not isinstance(about[name], str):
            found.append(f'"{name}" must be a text')
    if about.get("base_model_relation", "adapter") not in ("adapter", "finetune", "merge", "quantized"):
        found.append('"base_model_relation" is unknown')
    for model in about.get("model-index", []):
        for result in model.get("results", []):
            wanted = [result.get("task", {}).get("type"), *map(result.get("dataset", {}).get, ("type", "name"))]
            if not model.get("name") or not all(isinstance(one, str) for one in wanted):
                found.append('"model-index" needs a name, task.type, dataset.type and dataset.name')
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    found.append('"model-index" needs metrics with type and value')
    return found
