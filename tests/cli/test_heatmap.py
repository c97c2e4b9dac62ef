"""``smart-train heatmap``: what it draws, prints and refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from smart_train.cli.main import main
from smart_train.models.encoder import SmartEncoder

TEXT = "Photosynthesis turns sunlight into sugar. Chlorophyll in the leaves absorbs light for the plants."
QUERY = "How do plants photosynthesise?"


@pytest.fixture(scope="module")
def real(real_base) -> SmartEncoder:
    return SmartEncoder(str(real_base), device="cpu")


def lined() -> Image.Image:
    page = Image.new("RGB", (160, 96), "white")
    ImageDraw.Draw(page).text((8, 8), "invoice total 12", fill="black")
    return page


# -- the command


def test_the_command_draws_a_text_and_says_what_each_word_found(real_base, real, tmp_path, capsys):
    (tmp_path / "page.txt").write_text(TEXT)
    output = tmp_path / "map.png"
    base = ["--model", str(real_base), "--output", str(output)]
    assert main(["heatmap", QUERY, str(tmp_path / "page.txt"), *base]) == 0
    told = capsys.readouterr().out
    assert f"late {float(real.score([QUERY], [TEXT], mode='late')):.4f}" in told
    assert re.search(r"photosynthesise  0\.\d+  photosynthesis\n", told)
    first = output.read_bytes()
    assert main(["heatmap", QUERY, "--text", TEXT, *base]) == 0 and output.read_bytes() == first


def test_the_command_draws_a_page_without_a_display(tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MPLBACKEND", "tkagg")  # what a workstation may have set, and a server can't do
    monkeypatch.delenv("DISPLAY", raising=False)
    lined().save(tmp_path / "page.png")
    output = tmp_path / "maps" / "map.png"
    arguments = ["heatmap", QUERY, str(tmp_path / "page.png"), "--text", "an invoice", "--over", "max"]
    assert main([*arguments, "--model", str(tiny_models("qwen3vl")), "--output", str(output), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"  plants +0\.\d+  \S", told) and f"the picture: {output}" in told
    with Image.open(output) as picture:
        assert picture.width > 1000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x"], "no document"),
        ([" ", "--text", "a"], "query is empty"),
        (["x", "missing.png"], "no such file"),
        (["x", "page.png"], "no image side"),
        (["x", "text.txt", "--text", "more"], "not a picture"),
        (["x", "book.pdf"], "smart-train ingest"),
        (["x", "broken.png"], "not a readable image"),
        (["x", "latin.txt"], "UTF-8"),
        (["x", "--text", "a", "--output", "map.svg"], ".png"),
    ],
)
def test_a_wrong_request_is_one_line_that_says_what_to_do(arguments, told, real_base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lined().save("page.png")
    Path("text.txt").write_text(TEXT)
    Path("book.pdf").write_bytes(b"%PDF-1.7\n\x80")
    Path("broken.png").write_bytes(Path("page.png").read_bytes()[:90])
    Path("latin.txt").write_bytes("Straße".encode("latin-1"))
    assert main(["heatmap", "--model", str(real_base), "--output", "map.png", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and len(error.strip().splitlines()) == 1
    assert not Path("map.png").exists()
