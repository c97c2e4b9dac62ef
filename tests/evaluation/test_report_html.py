"""The report of an outcome: everything is in it, and it needs nothing but itself."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from PIL import Image

from smart_train.data.collection import Document
from smart_train.evaluation.bm25 import BM25Result
from smart_train.evaluation.report.failure_cases import failure_cases
from smart_train.evaluation.report.html import html_report
from smart_train.evaluation.report.metric_tables import evaluation_table
from smart_train.evaluation.report.outcome import Outcome


class Page(HTMLParser):
    """Tags that are open and never closed, addresses, texts."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(content)
        self.wrong += self.open

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


def shown(content: str) -> Page:
    page = Page(content)
    assert page.wrong == []
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert all(
        address.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,")) for address in page.addresses
    )
    assert not re.search(r"https?://|url\(|@import|\son\w+=", content)
    return page


def test_the_report_is_one_file_with_everything_and_without_scripts_or_addresses(outcome, shown_collection, nasty):
    page = shown(html_report(outcome, failure_cases(outcome, shown_collection.corpus, 5)))
    assert page.tags.count("img") == 3  # measures, spreads, deltas
    assert nasty in page.text  # as text: it is no tag
    for told in ("Retrieval on words/test", "letters", "Against before (base)", "By kind of query", "By file"):
        assert told in page.text
    for mode in ("pooled", "late", "hybrid"):
        assert f"{outcome.evaluation.metrics[mode]['ndcg@10']['value']:.3f}" in page.text
        assert f"{outcome.differences[mode]['ndcg@10']['value']:+.3f}" in page.text
    assert f"{outcome.bm25.metrics['recall@10']['value']:.3f}" in page.text
    assert html_report(outcome, []) == html_report(outcome, [])  # the same bytes


def test_the_first_layer_and_a_seed_of_0_are_told_like_any_other(outcome):
    about = {**outcome.about, "model": {"layer": 0, "query_prompt": "", "commit": None}, "settings": {"seed": 0}}
    content = html_report(replace(outcome, about=about), [])
    assert "<dt>model: layer</dt><dd>0</dd>" in content and "<dt>settings: seed</dt><dd>0</dd>" in content
    assert "query prompt" not in content and "commit" not in content  # there is none


def test_a_report_without_counted_scores_leaves_their_picture_out(outcome):
    observer = replace(outcome.observer, histograms={})
    content = html_report(replace(outcome, observer=observer), [])
    assert "Where relevant documents score" not in content and "Query by query" in content


def test_pages_are_shown_as_thumbnails_with_heatmaps_for_as_many_queries_as_asked(outcome, shown_collection, caplog):
    caplog.set_level(logging.WARNING)
    pages = {id: Document(id, None, Image.new("RGB", (600, 900), "teal"), "f.pdf", 3) for id in shown_collection.corpus}
    asked: list[str] = []

    def heatmap(query: str, document: Any) -> Image.Image:
        asked.append(query)
        if len(asked) > 2:
            raise ValueError("the page has no patches")
        assert document.size == (600, 900)
        return Image.new("RGB", (2000, 500), "red")

    found = failure_cases(outcome, pages, 3, heatmap, heatmaps=2)
    assert len(found) == 3 and len(set(asked)) == 2
    page = shown(html_report(outcome, found))
    assert page.tags.count("details") == 2 and "f.pdf, page 3" in page.text
    assert "the page has no patches" in caplog.text
    assert failure_cases(outcome, pages, 0) == []


def test_an_absent_bm25_row_is_told_with_its_reason(outcome, shown_collection):
    without = Outcome("base", outcome.evaluation, outcome.observer, outcome.queries, shown_collection.qrels)
    without.bm25 = BM25Result("no document has a text: these are images without a text layer", without=60)
    assert "bm25   " in evaluation_table(without) and "absent: no document has a text" in evaluation_table(without)
    assert "There is no BM25 column: no document has a text" in shown(html_report(without, [])).text
    assert without.evaluation_json()["bm25"]["absent"].startswith("no document") and "bm25" not in without.columns()
