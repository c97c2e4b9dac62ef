"""Find out whether an output can be written, before anything slow is done for it."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from smart_train.core.modality import is_unicode

BLOCK = 4096  # bytes; a full disk takes an empty file, but not this
ROOM = 256  # bytes of a path that are left for the files in the output


def output_problem(output: Path, file: bool = False, moved: bool = False) -> str | None:
    """Return why an output cannot be written; None where it can.  Nothing is made, changed or left.

    A block is really written, to a nameless file in the nearest folder that exists: permissions alone do not show a
    full disk, a quota or a read-only mount, and mean nothing to root.

    file: the output is a file, not a folder
    moved: what is in the folder is going to be moved aside, which its parent must allow

    >>> output_problem(Path("/proc/out"))
    'nothing can be written into /proc (No such file or directory)'
    """
    output = Path(os.path.abspath(output))
    if not is_unicode(str(output)):  # safetensors and tokenizers take no other
        return f"the name {str(output)!r} is not UTF-8"
    there = next(place for place in (output, *output.parents) if os.path.isdir(place))
    with suppress(OSError, ValueError, AttributeError):  # where the system knows no limit
        longest = os.pathconf(there, "PC_PATH_MAX") - ROOM
        if len(os.fsencode(output)) > longest:
            return f"the path {str(output)[:40]}... is longer than {longest} bytes"
        longest = os.pathconf(there, "PC_NAME_MAX")
        for name in output.relative_to(there).parts:
            if len(os.fsencode(name)) > longest:
                return f"the name {name[:20]}... is longer than {longest} bytes"
    if there != output and not (file and there == output.parent and output.is_file()):
        place = there / output.relative_to(there).parts[0]
        if place.is_symlink() and not place.exists():
            return f"{place} is a link to {os.readlink(place)}, which does not exist"
        if place.exists():
            return f"{place} is a file" if place.is_file() else f"{place} is no folder"
    if file and there == output:
        return f"{output} is a folder"
    refused = _try(there)
    if refused is None and file and output.exists() and not os.access(output, os.W_OK):
        return f"{output} is write-protected"
    if refused is None and moved and there == output and any(output.iterdir()):
        if os.path.ismount(output):
            return f"{output} is a mount point that is not empty, and its content cannot be moved aside"
        there, refused = output.parent, _try(output.parent)
    return refused and f"nothing can be written into {there} ({refused})"


def _try(folder: Path) -> str | None:
    try:
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(b"x" * BLOCK)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None
