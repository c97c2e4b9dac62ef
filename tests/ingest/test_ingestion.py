"""A folder becomes pages: everything that can be wrong with it, stops at any point, and the command as a whole."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pdfs
import pytest
from PIL import Image

from smart_train.cli import ingest as command
from smart_train.core.errors import DataError, FolderInUse, SmartTrainError
from smart_train.core.folder_lock import FolderLock
from smart_train.ingest import worker_pool
from smart_train.ingest.ingest_options import IngestOptions, Limits
from smart_train.ingest.ingestion import IngestReport, ingest
from smart_train.ingest.pages import page_hash, read_pages
from smart_train.ingest.source_files import display_name, list_files
from smart_train.ingest.worker_process import Reader, _serve

SMALL = IngestOptions(pixels=20_000, jobs=2)


def run(folder: Path, out: Path, **more: object) -> IngestReport:
    return ingest(folder, out, replace(SMALL, **more))  # type: ignore[arg-type]


def stored_report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def reasons(report: IngestReport) -> dict[tuple[str, int | None], str]:
    return {(skip.file, skip.page): skip.reason for skip in report.skipped}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two books, a scan, a picture, a Markdown file and a page of HTML, in three folders."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "b" / "deep").mkdir(parents=True)
    pdfs.book(folder / "a.pdf", 40, "a", labels=True)
    pdfs.book(folder / "b" / "b.pdf", 3, "b")
    pdfs.scan(folder / "b" / "deep" / "scan.pdf", 2)
    pdfs.picture("still", (900, 700)).save(folder / "b" / "still.png")
    (folder / "notes.md").write_text(f"# Notes\n{pdfs.words('notes', 300)}\n\n## More\n{pdfs.words('more', 300)}\n")
    (folder / "b" / "page.html").write_text("<h1>Head</h1><p>A paragraph.")
    return folder


# -- what is written


def test_every_kind_of_document_becomes_pages_in_the_order_of_files(mixed: Path, tmp_path: Path) -> None:
    report = run(mixed, tmp_path / "out")
    pages = list(read_pages(tmp_path / "out"))
    assert [(p.file, p.page) for p in pages] == sorted((p.file, p.page) for p in pages)
    counts = {p.file: p.pages for p in pages}
    assert counts == {
        "a.pdf": 40,
        "b/b.pdf": 3,
        "b/deep/scan.pdf": 2,
        "b/still.png": 1,
        "notes.md": 4,
        "b/page.html": 1,
    }
    assert len({p.id for p in pages}) == len(pages) == report.pages == 51
    by_file = {(p.file, p.page): p for p in pages}
    book = by_file["a.pdf", 39]
    assert (book.label, book.kind, book.title) == ("37", "pdf", f"Chapter 39 {pdfs.words('a 39', 3)}")
    assert [e.level for e in book.outline] == [0, 1] and pdfs.words("a page 39", 10) in " ".join(book.text.split())
    assert by_file["notes.md", 1].title == "Notes" and by_file["notes.md", 1].image is None
    assert by_file["b/deep/scan.pdf", 1].text == "" and by_file["b/deep/scan.pdf", 1].image
    for p in pages:
        stored = (tmp_path / "out" / p.image).read_bytes() if p.image else None
        assert p.hash == page_hash(p.text, stored)
        if p.image:
            with Image.open(tmp_path / "out" / p.image) as image:
                assert 18_000 < image.width * image.height <= 20_000
    assert stored_report(tmp_path / "out")["pages"] == {
        "kept": 51, "kept_pdf": 45, "kept_image": 1, "kept_text": 5,
        "scanned": 2, "ocr": 0, "blank": 0, "unread": 0, "skipped": 0,
    }  # fmt: skip
    assert report.skipped == [] and "2 pages are scans without text" in report.summary()


def test_ids_and_pages_are_the_same_elsewhere_under_other_names_and_with_other_jobs(
    mixed: Path, tmp_path: Path
) -> None:
    run(mixed, tmp_path / "one")
    shutil.copytree(mixed, tmp_path / "moved" / "docs")
    (tmp_path / "moved" / "docs" / "a.pdf").rename(tmp_path / "moved" / "renamed.pdf")
    run(tmp_path / "moved", tmp_path / "two", jobs=3)
    here = {p.id: replace(p, file="") for p in read_pages(tmp_path / "one")}
    there = {p.id: replace(p, file="") for p in read_pages(tmp_path / "two")}
    assert here == there
    run(mixed, tmp_path / "three", jobs=1)
    assert pdfs.tree(tmp_path / "one") == pdfs.tree(tmp_path / "three")


def test_a_file_that_is_there_twice_is_kept_once_and_told(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "b").mkdir(parents=True)
    pdfs.book(docs / "b" / "first.pdf", 2)
    shutil.copy(docs / "b" / "first.pdf", docs / "z.pdf")
    (docs / "again").symlink_to(docs / "b")
    (docs / "c.pdf").symlink_to(docs / "z.pdf")
    report = run(docs, tmp_path / "out")
    assert {p.file for p in read_pages(tmp_path / "out")} == {"b/first.pdf"}
    assert report.duplicates == [("again/", "b/"), ("c.pdf", "b/first.pdf"), ("z.pdf", "b/first.pdf")]
    assert report.skipped == [] and stored_report(tmp_path / "out")["files"]["duplicates"] == 3


def test_an_empty_page_is_left_out_and_counted(tmp_path: Path) -> None:
    pdfs.with_empty_page(tmp_path / "a.pdf")
    report = run(tmp_path / "a.pdf", tmp_path / "out")
    assert [p.page for p in read_pages(tmp_path / "out")] == [1, 3] and report.total("blank") == 1
    (tmp_path / "empty").mkdir()
    pdfs.many_pages(tmp_path / "empty" / "b.pdf", 3)
    assert reasons(run(tmp_path / "empty", tmp_path / "out2")) == {("b.pdf", None): "blank"}


def test_text_alone_and_images_alone(mixed: Path, tmp_path: Path) -> None:
    report = run(mixed, tmp_path / "text", images=False)
    assert all(p.text and p.image is None for p in read_pages(tmp_path / "text"))
    assert not any((tmp_path / "text" / "images").iterdir())
    assert reasons(report) == {("b/deep/scan.pdf", None): "no text"} and report.other == {".png": 1}
    report = run(mixed, tmp_path / "image", text=False)
    assert all(p.image and not p.text for p in read_pages(tmp_path / "image"))
    assert report.total("scanned") == 0 and report.other == {".html": 1, ".md": 1}
    with pytest.raises(DataError, match="both off"):
        IngestOptions(images=False, text=False)


# -- what can be wrong with a folder


def test_each_bad_file_is_skipped_with_its_reason_and_the_run_goes_on(tmp_path: Path) -> None:
    expected = pdfs.bad_folder(tmp_path / "docs")
    report = run(tmp_path / "docs", tmp_path / "out")
    assert reasons(report) == {(file, None): reason for file, reason in expected.items()}
    assert {p.file for p in read_pages(tmp_path / "out")} == {"good.pdf"}
    rows = stored_report(tmp_path / "out")["skipped"]
    assert {row["file"]: row["reason"] for row in rows} == expected
    assert "19 skipped: " in report.summary() and "and 9 more in report.json" in report.summary()
    first = (tmp_path / "out" / "report.json").read_text()
    run(tmp_path / "docs", tmp_path / "out")
    again = (tmp_path / "out" / "report.json").read_text()
    assert first.partition('"run"')[0] == again.partition('"run"')[0]


def test_a_bad_page_takes_no_other_page_along(tmp_path: Path) -> None:
    tall = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 283464] >>"
    text = b"BT /F 20 Tf 50 50 Td (words that can be read) Tj ET"
    good = (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 600] /Contents 5 0 R "
        b"/Resources << /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
    )
    content = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(text), text)
    kids = b"<< /Type /Pages /Kids [4 0 R 3 0 R 4 0 R] /Count 3 >>"
    pdfs.raw_pdf(tmp_path / "a.pdf", [b"<< /Type /Catalog /Pages 2 0 R >>", kids, tall, good, content])
    report = run(tmp_path / "a.pdf", tmp_path / "out")
    assert [p.page for p in read_pages(tmp_path / "out")] == [1, 3]
    assert reasons(report) == {("a.pdf", 2): "page too large"}
    assert (
        stored_report(tmp_path / "out")["pages"]["skipped"] == 1
        and stored_report(tmp_path / "out")["files"]["skipped"] == 0
    )


def test_strict_stops_at_what_cannot_be_read_and_the_next_run_goes_on(tmp_path: Path) -> None:
    pdfs.bad_folder(tmp_path / "docs")
    with pytest.raises(DataError, match="--strict stops here"):
        run(tmp_path / "docs", tmp_path / "out", strict=True)
    assert not (tmp_path / "out" / "report.json").exists()
    assert len(run(tmp_path / "docs", tmp_path / "out").skipped) == 19


def test_odd_names_are_read_and_told_in_valid_unicode(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    names = ["-rf.pdf", "two\nlines.pdf", "naïve 文書 🙂.PDF", "a'b\"c$(d).pdf", "%s.pdf", "x" * 240 + ".pdf"]
    for i, name in enumerate(names):
        pdfs.book(docs / name, 1, i)
    latin = os.fsencode(docs) + b"/caf\xe9.pdf"
    with open(latin, "wb") as stream:
        stream.write(pdfs.book(tmp_path / "source.pdf", 1, "latin").read_bytes())
    report = run(docs, tmp_path / "out")
    assert report.skipped == []
    assert {p.file for p in read_pages(tmp_path / "out")} == {*names, "caf\\xe9.pdf"}
    assert display_name(os.fsdecode(b"caf\xe9")) == "caf\\xe9"


def test_a_summary_cannot_be_used_to_write_to_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "\x1b[2Jgone\n.pdf").touch()
    summary = run(tmp_path / "docs", tmp_path / "out").summary()
    assert "\\x1b[2Jgone\\n.pdf: empty file" in summary and "\x1b" not in summary


def test_which_files_are_found(tmp_path: Path) -> None:
    docs, out = tmp_path / "docs", tmp_path / "docs" / "out"
    for name in (".git/x.pdf", "out/pages/x.pdf", "a/b.pdf", "a/.hidden.pdf", "table.xlsx", "readme", "out.txt"):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_bytes(b"%PDF-" if name.endswith(".pdf") else b"text")
    (docs / "report-1").write_bytes(b"%PDF-1.4 and so on")
    (docs / "a" / "up").symlink_to(tmp_path)
    found = list_files(docs, out)
    assert [(name, kind) for name, _, kind in found.files] == [
        ("a/b.pdf", "pdf"),
        ("out.txt", "text"),
        ("report-1", "pdf"),
    ]
    assert found.other == {".xlsx": 1, "no suffix": 1}
    assert [(skip.file, skip.reason) for skip in found.skipped] == [("a/up/", "symlink loop")]


def test_folders_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    with pytest.raises(DataError, match="there is no such folder or file"):
        run(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "docs" / "a.docx").touch()
    with pytest.raises(DataError, match="no PDF, image or text file; it has 1 files of other kinds"):
        run(tmp_path / "docs", tmp_path / "out")
    with pytest.raises(DataError, match="is the folder to read"):
        run(tmp_path / "docs", tmp_path / "docs")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        run(pdfs.book(tmp_path / "a.pdf", 1), tmp_path / "file")


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = pdfs.book(tmp_path / "a.pdf", 1)
    path.chmod(0)
    reader, answers = Reader(SMALL.worker_settings(str(tmp_path))), []
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read anything
    try:
        _serve(reader, {"do": "inspect", "path": str(path), "kind": "pdf"}, answers.append)
    finally:
        os.seteuid(user)
    assert answers == [{"done": True, "skip": "permission denied", "detail": ""}]


# -- runs after one another


def test_a_second_run_reads_nothing_again(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(mixed, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.name != "report.json"}
    asked: list[str] = []
    give = worker_pool._Worker.give
    monkeypatch.setattr(worker_pool._Worker, "give", lambda self, task: (asked.append(task["do"]), give(self, task)))
    report = run(mixed, tmp_path / "out")
    assert report.reused == 6 and set(asked) == {"inspect"} and report.pages == 51
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.*") if p.name != "report.json"}


def test_what_has_changed_since_gives_what_a_first_run_would(mixed: Path, tmp_path: Path) -> None:
    docs = shutil.copytree(mixed, tmp_path / "docs")
    run(docs, tmp_path / "out")
    (docs / "a.pdf").rename(docs / "moved.pdf")
    (docs / "b" / "b.pdf").unlink()
    pdfs.book(docs / "new.pdf", 2, "new")
    (docs / "notes.md").write_text("# Other notes\nshort")
    next((tmp_path / "out" / "images").glob("*-00003.jpg")).unlink()
    report = run(docs, tmp_path / "out")
    run(docs, tmp_path / "fresh")
    assert pdfs.tree(tmp_path / "out") == pdfs.tree(tmp_path / "fresh")
    assert {p.file for p in read_pages(tmp_path / "out")} >= {"moved.pdf", "new.pdf"}
    assert 2 <= report.reused <= 3


@pytest.mark.parametrize(
    "more", [{"pixels": 30_000}, {"characters": 500}, {"images": False}, {"ocr": "pdfs:colour_ocr"}]
)
def test_other_options_give_what_a_first_run_with_them_would(mixed: Path, tmp_path: Path, more: dict) -> None:
    docs = shutil.copytree(mixed, tmp_path / "docs")
    (docs / "a.pdf").unlink()
    run(docs, tmp_path / "out")
    run(docs, tmp_path / "out", **more)
    run(docs, tmp_path / "fresh", **more)
    assert pdfs.tree(tmp_path / "out") == pdfs.tree(tmp_path / "fresh")


def test_pages_of_another_folder_and_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pdfs.book(tmp_path / name / f"{name}.pdf", 1, name)
    run(tmp_path / "one", tmp_path / "out")
    with pytest.raises(DataError, match=r"holds pages of other files \(one.pdf\) and none of"):
        run(tmp_path / "two", tmp_path / "out")
    (tmp_path / "out" / "images" / "holiday.jpg").write_text("mine")
    shutil.copy(tmp_path / "one" / "one.pdf", tmp_path / "two")
    run(tmp_path / "two", tmp_path / "out")
    assert {p.file for p in read_pages(tmp_path / "out")} == {"one.pdf", "two.pdf"}
    assert (tmp_path / "out" / "images" / "holiday.jpg").read_text() == "mine"


PROGRAM = """
import sys
from smart_train.ingest.ingestion import IngestOptions, ingest
ingest(sys.argv[1], sys.argv[2], IngestOptions(pixels=20_000, jobs=2), progress=True)
"""


def _started(docs: Path, out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, docs, out], stderr=subprocess.DEVNULL)


def _children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []  # it has ended


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_result(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for i in range(5):
        pdfs.book(docs / f"{i}.pdf", 12 + 30 * (i == 2), i)
    pdfs.scan(docs / "scan.pdf", 6)
    (docs / "notes.md").write_text("# Notes\n" + pdfs.words("notes", 2000))
    run(docs, tmp_path / "whole")
    out, drawn = tmp_path / "out", random.Random(5)
    states = set()
    for attempt in range(6):
        begin = time.monotonic()
        process = _started(docs, out)
        limit = drawn.randrange(1, 8) * (attempt + 1)  # images more than there were
        before = len(pdfs.names(out))
        while len(pdfs.names(out)) < before + limit and process.poll() is None and time.monotonic() - begin < 30:
            time.sleep(0.002)
        children = _children(process.pid)
        process.kill()
        process.wait()
        states.add(len(pdfs.names(out)))
        for _ in range(500):
            if not any(Path(f"/proc/{child}/exe").exists() for child in children):
                break
            time.sleep(0.01)
        else:
            pytest.fail("a reading process outlives its parent")
    assert len(states) >= 2  # the kills hit different moments, fewer of them on a busy machine
    assert _started(docs, out).wait() == 0
    assert pdfs.tree(out) == pdfs.tree(tmp_path / "whole")
    assert stored_report(out)["read"] == stored_report(tmp_path / "whole")["read"]


def test_two_runs_into_one_folder_are_refused(tmp_path: Path) -> None:
    pdfs.book(tmp_path / "a.pdf", 1)
    with FolderLock(tmp_path / "out"), pytest.raises(FolderInUse, match=f"is in use by process {os.getpid()} on "):
        run(tmp_path / "a.pdf", tmp_path / "out")
    assert run(tmp_path / "a.pdf", tmp_path / "out").pages == 1


# -- the OCR hook, and processes that die


def test_a_hook_reads_scans_and_only_those_at_a_size_that_can_be_read(mixed: Path, tmp_path: Path) -> None:
    report = run(mixed, tmp_path / "out", ocr=pdfs.colour_ocr)
    texts = {(p.file, p.page): p.text for p in read_pages(tmp_path / "out")}
    width, height = map(int, texts["b/deep/scan.pdf", 1].removeprefix("read RGB ").split(" x "))
    assert 3_500_000 < width * height <= 4_000_000
    assert texts["b/still.png", 1] == "read RGB 900 x 700"
    assert pdfs.words("a page 1", 10) in " ".join(texts["a.pdf", 1].split())
    assert (report.total("scanned"), report.total("ocr")) == (2, 2)


def test_a_page_that_kills_or_stalls_its_process_is_lost_alone(tmp_path: Path) -> None:
    colours = ("white", "red", "white", "green", "blue", "white")
    pdfs.scan(tmp_path / "a.pdf", 6, colours=colours)
    # with a hook the limit is ten times as long
    report = run(tmp_path / "a.pdf", tmp_path / "out", ocr="pdfs:colour_ocr", limits=Limits(seconds=0.2))
    assert reasons(report) == {
        ("a.pdf", 2): "the reading process died",
        ("a.pdf", 4): "the OCR hook failed",
        ("a.pdf", 5): "too slow",
    }
    assert [(p.page, bool(p.text)) for p in read_pages(tmp_path / "out")] == [
        (1, True),
        (3, True),
        (4, False),
        (6, True),
    ]
    details = {skip.page: skip.detail for skip in report.skipped}
    assert details[2] == "exit status 7" and details[4] == "RuntimeError: green is unreadable"


def test_a_file_that_kills_one_process_after_the_other_is_given_up(tmp_path: Path) -> None:
    pdfs.scan(tmp_path / "a.pdf", 5, colours=("red",) * 4 + ("white",))
    pdfs.book(tmp_path / "b.pdf", 2)
    (tmp_path / "docs").mkdir()
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / name).rename(tmp_path / "docs" / name)
    report = run(tmp_path / "docs", tmp_path / "out", ocr="pdfs:colour_ocr")
    assert [(s.file, s.page, s.reason, s.detail) for s in report.skipped] == [
        ("a.pdf", None, "the reading process died", "exit status 7, on 3 pages")
    ]
    assert {p.file for p in read_pages(tmp_path / "out")} == {"b.pdf"}
    assert len(list((tmp_path / "out" / "images").iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of memory there")
def test_memory_beyond_the_limit_ends_one_page_not_the_run(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    pdfs.book(docs / "good.pdf", 2)
    Image.new("P", (12_000, 12_000)).save(docs / "large.png")  # 576 MB when its colours are looked up
    report = run(docs, tmp_path / "out", limits=Limits(memory=700_000_000))
    assert reasons(report) == {("large.png", None): "out of memory"}
    assert {p.file for p in read_pages(tmp_path / "out")} == {"good.pdf"}


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        ("no_such_module:f", "No module named"),
        ("pdfs:no_such", "has no no_such"),
        ("pdfs:WORDS", "is a list, not a function"),
    ],
)
def test_a_hook_that_cannot_be_loaded_ends_the_run(tmp_path: Path, hook: str, why: str) -> None:
    pdfs.book(tmp_path / "a.pdf", 1)
    with pytest.raises(DataError, match=f"the OCR hook '{hook}' .*{why}"):
        run(tmp_path / "a.pdf", tmp_path / "out", ocr=hook)


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    pdfs.book(tmp_path / "a.pdf", 1)
    for ocr in ("pdfs", lambda image: ""):
        with pytest.raises(DataError, match="module:function"):
            run(tmp_path / "a.pdf", tmp_path / "out", ocr=ocr)
    for more in ({"pixels": 100}, {"jobs": 0}, {"characters": 10}):
        with pytest.raises(DataError, match=next(iter(more))):
            IngestOptions(**more)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of children in kilobytes")
def test_memory_does_not_grow_with_the_number_of_pages(tmp_path: Path) -> None:
    program = PROGRAM + "import resource\nprint(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    program += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    peaks = {}
    for pages in (50, 1000):
        path = pdfs.book(tmp_path / f"{pages}.pdf", pages)
        done = subprocess.run(
            [sys.executable, "-c", program, path, tmp_path / f"out {pages}"], capture_output=True, check=True
        )
        peaks[pages] = [int(line) / 1024 for line in done.stdout.split()]
    assert peaks[1000][0] - peaks[50][0] < 40  # MB, of which the file itself and its tables are some
    assert peaks[1000][1] - peaks[50][1] < 40


# -- the command


def _command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    options = parser.parse_args(["ingest", *map(str, arguments)])
    return options.run(options)


def test_the_command_leaves_data_that_a_recipe_reads_split_by_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from smart_train.config.schema import DataBlock
    from smart_train.data.load import load

    docs, out = tmp_path / "docs", tmp_path / "mine"
    docs.mkdir()
    for i in range(8):
        pdfs.book(docs / f"{i}.pdf", 6, f"book {i}")
    assert _command(docs, "--out", out, "--pixels", 20_000, "--jobs", 2, "--dev", 0.2, "--test", 0.2) == 0
    assert "48 pages of 8 files" in capsys.readouterr().out
    sides = load(DataBlock(path=str(out)))
    files = [{side.corpus[d].file for _, d in side.pairs()} for side in sides]
    assert all(files) and sum(map(len, files)) == len(set().union(*files)) == 8
    stored = stored_report(out)
    assert stored["questions"]["kept"] and stored["built"]["queries"]["train"] == len(sides[0].queries)
    document = next(iter(sides[0].corpus.values()))
    assert document.content()["image"].width * document.content()["image"].height <= 20_000

    assert len(read_pages(out)) == len(list(read_pages(out))) == 48  # so that the time left can be estimated

    first = pdfs.tree(out)
    (docs / "broken.pdf").write_text("nothing")
    assert _command(docs, "--out", out, "--pixels", 20_000, "--jobs", 2, "--dev", 0.2, "--test", 0.2) == 3
    assert "broken.pdf: not a PDF" in capsys.readouterr().out and pdfs.tree(out) == first
    with pytest.raises(DataError, match="strict"):
        _command(docs, "--out", out, "--pixels", 20_000, "--strict")


CLIENT = """
def ask(text, image):
    if "search queries:" in text:
        return '{"good": [1]}'
    return '{"queries": [{"kind": "fact", "query": "barrels of harbour number %s"}]}' % text.split()[-2]
"""


def test_a_chat_model_of_ones_own_writes_the_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/private-corpora.md."""
    page = (Path(__file__).parents[2] / "docs" / "private-corpora.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?class MyModel.*?)```", page, re.DOTALL)
    (tmp_path / "my_model.py").write_text(example)
    (tmp_path / "my_client.py").write_text(CLIENT)
    monkeypatch.syspath_prepend(tmp_path)
    docs, out = tmp_path / "docs", tmp_path / "mine"
    docs.mkdir()
    for i in range(6):
        (docs / f"{i}.txt").write_text(f"{pdfs.words(i, 40)} page{i}")
    assert _command(docs, "--out", out, "--questions", "my_model:MyModel") == 0
    stored = stored_report(out)["questions"]
    assert stored["way"] == "my_model:MyModel" and stored["kept"] == {"vlm: fact": 6}
    assert len(list((out / "asked").rglob("*.json"))) == 12  # a question and a judgement of each page


def test_the_command_refuses_what_cannot_work_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    (tmp_path / "docs").mkdir()
    for arguments, why in (
        (["--questions", "vlmm"], "no such source 'vlmm'; choose own-words, vlm, none"),
        (
            ["--questions", "no_such_module:Model"],
            "the chat model .* cannot be imported",
        ),
        (["--questions", "vlm"], "go together"),
        (["--vlm", "x"], "go together"),
        (["--endpoint", "http://localhost:1/v1"], "belong to"),
        (["--questions", "vlm", "--vlm", "x", "--key-env", "NO_SUCH_KEY"], "no environment variable NO_SUCH_KEY"),
        (["--no-text"], "leaves no words"),
        (["--dev", "1"], "is no share"),
        (["--pixels", "10"], "pixels is 10"),
        (["--seconds", "0"], "not above 0"),
        (["--round-trip", str(tmp_path / "no-base")], "no-base"),
        (["--questions", "vlm", "--vlm", "x", "--endpoint", "ftp://host/v1"], "is no address"),
    ):
        with pytest.raises(SmartTrainError, match=why) as caught:
            _command(tmp_path / "docs", "--out", tmp_path / "out", *arguments)
        assert caught.value.status == 2, arguments
    with pytest.raises(SmartTrainError, match="nowhere: there is no such folder or file") as caught:
        _command(tmp_path / "nowhere", "--out", tmp_path / "out", "--questions", "vlm", "--vlm", "a/model-to-load")
    assert caught.value.status == 2 and not (tmp_path / "out").exists()


def linked_documents(docs: Path) -> None:
    """A folder with links out of it: to a file, a folder, through another link, to one without a suffix, to a text."""
    away = docs.parent / "away"
    for folder in (docs, away / "papers"):
        folder.mkdir(parents=True)
    pdfs.book(docs / "a.pdf", 2)
    pdfs.book(away / "b.pdf", 3)
    pdfs.book(away / "papers" / "c.pdf", 4)
    (away / "note.txt").write_text("a private note about a key under the mat", "utf-8")
    (docs / "one.pdf").symlink_to(away / "b.pdf")
    (docs / "folder").symlink_to(away / "papers")
    (docs / "hop.pdf").symlink_to("one.pdf")
    (docs / "plain").symlink_to(away / "b.pdf")
    (docs / "note.txt").symlink_to(away / "note.txt")


def test_links_out_of_the_folder_are_skipped_and_reported(tmp_path: Path) -> None:
    linked_documents(tmp_path / "docs")
    report = run(tmp_path / "docs", tmp_path / "out")
    assert {p.file for p in read_pages(tmp_path / "out")} == {"a.pdf"}
    names = ["folder/", "hop.pdf", "note.txt", "one.pdf", "plain"]
    assert [skip.file for skip in report.skipped] == names
    assert {(skip.reason, skip.detail) for skip in report.skipped} == {
        ("link out of the folder", "--allow-outside reads it")
    }
    assert "link out of the folder" in report.summary()


def test_links_out_of_the_folder_are_read_where_that_is_asked_for(tmp_path: Path) -> None:
    linked_documents(tmp_path / "docs")
    report = run(tmp_path / "docs", tmp_path / "out", allow_outside=True)
    assert {p.file for p in read_pages(tmp_path / "out")} == {"a.pdf", "folder/c.pdf", "hop.pdf", "note.txt"}
    assert report.skipped == [] and report.duplicates == [("one.pdf", "hop.pdf"), ("plain", "hop.pdf")]


def test_a_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    linked_documents(tmp_path / "docs")
    (tmp_path / "again").symlink_to(tmp_path / "away")
    run(tmp_path / "again", tmp_path / "out")
    assert {p.file for p in read_pages(tmp_path / "out")} == {"b.pdf", "papers/c.pdf", "note.txt"}
