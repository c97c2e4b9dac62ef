"""Picture files as pages, and how any page's picture is stored."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from smart_train.core.images import on_paper
from smart_train.ingest.pages import Unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # of what is inside, whatever the suffix says
QUALITY = 90  # print stays sharp; a page of text takes about 0.24 MB a megapixel, and a quarter of PNG's time
NARROW = 200  # see pdf.NARROW


def count(path: Path, most_pages: int, most_picture: int) -> int:
    """How many pages a picture file has: the pictures of a TIFF, one of any other kind.  Only headers are read."""
    with _opened(path, most_picture) as image:
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if pages > most_pages:
        raise Unreadable("too many pages", f"{pages}, the limit is {most_pages}: --max-pages")
    return pages


def read(path: Path, page: int, pixels: int, most_picture: int) -> Any:
    """A page (from 1) as an RGB image of at most so many pixels, upright and on white.

    Raises Unreadable where it is damaged, cut off, or has more than ``most_picture`` pixels in the file.
    """
    from PIL import ImageOps

    with _opened(path, most_picture) as image:
        try:
            if image.format == "TIFF":
                image.seek(page - 1)
                _check_size(image, most_picture)  # of this picture: the first may be smaller
            shrink = math.sqrt(min(1.0, pixels / (image.width * image.height)))
            # a JPEG is decoded at an eighth, a quarter or a half of its size where that is still enough
            image.draft("RGB", (math.ceil(image.width * shrink), math.ceil(image.height * shrink)))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # what is made smaller may forget how it was turned
            image = _eight_bits(image)
            if image.mode in ("L", "RGB"):  # before the copies of what follows: a large scan has hundreds of megabytes
                image = _shrunk(image, pixels)
            return _shrunk(on_paper(image), pixels)
        except (Unreadable, MemoryError):
            raise
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... by format
            raise _damaged(error) from error


def encode(image: Any) -> bytes:
    """An RGB image as it is stored: JPEG, without any of the source's metadata (places, names, thumbnails)."""
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=QUALITY)
    return stored.getvalue()


def blank(image: Any) -> bool:
    """Whether an RGB image has one colour only."""
    return all(low == high for low, high in image.getextrema())


def _opened(path: Path, most_picture: int) -> Any:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and an error, not a warning
    if path.stat().st_size == 0:
        raise Unreadable("empty file")
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise Unreadable("damaged", "not a picture of a known format") from error
    except OSError as error:
        if error.errno:
            raise
        raise _damaged(error) from error
    except Exception as error:
        raise _damaged(error) from error
    try:
        _check_size(image, most_picture)
    except BaseException:
        image.close()
        raise
    return image


def _check_size(image: Any, most_picture: int) -> None:
    pixels = image.width * image.height
    if pixels > most_picture:
        raise Unreadable("picture too large", f"{pixels / 1e6:.0f} megapixels, the limit is {most_picture / 1e6:.0f}")
    if max(image.size) > NARROW * min(image.size):
        raise Unreadable("page too narrow", f"{image.width} x {image.height} pixels")


def _damaged(error: Exception) -> Unreadable:
    told = str(error)
    return Unreadable("truncated" if "truncated" in told.lower() else "damaged", told)


def _eight_bits(image: Any) -> Any:
    """16-bit greys, which a plain conversion to RGB would clip to white, and black and white, as 8-bit greys."""
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("I", "F"):
        raise Unreadable("damaged", f"pixels of the kind {image.mode} have no known range")
    return image


def _shrunk(image: Any, pixels: int) -> Any:
    from PIL import Image

    if image.width * image.height <= pixels:
        return image
    scale = math.sqrt(pixels / (image.width * image.height))
    size = max(1, math.floor(image.width * scale)), max(1, math.floor(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
