"""A picture looks the same on every road, and what no processor can take is refused before it is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_data
from PIL import Image

from smart_train.cli.heatmap import _document
from smart_train.config.schema import DataBlock
from smart_train.core.errors import DataError, UsageError
from smart_train.core.pictures import open_picture, to_rgb
from smart_train.data.readers.base import find_reader
from smart_train.ingest import image_files
from smart_train.models.preprocessing import open_content

GREY16 = (np.arange(40 * 30, dtype=np.uint16) * 54).reshape(30, 40)


def grey16(path: Path) -> tuple[Path, np.ndarray]:
    Image.fromarray(GREY16).save(path.with_suffix(".png"))
    return path.with_suffix(".png"), np.repeat((GREY16 // 256).astype(np.uint8)[..., None], 3, 2)


def grey16_tiff(path: Path) -> tuple[Path, np.ndarray]:
    Image.fromarray(GREY16).save(path.with_suffix(".tiff"))
    return path.with_suffix(".tiff"), np.repeat((GREY16 // 256).astype(np.uint8)[..., None], 3, 2)


def black_and_white(path: Path) -> tuple[Path, np.ndarray]:
    bits = GREY16 % 3 == 0
    Image.fromarray(bits).save(path.with_suffix(".png"))
    return path.with_suffix(".png"), np.repeat((bits * 255).astype(np.uint8)[..., None], 3, 2)


def cmyk(path: Path) -> tuple[Path, np.ndarray]:
    inks = np.zeros((30, 40, 4), np.uint8)
    inks[..., 0], inks[..., 3] = 255, 51
    Image.fromarray(inks, "CMYK").save(path.with_suffix(".tiff"))
    return path.with_suffix(".tiff"), np.broadcast_to(np.array([0, 204, 204], np.uint8), (30, 40, 3))


def palette(path: Path) -> tuple[Path, np.ndarray]:
    image = Image.new("P", (40, 30), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.paste(0, (0, 0, 20, 30))
    image.save(path.with_suffix(".png"), transparency=0)
    seen = np.full((30, 40, 3), 255, np.uint8)
    seen[:, 20:] = 200, 10, 20
    return path.with_suffix(".png"), seen


def rotated(path: Path) -> tuple[Path, np.ndarray]:
    plain = np.zeros((30, 40, 3), np.uint8)
    plain[:5] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(plain).save(path.with_suffix(".png"), exif=exif)
    return path.with_suffix(".png"), np.rot90(plain, -1)


def with_alpha(path: Path) -> tuple[Path, np.ndarray]:
    shades = np.zeros((30, 40, 2), np.uint8)
    shades[:, 20:, 1] = 255
    Image.fromarray(shades, "LA").save(path.with_suffix(".png"))
    return path.with_suffix(".png"), np.repeat(np.where(shades[..., 1:] == 0, 255, 0).astype(np.uint8), 3, 2)


KINDS = [grey16, grey16_tiff, black_and_white, cmyk, palette, rotated, with_alpha]


def from_table(file: Path, stored: bool):
    if stored:
        table = pa.table({"query": ["q"], "image": [{"bytes": file.read_bytes(), "path": None}]})
        pq.write_table(table, file.parent / "rows.parquet")
        path = file.parent / "rows.parquet"
    else:
        path = tiny_data.write_lines(file.parent / "rows.jsonl", [{"query": "q", "image": file.name}])
    (document,) = find_reader(DataBlock(path=str(path))).read("train").corpus.values()
    return document.content()


ROADS = {
    "ingest": lambda file: image_files.read_image(file, 1, 2**20, 2**28),
    "a table of paths": lambda file: from_table(file, stored=False),
    "a table of bytes": lambda file: from_table(file, stored=True),
    "encode, by path": open_content,
    "encode, by image": lambda file: open_content(Image.open(file)),
    "heat map": lambda file: open_content(_document(str(file), None)),
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
def test_a_picture_looks_the_same_on_every_road(tmp_path, kind, road):
    file, expected = kind(tmp_path / "page")
    image = ROADS[road](file)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), expected)
    assert np.array_equal(np.asarray(to_rgb(image)), expected)  # twice changes nothing


def claimed(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that claims any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + end)
    return path


@pytest.mark.parametrize("road", [*ROADS])
@pytest.mark.parametrize(
    ("size", "told"),
    [
        ((100_000, 100_000), "megapixels"),
        ((60_000, 20), r"60000 x 20 pixels|too narrow"),
        ((1, 201), r"1 x 201 pixels|too narrow"),
        ((0, 10), "pixels|damaged|not|neither"),
    ],
)
def test_what_no_processor_can_take_is_refused_from_the_header(tmp_path, size, told, road):
    file = claimed(tmp_path / "page.png", *size)
    with pytest.raises((DataError, UsageError, image_files.Unreadable, SyntaxError, OSError), match=told):
        ROADS[road](file)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_range_are_refused(mode):
    with pytest.raises(DataError, match=f"pixels of the kind {mode} have no known range"):
        to_rgb(Image.new(mode, (4, 4)))


def test_a_stream_is_opened_as_its_file_is(tmp_path):
    file, expected = grey16(tmp_path / "page")
    assert np.array_equal(np.asarray(open_picture(io.BytesIO(file.read_bytes()))), expected)
