"""Read JSON of unknown origin: every text that cannot be read raises json.JSONDecodeError, and nothing else.

Python's parser recurses (RecursionError for 100 kB of brackets) and limits the digits of a number (a plain ValueError).
"""

from __future__ import annotations

import json
from typing import Any


def load_json(text: str | bytes) -> Any:
    """Return the values of a JSON document.

    >>> load_json("[" * 100_000)
    Traceback (most recent call last):
    json.decoder.JSONDecodeError: nested too deeply: line 1 column 1 (char 0)
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):  # both say where
        raise
    except RecursionError:
        problem = "nested too deeply"
    except ValueError:
        problem = "a number has more digits than any number needs"
    shown = text if isinstance(text, str) else text.decode("utf8", "replace")
    raise json.JSONDecodeError(problem, shown[:1], 0) from None
