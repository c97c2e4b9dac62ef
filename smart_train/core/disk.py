"""Recognise a disk that cannot be written: full, over its quota, read-only, or failing."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from smart_train.core.errors import error_chain

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space; over a quota; larger than a file may be there
FAILING = {errno.EIO, errno.EROFS, errno.ESTALE, errno.ENXIO}  # broken, read-only, or gone with its server


def disk_fault(error: BaseException) -> str | None:
    """Return why the disk could not be written; None for an error of another kind.

    The error and its causes are looked at.  safetensors and pyarrow give the system's number in words, and torch only
    says that its file did not get what was written.

    >>> disk_fault(OSError(28, "No space left on device", "model.safetensors"))
    'No space left on device'
    >>> disk_fault(RuntimeError("I/O error: File too large (os error 27)"))
    'File too large'
    >>> disk_fault(ValueError("28")) is None
    True
    """
    for one in error_chain(error):
        found = re.search(r"\b(?:os error|[Ee]rrno:?) (\d+)", str(one))
        number = one.errno if isinstance(one, OSError) and one.errno else int(found[1]) if found else None
        if number in FULL | FAILING:
            return os.strerror(number)
        if isinstance(one, RuntimeError) and re.search(r"PytorchStreamWriter|inline_container", str(one)):
            return "a file could not be written whole"
    return None


def reserve(path: Path, size: int) -> None:
    """Make a file ``size`` bytes long, and take its room from the disk now; what it holds stays, the rest is zeros.

    Asking for free room does not keep it: another process may take it, and writing through a memory map to a full disk
    kills the process (SIGBUS).  Raises OSError where there is no room; a file that was made here is deleted then.
    """
    made = not path.exists()
    try:
        with path.open("ab") as stream:
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            elif stream.seek(0, os.SEEK_END) < size:  # macOS, Windows: the length alone
                stream.truncate(size)
    except OSError:
        if made:
            path.unlink(missing_ok=True)
        raise
