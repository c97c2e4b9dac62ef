"""Let small test data be converted to files, as large data are."""

from __future__ import annotations

from pathlib import Path

from smart_train.data.readers import row_cache


def convert_small_data(monkeypatch, folder: Path, shard_rows: int, **limits: int) -> None:
    """Treat every table and collection as large from here on.

    folder: of the test; shard_rows: rows of a shard; limits: of row_cache, SMALL_ROWS ...
    """
    for name, value in {"SMALL_BYTES": 0, "SHARD_ROWS": shard_rows, **limits}.items():
        monkeypatch.setattr(row_cache, name, value)
    monkeypatch.setattr(row_cache, "cache_folder", lambda: folder / "cache")
