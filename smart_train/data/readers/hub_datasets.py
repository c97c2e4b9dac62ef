"""Ask the `datasets` library for datasets on the Hub: configurations, splits, columns and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from smart_train.config.schema import DataBlock
from smart_train.core.errors import Unreachable
from smart_train.core.hub import MESSAGES, check_answers, error_kind
from smart_train.data.readers.base import DataProblem
from smart_train.data.tables import StoredTable

T = TypeVar("T")


def _ask(question: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `datasets`, whose network, cache and description errors share no base class."""
    try:
        check_answers()
        return question(*args, **kwargs)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise Unreachable(f"{type(error).__name__}: {lines[0] if lines else 'no message'}") from error


@contextmanager
def named_by_key(data: DataBlock) -> Iterator[None]:
    """Turn Unreachable into a DataProblem that names ``data.path``."""
    try:
        yield
    except Unreachable as error:
        silent = error_kind(error) == "silent"
        why = MESSAGES["silent"][0] if silent else error
        what = f"there is no folder {data.path!r} here, and as a Hub dataset it cannot be read: {why}"
        fix = "check the name, data.revision and the network (HF_HUB_OFFLINE)"
        raise DataProblem("data.path", what, fix, here=error_kind(error) in ("silent", "unreachable")) from error


def configs(path: str, revision: str | None) -> list[str]:
    """Return the names of the configurations."""
    import datasets

    return list(_ask(datasets.get_dataset_config_names, path, revision=revision))


def splits(path: str, subset: str | None, revision: str | None) -> list[str]:
    """Return the names of the splits of a configuration."""
    import datasets

    return list(_ask(datasets.get_dataset_split_names, path, subset, revision=revision))


def columns(path: str, subset: str | None, revision: str | None) -> list[str]:
    """Return the columns of a configuration; [] where the dataset does not describe them."""
    import datasets

    return list(_ask(datasets.load_dataset_builder, path, subset, revision=revision).info.features or [])


def table(path: str, subset: str | None, split: str, revision: str | None) -> StoredTable:
    """Download one split of a configuration."""
    import datasets

    stored = _ask(datasets.load_dataset, path, subset, split=split, revision=revision)
    return StoredTable(stored, f"{path} {split}")


def stream(path: str, subset: str | None, split: str, revision: str | None) -> Any:
    """Open one split of a configuration, whose rows are downloaded while they are read."""
    import datasets

    return _ask(datasets.load_dataset, path, subset, split=split, revision=revision, streaming=True)


def prefixed(name: str, subset: str | None) -> str:
    """MTEB keeps several languages in one repository, as the configurations LANGUAGE-corpus, LANGUAGE-queries ..."""
    return f"{subset}-{name}" if subset else name


def is_retrieval(names: list[str], subset: str | None) -> bool:
    """Return whether these configurations are a retrieval set (of this subset)."""
    return {prefixed("corpus", subset), prefixed("queries", subset)} <= set(names)


def retrieval_subsets(names: list[str]) -> list[str]:
    """Return the subsets of a retrieval set that has several, such as languages."""
    subsets = (name.removesuffix("-corpus") for name in names)
    return [subset for subset in subsets if is_retrieval(names, subset)]
