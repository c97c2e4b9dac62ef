"""What one file becomes: pages of PDFs, pictures and texts, beside what was put into them."""

from __future__ import annotations

import io
from pathlib import Path

import pdfs
import pypdfium2
import pypdfium2.raw
import pytest
from PIL import Image, ImageDraw

from smart_train.core.errors import DataError
from smart_train.ingest import image_files, text_files
from smart_train.ingest.pages import (
    Outline,
    Page,
    Unreadable,
    file_id,
    images_of,
    page_hash,
    read_about,
    read_one,
    read_pages,
    write_pages,
)
from smart_train.ingest.pdf_files import Pdf, clean_text
from smart_train.ingest.text_files import Block, html_blocks, markdown_blocks, plain

MOST = 200_000_000


def page(number: int, file: str = "a.pdf", **more: object) -> Page:
    fields = {
        "id": f"{'ab' * 10}-{number:05d}",
        "file": file,
        "page": number,
        "pages": 3,
        "label": None,
        "text": f"text of {number}\nå ß 文",
        "title": "One",
        "outline": (Outline("One", 0), Outline("Two", 1)),
        "image": None,
        "hash": "0" * 32,
        "kind": "pdf",
    }
    return Page(**fields | more)  # type: ignore[arg-type]


# -- the shape on the disk


def test_pages_come_back_as_they_were_written_with_what_is_known_of_the_file(tmp_path: Path) -> None:
    pages = [page(1, label="iv"), page(2, outline=(), title=None), page(3, image="images/x.jpg", text="")]
    write_pages(tmp_path / "x.parquet", pages, {"file": "a.pdf", "row": {"pages": 3}})
    assert list(read_one(tmp_path / "x.parquet")) == pages
    assert read_about(tmp_path / "x.parquet") == {"file": "a.pdf", "row": {"pages": 3}}
    assert images_of(tmp_path / "x.parquet") == ["images/x.jpg"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
    assert pages[0].file_id == "ab" * 10


def test_pages_are_read_by_file_and_page_whatever_their_files_ids_are(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    for name, file in (("1", "b.pdf"), ("2", "a/z.pdf"), ("3", "a.pdf")):
        write_pages(tmp_path / "pages" / f"{name}.parquet", [page(1, file), page(2, file)], {"file": file})
    found = [(p.file, p.page) for p in read_pages(tmp_path)]
    assert found == [("a.pdf", 1), ("a.pdf", 2), ("a/z.pdf", 1), ("a/z.pdf", 2), ("b.pdf", 1), ("b.pdf", 2)]


def test_a_folder_without_pages_and_a_foreign_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pages; run `smart-train ingest"):
        read_pages(tmp_path)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "x.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="x.parquet: not written by"):
        read_pages(tmp_path)


def test_ids_are_of_the_bytes_and_hashes_of_text_and_image(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"same" * 1_000_000)
    (tmp_path / "b").write_bytes(b"same" * 1_000_000)
    (tmp_path / "c").write_bytes(b"same" * 999_999)
    assert file_id(tmp_path / "a") == file_id(tmp_path / "b") != file_id(tmp_path / "c")
    assert file_id(tmp_path / "a") != file_id(tmp_path / "a", "cut elsewhere")
    hashes = {
        page_hash("a", b"b"),
        page_hash("ab", None),
        page_hash("", b"ab"),
        page_hash("ab", b""),
        page_hash("b", b"a"),
    }
    assert len(hashes) == 4  # no image and an empty one are the same; nothing else is
    assert page_hash("\ud800", None)  # half a surrogate pair, as some PDFs have


# -- PDFs


def test_a_books_text_outline_and_labels_are_those_that_were_written(tmp_path: Path) -> None:
    with Pdf(pdfs.book(tmp_path / "a.pdf", pages=5, seed=3, labels=True), 100) as pdf:
        assert pdf.pages == 5
        assert [pdf.label(number) for number in range(1, 6)] == ["i", "ii", "1", "2", "3"]
        assert pdf.outline() == {
            1: [Outline(f"Chapter 1 {pdfs.words('3 1', 3)}", 0)],
            3: [Outline(f"Chapter 3 {pdfs.words('3 3', 3)}", 0), Outline(f"Details {pdfs.words('3 3 more', 2)}", 1)],
            5: [Outline(f"Chapter 5 {pdfs.words('3 5', 3)}", 0)],
        }
        for number in range(1, 6):
            opened = pdf.page(number, MOST)
            assert " ".join(opened.text().split()).startswith(pdfs.words(f"3 page {number}", 120))
            opened.close()


def test_a_document_without_labels_has_none(tmp_path: Path) -> None:
    with Pdf(pdfs.book(tmp_path / "a.pdf", 1, chapters=False), 100) as pdf:
        assert pdf.label(1) is None and pdf.outline() == {}


def test_a_title_that_is_no_text_costs_its_entry_only(tmp_path: Path) -> None:
    outlines = b"<< /Type /Outlines /First 5 0 R /Last 6 0 R /Count 2 >>"
    broken = b"<< /Title <FEFFD800> /Parent 4 0 R /Next 6 0 R /Dest [3 0 R /Fit] >>"
    whole = b"<< /Title (Whole) /Parent 4 0 R /Prev 5 0 R /Dest [3 0 R /Fit] >>"
    tree = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    page_ = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] >>"
    catalog = b"<< /Type /Catalog /Pages 2 0 R /Outlines 4 0 R >>"
    path = pdfs.raw_pdf(tmp_path / "a.pdf", [catalog, tree, page_, outlines, broken, whole])
    with Pdf(path, 100) as pdf:
        assert [entry.title for entry in pdf.outline()[1]] == ["Whole"]


@pytest.mark.parametrize("pixels", [5_000, 99_999, 2**20, 786_432])
def test_an_image_fills_the_budget_and_never_exceeds_it(tmp_path: Path, pixels: int) -> None:
    with Pdf(pdfs.book(tmp_path / "a.pdf", 1), 100) as pdf:
        opened = pdf.page(1, MOST)
        image = opened.image(pixels)
        assert 0.96 * pixels <= image.width * image.height <= pixels
        assert image.width / image.height == pytest.approx(210 / 297, rel=0.02)
        opened.close()


def test_an_image_is_what_pdfium_draws_at_that_size(tmp_path: Path) -> None:
    path = pdfs.book(tmp_path / "a.pdf", 2)
    with Pdf(path, 100) as pdf:
        opened = pdf.page(2, MOST)
        ours = opened.image(500_000)
        opened.close()
    document = pypdfium2.PdfDocument(path)
    theirs = document[1].render(scale=ours.width / document[1].get_width()).to_pil().resize(ours.size)
    document.close()
    reds = [(a - b) ** 2 for a, b in zip(ours.convert("L").tobytes(), theirs.convert("L").tobytes(), strict=True)]
    assert sum(reds) / len(reds) < 40  # of 65,025; another page is 1,000 and more


def test_a_small_page_is_not_enlarged_beyond_200_dots_per_inch(tmp_path: Path) -> None:
    page_ = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 144 72] >>"
    tree = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    path = pdfs.raw_pdf(tmp_path / "card.pdf", [b"<< /Type /Catalog /Pages 2 0 R >>", tree, page_])
    with Pdf(path, 100) as pdf:
        opened = pdf.page(1, MOST)
        assert opened.image(2**20).size == (400, 200)
        opened.close()


def test_a_filled_in_form_is_drawn(tmp_path: Path) -> None:
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (filled) /F 4 /Rect [20 20 280 80] /P 3 0 R "
        b"/DA (/Helv 40 Tf 0 g) /AP << /N 5 0 R >> >>"
    )
    drawn = b"0 0 260 60 re f"
    look = b"<< /Type /XObject /Subtype /Form /BBox [0 0 260 60] /Length %d >>\nstream\n%s\nendstream" % (
        len(drawn),
        drawn,
    )
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [4 0 R] >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 100] /Annots [4 0 R] >>",
        field,
        look,
    ]
    with Pdf(pdfs.raw_pdf(tmp_path / "form.pdf", objects), 100) as pdf:
        opened = pdf.page(1, MOST)
        assert not image_files.is_blank(opened.image(100_000))
        opened.close()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pdfs.truncated, "truncated"),
        (pdfs.encrypted, "encrypted"),
        (lambda path: pdfs.encrypted(path, "secret"), "needs a password"),
        (pdfs.no_pages, "no pages"),
        (lambda path: pdfs.many_pages(path, 101), "too many pages"),
        (lambda path: path.write_bytes(b"PK\3\4 something else"), "not a PDF"),
        (lambda path: path.touch(), "empty file"),
    ],
)
def test_a_pdf_that_cannot_be_opened_says_why(tmp_path: Path, make, reason: str) -> None:
    make(tmp_path / "a.pdf")
    with pytest.raises(Unreadable) as caught:
        Pdf(tmp_path / "a.pdf", 100)
    assert caught.value.reason == reason


def test_an_encrypted_pdf_without_a_password_can_be_asked_for(tmp_path: Path) -> None:
    with Pdf(pdfs.encrypted(tmp_path / "a.pdf"), 100, encrypted=True) as pdf:
        opened = pdf.page(1, MOST)
        assert opened.text() == "nobody may copy this sentence"
        opened.close()


def test_zeros_and_line_breaks_after_the_end_are_no_truncation(tmp_path: Path) -> None:
    path = pdfs.book(tmp_path / "a.pdf", 1)
    path.write_bytes(path.read_bytes() + b"\r\n" + bytes(10_000))
    with Pdf(path, 100) as pdf:
        assert pdf.pages == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pdfs.huge_page, "page too large"),
        (pdfs.bomb, "picture too large"),
        (lambda path: pdfs.bomb(path, form=True), "picture too large"),
    ],
)
def test_a_page_that_would_need_much_memory_is_refused_before_it_is_drawn(tmp_path: Path, make, reason: str) -> None:
    make(tmp_path / "a.pdf")
    with Pdf(tmp_path / "a.pdf", 100) as pdf, pytest.raises(Unreadable) as caught:
        pdf.page(1, MOST)
    assert caught.value.reason == reason


def test_marks_of_broken_lines_controls_and_ligatures_become_text() -> None:
    assert (
        clean_text("pack\x02ages and S\x02Plus\r\nend\x00\x14 \ufb01nal o\ufb03ce\x02")
        == "packages and S-Plus\nend final office-"
    )
    assert clean_text("\x021 a\tb\rc") == "-1 a\tb\nc"


# -- pictures


def test_a_picture_is_upright_on_white_within_the_budget_and_without_metadata(tmp_path: Path) -> None:
    source = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    ImageDraw.Draw(source).rectangle((0, 0, 149, 99), fill=(255, 0, 0, 255))
    source.save(tmp_path / "a.png")
    image = image_files.read_image(tmp_path / "a.png", 1, 2**20, MOST)
    assert (image.mode, image.size) == ("RGB", (300, 200))
    assert image.getpixel((10, 10)) == (255, 0, 0) and image.getpixel((299, 199)) == (255, 255, 255)

    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "a maker that must not leak"
    source.convert("RGB").save(tmp_path / "b.jpg", exif=turned)
    image = image_files.read_image(tmp_path / "b.jpg", 1, 15_000, MOST)
    assert image.width * image.height <= 15_000 and image.width / image.height == pytest.approx(2 / 3, rel=0.03)
    assert b"maker" in (tmp_path / "b.jpg").read_bytes() and b"maker" not in image_files.encode_jpeg(image)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
def test_a_turned_picture_is_turned_once_whatever_its_size(tmp_path: Path, name: str) -> None:
    source = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(source).rectangle((0, 0, 29, 19), fill="black")  # top left; turned, it is top right
    turned = Image.Exif()
    turned[0x0112] = 6
    source.save(tmp_path / name, exif=turned)
    for pixels in (2**20, 1_000):
        image = image_files.read_image(tmp_path / name, 1, pixels, MOST).convert("L")
        assert image.height > image.width
        corners = [image.getpixel((x, y)) for y in (3, image.height - 4) for x in (3, image.width - 4)]
        assert [c > 128 for c in corners] == [True, False, True, True]


def test_black_and_white_scans_become_smooth_greys(tmp_path: Path) -> None:
    source = Image.effect_noise((400, 400), 100).convert("1")
    source.save(tmp_path / "a.tif")
    grey = image_files.read_image(tmp_path / "a.tif", 1, 100 * 100, MOST).convert("L")
    assert len(set(grey.tobytes())) > 20


def test_a_large_jpeg_looks_the_same_when_it_is_decoded_small(tmp_path: Path) -> None:
    source = pdfs.picture(5, (1600, 1200))
    source.save(tmp_path / "a.jpg", quality=95)
    ours = image_files.read_image(tmp_path / "a.jpg", 1, 30_000, MOST)
    theirs = source.resize(ours.size, Image.Resampling.LANCZOS)
    off = [abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)]
    assert ours.size == (200, 150) and sum(off) / len(off) < 4


def test_sixteen_bit_greys_keep_their_shades(tmp_path: Path) -> None:
    grey = Image.new("I;16", (2, 1))
    grey.putpixel((0, 0), 65535)
    grey.putpixel((1, 0), 32768)
    for name in ("a.png", "a.tiff"):
        grey.save(tmp_path / name)
        image = image_files.read_image(tmp_path / name, 1, 2**20, MOST)
        assert [image.getpixel((x, 0)) for x in range(2)] == [(255,) * 3, (128,) * 3], name


def test_each_picture_of_a_tiff_is_a_page_and_the_first_of_a_gif_is_its_only_one(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (30 + i, 20), colour) for i, colour in enumerate(("red", "green", "blue"))]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (
        image_files.count_pages(tmp_path / "a.tif", 10, MOST) == 3
        and image_files.count_pages(tmp_path / "a.gif", 10, MOST) == 1
    )
    assert [image_files.read_image(tmp_path / "a.tif", i, 2**20, MOST).tobytes() for i in (1, 2, 3)] == [
        f.tobytes() for f in frames
    ]
    with pytest.raises(Unreadable, match="too many pages"):
        image_files.count_pages(tmp_path / "a.tif", 2, MOST)


def test_pictures_that_are_broken_or_too_large_say_so(tmp_path: Path) -> None:
    data = io.BytesIO()
    pdfs.picture(1).save(data, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data.getvalue()[:-2000])
    (tmp_path / "none.jpg").write_bytes(b"no picture")
    (tmp_path / "empty.png").touch()
    Image.new("L", (2000, 1000)).save(tmp_path / "large.png")
    Image.new("L", (1, 500)).save(tmp_path / "line.png")
    for name, reason in (
        ("cut.jpg", "truncated"),
        ("none.jpg", "damaged"),
        ("empty.png", "empty file"),
        ("large.png", "picture too large"),
        ("line.png", "page too narrow"),
    ):
        with pytest.raises(Unreadable) as caught:
            image_files.read_image(tmp_path / name, 1, 2**20, 1_000_000)
        assert caught.value.reason == reason, name


# -- texts


def test_markdown_headings_and_paragraphs_without_their_marks() -> None:
    text = """---
title: front matter
---
# Top *level* `co_de` [link](http://a.b/c_(d)) ##
Intro with **bold**, snake_case_name, 2*3*4, \\*stars\\* &amp; ![a cat](cat.png "t").
<!-- a remark
over lines -->
Under
=====
> quoted
> more

- item
- other
---
```sh
# a comment, no heading
```
Second
------
##
"""
    assert list(markdown_blocks(text)) == [
        Block("heading", "Top level co_de link", 0),
        Block("text", "Intro with bold, snake_case_name, 2*3*4, *stars* & a cat."),
        Block("heading", "Under", 0),
        Block("text", "quoted\nmore"),
        Block("text", "- item\n- other"),
        Block("code", "# a comment, no heading"),
        Block("heading", "Second", 1),
    ]
    assert plain("`*kept*` and ``a ` b``") == "*kept* and a ` b"


def test_html_shows_what_a_browser_shows() -> None:
    page_ = """<!doctype html><html><head><title>The &lt;title&gt;</title><style>h1 {}</style></head><body>
    <nav><a>menu</a></nav><h1>Head <b>ing</b></h1><p>One
    goes on<br>here<p>Two &amp; more<script>var x = "<p>no</p>";</script>
    <ul><li><p>first</p><li>second</ul><table><tr><th>a</th><td>b</td></tr></table>
    <pre>  code
    kept</pre><h3>Deep</h3>tail <img alt="a cat">"""
    assert html_blocks(page_) == [
        Block("heading", "The <title>", 0),
        Block("heading", "Head ing", 0),
        Block("text", "One goes on\nhere"),
        Block("text", "Two & more"),
        Block("text", "- first"),
        Block("text", "- second"),
        Block("text", "a | b"),
        Block("code", "  code\n    kept"),
        Block("heading", "Deep", 2),
        Block("text", "tail a cat"),
    ]
    assert html_blocks("<title>Same</title><h2>Same</h2>") == [Block("heading", "Same", 1)]


def test_plain_text_headings_are_underlined_and_form_feeds_end_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("-----\nBoxed\n-----\n\nOne\ntwo\n\n12 | 3\n======\n\nTop\n===\ntext\n\fnext page\n\nSub\n---\n")
    assert text_files.read_text_pages(path, 2000) == [
        text_files.TextPage(
            "Boxed\n\nOne\ntwo\n\n12 | 3\n======\n\nTop\n\ntext", (Outline("Boxed", 0), Outline("Top", 1))
        ),
        text_files.TextPage("next page\n\nSub", (Outline("Sub", 0),)),
    ]


@pytest.mark.parametrize("characters", [200, 500, 2000])
def test_pages_lose_no_word_exceed_no_limit_and_end_on_no_heading(characters: int) -> None:
    blocks = []
    for number in range(60):
        if number % 4 == 0:
            blocks.append(Block("heading", f"Heading {number}", number % 3))
        length = (3, 40, 8, 400)[(number * 7) % 4]
        blocks.append(Block("text", " ".join(f"w{number}.{i}" for i in range(length)) + "."))
    pages = list(text_files.paginate(blocks, characters))
    assert " ".join(p.text for p in pages).split() == " ".join(b.text for b in blocks).split()
    assert all(0 < len(p.text) <= characters for p in pages)
    assert [e.title for p in pages for e in p.outline] == [b.text for b in blocks if b.kind == "heading"]
    for p in pages:
        lines = p.text.split("\n\n")
        assert all(e.title in lines for e in p.outline)
        assert not lines[-1].startswith("Heading")
    assert len(pages) < 2.2 * sum(len(b.text) for b in blocks) / characters + 2


def test_a_long_paragraph_is_cut_at_a_sentence_else_a_space_else_anywhere() -> None:
    sentences = " ".join(f"Sentence number {i} ends here." for i in range(100))
    assert all(p.text.endswith(".") for p in text_files.paginate([Block("text", sentences)], 300))
    spaced = " ".join(["word"] * 500)
    assert {w for p in text_files.paginate([Block("text", spaced)], 300) for w in p.text.split()} == {"word"}
    solid = "x" * 1000
    assert "".join(p.text for p in text_files.paginate([Block("text", solid)], 300)) == solid


@pytest.mark.parametrize(
    ("data", "html", "encoding"),
    [
        ("häuser".encode(), False, None),
        ("häuser".encode("utf-8-sig"), False, None),
        ("häuser".encode("utf-16"), False, None),
        ("häuser".encode("utf-32"), False, None),
        (b'<meta charset="iso-8859-1">' + "häuser".encode("latin-1"), True, None),
        ("häuser".encode("cp1252"), False, "cp1252"),
    ],
)
def test_text_is_decoded_by_its_mark_as_utf8_as_it_says_or_as_told(
    data: bytes, html: bool, encoding: str | None
) -> None:
    assert text_files.decode(data, encoding, html).endswith("häuser")


def test_text_in_an_unknown_encoding_is_refused_not_guessed() -> None:
    with pytest.raises(Unreadable, match="unknown encoding: not utf-8"):
        text_files.decode("häuser".encode("cp1252"))
    with pytest.raises(Unreadable, match="unknown encoding: not utf-8 nor no-such"):
        text_files.decode(b'<meta charset="no-such">' + "häuser".encode("latin-1"), None, True)
    with pytest.raises(Unreadable, match="not a text"):
        text_files.decode(b"\x89PNG\0\0")


def test_a_text_of_nothing_is_blank(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("\n \n<!-- nothing -->\n")
    with pytest.raises(Unreadable, match="blank"):
        text_files.read_text_pages(tmp_path / "a.md", 2000)
