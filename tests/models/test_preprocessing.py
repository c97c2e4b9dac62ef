"""Pictures given from Python look to the encoder as those of a data set do."""

from __future__ import annotations

import pytest
from PIL import Image, ImageChops

from smart_train.data.collection import Document
from smart_train.models.preprocessing import open_content


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


@pytest.mark.parametrize("what", ["image", "video"])
def test_several_pictures_of_one_content_are_opened_each_in_its_place(what, tmp_path):
    paths = []
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (3 + number, 2), colour).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    found = open_content({what: [paths[0], str(paths[1]), Image.open(paths[2])], "text": "a b"})
    assert found["text"] == "a b" and [image.size for image in found[what]] == [(3, 2), (4, 2), (5, 2)]
    assert [image.getpixel((0, 0)) for image in found[what]] == [(255, 0, 0), (0, 0, 255), (0, 128, 0)]
    with pytest.raises(ValueError, match="3.png: not a readable image"):
        open_content({what: [*paths, tmp_path / "3.png"]})
