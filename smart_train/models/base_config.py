"""Read the sizes of a base from its configuration files, before any weight is loaded: layers, widths, limits."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smart_train.core.bounded_json import load_json
from smart_train.core.errors import BaseNotFound, Message, Setting, border
from smart_train.core.hub import check_answers, explain, hub_errors, hub_id, resolve_base

SETTINGS, PEFT = "smart_train.json", "adapter_config.json"  # safe_loading has these too, and imports torch
# Encoder-decoders of which sentence-transformers loads the encoder alone.
ENCODER_PARTS = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "udop")
MODEL_TYPE = "SentenceTransformer"
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
    language_model: a model that writes text, without sentence-transformers' modules: it was never an embedder
    """

    layers: int
    hidden: int
    pooled: int
    positions: int | None
    vision: bool
    pooling: tuple[str, ...] = ("mean",)
    projected: bool = False
    language_model: bool = False


def read_base(
    base: str, revision: str | None = None, trust_remote_code: bool = False, pooling: str | None = None
) -> BaseConfig:
    """Read the sizes of ``base`` (as ``resolve_base`` takes it) from its configuration files alone.

    pooling: the mode that replaces the base's own
    Raises BaseNotFound, saying what to do: nothing there, no network, a gated repository, code that must be trusted,
    a kind of model that has no transformer blocks.
    """
    with readable(base):
        return _read_base(base, revision, trust_remote_code, pooling)


def readable(base: str) -> AbstractContextManager[None]:
    """Have whatever is raised within the block about the contents of a base's files be a BaseNotFound."""
    fix = "download or copy it again, or name another base"
    return border(base, "its files are not those of an embedding model", lambda what: BaseNotFound(what, fix))


def _read_base(base: str, revision: str | None, trust_remote_code: bool, pooling: str | None) -> BaseConfig:
    from smart_train.models.safe_loading import check_base_folder  # it imports torch

    fetch = BaseFiles.of(base, revision)
    with hub_errors(base, revision):
        check_no_adapter(fetch)
    if fetch.local:
        check_base_folder(Path(fetch.place), trust_remote_code)
    check_modules(fetch, base)
    config = fetch.config(base, trust_remote_code)
    if config.model_type not in ENCODER_PARTS:
        check_one_stack(config, base)
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
    limit = positions if isinstance(positions, int) else None
    return BaseConfig(layers, hidden, width, limit, vision, own, projected, is_language_model(fetch, config))


def is_language_model(files: BaseFiles, config: Any) -> bool:
    """Return whether a base writes text and names no modules, so that it would be pooled by the mean.

    config: its transformers configuration
    """
    named = getattr(config, "architectures", None) or []
    writes = any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in named)
    return writes and config.model_type not in ENCODER_PARTS and not files.modules()


def language_model_advice(base: str) -> str:
    """Return what to do with a base that is a language model."""
    return (
        f"{base} is a language model that was never an embedder, and is pooled by the mean of its states, of which "
        f"only the last has seen the whole input; make an embedder of it with smart-train last-token-base {base} "
        "--output models/NAME and train on models/NAME (recipe visdoc_hybrid for pages, text_lora for texts), or write "
        "model.pooling: lasttoken"
    )


class BaseFiles:
    """JSON files of a local folder or a Hub repository."""

    def __init__(self, place: str, revision: str | None) -> None:
        self.place, self.revision, self.local = place, revision, Path(place).is_dir()
        if not self.local:
            with hub_errors(place, revision):
                check_answers()

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

        check_no_adapter(self)
        subfolder = self.transformer()
        if self.local and not (Path(self.place) / subfolder / "config.json").is_file():
            where = f"the folder {subfolder}" if subfolder else "the folder"
            raise BaseNotFound(f"{base}: {where} has no config.json", "name the folder of a saved model")
        try:
            return AutoConfig.from_pretrained(
                self.place, revision=self.revision, trust_remote_code=trust_remote_code, subfolder=subfolder
            )
        except Exception as error:  # transformers' checks of single values raise errors of their own
            what, fix = _explain(error)
            raise BaseNotFound((f"{base}: ", what), fix) from error

    def path(self, name: str) -> Path | None:
        """Return where a file lies on this machine, downloaded if need be; None where there is none."""
        from transformers.utils import cached_file

        if self.local:
            path = Path(self.place) / name
            return path if path.is_file() else None
        try:
            found = cached_file(
                self.place, name, revision=self.revision, _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )  # fmt: skip
        except (OSError, ValueError) as error:  # a file of another size than the Hub announced, for one
            what, fix = _explain(error)
            raise BaseNotFound((f"{self.place}: {name}: ", what), fix) from error
        return Path(found) if found else None

    def json(self, name: str) -> Any | None:
        """Return the parsed file; None where there is none.  Raises BaseNotFound where it is not JSON."""
        path = self.path(name)
        if path is None or not path.is_file():
            return None
        try:
            return load_json(path.read_text(encoding="utf8"))
        except ValueError as error:
            raise BaseNotFound(f"{path}: not JSON ({error})", "download or copy it again") from None

    def modules(self) -> list[dict[str, str]]:
        """Return sentence-transformers' list of modules, empty for a plain transformers model."""
        return self.json("modules.json") or []

    def transformer(self) -> str:
        """Return the folder of the transformer's own files below ``place``; "" = that itself.

        sentence-transformers before 2021 kept them in one of their own, 0_Transformer, and modules.json names it.
        """
        modules = self.modules()
        first = modules[0] if isinstance(modules, list) and modules else None
        return str(first.get("path") or "") if isinstance(first, dict) else ""

    def transformer_json(self, name: str) -> Any | None:
        """Return a parsed file of the transformer, as ``json`` does."""
        inner = self.transformer()
        return self.json(f"{inner}/{name}" if inner else name)


def named_by_peft(files: BaseFiles, base: str) -> str:
    """Return what adapter_config.json names as the base of a LoRA: the folder of the transformer's files, or a Hub id.

    Raises BaseNotFound where peft, which knows no folder inside of a repository, could name none.
    """
    inner = files.transformer()
    if not inner:
        return files.place
    if files.local and "/" not in inner:
        return str(Path(files.place) / inner)
    what = f"{base}: its transformer lies in the folder {inner}, which no LoRA adapter can name as its base"
    download = f"load and save it with sentence-transformers (SentenceTransformer({base!r}).save(NEW)), "
    name = ("then ", Setting("model.base", "NEW"), ", or ", Setting("adapter.kind", "full"))
    raise BaseNotFound(what, (download, *name))


def check_no_adapter(files: BaseFiles, trains: bool = True) -> None:
    """Raise BaseNotFound where what is named as a base holds an adapter: say of which base, and what to do.

    trains: False where nothing is trained on it; sentence-transformers then reads a foreign LoRA folder whole.
    What this package wrote is refused all the same: as a base, its head and settings would be left out.
    """
    if files.path("config.json") is not None:
        return
    own = files.path(SETTINGS)
    if own is None and not (trains and files.path(PEFT) is not None):
        return
    name, key = (SETTINGS, "base") if own else (PEFT, "base_model_name_or_path")
    try:
        base = files.json(name)[key]  # type: ignore[index]
    except (ValueError, KeyError, TypeError):
        base = f"a base that {name} does not name"
    place, kind = files.place, "folder" if files.local else "repository"
    merge: Message = f"; to go on from it, make a base of it first: smart-train export {place} --as merged --output NEW"
    if not own:
        merge = "; to go on from it, merge it into its base with peft first"
    fix = (Setting("model.base", base), merge)
    raise BaseNotFound(f"{place}: the {kind} holds an adapter of {base}, not a base", fix)


def check_one_stack(config: Any, base: str) -> None:
    """Raise BaseNotFound for an encoder-decoder that is run whole: its last states are the decoder's, the other layers
    the encoder's, and LoRA would be in the encoder alone."""
    if getattr(config, "is_encoder_decoder", False):
        raise BaseNotFound(
            f"{base}: a model of type {config.model_type!r} is an encoder and a decoder, run whole", CHOOSE
        )


# Modules of sentence-transformers that an encoder takes, and why it takes no others.
TAKEN = ("Transformer", "Pooling", "Dense", "Normalize", "LayerNorm", "Dropout")
_NO_STATES = "it is no transformer and gives no hidden states of tokens"
_CHANGES = "it changes the hidden states behind the transformer, which token vectors are read from"
_ROUTES = "it sends queries and documents through different modules, and an adapter has one"
_SPARSE = "it belongs to a SparseEncoder, which has no pooled vector"
_MULTI = "it belongs to a MultiVectorEncoder, which has no pooled vector"
REFUSED_MODULES = {
    **dict.fromkeys(("BoW", "WordEmbeddings", "StaticEmbedding", "CLIPModel"), _NO_STATES),
    **dict.fromkeys(("WordWeights", "WeightedLayerPooling", "CNN", "LSTM"), _CHANGES),
    **dict.fromkeys(("Router", "Asym"), _ROUTES),
    **dict.fromkeys(("MLMTransformer", "SpladePooling", "SparseAutoEncoder", "SparseStaticEmbedding"), _SPARSE),
    **dict.fromkeys(("MultiVectorMask", "HierarchicalTokenPooling", "LambdaTokenPooling"), _MULTI),
    "LogitScore": "it belongs to a CrossEncoder, which scores pairs of texts",
}
OURS = "sentence_transformers."
CHOOSE = "choose a transformer embedder"


def check_modules(files: BaseFiles, base: str) -> None:
    """Raise BaseNotFound, naming the module, where a base has one that an encoder cannot train, read or save; before
    any weight is loaded.  A class from elsewhere is left to ``check_base_folder``, and to who trusts its code.
    """
    modules = files.modules()
    listed = isinstance(modules, list) and all(
        isinstance(one, dict) and {"type", "path"} <= one.keys() for one in modules
    )
    if not listed:
        return  # check_base_folder says so, with the file
    for place, module in enumerate(modules):
        kind = str(module["type"])
        if not kind.startswith(OURS):
            continue
        name = kind.rpartition(".")[2]
        why = REFUSED_MODULES.get(name, "this version does not know it") if name not in TAKEN else None
        if why is None and place == 0 and name != "Transformer":
            why = _NO_STATES
        if why is None and place > 0:
            config = files.json(f"{module['path']}/config.json" if module["path"] else "config.json")
            config = config if isinstance(config, dict) else {}
            if "token_embeddings" in (config.get("module_input_name"), config.get("module_output_name")):
                why = _CHANGES
        if why is not None:
            raise BaseNotFound(f"{base}: its module {place} is {name}; {why}", CHOOSE)
    kind = (files.json("config_sentence_transformers.json") or {}).get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise BaseNotFound(f"{base} is a {kind}, which gives no pooled vector of a text", CHOOSE)


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
