"""Read image files as pages, and encode the images of pages."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from smart_train.core.pictures import MAX_ASPECT, eight_bits, to_rgb
from smart_train.ingest.pages import Unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # of what is inside, whatever the suffix says
QUALITY = 90  # of JPEG: print stays sharp; a page of text takes 0.24 MB a megapixel, and a quarter of PNG's time


def count_pages(path: Path, max_pages: int, max_picture: int) -> int:
    """Return the number of pages of an image file: the images of a TIFF, else 1. Only headers are read."""
    with _opened(path, max_picture) as image:
        pages = getattr(image, "n_frames", 1) if image.format == "TIFF" else 1
    if pages > max_pages:
        raise Unreadable("too many pages", f"{pages}, the limit is {max_pages}: --max-pages")
    return pages


def read_image(path: Path, page: int, pixels: int, max_picture: int) -> Any:
    """Return a page (from 1) as an RGB image of at most ``pixels`` pixels, upright and on white.

    Raises Unreadable where it is damaged, truncated, or has more than ``max_picture`` pixels in the file.
    """
    from PIL import ImageOps

    with _opened(path, max_picture) as image:
        try:
            if image.format == "TIFF":
                image.seek(page - 1)
                _check_size(image, max_picture)  # the first image of the file may be smaller
            scale = math.sqrt(min(1.0, pixels / (image.width * image.height)))
            # a JPEG is decoded at an eighth, a quarter or a half of its size where that is still enough
            image.draft("RGB", (math.ceil(image.width * scale), math.ceil(image.height * scale)))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # before resizing, which may lose the orientation
            image = eight_bits(image)
            if image.mode in ("L", "RGB"):  # before copies are made: a large scan has hundreds of megabytes
                image = shrink(image, pixels)
            return shrink(to_rgb(image, max_picture), pixels)
        except (Unreadable, MemoryError):
            raise
        except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... by format
            raise _damaged(error) from error


def encode_jpeg(image: Any) -> bytes:
    """Return an RGB image as JPEG, without any metadata of the source (places, names, thumbnails)."""
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=QUALITY)
    return stored.getvalue()


def is_blank(image: Any) -> bool:
    """Return whether an RGB image has only one colour."""
    return all(low == high for low, high in image.getextrema())


def _opened(path: Path, max_picture: int) -> Any:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and an error, not a warning
    if path.stat().st_size == 0:
        raise Unreadable("empty file")
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise Unreadable("damaged", "not an image of a known format") from error
    except OSError as error:
        if error.errno:
            raise
        raise _damaged(error) from error
    except Exception as error:
        raise _damaged(error) from error
    try:
        _check_size(image, max_picture)
    except BaseException:
        image.close()
        raise
    return image


def _check_size(image: Any, max_picture: int) -> None:
    pixels = image.width * image.height
    if pixels > max_picture:
        raise Unreadable(
            "picture too large", f"{pixels / 1e6:.0f} megapixels, the limit is {max_picture / 1e6:.0f}: --max-picture"
        )
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise Unreadable("page too narrow", f"{image.width} x {image.height} pixels")


def _damaged(error: Exception) -> Unreadable:
    message = str(error)
    return Unreadable("truncated" if "truncated" in message.lower() else "damaged", message)


def shrink(image: Any, pixels: int) -> Any:
    """Return an image of at most ``pixels`` pixels; a smaller one is not enlarged."""
    from PIL import Image

    if image.width * image.height <= pixels:
        return image
    scale = math.sqrt(pixels / (image.width * image.height))
    size = max(1, math.floor(image.width * scale)), max(1, math.floor(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
