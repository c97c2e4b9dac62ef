"""Room on a disk is taken, not asked for: what was free a moment ago may be gone when it is written."""

from __future__ import annotations

import errno
import os

import pytest

from smart_train.core.disk import reserve


@pytest.mark.parametrize("size", [0, 1, 4096, 100_000, 3_000_000])
def test_a_reserved_file_is_zeros_that_lie_on_the_disk(tmp_path, size):
    reserve(tmp_path / "a", size)
    status = (tmp_path / "a").stat()
    assert status.st_size == size and status.st_blocks * 512 >= size
    assert (tmp_path / "a").read_bytes() == bytes(size)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_what_the_disk_does_not_give_is_an_error_and_leaves_nothing(tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        reserve(tmp_path / "a", 10)
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").write_bytes(b"kept")
    with pytest.raises(OSError, match=os.strerror(number)):
        reserve(tmp_path / "b", 10)
    assert (tmp_path / "b").read_bytes() == b"kept"


def test_what_is_in_a_file_stays(tmp_path):
    (tmp_path / "a").write_bytes(b"kept")
    reserve(tmp_path / "a", 8)
    assert (tmp_path / "a").read_bytes() == b"kept\0\0\0\0"
