"""Draw a similarity map: colours over a page image, or a matrix of query words and document words."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from smart_train.interpretability.similarity_map import SimilarityMap, Word, compute_similarity_map

if TYPE_CHECKING:
    from smart_train.models.encoder import SmartEncoder

logger = logging.getLogger(__name__)

SCALE = "YlOrRd"
DPI = 110
WIDTH = 13.0  # inches
TALLEST = 3.0  # inches of a panel; a page that is longer is drawn narrower
PAGE, PANEL = 1000, 320  # pixels of a page's longer side, as it is drawn
PANELS = 40  # words drawn over the page
BESIDE = 26  # words listed beside the page
COLUMNS, BANDS = 34, 12  # of a matrix: document words in a row, and rows of them
ROWS = 60  # query words of a matrix: with 12 bands they make 33 million pixels; PIL warns from 89 million on
FOREIGN = "0.5"  # grey of words that the prompt or the chat template added
FIRST = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans", "Arial Unicode MS", "WenQuanYi Zen Hei")
SCRIPTS = "Noto Sans"  # font families whose name begins with this cover one script each
GLYPH = re.compile(r"Glyph (\d+) .*missing from font")


def page_heatmap(
    encoder: SmartEncoder, query: str, document: Any, path: str | Path | None = None, over: str = "sum"
) -> Image.Image:
    """Compute and draw the similarity map of a query and a document; return a PIL image.

    document: text, PIL image, path of an image, or {"text": ..., "image": ...}
    path: file that the picture is also saved to
    over: how the large picture combines the query tokens, "sum" (their mean) or "max" (the best of them)

    No display is needed. Raises what ``compute_similarity_map`` raises.
    """
    picture = draw(compute_similarity_map(encoder, query, document), over)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return picture


def draw(found: SimilarityMap, over: str = "sum") -> Image.Image:
    """Draw a computed similarity map as an RGB image: over its page, or as a matrix of words for a text.

    over: how the query tokens are combined in the large picture (page) or in the last row (matrix), "sum" or "max"
    """
    import matplotlib

    with matplotlib.rc_context({"font.size": 9}), _fonts_of_every_script():
        return (_page if found.grid is not None else _matrix)(found, over)


def _figure(height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)  # draws without a display
    return figure


def _picture(figure: Any) -> Image.Image:
    stream = BytesIO()
    figure.savefig(stream, format="png")
    return Image.open(stream).convert("RGB")


def _titled(figure: Any, found: SimilarityMap, height: float, notes: list[str]) -> None:
    """Write the query, its late score and the notes into the top 0.75 inches."""
    query = " ".join(found.query.split())
    query = query if len(query) < 105 else query[:102] + "..."
    left = 0.35 / WIDTH
    figure.text(
        left, 1 - 0.34 / height, f"late {found.late:.4f}   {query}", fontsize=13, weight="bold", parse_math=False
    )
    notes = [f"the {' and the '.join(found.cut)} was cut at the encoder's limit"] * bool(found.cut) + notes
    figure.text(left, 1 - 0.58 / height, ";  ".join(notes), fontsize=9, color="0.35", parse_math=False)


# --- over a page


def _page(found: SimilarityMap, over: str) -> Image.Image:
    assert found.page is not None
    drawn = _first(found.query_words, PANELS)
    aspect = found.page.height / found.page.width
    wide = min(8.2, 7.0 / aspect)  # inches of the large picture
    across = 4 if aspect < 0.9 else 6 if aspect < 2 else 10
    panel = (WIDTH - 0.7) / across
    tall, rows = min(panel * aspect * 0.92, TALLEST) + 0.42, ceil(len(drawn) / across)
    begin = 1.15 + wide * aspect + 0.45  # of the panels
    height = begin + rows * tall + 0.2
    figure = _figure(height)
    texts = sum(1 for row in found.similarity.argmax(1).tolist() if row not in set(found.patches))
    notes = [f"{found.grid.rows} x {found.grid.columns} patches"] if found.grid else []
    if texts:
        notes.append(
            f"{texts} of {len(found.similarity)} query tokens find their best match in text tokens, not in patches"
        )
    if len(drawn) < len(found.query_words):
        notes.append(f"{len(drawn)} of {len(found.query_words)} query words are drawn")
    _titled(figure, found, height, notes)

    def box(left: float, top: float, width: float, tall: float) -> Any:
        """Add axes, placed in inches from the left and from the top."""
        return figure.add_axes((left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height))

    maps = [found.on_page(found.of_word(word)).numpy() for word in drawn]
    limits = _limits(np.stack([m for m, word in zip(maps, drawn, strict=True) if word.own] or maps))
    _overlay(found, box, over, wide, wide * aspect)
    caption = (
        "a panel: one query word and the mean of its tokens' best matches; framed: its best patch; grey: the prompt's"
    )
    figure.text(0.35 / WIDTH, 1 - (begin - 0.08) / height, caption, fontsize=9.5)
    _scale(figure, box(WIDTH - 3.0, 1.12 + wide * aspect + 0.16, 2.6, 0.1), limits, "horizontal")
    for number, (word, values) in enumerate(zip(drawn, maps, strict=True)):
        row, column = divmod(number, across)
        top = begin + row * tall + 0.3
        axes = box(0.35 + column * panel, top, panel * 0.92, tall - 0.42)
        _paint(axes, found.page, values, limits, PANEL)
        _frame(axes, found, divmod(int(values.argmax()), values.shape[1]))
        axes.set_title(f"{_short(word)}  {found.share(word):.2f}", fontsize=9.5, pad=4, parse_math=False, **_ink(word))
    return _picture(figure)


def _overlay(found: SimilarityMap, box: Any, over: str, wide: float, tall: float) -> None:
    """Draw all query tokens over the page, the colour scale, and the document's text tokens beside it."""
    assert found.grid is not None and found.page is not None
    values = found.over_query(over)
    on_page = found.on_page(values).numpy()
    limits = _limits(on_page)
    axes = box(0.35, 1.12, wide, tall)
    _paint(axes, found.page, on_page, limits, PAGE)
    name = "mean over the query's tokens" if over == "sum" else "best of the query's tokens"
    axes.set_title(f"{name}; circles: best patches, by number of tokens", fontsize=9.5, loc="left", pad=5)
    won = np.bincount(found.similarity.argmax(1).numpy(), minlength=found.similarity.shape[1])[list(found.patches)]
    high, across = found.page.height / found.grid.rows, found.page.width / found.grid.columns
    for place in np.flatnonzero(won):
        row, column = divmod(int(place), found.grid.columns)
        at = ((column + 0.5) * across, (row + 0.5) * high)
        axes.scatter(*at, s=36 * won[place], facecolors="none", edgecolors="#08306b", linewidths=1.6)
    _scale(axes.figure, box(0.35 + wide + 0.12, 1.12, 0.14, min(tall, 3.0)), limits)
    words = sorted(found.document_words, key=lambda word: -float(values[list(word.tokens)].max()))
    if words:
        _beside(
            box(0.35 + wide + 2.2, 1.12, WIDTH - wide - 3.4, min(tall, 0.3 + 0.22 * min(len(words), BESIDE))),
            words,
            values,
        )


def _beside(axes: Any, words: list[Word], values: Any) -> None:
    """Draw the document's text tokens as bars: they count in the score and have no place on the page."""
    listed = words[:BESIDE]
    bars = [float(values[list(word.tokens)].max()) for word in listed]
    axes.barh(range(len(listed)), bars, color="#fd8d3c", height=0.7)
    axes.set_yticks(range(len(listed)), [_short(word) for word in listed], fontsize=8.5)
    for label, word in zip(axes.get_yticklabels(), listed, strict=True):
        label.set(parse_math=False, **_ink(word))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(0, color="0.3", linewidth=0.8)
    more = f": the best {BESIDE} of {len(words)}" if len(words) > BESIDE else ""
    axes.set_title(f"text tokens of the document{more}\n(grey: of the template)", fontsize=9.5, loc="left", pad=5)


def _paint(axes: Any, page: Any, values: np.ndarray, limits: tuple[float, float], pixels: int) -> None:
    from matplotlib import colormaps

    small = page.convert("L")
    small.thumbnail((pixels, pixels))
    grey = 0.12 + 0.88 * np.asarray(small, dtype=np.float32) / 255
    rows, columns = (np.arange(n) * m // n for n, m in zip(grey.shape, values.shape, strict=True))
    strength = np.clip((values - limits[0]) / (limits[1] - limits[0]), 0, 1)
    colours = colormaps[SCALE](strength)[..., :3][rows][:, columns]
    axes.imshow(grey[..., None] * colours, extent=(0, page.width, page.height, 0), interpolation="antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="0.6", linewidth=0.6)


def _frame(axes: Any, found: SimilarityMap, place: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    assert found.grid is not None and found.page is not None
    high, wide = found.page.height / found.grid.rows, found.page.width / found.grid.columns
    at = (place[1] * wide, place[0] * high)
    axes.add_patch(Rectangle(at, wide, high, fill=False, edgecolor="#08306b", linewidth=1.6))


# --- matrix of words


def _matrix(found: SimilarityMap, over: str) -> Image.Image:
    count = len(found.query_words)
    found = replace(found, query_words=_first(found.query_words, ROWS)) if count > ROWS else found
    values = found.by_words().numpy()
    whole = found.over_query(over)
    last = np.array([float(whole[list(word.tokens)].max()) for word in found.document_words])
    best = values.argmax(1)
    bands = _bands(len(found.document_words), best)
    shown = sum(band.stop - band.start for band in bands)
    notes = ["a cell: over a query word's tokens the mean of the best in the document word; framed: the best of a row"]
    if shown < len(found.document_words):
        notes.append(
            f"{shown} of {len(found.document_words)} document words are drawn: the lines with the best matches"
        )
    if count > ROWS:
        notes.append(f"{ROWS} of {count} query words are drawn")
    if any(not word.own for word in [*found.query_words, *found.document_words]):
        notes.append("grey: of the prompt or template")
    cell, labels = 0.27, 1.1
    tall = (len(values) + 1.25) * cell
    height = 0.8 + len(bands) * (labels + tall) + 0.25
    figure = _figure(height)
    _titled(figure, found, height, notes)
    limits = _limits(values)
    left = 1.75
    across = min(0.45, (WIDTH - left - 1.1) / (bands[0].stop - bands[0].start))
    for number, band in enumerate(bands):
        top = 0.8 + number * (labels + tall) + labels
        width = across * (band.stop - band.start)
        axes = figure.add_axes((left / WIDTH, 1 - (top + tall - 0.1) / height, width / WIDTH, (tall - 0.1) / height))
        _band(axes, found, band, values, last, limits, over)
    at = (WIDTH - 0.75) / WIDTH, 1 - (0.8 + labels + min(tall, 2.5)) / height
    _scale(figure, figure.add_axes((*at, 0.13 / WIDTH, min(tall, 2.5) / height)), limits)
    return _picture(figure)


def _band(
    axes: Any,
    found: SimilarityMap,
    band: slice,
    values: np.ndarray,
    last: np.ndarray,
    limits: tuple[float, float],
    over: str,
) -> None:
    """Draw one line of the document: query words down, document words across, all query tokens in the last row."""
    from matplotlib.patches import Rectangle

    part, count = values[:, band], len(values)
    style: dict[str, Any] = {
        "cmap": SCALE,
        "vmin": limits[0],
        "vmax": limits[1],
        "edgecolors": "white",
        "linewidth": 0.4,
    }
    axes.pcolormesh(np.arange(part.shape[1] + 1), np.arange(count + 1), part, **style)
    axes.pcolormesh(np.arange(part.shape[1] + 1), [count + 0.25, count + 1.25], last[None, band], **style)
    axes.set(xlim=(0, part.shape[1]), ylim=(count + 1.25, 0))
    for row, column in enumerate(values.argmax(1)):
        if band.start <= column < band.stop:
            axes.add_patch(Rectangle((column - band.start, row), 1, 1, fill=False, edgecolor="#08306b", linewidth=1.6))
    rows = [f"{_short(word)}  {found.share(word):.2f}" for word in found.query_words]
    axes.set_yticks([*np.arange(count) + 0.5, count + 0.75], [*rows, "mean" if over == "sum" else "best"], fontsize=9)
    axes.xaxis.tick_top()
    words = found.document_words[band]
    axes.set_xticks(
        np.arange(len(words)) + 0.5, [_short(word, 16) for word in words], rotation=60, ha="left", fontsize=9
    )
    axes.tick_params(length=0, pad=2)
    axes.tick_params(axis="x", pad=-1)
    axes.spines[:].set_visible(False)
    for label, word in zip(axes.get_xticklabels(), words, strict=True):
        label.set(parse_math=False, rotation_mode="anchor", **_ink(word))
    for label, word in zip(axes.get_yticklabels(), found.query_words, strict=False):
        label.set(parse_math=False, **_ink(word))


def _bands(count: int, best: np.ndarray) -> list[slice]:
    """Cut ``count`` document words into lines of similar length; keep the BANDS lines with the most best matches."""
    lines = ceil(count / COLUMNS)
    size = ceil(count / lines)
    every = [slice(begin, min(count, begin + size)) for begin in range(0, count, size)]
    if len(every) <= BANDS:
        return every
    won = [int(((best >= band.start) & (best < band.stop)).sum()) for band in every]
    return [every[n] for n in sorted(sorted(range(len(every)), key=lambda n: (-won[n], n))[:BANDS])]


# --- shared by both


def _scale(figure: Any, axes: Any, limits: tuple[float, float], orientation: str = "vertical") -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure.colorbar(ScalarMappable(Normalize(*limits), SCALE), cax=axes, orientation=orientation)
    axes.tick_params(labelsize=8)
    axes.set_title("cosine", fontsize=8.5, loc="left", pad=3)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Return the ends of the colour scale. The lowest 2 % share the pale end, so that one outlier changes little."""
    low, high = float(np.percentile(values, 2)), float(values.max())
    return (low, high) if high - low > 1e-6 else (low - 0.5, low + 0.5)


def _first(words: list[Word], most: int) -> list[Word]:
    """Return the words to draw: the content's own first, then those of the prompt or the template."""
    return sorted(words, key=lambda word: not word.own)[:most]


def _short(word: Word, most: int = 18) -> str:
    return word.text if len(word.text) <= most else word.text[: most - 1] + "…"


def _ink(word: Word) -> dict[str, str]:
    return {"color": "black" if word.own else FOREIGN}


# --- fonts


@contextmanager
def _fonts_of_every_script() -> Iterator[None]:
    """Draw with every installed font that covers a further script.

    Letters that no font covers are logged once, in place of one matplotlib warning for each time one is drawn.
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
        logger.warning(
            "%d letters, such as %s, are in no installed font and become boxes; install Noto Sans for their script",
            len(missing),
            " ".join(sorted(missing)[:3]),
        )
