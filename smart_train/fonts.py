"""Fonts for words of any script in pictures, and a line about letters that no font here has.

Knows: matplotlib's fonts.  Does not know: what is drawn.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

FIRST = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans", "Arial Unicode MS", "WenQuanYi Zen Hei")
SCRIPTS = "Noto Sans"  # families that begin so have a script each
GLYPH = re.compile(r"Glyph (\d+) .*missing from font")


@contextmanager
def every_script() -> Iterator[None]:
    """In this block pictures are drawn with all of this machine's fonts that have further scripts.

    Of letters that are in none of them one line is told, in place of matplotlib's for each time that one is drawn.
    """
    import matplotlib
    from matplotlib import font_manager

    there = {font.name for font in font_manager.fontManager.ttflist}
    families = [name for name in FIRST if name in there]
    families += sorted(name for name in there if name.startswith(SCRIPTS) and name not in FIRST)
    with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        yield
    missing: set[str] = set()
    for each in raised:
        if glyph := GLYPH.match(str(each.message)):
            missing.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if missing:
        told = f"{len(missing)} letters, such as {' '.join(sorted(missing)[:3])}, are in no font of this machine"
        logger.warning("%s and are boxes in the picture; install Noto Sans for their script", told)
