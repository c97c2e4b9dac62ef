"""Options that several commands share, their checks, and the encoder that they make."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from smart_train.core.errors import Setting, UsageError
from smart_train.core.output_check import output_problem

if TYPE_CHECKING:
    from smart_train.config.schema import DataBlock, Recipe
    from smart_train.data.collection import Document
    from smart_train.models.base_config import BaseConfig
    from smart_train.models.encoder import SmartEncoder

# Keys of the model block that an adapter brings along, each the name of a flag of ``evaluate`` too.
STORED = ("revision", "query_tokens", "document_tokens", "query_prompt", "document_prompt", "max_pixels")
DTYPES = ("auto", "float32", "bfloat16", "float16")
SETTING_NAMES = {  # setting of a recipe -> the flag of commands that take --model
    "model.base": "--model",
    "model.revision": "--revision",
    "model.dtype": "--dtype",
    "model.trust_remote_code": "--trust-remote-code",
    "late.layer": "--layer",
    "data.path": "DATA",
    "data.split": "--split",
    "trust_extensions": "--trust-extension",
}
WORDS = "keys of a recipe's data block, such as document=text image=page subset=de (docs/data.md)"
OUTSIDE = "also read images and texts that lie outside of the data's folder, by a path or a link"
OUTSIDE_NAMES = {"data.allow_outside": "--allow-outside"}
ADAPTER_SETTING_NAMES = {  # the same for commands that take adapters
    "model.base": "--base",
    "model.dtype": "--dtype",
    "model.trust_remote_code": "--trust-remote-code",
    "trust_extensions": "--trust-extension",
}


def setting_namer(flags: Mapping[str, str]) -> Callable[[Setting], str]:
    """Return how a command names the settings of an error: by its own flags, or else as the error does.

    >>> name = setting_namer({"model.dtype": "--dtype", "evaluation.bm25": "--no-bm25"})
    >>> name(Setting("model.dtype", "float32")), name(Setting("evaluation.bm25", False)), name(Setting("late.dim"))
    ('give --dtype float32', 'give --no-bm25', 'late.dim')
    """

    def name(setting: Setting) -> str:
        flag = flags.get(setting.key)
        if flag is None:
            return str(setting)
        if setting.value is None:
            return flag
        return f"give {flag}" if isinstance(setting.value, bool) else f"give {flag} {setting.value}"

    return name


def count(text: str) -> int:
    """Parse a whole number of 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def whole(text: str) -> int:
    """Parse a whole number of 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _weight(text: str) -> float:
    """Infinity and NaN are numbers to Python, and no weights."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def add_model(parser: argparse.ArgumentParser, adapter: str) -> None:
    """--model and --adapter."""
    parser.add_argument(
        "--model", "--base", dest="model",
        help="Hub id, local folder, or package:NAME/FOLDER (default: the base of --adapter, or of the recipe)",
    )  # fmt: skip
    parser.add_argument("--adapter", help=adapter)


def add_data(parser: argparse.ArgumentParser, done: str) -> None:
    """DATA and --data: every command that reads data takes what a recipe's data block takes, or a recipe.

    done: what is done with the splits that a recipe holds out
    """
    kinds = "folder (BEIR's layout, an ingested one), file, Hub dataset, pydocs, or a recipe"
    parser.add_argument("data", help=f"{kinds}: {done}")
    parser.add_argument("--data", nargs="+", default=[], dest="words", metavar="KEY=VALUE", help=WORDS)


def read_data(options: argparse.Namespace, **values: object) -> tuple[DataBlock, Recipe | None]:
    """Return the data block that DATA and --data name, and the recipe where DATA is one.

    values: keys of the block where DATA is no recipe
    Raises UsageError for a recipe that names no single data set, and RecipeError as reading a recipe does.
    """
    from smart_train.config.recipe import of_words
    from smart_train.config.recipe import read as read_recipe

    words = [f"data.{word}" for word in options.words]
    path = Path(options.data)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        recipe = read_recipe(path, words)
        return recipe.data, recipe
    return of_words({"data": {"path": options.data, **values}}, words).data, None


def choose_base(options: argparse.Namespace, recipe: Recipe | None = None) -> None:
    """Set --model where it is not given: to the base of --adapter, else to a recipe's, with what it says of reading it.

    Raises UsageError where there is neither, and BaseNotFound for an adapter that does not exist.
    """
    if options.model is not None:
        return
    if options.adapter:
        from smart_train.models.base_config import SETTINGS, BaseFiles

        base = (BaseFiles.of(options.adapter).json(SETTINGS) or {}).get("base")
        if not isinstance(base, str):
            raise UsageError(f"--adapter: {options.adapter} has no {SETTINGS} that names its base; give --model BASE")
        options.model = base
    elif recipe is not None and recipe.model.base:
        options.model = recipe.model.base
        for name in (*STORED, "dtype"):
            if getattr(options, name) is None:
                setattr(options, name, getattr(recipe.model, name))
        options.trust_remote_code |= recipe.model.trust_remote_code
        if options.reads_layer and options.layer is None and isinstance(recipe.late.layer, int):
            options.layer = recipe.late.layer
    else:
        raise UsageError("--model: name the base, or give --adapter FOLDER, whose base is then taken")


def add_reading(parser: argparse.ArgumentParser, chosen: bool = True) -> None:
    """Add options of how the model reads queries and documents.

    chosen: False = without the layer and the late weight, for a command that chooses them
    """
    parser.set_defaults(reads_layer=chosen)
    if chosen:
        parser.add_argument(
            "--layer", type=int, help="layer of the token vectors: 0 = embeddings, k = block k (default: -1, the last)"
        )
        parser.add_argument(
            "--late-weight", type=_weight, help="weight of the late score in the hybrid; pooled has 1 (default: 1)"
        )
    else:
        parser.set_defaults(layer=None, late_weight=None)
    parser.add_argument("--query-tokens", type=count, help="longest query, in tokens (default: the model's own limit)")
    parser.add_argument(
        "--document-tokens", type=count, help="longest document text, in tokens (default: the model's own limit)"
    )
    parser.add_argument("--query-prompt", help="text before a query (default: the model's own)")
    parser.add_argument("--document-prompt", help="text before a document (default: the model's own)")
    parser.add_argument("--max-pixels", type=count, help="most pixels of an image (default: the model's own)")
    parser.add_argument("--batch-size", type=count, default=32, help="rows encoded at once (default: %(default)s)")
    parser.add_argument("--revision", help="Hub branch, tag or commit of --model (default: the newest)")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the base in memory (default: as it is stored)")
    add_trust(parser)
    parser.add_argument("--device", help="cpu, cuda:0 ... (default: a GPU if there is one)")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """--trust-remote-code and --trust-extension: which code of others a command may run."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code of the base's repository")
    parser.add_argument(
        "--trust-extension", action="append", default=[], dest="trust_extensions", metavar="NAME",
        help="head or token filter of another package that the adapter names (package.module:Name) and may import",
    )  # fmt: skip


def check_reading(options: argparse.Namespace, recipe: Recipe | None = None) -> BaseConfig:
    """Check the options against the base before data and a model are read; return the sizes of the base.

    recipe: that DATA names, whose base is the default
    """
    from smart_train.models.base_config import read_base
    from smart_train.models.safe_loading import SETTINGS

    if options.adapter:
        stored = [f"--{name.replace('_', '-')}" for name in STORED if getattr(options, name) is not None]
        if stored:
            raise UsageError(f"the adapter brings its own {', '.join(stored)}; leave them out")
    choose_base(options, recipe)
    if (
        not options.adapter and (Path(options.model) / SETTINGS).is_file()
    ):  # its head and hybrid weights would be left out
        raise UsageError(f"{options.model} is a trained encoder; write --model ITS_BASE --adapter {options.model}")
    base = read_base(options.model, options.revision, options.trust_remote_code)
    if options.device is not None:
        from smart_train.models.base_loading import check_device

        check_device(options.device)
    for name in ("query_tokens", "document_tokens"):
        limit = getattr(options, name)
        if limit is not None and base.positions is not None and limit > base.positions:
            what = f"{options.model} has {base.positions} positions, {limit} tokens are more"
            raise UsageError(f"--{name.replace('_', '-')}: {what}; give at most {base.positions}")
    layers = base.layers
    if options.layer is not None and not -layers - 1 <= options.layer <= layers:
        what = f"{options.model} has no layer {options.layer}"
        raise UsageError(f"--layer: {what}: it has 0 (embeddings) to {layers}, or -1 for the last")
    return base


def make_encoder(options: argparse.Namespace) -> SmartEncoder:
    """Load the encoder that the options name: an adapter, or a base as it is."""
    from smart_train.config.schema import LateBlock, ModelBlock
    from smart_train.models.encoder import SmartEncoder

    if options.adapter:
        encoder = SmartEncoder.from_pretrained(
            options.adapter,
            base=options.model,
            layer=options.layer,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
            trust_extensions=options.trust_extensions,
            device=options.device,
        )
    else:
        late = LateBlock() if options.layer is None else LateBlock(layer=options.layer)
        model = ModelBlock(
            **{name: getattr(options, name) for name in STORED},
            dtype=options.dtype or "auto",
            trust_remote_code=options.trust_remote_code,
        )
        encoder = SmartEncoder(options.model, model=model, late=late, device=options.device)
    if options.late_weight is not None:
        encoder.late.hybrid.late = options.late_weight
    return encoder


def check_output(output: Path | str, flag: str = "--output", file: bool = False) -> None:
    """Refuses a place where no folder (or file) can be made or written to."""
    problem = output_problem(Path(output), file)  # better learnt now than when there is something to write
    if problem is not None:
        raise UsageError(f"{flag}: {problem}; name another {'file' if file else 'folder'}")


def check_pages(corpora: Iterable[Mapping[str, Document]], options: argparse.Namespace, base: BaseConfig) -> None:
    """Refuses page images for a base that has no image side."""
    if base.vision:
        return
    pages = [document.id for corpus in corpora for document in corpus.values() if document.image is not None]
    if pages:
        what = f"{len(pages)} documents of {options.data} are images, such as {pages[0]!r}"
        raise UsageError(f"--model: {what}, and {options.model} has no image side; choose a vision-language base")


def own_gpu(options: argparse.Namespace) -> None:
    """Set --device to one GPU per process, if there are GPUs and it is not given."""
    import torch

    from smart_train.core.environment import rank, world

    if world() > 1 and options.device is None and torch.cuda.is_available():
        options.device = f"cuda:{int(os.environ.get('LOCAL_RANK', rank())) % torch.cuda.device_count()}"
