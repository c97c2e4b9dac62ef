"""Pieces of a page: what is text stays text, and pictures do not meet."""

from __future__ import annotations

import base64
import re

from smart_train.evaluation.report import html


def test_text_is_escaped_whatever_it_is():
    assert html.text("<b> & \"c\" 'd'") == "&lt;b&gt; &amp; &quot;c&quot; &#x27;d&#x27;"
    assert html.text(3.5) == "3.5" and html.text(None) == "None"
    assert html.text("half \ud83d a pair").encode("utf-8")  # of a broken text layer: it can be written


def test_heads_are_escaped_and_cells_are_html():
    found = html.table(["<a>", "b"], [["<b>1</b>", "2"]])
    assert "<th>&lt;a&gt;</th>" in found and "<td><b>1</b></td>" in found


def test_a_drawing_is_an_image_of_its_own():
    found = html.svg_figure('<svg id="x"></svg>', 'told "so"')
    raw = re.search(r"base64,([^\"]+)", found)
    assert raw and base64.b64decode(raw.group(1)) == b'<svg id="x"></svg>' and 'alt="told &quot;so&quot;"' in found


def test_a_page_names_its_encoding_and_escapes_what_frames_it():
    found = html.page("<t>", "a & b", html.section("s", "", "<p>x</p>"), html.facts([("k<", "v>")]), foot="<f>")
    assert found.startswith('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">')
    for told in ("<title>&lt;t&gt;</title>", "a &amp; b", "<p>x</p>", "<dt>k&lt;</dt><dd>v&gt;</dd>", "&lt;f&gt;"):
        assert told in found
    assert 'class="note"' not in found  # nothing was noted
