"""A fixture of the readers' tests."""

from __future__ import annotations

import pytest
from on_disk import convert_small_data


@pytest.fixture(params=[False, True], ids=["in memory", "on disk"])
def large(request, tmp_path, monkeypatch) -> bool:
    """Whether everything is converted to files; a test that asks for it runs both ways."""
    if request.param:
        convert_small_data(monkeypatch, tmp_path, shard_rows=2)
    return request.param
