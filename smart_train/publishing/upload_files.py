"""Collect the verified files to publish, with this machine's paths replaced by names."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from smart_train.core.bounded_json import load_json
from smart_train.core.errors import PublishError
from smart_train.core.hub import LOCAL, PACKAGE, SNAPSHOT, sha256_of
from smart_train.core.secrets import Files
from smart_train.models.safe_loading import SETTINGS, VERIFIED
from smart_train.models.verification import changed_files, encoder_files

logger = logging.getLogger(__name__)

PEFT = "adapter_config.json"
FACTS = "facts.json"  # written by training.run_metadata, which imports torch
AGAIN = "finish the run, or verify the folder again (docs/publishing.md)"


def find_adapter(source: Path) -> tuple[Path, Path | None]:
    """Return (the adapter's folder, the run's folder or None) of either of them."""
    if (source / "adapter" / SETTINGS).is_file():
        return source / "adapter", source
    if not (source / SETTINGS).is_file():
        raise PublishError(f"{source}: no adapter there ({SETTINGS} is missing); name a run's folder or its adapter/")
    whole = source.resolve().parent
    return source, whole if source.resolve().name == "adapter" and (whole / "recipe.yaml").is_file() else None


def check_verified(folder: Path) -> None:
    """Raise PublishError unless every file that can change a vector is as it was when the folder was verified.

    Symbolic links are refused: they may lead out of the folder.
    """
    if not (folder / VERIFIED).is_file():
        raise PublishError(f"{folder} was never verified ({VERIFIED} is missing): it may not load as trained; {AGAIN}")
    try:
        links = [path for found in encoder_files(folder) for path in found if path.is_symlink()]
        if links:
            raise PublishError(f"{links[0]} is a link; publish a copy of what it points to (cp -rL)")
        other = changed_files(folder)
    except PublishError:
        raise
    except ValueError as error:
        raise PublishError(f"{error}; {AGAIN}") from None
    if other:
        changes = ", ".join(f"{name} ({what})" for name, what in sorted(other.items()))
        raise PublishError(f"{folder} is not what was verified: {changes}; {AGAIN}")


def collect(folder: Path, run: Path | None) -> Files:
    """Return what is published, but for the card: path in the repository -> local file, or changed content."""
    settings = read_json(folder / SETTINGS)
    base = public_name(settings)
    wanted, left_out = encoder_files(folder)
    files: Files = {path.relative_to(folder).as_posix(): path for path in wanted}
    if base != settings["base"]:
        files[SETTINGS] = _dump({**settings, "base": base, "model": {**settings["model"], "base": base}})
    if PEFT in files and not is_hub(base):
        files[PEFT] = _dump({**read_json(folder / PEFT), "base_model_name_or_path": base})
    _update_hashes(files, folder)
    for name in ("metrics.json", "curve.png"):
        if run is not None and (run / name).is_file():
            files[name] = run / name
    if run is not None and (run / "recipe.yaml").is_file():
        local = [settings["base"]] if base != settings["base"] else []
        files["recipe.yaml"] = recipe_without_paths(run, local).encode()
    if left_out:
        names = ", ".join(path.relative_to(folder).as_posix() for path in left_out)
        logger.info("not published (neither safetensors, JSON nor tokenizer files): %s", names)
    if base.startswith(LOCAL) and (settings["adapter"] or {}).get("kind") != "full":
        logger.warning("the base %s is a folder of this machine; nobody without it can use the adapter", base)
    return files


def freeze(files: Files) -> Files:
    """Read what was collected into memory, weights of more than 64 MiB excepted: what is searched and sent is what was
    verified, whatever happens on the disk meanwhile.

    Raises PublishError where a file is no longer what was verified.
    """
    verified = verified_digests(files)
    frozen: Files = {}
    for name, file in files.items():
        small = isinstance(file, bytes) or file.stat().st_size <= SNAPSHOT
        frozen[name] = content = file.read_bytes() if small and isinstance(file, Path) else file
        if isinstance(content, bytes) and verified.get(name, found := hashlib.sha256(content).hexdigest()) != found:
            raise PublishError(
                f"{name} changed after it was verified, while this was running; nothing was sent; {AGAIN}"
            )
    return frozen


def verified_digests(files: Files) -> dict[str, str]:
    """Return path -> SHA-256 of what was verified: of verified.json, and of files that it does not list as they are."""
    report = files.get(VERIFIED)
    listed = load_json(report if isinstance(report, bytes) else report.read_bytes())["files"] if report else {}
    others = {name: file for name, file in files.items() if isinstance(file, Path) and name not in listed}
    return {**listed, **{name: sha256_of(file) for name, file in others.items()}}


def _update_hashes(files: Files, folder: Path) -> None:
    """Put the hashes of changed files into verified.json, so that a download can be checked against them."""
    changed = {name: hashlib.sha256(file).hexdigest() for name, file in files.items() if isinstance(file, bytes)}
    if changed:
        report = read_json(folder / VERIFIED)
        files[VERIFIED] = _dump({**report, "files": {**report["files"], **changed}})


def public_name(settings: dict[str, Any]) -> str:
    """Return the base's name for other machines: a Hub id, package:NAME/FOLDER, or local:NAME for a local folder."""
    base: str = settings["base"]
    if settings["fingerprint"] is None or base.startswith((PACKAGE, LOCAL)):
        return base
    return LOCAL + Path(base).expanduser().resolve().name


def is_hub(base: str) -> bool:
    """Return whether a base is named by its Hub id."""
    return not base.startswith((PACKAGE, LOCAL))


def read_json(path: Path) -> Any:
    try:
        return load_json(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise PublishError(f"{path} is not JSON ({error}); it was cut short or edited; {AGAIN}") from None


def _dump(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


# A recipe without paths -----------------------------------------------------------------------------------------------


def recipe_without_paths(run: Path, local: list[str]) -> str:
    """Return a run's recipe with every local path cut to its last name.

    Local are absolute paths, those in ``local``, and relative ones that exist, such as those of the base, the data or
    the run. Sources of a folder's data are numbered: their names are its files'.
    """
    from smart_train.config.recipe import stored

    path, facts = run / "recipe.yaml", run / FACTS
    values = stored(path)
    lines = path.read_text(encoding="utf8").splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("#"))
    found = {*_paths(values), *(value for value in local if len(Path(value).parts) > 1)}
    kind = read_json(facts)["data"]["kind"] if facts.is_file() else None
    if kind == "local":
        found |= {value for value in (values["data"]["path"],) if len(Path(value).parts) > 1}
    sources = values["data"].get("source_weights") or {}
    if sources and kind != "hub":
        block = "".join(f"    {LOCAL}source-{number}: {weight}\n" for number, weight in enumerate(sources.values(), 1))
        text, count = re.subn(r"(?m)^  source_weights:\n(?: {4}.*\n)+", f"  source_weights:\n{block}", text)
        if not count:
            what = "data.source_weights with names of files, which can't be cut there"
            raise PublishError(f"{path} holds {what}; write them one a line, or cut them by hand")
    for value in sorted(found, key=len, reverse=True):
        name = (LOCAL + Path(value).name).replace("\\", "")
        text, count = re.subn(rf"(?<![\w/.~-]){re.escape(value)}(?![\w/.-])", name, text)
        if not count:  # YAML folded it over two lines, or escaped it
            raise PublishError(f"{path} holds the path {value}, which cannot be replaced there; replace it by hand")
    return f"# The run's recipe, resolved: every key as it was used; {LOCAL}NAME was a path of its machine.\n{text}"


def _paths(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict | list):
        for name, one in value.items() if isinstance(value, dict) else ((key, one) for one in value):
            yield from _paths(one, name)
    elif isinstance(value, str) and not key.endswith("_prompt") and len(Path(value).parts) > 1:
        private = Path(value).is_absolute() or value.startswith(("~", "../")) or PureWindowsPath(value).is_absolute()
        yield from [value] if private or _is_folder(value) else []


def _is_folder(value: str) -> bool:
    """Return whether a relative path is a file or folder here, and not a Hub id. (A run decides in the same way.)"""
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long for a name, or no name at all
        return False
