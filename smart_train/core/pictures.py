"""Open pictures the same way wherever they come from: tables, ingested folders, evaluation, heat maps, Python.

What no image processor can take is refused from the header, before it is decoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smart_train.core.errors import DataError

MAX_ASPECT = 200  # longest over shortest side; image processors refuse more
MAX_PIXELS = 200_000_000  # of a picture in its file: 0.6 GB decoded. A file of a few kilobytes can claim any size


def picture_fault(image: Any, most: int = MAX_PIXELS) -> str | None:
    """Return why a PIL image cannot be a page, from its header alone; None where it can."""
    size = f"{image.width} x {image.height} pixels"
    if not all(image.size):
        return f"it has {size}"
    if max(image.size) > MAX_ASPECT * min(image.size):
        return f"it has {size}, and no side may be more than {MAX_ASPECT} times the other"
    if image.width * image.height > most:
        return f"it has {size}, and {most / 1e6:.0f} megapixels are the most"
    return None


def open_picture(source: Any) -> Any:
    """Return the picture of a path or stream as RGB; see ``to_rgb``.

    Raises DataError for a picture that ``picture_fault`` refuses, and what PIL raises for a damaged one: OSError,
    SyntaxError, ValueError, struct.error ... by format.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and an error, not a warning
    with Image.open(source) as image:  # only the header is read here
        try:
            return to_rgb(image)
        except DataError as error:
            raise DataError(f"{source}: {error}" if isinstance(source, str | Path) else str(error)) from error


def to_rgb(image: Any, most: int = MAX_PIXELS) -> Any:
    """Return an RGB copy of a PIL image, turned as its EXIF data says; what is transparent becomes white, not black,
    and 16-bit greys are scaled.

    Doing it twice changes nothing, so an image looks the same in training, in evaluation and from Python.
    Raises DataError for a picture that ``picture_fault`` or ``eight_bits`` refuses.
    """
    from PIL import Image, ImageOps

    if fault := picture_fault(image, most):
        raise DataError(fault)
    image = eight_bits(ImageOps.exif_transpose(image))
    if image.has_transparency_data:  # paper is white; a plain conversion would make it black
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def eight_bits(image: Any) -> Any:
    """Return 16-bit greys, which a plain conversion to RGB would clip to white, and black and white, as 8-bit greys.

    Raises DataError for pixels whose range the file does not say (32-bit whole numbers and fractions).
    """
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I;16"):
        return image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("I", "F"):
        raise DataError(f"pixels of the kind {image.mode} have no known range; convert it to 8 or 16 bits")
    return image
