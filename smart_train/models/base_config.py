"""Read the sizes of a base from its configuration files, before any weight is loaded: layers, widths, limits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_train.core.errors import BaseNotFound, Message, Setting
from smart_train.core.hub import explain, hub_id, resolve_base

OFFSET = ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "roberta-prelayernorm")


@dataclass(frozen=True)
class BaseConfig:
    """Sizes of a base.

    layers: transformer blocks of the language model
    hidden: width H of its states
    pooled: width D of the pooled vector
    positions: longest input in tokens, None where there is no fixed limit
    vision: has an image side
    pooling: modes of its Pooling module; none where it has modules and no Pooling among them
    projected: a Dense module stands behind the pooling
    """

    layers: int
    hidden: int
    pooled: int
    positions: int | None
    vision: bool
    pooling: tuple[str, ...] = ("mean",)
    projected: bool = False


def read_base(
    base: str, revision: str | None = None, trust_remote_code: bool = False, pooling: str | None = None
) -> BaseConfig:
    """Read the sizes of ``base`` (as ``resolve_base`` takes it) from its configuration files alone.

    pooling: the mode that replaces the base's own
    Raises BaseNotFound, saying what to do: nothing there, no network, a gated repository, code that must be trusted,
    a kind of model that has no transformer blocks.
    """
    from smart_train.models.safe_loading import check_base_folder  # it imports torch

    fetch = BaseFiles.of(base, revision)
    check_no_adapter(fetch.place)
    if fetch.local:
        check_base_folder(Path(fetch.place), trust_remote_code)
    config = fetch.config(base, trust_remote_code)
    text = config.get_text_config()
    layers, hidden = getattr(text, "num_hidden_layers", None), getattr(text, "hidden_size", None)
    if not isinstance(layers, int) or not isinstance(hidden, int):
        what = f"{base}: a model of type {config.model_type!r} has no num_hidden_layers and hidden_size"
        raise BaseNotFound(what, "choose a transformer embedder")
    positions = getattr(text, "max_position_embeddings", None)
    if isinstance(positions, int) and text.model_type in OFFSET:
        positions -= (text.pad_token_id or 0) + 1  # these count positions from behind the padding token's id
    vision = getattr(config, "vision_config", None) is not None
    own, width, projected = _pooled(fetch, hidden, pooling)
    return BaseConfig(layers, hidden, width, positions if isinstance(positions, int) else None, vision, own, projected)


class BaseFiles:
    """JSON files of a local folder or a Hub repository."""

    def __init__(self, place: str, revision: str | None) -> None:
        self.place, self.revision, self.local = place, revision, Path(place).is_dir()

    @classmethod
    def of(cls, base: str, revision: str | None = None) -> BaseFiles:
        """Return the files of a base, named as ``resolve_base`` takes it.  Raises BaseNotFound."""
        place = resolve_base(base)
        return cls(hub_id(place) or place, revision)

    def config(self, base: str, trust_remote_code: bool = False) -> Any:
        """Return transformers' configuration.

        base: what a BaseNotFound names; raised where there is none, or where it cannot be read
        """
        from transformers import AutoConfig

        check_no_adapter(self.place)
        subfolder = ""
        if self.local and not (Path(self.place) / "config.json").is_file():
            # Older sentence-transformers folders keep the transformer in a folder of its own.
            modules = self.modules()
            subfolder = modules[0]["path"] if modules else ""
            if not (Path(self.place) / subfolder / "config.json").is_file():
                raise BaseNotFound(f"{base}: the folder has no config.json", "name the folder of a saved model")
        try:
            return AutoConfig.from_pretrained(
                self.place, revision=self.revision, trust_remote_code=trust_remote_code, subfolder=subfolder
            )
        except (OSError, ValueError, KeyError) as error:
            what, fix = _explain(error)
            raise BaseNotFound((f"{base}: ", what), fix) from error

    def json(self, name: str) -> Any | None:
        """Return the parsed file; None where there is none."""
        from transformers.utils import cached_file

        if self.local:
            path = Path(self.place) / name
            return json.loads(path.read_text(encoding="utf8")) if path.is_file() else None
        found = cached_file(
            self.place, name, revision=self.revision, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        return json.loads(Path(found).read_text(encoding="utf8")) if found else None

    def modules(self) -> list[dict[str, str]]:
        """Return sentence-transformers' list of modules, empty for a plain transformers model."""
        return self.json("modules.json") or []


def check_no_adapter(place: str, trains: bool = True) -> None:
    """Raise BaseNotFound where a folder named as a base holds an adapter: say of which base, and what to do.

    trains: False where nothing is trained on it; sentence-transformers then reads a foreign LoRA folder whole.
    A folder that this package wrote is refused all the same: as a base, its head and settings would be left out.
    """
    folder = Path(place)
    own, peft = folder / "smart_train.json", folder / "adapter_config.json"
    if not folder.is_dir() or (folder / "config.json").is_file() or not (own.is_file() or peft.is_file()):
        return
    if not own.is_file() and not trains:
        return
    path, key = (own, "base") if own.is_file() else (peft, "base_model_name_or_path")
    try:
        base = json.loads(path.read_text(encoding="utf8"))[key]
    except (ValueError, KeyError, TypeError):
        base = f"a base that {path.name} does not name"
    merge: Message = f"; to go on from it, make a base of it first: smart-train export {place} --as merged --out NEW"
    if not own.is_file():
        merge = "; to go on from it, merge it into its base with peft first"
    fix = ("write ", Setting("model.base", base), merge)
    raise BaseNotFound(f"{place}: the folder holds an adapter of {base}, not a base", fix)


def _explain(error: BaseException) -> tuple[Message, Message]:
    """Return what is wrong and what to do: with the Hub, else with the configuration."""
    found = explain(error)
    if found is not None:
        return found
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        what = "its repository brings model code of its own"
        return what, ("read it, then ", Setting("model.trust_remote_code", True))
    return f"its configuration cannot be read: {text}", ("correct ", Setting("model.base"), ", or update transformers")


def _pooled(fetch: BaseFiles, hidden: int, pooling: str | None) -> tuple[tuple[str, ...], int, bool]:
    """(own modes of the Pooling module, width of the pooled vector, whether a Dense module stands behind it).

    The width is that of the last module that sets one, else the hidden size.
    """
    modules = fetch.modules()
    modes: tuple[str, ...] = () if modules else ("mean",)  # without modules.json sentence-transformers takes the mean
    width, projected = hidden, False
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind not in ("Pooling", "Dense"):
            continue
        config = fetch.json(f"{module['path']}/config.json") or {}
        if kind == "Dense":
            width, projected = config.get("out_features", width), bool(modes)
        else:
            named = config.get("pooling_mode", "mean")
            old = [name for name, on in config.items() if name.startswith("pooling_mode_") and on]
            modes = tuple(old) or (tuple(named) if isinstance(named, list) else (named,))
            count = len(modes) if pooling is None else 1
            width = count * config.get("embedding_dimension", config.get("word_embedding_dimension", width))
    return modes, width, projected
