"""What a picture looks like to an encoder, whoever opens it: upright, on white paper, RGB."""

from __future__ import annotations

from typing import Any


def on_paper(image: Any) -> Any:
    """An RGB copy of a PIL image, turned as its EXIF data says; what is transparent becomes white, not black.

    Doing it twice changes nothing, so a picture looks the same in training, in evaluation and from Python.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:  # paper is white; a plain conversion would make it black
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")
