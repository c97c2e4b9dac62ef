"""Where a recipe's data is and what it looks like, before anything large is read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from smart_train.config.schema import DataBlock
from smart_train.config.typed_values import Problem
from smart_train.core.errors import DataError
from smart_train.core.hub import kind
from smart_train.data.readers import beir
from smart_train.data.readers import hub_datasets as hub
from smart_train.data.readers import mbeir as pools
from smart_train.data.tables import readable, split_of

DEV = ("dev", "validation", "valid", "val")
TEST = ("test",)


class DataProblem(DataError):
    """A DataError that knows its recipe key and the fix."""

    def __init__(self, key: str, what: str, fix: str, here: bool = False) -> None:
        self.problem = Problem(key, what, fix, here=here)
        super().__init__(f"{key}: {what}; {fix}")


@dataclass
class Source:
    """What was found at ``data.path``, before anything large is read.

    splits: name -> its files (local), a folder of save_to_disk, or None (on the Hub, or loaded by `datasets`)
    """

    kind: Literal["pydocs", "beir", "pool", "rows"]
    place: Literal["local", "hub", "folder"] = "local"
    splits: dict[str, Any] = field(default_factory=dict)


def find(data: DataBlock) -> Source:
    """Looks at the path, not at the rows; raises DataProblem where it leads nowhere."""
    path = Path(data.path)
    if data.format == "pydocs" or (data.format == "auto" and data.path == "pydocs" and not path.exists()):
        return Source("pydocs")
    if path.is_file():
        if data.format == "beir":
            raise DataProblem("data.path", f"{path} is a file, and a BEIR collection is a folder", "name its folder")
        return Source("rows", "local", {data.split: [path]})
    if path.is_dir():
        if data.format == "beir" or (data.format == "auto" and beir.is_beir(path)):
            _whole_beir(path)
            return Source("beir", "local", dict(beir.splits(path)))
        if data.format == "auto" and (queries := pools.files(path)[0]):
            return Source("pool", "local", dict(queries))
        return _row_folder(path, data)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", data.path):
        fix = "name pydocs, a file or folder that is there, or a Hub dataset (owner/name)"
        raise DataProblem("data.path", f"there is no file or folder {data.path!r} (from {Path.cwd().name}/)", fix)
    kind, names = _on_hub(data)
    return Source(kind, "hub", dict.fromkeys(names))


def _whole_beir(folder: Path) -> None:
    for name in ("corpus", "queries"):
        if not beir.part(folder, name):
            what = f"{folder} has no {name}.jsonl (nor .jsonl.gz, .parquet, or a folder {name}/ of such files)"
            raise DataProblem("data.path", what, "name a BEIR folder, or write data.format: rows")


def _row_folder(folder: Path, data: DataBlock) -> Source:
    """Saved datasets, image folders with metadata, files named by split, folders named by split, or just files."""
    if (folder / "state.json").is_file():
        return Source("rows", "local", {data.split: folder})
    saved = {f.parent.name: f.parent for f in sorted(folder.glob("*/state.json"))}
    if saved:
        return Source("rows", "local", saved)
    if any(split_of(f) == "metadata" for f in readable(folder)) or list(folder.glob("*/metadata.*")):
        return Source("rows", "folder", dict.fromkeys(hub.splits(str(folder), data.subset, None)))
    for files in (readable(folder), readable(folder / "data")):
        groups: dict[str, list[Path]] = {}
        for file in files:
            groups.setdefault(split_of(file), []).append(file)
        if groups.keys() & {"train", data.split, *DEV, *TEST}:
            return Source("rows", "local", dict(groups))
        if files:
            return Source("rows", "local", {data.split: files})
    for base in (folder / "data", folder):
        nested = {sub.name: readable(sub) for sub in sorted(base.iterdir())} if base.is_dir() else {}
        nested = {name: files for name, files in nested.items() if files}
        if nested:
            return Source("rows", "local", dict(nested))
    what = f"{folder} has no data files"
    raise DataProblem("data.path", what, "it needs .jsonl, .json, .csv, .tsv (also .gz), .parquet or .arrow files")


def _languages(configs: list[str]) -> list[str]:
    """The subsets of a retrieval set that has several."""
    return [c.removesuffix("-corpus") for c in configs if hub.is_retrieval(configs, c.removesuffix("-corpus"))]


def _on_hub(data: DataBlock) -> tuple[Literal["beir", "rows"], list[str]]:
    try:
        configs = hub.configs(data.path, data.revision)
        retrieval = hub.is_retrieval(configs, data.subset)
        if data.format == "beir" or (data.format == "auto" and retrieval):
            if not retrieval:
                what = f"{data.path} has the configurations {', '.join(configs)}, not corpus and queries"
                raise DataProblem("data.format", what, "write data.format: rows")
            return "beir", hub.splits(data.path, hub.qrels_config(configs, data.subset), data.revision)
        if data.subset is not None and data.subset not in configs:
            near = get_close_matches(data.subset, [*configs, *_languages(configs)], 1)
            what = f"{data.path} has no configuration {data.subset!r}; there is {', '.join(configs)}"
            raise DataProblem("data.subset", what, f"write data.subset: {near[0] if near else 'one of these'}")
        if data.subset is None and len(configs) > 1 and "default" not in configs:
            names = _languages(configs) or configs
            what = f"is not given, and {data.path} has several configurations: {', '.join(names)}"
            raise DataProblem("data.subset", what, "name one of them")
        return "rows", hub.splits(data.path, data.subset, data.revision)
    except hub.Unreachable as error:
        what = f"there is no folder {data.path!r} here, and as a Hub dataset it cannot be read: {error}"
        raise DataProblem(
            "data.path",
            what,
            "check the name, data.revision and the network (HF_HUB_OFFLINE)",
            here=kind(error) == "unreachable",
        ) from error
