"""Datasets by name, through the `datasets` library: configurations, splits, columns, tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from smart_train.core.errors import DataError, Unreachable
from smart_train.data.tables import StoredTable

T = TypeVar("T")


def _ask(question: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Calls `datasets`, whose network, cache and description errors share no base class."""
    try:
        return question(*args, **kwargs)
    except Exception as error:
        said = str(error).strip().splitlines()
        raise Unreachable(f"{type(error).__name__}: {said[0] if said else 'no message'}") from error


def configs(path: str, revision: str | None) -> list[str]:
    import datasets

    return list(_ask(datasets.get_dataset_config_names, path, revision=revision))


def splits(path: str, subset: str | None, revision: str | None) -> list[str]:
    import datasets

    return list(_ask(datasets.get_dataset_split_names, path, subset, revision=revision))


def columns(path: str, subset: str | None, revision: str | None) -> list[str]:
    """[] where the dataset does not describe its columns."""
    import datasets

    return list(_ask(datasets.load_dataset_builder, path, subset, revision=revision).info.features or [])


def table(path: str, subset: str | None, split: str, revision: str | None) -> StoredTable:
    import datasets

    stored = _ask(datasets.load_dataset, path, subset, split=split, revision=revision)
    return StoredTable(stored, f"{path} {split}")


def prefixed(name: str, subset: str | None) -> str:
    """MTEB keeps several languages in one repository, as the configurations LANGUAGE-corpus, LANGUAGE-queries ..."""
    return f"{subset}-{name}" if subset else name


def is_retrieval(names: list[str], subset: str | None) -> bool:
    """Whether these configurations are a retrieval set (of this subset)."""
    return {prefixed("corpus", subset), prefixed("queries", subset)} <= set(names)


def qrels_config(names: list[str], subset: str | None = None) -> str:
    """Of a retrieval set with the configurations ``corpus`` and ``queries``: where its judgements are."""
    choices = [prefixed("qrels", subset), subset or "default"]
    found = next((n for n in choices if n in names), None)
    if found is None:
        raise Unreachable(f"no configuration {' or '.join(choices)} among {', '.join(names)}")
    return found


def retrieval_tables(path: str, split: str, revision: str | None, subset: str | None = None) -> dict[str, StoredTable]:
    """corpus, queries and qrels of a retrieval set; corpus and queries from the split of this name, or their only
    one (which some sets call ``corpus`` and ``queries``)."""
    qrels = qrels_config(configs(path, revision), subset)
    found = {"qrels": table(path, qrels, split, revision)}
    for name in ("corpus", "queries"):
        config = prefixed(name, subset)
        there = splits(path, config, revision)
        chosen = split if split in there else there[0] if len(there) == 1 else None
        if chosen is None:
            raise DataError(f"{path}: {name} has the splits {', '.join(there)}, none of which is {split!r}")
        found[name] = table(path, config, chosen, revision)
    return found


def attached_tables(path: str, name: str, revision: str | None) -> list[StoredTable]:
    """The table of the configuration ``negatives`` or ``teacher``, which share.py writes; [] where there is none."""
    if name not in configs(path, revision):
        return []
    return [table(path, name, split, revision) for split in splits(path, name, revision)]
