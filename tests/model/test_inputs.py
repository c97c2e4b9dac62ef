"""Pictures given from Python look to the encoder as those of a data set do."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops

from smart_train.data.records import Document
from smart_train.model.inputs import open_content


def page(path):
    """Half transparent, and stored lying on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (10, 4), (0, 0, 0, 0))
    image.paste((200, 10, 10, 255), (0, 0, 5, 4))
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("wrap", [lambda p: p, Image.open, lambda p: {"image": str(p)}, lambda p: {"image": p}])
def test_a_picture_is_what_a_document_of_it_is(wrap, tmp_path):
    path = page(tmp_path / "page.png")
    found, expected = open_content(wrap(path)), Document("p", image=path).content()
    image = found["image"] if isinstance(found, dict) else found
    assert (image.mode, image.size) == ("RGB", (4, 10)) and image.getpixel((0, 9)) == (255, 255, 255)
    assert ImageChops.difference(image, expected).getbbox() is None
    assert ImageChops.difference(open_content(expected), expected).getbbox() is None  # twice changes nothing


def test_text_is_left_as_it_is(tmp_path):
    path = page(tmp_path / "page.png")
    assert open_content(str(path)) == str(path) and open_content({"text": str(path)}) == {"text": str(path)}
