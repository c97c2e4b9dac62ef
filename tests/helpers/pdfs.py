"""Documents for tests, made on the spot: books, scans, and everything that can be wrong with a file.

Every word is drawn from a seed, so that the same call makes a document with the same content.
"""

from __future__ import annotations

import importlib
import inspect
import os
import random
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fpdf import FPDF
from fpdf.enums import EncryptionMethod
from PIL import Image, ImageDraw

WORDS = [  # fmt: skip
    "river",
    "engine",
    "copper",
    "window",
    "ledger",
    "harbour",
    "meadow",
    "signal",
    "marble",
    "orchard",
    "lantern",
    "bridge",
    "velvet",
    "compass",
    "granite",
    "kettle",
    "thunder",
    "parcel",
    "saddle",
    "mirror",
    "anchor",
    "feather",
    "canyon",
    "tunnel",
    "basket",
    "rocket",
    "pepper",
    "glacier",
]
MODULES = ["shutil", "statistics", "ast", "os", "codecs", "pkgutil", "dis", "difflib", "ssl", "platform", "ipaddress"]
MOMENT = datetime(2026, 1, 2, tzinfo=UTC)  # a PDF holds the time at which it was made


def words(seed: int | str, count: int) -> str:
    drawn = random.Random(f"words {seed}")
    return " ".join(drawn.choice(WORDS) for _ in range(count))


def blank_pdf(**more: Any) -> FPDF:
    pdf = FPDF(**more)
    pdf.set_creation_date(MOMENT)
    pdf.set_font("Helvetica", size=12)
    return pdf


def book(path: Path, pages: int = 3, seed: int | str = 0, chapters: bool = True, labels: bool = False) -> Path:
    """A text of so many pages: an outline entry on each odd page (a second level on every third), a figure with its
    caption on the second page, a table on the third; labels: i, ii for the first two pages, then 1, 2 ..."""
    pdf = blank_pdf()
    for number in range(1, pages + 1):
        if labels:
            pdf.add_page(label_style="r" if number <= 2 else "D", label_start=number if number <= 2 else number - 2)
        else:
            pdf.add_page()
        if chapters and number % 2:
            pdf.start_section(f"Chapter {number} {words(f'{seed} {number}', 3)}", level=0)
            if number % 3 == 0:
                pdf.start_section(f"Details {words(f'{seed} {number} more', 2)}", level=1)
        pdf.multi_cell(0, 6, words(f"{seed} page {number}", 120), new_x="LMARGIN", new_y="NEXT")
        if number == 2:
            pdf.image(picture(seed), w=80)
            pdf.cell(0, 8, f"Figure 1: {words(f'{seed} caption', 5)}", new_x="LMARGIN", new_y="NEXT")
        if number == 3:
            with pdf.table() as table:
                for row in range(3):
                    line = table.row()
                    for column in range(3):
                        line.cell(words(f"{seed} cell {row} {column}", 1))
    pdf.output(str(path))
    return path


def manual(path: Path, name: str) -> None:
    """A page for each documented function of a module: its summary line is a bookmark and a heading."""
    module = importlib.import_module(name)
    pdf = blank_pdf()
    for _, function in inspect.getmembers(module, inspect.isfunction):
        summary, _, body = (inspect.getdoc(function) or "").partition("\n")
        text = " ".join(body.split()).encode("latin-1", "ignore").decode("latin-1")
        if len(text) < 80 or len(summary.split()) < 4 or function.__module__ != name:
            continue
        pdf.add_page()
        pdf.start_section(summary.rstrip("."))
        pdf.multi_cell(0, 6, summary.rstrip("."), new_x="LMARGIN", new_y="NEXT")
        pdf.multi_cell(0, 6, text)
    pdf.output(str(path))


def picture(seed: int | str = 0, size: tuple[int, int] = (320, 240), mode: str = "RGB") -> Image.Image:
    drawn = random.Random(f"picture {seed}")
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = drawn.randrange(size[0]), drawn.randrange(size[1])
        pen.rectangle((x, y, x + size[0] // 8, y + size[1] // 8), fill=tuple(drawn.randrange(256) for _ in range(3)))
    return image.convert(mode)


def scan(path: Path, pages: int = 1, seed: int | str = 0, colours: tuple[str, ...] = ()) -> Path:
    """Pages of nothing but an image: a picture, or one filled with a colour with a black corner."""
    pdf = blank_pdf()
    for number in range(pages):
        image = picture(f"{seed} {number}", (200, 280))
        if number < len(colours):
            image = Image.new("RGB", (200, 280), colours[number])
            ImageDraw.Draw(image).rectangle((0, 0, 20, 20), fill="black")
        pdf.add_page()
        pdf.image(image, x=0, y=0, w=pdf.w, h=pdf.h)
    pdf.output(str(path))
    return path


def with_empty_page(path: Path) -> Path:
    """Text, an empty page, text."""
    pdf = blank_pdf()
    for number in range(3):
        pdf.add_page()
        if number != 1:
            pdf.multi_cell(0, 6, words(f"around {number}", 30))
    pdf.output(str(path))
    return path


def encrypted(path: Path, password: str | None = None) -> Path:
    """Encrypted by its owner; it opens without a password unless one is given."""
    pdf = blank_pdf()
    pdf.set_encryption("owner", password, encryption_method=EncryptionMethod.RC4)
    pdf.add_page()
    pdf.cell(text="nobody may copy this sentence")
    pdf.output(str(path))
    return path


def truncated(path: Path) -> Path:
    """The first two thirds of a book."""
    book(path, 4)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def raw_pdf(path: Path, objects: list[bytes]) -> Path:
    """A PDF of these objects, numbered from 1; the first is the catalog."""
    out = bytearray(b"%PDF-1.7\n")
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table)
    path.write_bytes(bytes(out))
    return path


def no_pages(path: Path) -> Path:
    return raw_pdf(path, [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>"])


def many_pages(path: Path, count: int) -> Path:
    """So many empty pages of one object each."""
    kids = b" ".join(b"%d 0 R" % (number + 3) for number in range(count))
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] >>"
    tree = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count)
    return raw_pdf(path, [b"<< /Type /Catalog /Pages 2 0 R >>", tree, *[page] * count])


def huge_page(path: Path) -> Path:
    """A page of 100 by 100 metres."""
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 283464 283464] >>"
    tree = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    return raw_pdf(path, [b"<< /Type /Catalog /Pages 2 0 R >>", tree, page])


def bomb(path: Path, side: int = 60_000, form: bool = False) -> Path:
    """A page with a picture of side x side grey pixels that takes no room in the file; form: inside a form object."""
    pixels = zlib.compress(bytes(1_000_000), 9)  # far fewer than it says: nobody should get so far as to notice
    picture_ = (
        b"<< /Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace /DeviceGray /BitsPerComponent 8 "
        b"/Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (side, side, len(pixels), pixels)
    )
    draw = b"q 500 0 0 500 50 50 cm /P Do Q"
    content = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(draw), draw)
    inside = (
        b"<< /Type /XObject /Subtype /Form /BBox [0 0 600 600] /Resources << /XObject << /P 4 0 R >> >> "
        b"/Length %d >>\nstream\n%s\nendstream" % (len(draw), draw)
    )
    drawn = b"6 0 R" if form else b"4 0 R"
    page = (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 600] /Contents 5 0 R "
        b"/Resources << /XObject << /P %s >> >> >>" % drawn
    )
    tree = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    return raw_pdf(path, [b"<< /Type /Catalog /Pages 2 0 R >>", tree, page, picture_, content, inside])


def bad_folder(folder: Path) -> dict[str, str]:
    """One good book and one file of every kind that cannot be read; name -> the reason that must be told."""
    folder.mkdir(parents=True, exist_ok=True)
    book(folder / "good.pdf", 2)
    truncated(folder / "truncated.pdf")
    encrypted(folder / "encrypted.pdf")
    encrypted(folder / "password.pdf", "secret")
    no_pages(folder / "no pages.pdf")
    many_pages(folder / "long.pdf", 10_000)
    huge_page(folder / "huge.pdf")
    bomb(folder / "bomb.pdf")
    bomb(folder / "hidden bomb.pdf", form=True)
    (folder / "page.pdf").write_text("<html><p>Not found</p></html>")
    (folder / "empty.pdf").touch()
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.7\nnothing\nstartxref\n0\n%%EOF\n")
    picture().save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:-400])
    (folder / "whole.png").unlink()
    (folder / "letter.jpg").write_text("Dear Sir")
    (folder / "binary.txt").write_bytes(b"a\0b")
    (folder / "old.txt").write_bytes("für später".encode("cp1252"))
    (folder / "loop").symlink_to(folder.resolve())
    (folder / "self.pdf").symlink_to("self.pdf")
    (folder / "gone.pdf").symlink_to("nowhere.pdf")
    os.mkfifo(folder / "pipe.pdf")
    return {
        "truncated.pdf": "truncated",
        "encrypted.pdf": "encrypted",
        "password.pdf": "needs a password",
        "no pages.pdf": "no pages",
        "long.pdf": "too many pages",
        "huge.pdf": "page too large",
        "bomb.pdf": "picture too large",
        "hidden bomb.pdf": "picture too large",
        "page.pdf": "not a PDF",
        "empty.pdf": "empty file",
        "damaged.pdf": "damaged",
        "cut.png": "truncated",
        "letter.jpg": "damaged",
        "binary.txt": "not a text",
        "old.txt": "unknown encoding",
        "loop/": "symlink loop",
        "self.pdf": "symlink loop",
        "gone.pdf": "broken link",
        "pipe.pdf": "not a regular file",
    }


def tree(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but the report, which tells the time."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "report.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def names(folder: Path) -> set[str]:
    """Every file below a folder, which a process may be writing to: what is renamed meanwhile is no error."""
    return {os.path.join(place, name) for place, _, files in os.walk(folder) for name in files}


# -- OCR hooks: what reading processes import -------------------------------------------------------------------------


def colour_ocr(image: Image.Image) -> str:
    """Says what colour the middle of the page is; dies on red, sleeps on blue, fails on green, prints on all."""
    print("this hook prints")
    red, green, blue = image.getpixel((image.width // 2, image.height // 2))
    if red > 200 and blue < 100:
        os._exit(7)
    if blue > 200 and red < 100:
        time.sleep(60)
    if green > 100 and red < 100:
        raise RuntimeError("green is unreadable")
    return f"read {image.mode} {image.width} x {image.height}"
