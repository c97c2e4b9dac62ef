"""Read JSON of unknown origin: one kind of error for everything that cannot be read."""

from __future__ import annotations

import json
from typing import Any


def load_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises json.JSONDecodeError, and nothing else: Python's own reader also raises RecursionError where lists lie in
    lists, and a plain ValueError for an integer of more than 4,300 digits.

    >>> load_json("[" * 100_000)
    Traceback (most recent call last):
    json.decoder.JSONDecodeError: nested too deeply: line 1 column 1 (char 0)
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, 0) from None
    except ValueError as error:
        raise json.JSONDecodeError(str(error).partition(";")[0], text, 0) from None
