"""``smart-train heatmap``: draw which parts of a document its late score comes from.

Nothing heavy is imported before it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smart_train.cli.options import SETTING_NAMES, add_model, add_reading, check_output, check_reading, make_encoder
from smart_train.core.errors import UsageError
from smart_train.core.pictures import open_picture

if TYPE_CHECKING:
    from smart_train.interpretability.similarity_map import SimilarityMap


def add(commands: argparse._SubParsersAction) -> None:
    heatmap = commands.add_parser("heatmap", help="draw which parts of a page or text a query's words match")
    heatmap.add_argument("query", help="the query's text")
    heatmap.add_argument("document", nargs="?", help="a page (PNG, JPEG ...) or a UTF-8 text file")
    heatmap.add_argument("--text", help="the document as text; with a page it is read together with it")
    add_model(heatmap, "folder of a trained adapter; its settings are used")
    heatmap.add_argument("--output", required=True, help="the picture, a .png file")
    how = "how the query's tokens are combined: sum (their mean), or max (the best) (default: %(default)s)"
    heatmap.add_argument("--over", choices=["sum", "max"], default="sum", help=how)
    add_reading(heatmap)
    heatmap.set_defaults(run=run, setting_names=SETTING_NAMES)


def run(options: argparse.Namespace) -> None:
    output = Path(options.output)
    _check_output(output)
    if not options.query.strip():
        raise UsageError("the query is empty; write a text")
    document = _document(options.document, options.text)
    base = check_reading(options)
    if not isinstance(document, str) and not base.vision:
        what = f"{options.document} is an image, and {options.model} has no image side"
        raise UsageError(f"--model: {what}; choose a vision-language base")
    from smart_train.interpretability.drawing import draw
    from smart_train.interpretability.similarity_map import compute_similarity_map

    found = compute_similarity_map(make_encoder(options), options.query, document)
    picture = draw(found, options.over)
    output.parent.mkdir(parents=True, exist_ok=True)
    picture.save(output)
    print(_summary(found))
    print(f"the picture: {output}")


def _summary(found: SimilarityMap) -> str:
    """The score, and what every query word found: {word, share of the score, best document word or patch}."""
    places = {token: word.text for word in found.document_words for token in word.tokens}
    if found.grid is not None:
        for number, token in enumerate(found.patches):
            row, column = divmod(number, found.grid.columns)
            places[token] = f"patch in row {row + 1} of {found.grid.rows}, column {column + 1} of {found.grid.columns}"
    width = max(len(word.text) for word in found.query_words)
    lines = [f"late {found.late:.4f}, the mean over {len(found.similarity)} query tokens of their best matches:"]
    for word in found.query_words:
        best = places[int(found.of_word(word).argmax())]
        lines.append(f"  {word.text.ljust(width)}  {found.share(word):.3f}  {best}")
    lines += [f"the {role} was longer than the encoder reads, and was cut" for role in found.cut]
    return "\n".join(lines)


def _document(path: str | None, text: str | None) -> Any:
    """A text, a page, or {"text", "image"}, as an encoder takes them."""
    if path is None:
        if not (text or "").strip():
            raise UsageError("there is no document: name a page or a text file, or write --text TEXT")
        return text
    from PIL import UnidentifiedImageError

    if not Path(path).is_file():
        raise UsageError(f"{path}: there is no such file; a text goes behind --text")
    try:
        image = open_picture(path)
        return image if text is None else {"text": text, "image": image}
    except UnidentifiedImageError:
        pass
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... by format
        raise UsageError(f"{path}: not a readable image ({error}); repair it") from error
    if text is not None:
        raise UsageError(f"{path} is not a picture; --text goes with a page, or stands alone")
    return _text(Path(path))


def _text(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(b"%PDF"):
        raise UsageError(f"{path} is a PDF; make pages of it (smart-train ingest FOLDER --output DATA), and name one")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is neither a picture nor a UTF-8 text ({error}); convert it") from error
    if not text.strip():
        raise UsageError(f"{path} is empty; name a document with a text")
    return text


def _check_output(output: Path) -> None:
    if output.suffix.lower() != ".png":
        raise UsageError(f"--output: {output} is no .png file; the picture is a PNG")
    check_output(output, file=True)
