"""Tables, files and the report of an outcome: what is in them, and that the report needs nothing but itself."""

from __future__ import annotations

import csv
import logging
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image
from word_encoder import WordEncoder, words_collection

from smart_train.blocks import HybridBlock
from smart_train.data.records import Document
from smart_train.evaluation import charts
from smart_train.evaluation.baseline import Baseline, compare
from smart_train.evaluation.bm25 import Lexical, lexical
from smart_train.evaluation.encoding import encode
from smart_train.evaluation.groups import groups
from smart_train.evaluation.observed import Observer
from smart_train.evaluation.outcome import Outcome
from smart_train.evaluation.report_page import report
from smart_train.evaluation.retrieval import evaluate, evaluate_encoded
from smart_train.evaluation.tables import text, write_metrics_csv, write_query_csv
from smart_train.evaluation.worst import worst

NASTY = "<script>alert('x')</script> & \"quotes\""


@pytest.fixture(scope="module")
def some():
    found = words_collection(60, 20)
    found.queries["q0"] = found.queries["q1"]  # so that one of them is answered badly
    return found


@pytest.fixture(scope="module")
def outcome(some) -> Outcome:
    encoder = WordEncoder()
    encoded = encode(encoder, some)
    observer = Observer(some.qrels, encoder.late.hybrid, top=25)
    one = evaluate_encoded(encoded, some.qrels, encoder.late.hybrid, k=[1, 10], bootstrap=50, observer=observer)
    before = evaluate(WordEncoder(HybridBlock(late=0.0)), some, k=[1, 10], bootstrap=50)
    baseline = Baseline("before", "base", before.per_query)
    texts = {id: document.text for id, document in some.corpus.items()}
    words = lexical(texts, some.queries, some.qrels, k=[1, 10], bootstrap=50)
    found = Outcome("base", one, observer, {**some.queries, "q2": NASTY}, some.qrels, lexical=words)
    found.baseline, found.differences = baseline, compare(one, baseline)
    found.kinds = {query: f"kind {n % 2}" for n, query in enumerate(some.queries)}
    found.files = {query: NASTY if n % 3 else "plain.pdf" for n, query in enumerate(some.queries)}
    values = found.values("ndcg@10")
    found.parts = {"kind": groups(found.kinds, values, 50), "file": groups(found.files, values, 50)}
    found.about = {"data": {"name": "words/test"}, "model": {"base": "letters"}, "date": "today"}
    return found


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


def test_the_report_is_one_file_with_everything_and_without_scripts_or_addresses(outcome, some):
    page = shown(report(outcome, worst(outcome, some.corpus, 5)))
    assert page.tags.count("img") == 3  # measures, spreads, deltas
    assert NASTY in page.text  # as text: it is no tag
    for told in ("Retrieval on words/test", "letters", "Against before (base)", "By kind of query", "By file"):
        assert told in page.text
    for mode in ("pooled", "late", "hybrid"):
        assert f"{outcome.evaluation.metrics[mode]['ndcg@10']['value']:.3f}" in page.text
        assert f"{outcome.differences[mode]['ndcg@10']['value']:+.3f}" in page.text
    assert f"{outcome.lexical.metrics['recall@10']['value']:.3f}" in page.text
    assert report(outcome, []) == report(outcome, [])  # the same bytes


def test_the_worst_queries_are_those_with_the_lowest_figure_and_show_answer_and_finds(outcome, some):
    found = worst(outcome, some.corpus, 4)
    values = outcome.evaluation.per_query["hybrid"]["ndcg@10"]
    assert found and [one.values["hybrid"] for one in found] == sorted(values.values())[: len(found)]
    assert all(one.values["hybrid"] < 1 for one in found)
    for one in found:
        assert {sheet.id for sheet in one.wanted} == set(some.qrels[one.query])
        assert [sheet.id for sheet in one.found] == [id for id, _ in outcome.observer.rankings["hybrid"][one.query][:3]]
        assert [sheet.rank for sheet in one.found] == [1, 2, 3]
        order = [id for id, _ in outcome.observer.rankings["late"][one.query]]
        at = order.index(one.wanted[0].id) + 1 if one.wanted[0].id in order else None
        assert one.ranks["late"] == at


def test_pages_are_shown_as_thumbnails_with_heatmaps_for_as_many_queries_as_asked(outcome, some, caplog):
    caplog.set_level(logging.WARNING)
    pages = {id: Document(id, None, Image.new("RGB", (600, 900), "teal"), "f.pdf", 3) for id in some.corpus}
    asked: list[str] = []

    def heatmap(query: str, document: Any) -> Image.Image:
        asked.append(query)
        if len(asked) > 2:
            raise ValueError("the page has no patches")
        assert document.size == (600, 900)
        return Image.new("RGB", (2000, 500), "red")

    found = worst(outcome, pages, 3, heatmap, heatmaps=2)
    assert len(found) == 3 and len(set(asked)) == 2
    page = shown(report(outcome, found))
    assert page.tags.count("details") == 2 and "f.pdf, page 3" in page.text
    assert "the page has no patches" in caplog.text
    assert worst(outcome, pages, 0) == []


def test_the_table_names_every_row_and_its_figures_stand_in_columns(outcome):
    told = text(outcome)
    lines = told.splitlines()
    assert lines[0].split()[-3:] == ["pooled", "late", "hybrid"] and lines[0].startswith("nDCG@10 (95 % interval)")
    assert [line.split()[0] for line in lines[1:4]] == ["base", "bm25", "before"]
    assert "base hybrid - before (base) hybrid" in told and "base hybrid - bm25" in told
    head = next(line for line in lines if line.startswith("all measures"))
    assert head.split()[2:] == ["pooled", "late", "hybrid", "bm25"]
    assert "nDCG@10 by kind (queries)" in told and "kind 1 (10)" in told
    assert "MB a document" in told and "queries/s" in told


def test_an_absent_bm25_row_is_told_with_its_reason(outcome, some):
    without = Outcome("base", outcome.evaluation, outcome.observer, outcome.queries, some.qrels)
    without.lexical = Lexical("no document has a text: these are images without a text layer", without=60)
    assert "bm25   " in text(without) and "absent: no document has a text" in text(without)
    assert "There is no BM25 column: no document has a text" in shown(report(without, [])).text
    assert without.more()["bm25"]["absent"].startswith("no document") and "bm25" not in without.columns()


def test_csv_files_hold_every_figure_and_every_query(outcome, tmp_path):
    write_metrics_csv(tmp_path / "m.csv", outcome)
    write_query_csv(tmp_path / "q.csv", outcome)
    rows = list(csv.DictReader((tmp_path / "m.csv").open(encoding="utf-8")))
    assert len(rows) == 4 * 8 and {row["row"] for row in rows} == {"base", "bm25"}
    one = next(row for row in rows if (row["mode"], row["measure"]) == ("late", "mrr@10"))
    assert float(one["value"]) == outcome.evaluation.metrics["late"]["mrr@10"]["value"]
    lines = {row["query"]: row for row in csv.DictReader((tmp_path / "q.csv").open(encoding="utf-8", newline=""))}
    assert len(lines) == 20 and lines["q2"]["text"] == NASTY and lines["q3"]["kind"] == "kind 1"
    for query, row in lines.items():
        assert float(row["hybrid ndcg@10"]) == outcome.evaluation.per_query["hybrid"]["ndcg@10"][query]
        first = outcome.first_relevant("bm25", query)
        assert row["bm25 rank"] == ("" if first is None else str(first))


def test_charts_have_a_panel_for_every_comparison(outcome):
    assert charts.deltas(outcome).count("queries, sorted") == 6  # matplotlib names what it draws as paths in comments
    assert charts.spreads(outcome).startswith("<?xml") and "relevant" in charts.measures(outcome) + charts.spreads(
        outcome
    )
