"""A file that is written anew is the old one or the new one, at every moment."""

from __future__ import annotations

import pytest

from smart_train.core.atomic_io import replacing


def test_who_reads_meanwhile_sees_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.parent == path.parent
    assert path.read_text() == "new" and [one.name for one in tmp_path.iterdir()] == ["metrics.json"]


def test_an_error_inside_leaves_the_old_file(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as part:
        part.write_text("ne")
        raise OSError("the disk is full")
    assert path.read_text() == "old"


def test_processes_that_write_the_same_file_do_not_share_their_parts(tmp_path):
    path = tmp_path / "page.json"
    with replacing(path, ".7") as one, replacing(path, ".8") as other:
        one.write_text("seven")
        other.write_text("eight")
        assert one != other
    assert path.read_text() == "seven" and len(list(tmp_path.iterdir())) == 1
