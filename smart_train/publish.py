"""From a run to the Hub: what goes up, without this machine's paths, with a card of measured facts, as one commit.

Knows: a run's folder, huggingface_hub.  Does not know: torch, models, training.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

from smart_train import hub
from smart_train.bases import LOCAL, PACKAGE
from smart_train.card import card
from smart_train.model.files import SETTINGS, VERIFIED, digests

logger = logging.getLogger(__name__)

PEFT = "adapter_config.json"
SUFFIXES = (".safetensors", ".json", ".jinja", ".model")  # the last is SentencePiece's
NAMES = ("vocab.txt", "merges.txt")
VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")  # words, some of which look like paths
SECRET = re.compile(r"\b(hf_\w{30,}|sk-[\w-]{30,}|AKIA\w{16})\b")

Files = dict[str, Path | bytes]


class PublishError(ValueError):
    """What can't be published, or wasn't, and what to do; everything on this machine is as it was."""


def publish(
    source: str | Path, repo: str, private: bool = True, license: str | None = None, dry_run: bool = False
) -> str:
    """Uploads a run's adapter, or an adapter's folder, to the Hub in one commit and returns the repository's address.

    repo: owner/name, made if it is missing; private: it must not be public then; license: of the adapter, for the
    card; dry_run: lists what would go up, and sends nothing.
    Raises PublishError: not verified, a path or a token of this machine in a file, or what the Hub answered.
    """
    folder, run = find(Path(source))
    check_verified(folder)
    files = collect(folder, run, repo, license)
    check_private(files, folder)
    sizes = {name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        logger.info("%14s  %s", f"{size:,}", name)
    logger.info("%14s  bytes in %d files", f"{sum(sizes.values()):,}", len(files))
    if dry_run:
        from huggingface_hub import constants

        logger.info("dry run: nothing was sent")
        return f"{constants.ENDPOINT}/{repo}"
    check_access()
    address = upload(files, repo, private, folder)
    logger.info("published: %s", address)
    return address


# What goes up ---------------------------------------------------------------------------------------------------------


def find(source: Path) -> tuple[Path, Path | None]:
    """(the adapter's folder, the run's or None) of either of them."""
    if (source / "adapter" / SETTINGS).is_file():
        return source / "adapter", source
    if not (source / SETTINGS).is_file():
        raise PublishError(f"{source}: no adapter there ({SETTINGS} is missing); name a run's folder or its adapter/")
    whole = source.resolve().parent
    return source, whole if source.resolve().name == "adapter" and (whole / "recipe.yaml").is_file() else None


def check_verified(folder: Path) -> None:
    """Raises PublishError unless the weights are the ones that were reloaded and compared."""
    path = folder / VERIFIED
    if not path.is_file():
        fix = "finish the run, or call smart_train.model.folder.verify"
        raise PublishError(f"{folder} was never verified ({VERIFIED} is missing): it may not load as trained; {fix}")
    wanted = [path.relative_to(folder).as_posix() for path in _sorted_out(folder)[0]]
    then, now = _json(path).get("weights", {}), {name: one for name, one in digests(folder).items() if name in wanted}
    if then != now:
        other = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
        raise PublishError(f"{folder}: {', '.join(other)} changed after it was verified; verify it again")


def collect(folder: Path, run: Path | None, repo: str, license: str | None) -> Files:
    """Path in the repository -> file here, or content where that is not the same as here."""
    settings = _json(folder / SETTINGS)
    base = public_name(settings)
    wanted, left_out = _sorted_out(folder)
    files: Files = {path.relative_to(folder).as_posix(): path for path in wanted}
    if base != settings["base"]:
        files[SETTINGS] = _dump({**settings, "base": base, "model": {**settings["model"], "base": base}})
    if PEFT in files and not is_hub(base):
        files[PEFT] = _dump({**_json(folder / PEFT), "base_model_name_or_path": base})
    for name in ("metrics.json", "curve.png"):
        if run is not None and (run / name).is_file():
            files[name] = run / name
    if run is not None and (run / "recipe.yaml").is_file():
        files["recipe.yaml"] = recipe_without_paths(run / "recipe.yaml").encode()
    figures = {
        name: _json(run / name) for name in ("metrics.json", "evaluation.json") if run and (run / name).is_file()
    }
    settings = {**settings, "base": base, "on_hub": is_hub(base), "verified": _json(folder / VERIFIED)}
    files["README.md"] = card(repo, settings, license, figures, "curve.png" in files).encode()
    if left_out:
        logger.info("left out (neither weights as safetensors, JSON nor tokenizer): %s", ", ".join(left_out))
    if base.startswith(LOCAL) and (settings["adapter"] or {}).get("kind") != "full":
        logger.warning("the base %s is a folder of this machine: who hasn't got it can't use the adapter", base)
    return dict(sorted(files.items()))


def _sorted_out(folder: Path) -> tuple[list[Path], list[str]]:
    """(files that go up, names of those that don't): of the root and of the modules' folders, by their kind."""
    modules = folder / "modules.json"
    places = [folder, *(folder / m["path"] for m in (_json(modules) if modules.is_file() else []) if m["path"])]
    wanted: list[Path] = []
    left_out: list[Path] = []
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()):
        if path.is_symlink():
            raise PublishError(f"{path} is a link; publish a copy of what it points to (cp -rL)")
        fits = path.parent in places and (path.suffix in SUFFIXES or path.name in NAMES)
        (wanted if fits else left_out).append(path)
    return wanted, [path.relative_to(folder).as_posix() for path in left_out]


def public_name(settings: dict[str, Any]) -> str:
    """The base as others may read it: a Hub id, package:NAME/FOLDER, or local:NAME for a folder of this machine."""
    base: str = settings["base"]
    if settings["fingerprint"] is None or base.startswith((PACKAGE, LOCAL)):
        return base
    return LOCAL + Path(base).expanduser().resolve().name


def is_hub(base: str) -> bool:
    return not base.startswith((PACKAGE, LOCAL))


def recipe_without_paths(path: Path) -> str:
    """A run's recipe with every absolute path cut to its last name."""
    from smart_train.recipe import stored

    lines = path.read_text(encoding="utf8").splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("#"))
    for value in sorted(set(_paths(stored(path))), key=len, reverse=True):
        name = (LOCAL + Path(value).name).replace("\\", "")
        text, count = re.subn(rf"(?<![\w/.~-]){re.escape(value)}(?![\w/.-])", name, text)
        if not count:  # folded over two lines, or quoted with escapes
            raise PublishError(f"{path} holds the path {value}, which can't be cut there; cut it by hand")
    return f"# The run's recipe, resolved: every key as it was used; {LOCAL}NAME was a path of its machine.\n{text}"


def _paths(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict | list):
        for name, one in value.items() if isinstance(value, dict) else ((key, one) for one in value):
            yield from _paths(one, name)
    elif isinstance(value, str) and not key.endswith("_prompt") and len(Path(value).parts) > 1:
        private = Path(value).is_absolute() or value.startswith("~") or PureWindowsPath(value).is_absolute()
        yield from [value] if private else []


def check_private(files: Files, folder: Path) -> None:
    """Raises PublishError where a text file still tells a path of this machine, or a token."""
    base = _json(folder / SETTINGS)["base"]
    roots = {Path.home(), Path.cwd(), folder.resolve().parent, *([Path(base)] if Path(base).is_absolute() else [])}
    names = "|".join(re.escape(str(root)) for root in roots if len(root.parts) > 1)
    private = re.compile(rf"(?<![\w.])({names})(?=[/\\\"'\s]|$)")
    for name, file in files.items():
        if name.endswith((".safetensors", ".model", ".png")) or name.rpartition("/")[2] in VOCABULARY:
            continue
        text = (file if isinstance(file, bytes) else file.read_bytes()).decode("utf8")
        for what, pattern in (("a path of this machine", private), ("what looks like a secret token", SECRET)):
            if found := pattern.search(text):
                shown = found[0] if pattern is private else found[0][:6] + "..."
                line = text.count("\n", 0, found.start()) + 1
                raise PublishError(f"{name}, line {line}, holds {what} ({shown}); take it out, then publish again")


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf8"))


def _dump(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


# The Hub --------------------------------------------------------------------------------------------------------------


def check_access() -> None:
    """Raises PublishError where no upload can work from here; asks nothing of the network."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise PublishError("publishing needs the network, and HF_HUB_OFFLINE is set; unset it, or publish later")
    if get_token() is None:
        raise PublishError(f"publishing needs a Hub token with write access, and this machine has none; {hub.LOGIN}")


def upload(files: Files, repo: str, private: bool, folder: Path) -> str:
    """Makes the repository if need be and commits the files; what an older adapter left there is deleted."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(repo, private=private, exist_ok=True))
        info = api.model_info(repo)
        stale = check_target(repo, info, private) - files.keys()
        added = [CommitOperationAdd(name, file) for name, file in files.items()]
        deleted = [CommitOperationDelete(name) for name in sorted(stale)]
        if deleted:
            logger.info("deleted, of the adapter that was there: %s", ", ".join(sorted(stale)))
        message = "Adapter, settings and card by smart-train"
        api.create_commit(repo, [*added, *deleted], commit_message=message, parent_commit=info.sha)
    except Exception as error:
        trouble = None if isinstance(error, PublishError) else _trouble(error, repo)
        if trouble is None:
            raise
        logger.debug("%s", repo, exc_info=True)
        raise PublishError(f"{repo}: {trouble}; {folder} is as it was and can be published again") from None
    return address


def check_target(repo: str, info: Any, private: bool) -> set[str]:
    """The files of the adapter that is there; raises PublishError where it is no place for this one."""
    if private and not info.private:
        fix = "say so with --public (publish.private: false), or choose another name"
        raise PublishError(f"{repo} is there and everyone can read it; {fix}; nothing was sent")
    if info.private and not private:
        logger.info("%s is there and stays private: make it public on its page", repo)
    there = {file.rfilename for file in info.siblings or []}
    weights = [name for name in there if name.endswith(SUFFIXES)]
    if weights and SETTINGS not in there:
        raise PublishError(
            f"{repo} holds another model ({sorted(weights)[0]} ...); choose another name; nothing was sent"
        )
    names = (*NAMES, "recipe.yaml", "curve.png")
    return {name for name in there if name.endswith(SUFFIXES) or name.rpartition("/")[2] in names}


def _trouble(error: BaseException, repo: str) -> str | None:
    """What went wrong and what to do; None for an error that is none of the Hub's."""
    status, kind = hub.status(error), hub.kind(error)
    if kind == "name":
        return "this is not the form of a repository's name; write it as owner/name"
    if status == 401:
        return "the Hub does not accept your token for this (401); " + hub.READING["token"][1]
    if status == 403:
        return f"your token may not write there (403); use one with write access, or a name of your own: {hub.LOGIN}"
    if status in (409, 412):
        return f"someone else changed it meanwhile ({status}); look at it, then publish again"
    if status is not None:
        said = " ".join(str(getattr(error, "server_message", None) or "").split())
        return f"the Hub answered with status {status}{f' ({said})' if said else ''}; publish again later"
    return "the connection to the Hub failed; publish again when it is back" if kind == "unreachable" else None
