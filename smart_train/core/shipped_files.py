"""Find the files that come with this package beside its code: recipes and launch files."""

from __future__ import annotations

from pathlib import Path


def shipped_files(folder: str, pattern: str) -> list[Path]:
    """Return the files of a checkout's folder, else of where pip puts data, sorted; [] where there are none.

    >>> [path.name for path in shipped_files("launch", "single.*")]
    ['single.yaml']
    """
    beside = sorted((Path(__file__).resolve().parents[2] / folder).glob(pattern))
    if beside:
        return beside
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files("smart-train") or []
    except PackageNotFoundError:
        return []
    return sorted(Path(str(file.locate())).resolve() for file in listed if file.match(f"{folder}/{pattern}"))
