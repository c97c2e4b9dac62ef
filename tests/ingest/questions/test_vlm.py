"""Questions that a model writes: the prompt, what of its answers counts, repetitions, the cache, and progress."""

from __future__ import annotations

import time

import pytest
from chat_models import TEXT, Scripted, about, answer, page

from smart_train.core.errors import DataError
from smart_train.ingest.pages import Page
from smart_train.ingest.questions.chat_model import Refusal
from smart_train.ingest.questions.vlm import Progress, VlmOptions, parse_check, parse_queries, rule_of, vlm


def test_every_page_is_asked_about_and_every_question_knows_its_page(tmp_path):
    asker = Scripted(about)
    seen: list[str] = []
    written = vlm([page(n) for n in range(1, 5)], asker, tmp_path, progress=lambda p: seen.append(str(p)))
    assert [(q.text, q.document, q.rule, q.source, q.page) for q in written.questions[:2]] == [
        ("barrels carried by ferry 1", "f-00001", "vlm: fact", "", 1),
        ("why does harbour 1 freeze", "f-00001", "vlm: concept", "", 1),
    ]
    assert written.counts == written.kept() == {"vlm: concept": 4, "vlm: fact": 4} and written.masked == {}
    assert len(asker.requests) == 8 and len(seen) == 2  # a question and a check a page, in groups of three and one
    assert "4/4 pages" in seen[1] and "8 requests, 0 from the cache; 800 + 80 tokens" in seen[1]


def test_the_prompt_says_what_is_wanted_and_shows_the_page(tmp_path):
    asker = Scripted(about)
    both = page(1, image="images/p.png")
    vlm([both, page(2)], asker, tmp_path, VlmOptions(kinds=("figure", "fact"), per_page=2, check=False))
    shown, text = asker.requests
    assert shown.image == tmp_path / "images/p.png" and TEXT not in shown.prompt
    assert text.image is None and TEXT in text.prompt
    for needed in ("up to 2 search queries", "- figure:", "- fact:", "JSON", '"this page"', '"this image"'):
        assert needed in shown.prompt
    assert "- concept:" not in shown.prompt
    for show, has_image, has_text in (("text", False, True), ("image", True, False), ("both", True, True)):
        asker = Scripted(about)
        vlm([both], asker, tmp_path / show, VlmOptions(show=show, check=False, characters=40))
        (request,) = asker.requests
        assert (request.image is not None, TEXT[:40].strip() in request.prompt) == (has_image, has_text)
        assert TEXT[:60] not in request.prompt


def test_what_is_no_question_is_dropped_and_counted_by_rule_and_reason(tmp_path):
    replies = answer(
        ("fact", "What does this page say about barrels?"),
        ("fact", "barrels in the table above by year"),
        ("figure", "ferry routes as in Figure 3 of Vik"),
        ("fact", "Was steht auf dieser Seite über Fässer"),
        ("fact", "ferry"),
        ("fact", " ".join(["ferry"] * 50)),
        ("poem", "how many barrels go to Holm"),
        ("fact", "How many barrels go to Holm?"),
        ("facts", "how many barrels go to holm"),
        ("Concept", "why the harbour of Vik freezes"),
        ("table or chart", "barrels by week in Vik"),
        ("fact", "name of the ferry to Holm"),
    )
    written = vlm([page(1)], Scripted(lambda r: replies), tmp_path, VlmOptions(check=False))
    assert [q.text for q in written.questions] == [
        "How many barrels go to Holm?", "why the harbour of Vik freezes", "barrels by week in Vik"
    ]  # fmt: skip
    assert written.counts == {
        "vlm: another kind": 1, "vlm: concept": 1, "vlm: fact": 1, "vlm: fact: more than asked for": 1,
        "vlm: fact: points at the page": 2, "vlm: fact: said twice": 1, "vlm: fact: too long": 1,
        "vlm: fact: too short": 1, "vlm: figure": 1, "vlm: figure: points at the page": 1,
    } | {"vlm: fact: points at the page": 3}  # fmt: skip
    assert written.dropped()["points at the page"] == 4


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("What is shown in the image of the ferry?", True),
        ("according to the document, who owns it", True),
        ("barrels listed above by weight", True),
        ("que dit cette page sur le cuivre", True),
        ("revenue on page 12 of the report", True),
        ("How do I join two tables in SQL", False),
        ("how to save a document in the editor", False),
        ("image compression ratio of JPEG", False),
        ("page size limit of Qdrant", False),
        ("who is the author", True),
    ],
)
def test_pointing_at_the_page_is_seen_and_its_subject_is_not_mistaken_for_it(tmp_path, text, points):
    written = vlm([page(1)], Scripted(lambda r: answer(("fact", text))), tmp_path, VlmOptions(check=False))
    assert (written.counts == {"vlm: fact: points at the page": 1}) == points
    assert len(written.questions) == (not points)


def test_the_same_question_of_two_pages_is_no_question_and_a_copy_is_not_asked_about(tmp_path):
    asker = Scripted(lambda r: answer(("fact", "Barrels to Holm?!"), ("fact", about(r)[40:70].replace('"', ""))))
    pages = [page(1), page(2), page(3, hash="0001")]
    written = vlm(pages, asker, tmp_path, VlmOptions(check=False))
    assert [q.document for q in written.questions] == ["f-00001", "f-00002"]
    assert written.counts == {"vlm: fact": 2, "vlm: fact: not unique": 2, "vlm: copy of a page": 1}
    assert len(asker.requests) == 2


def test_pages_without_anything_to_ask_about_are_counted(tmp_path):
    asker = Scripted(about)
    blank = Page("f-1", "a", 1, 1, None, "page left empty", None, (), None, "h", "text")
    assert vlm([blank], asker, tmp_path).counts == {"vlm: nothing to ask about": 1}
    assert asker.requests == []


def test_the_model_judges_its_own_questions(tmp_path):
    def judge(request):
        if "search queries:" not in request.prompt:
            return about(request)
        assert "1. barrels carried by ferry" in request.prompt and TEXT in request.prompt
        said = {"1": '{"good": [2, 7]}', "2": '{"good": []}', "3": "all of them"}
        return said[request.prompt.split()[-2]]

    written = vlm([page(n) for n in (1, 2, 3)], Scripted(judge), tmp_path)
    assert [q.text for q in written.questions] == ["why does harbour 1 freeze"]
    said, none = "not answered by the page, it says", "not judged"
    assert written.counts == {
        "vlm: concept": 1, f"vlm: concept: {said}": 1, f"vlm: fact: {said}": 2,
        f"vlm: concept: {none}": 1, f"vlm: fact: {none}": 1, "vlm: not the JSON asked for": 1,
    }  # fmt: skip


# -------------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"queries": []}', []),
        ('Sure!\n```json\n{"queries": [{"kind": "fact", "query": " a\\n b "}]}\n```\nDone {', [("fact", "a b")]),
        ('<think>{"queries": []} or {"x"</think>[{"kind": "fact", "query": "q"}]', [("fact", "q")]),
        ('{"note": {"a": 1}} {"queries": [{"query": "no kind"}]}', [("", "no kind")]),
        ('{"queries": [{"kind": "fact", "query": "cut of', None),
        ('{"queries": [{"kind": "fact", "question": "other key"}]}', None),
        ('{"queries": "none"}', None),
        ('{"queries": [{"query": 3}]}', None),
        ("no JSON at all [1, 2", None),
        ("", None),
    ],
)
def test_queries_are_read_out_of_what_a_model_writes(text, found):
    assert parse_queries(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [('{"good": [1, 3]}', {1, 3}), ('x {"good": []} y', set()), ('{"good": ["1"]}', None), ('{"good": [true]}', None),
     ("[1]", None), ("yes", None)],
)  # fmt: skip
def test_judgements_are_read_out_of_what_a_model_writes(text, found):
    assert parse_check(text) == found


def test_kinds_have_other_names():
    assert rule_of("Facts", ("fact",)) == "vlm: fact"
    assert rule_of("Table / figure", ("figure", "fact")) == "vlm: figure"
    assert rule_of("concept", ("fact",)) is None and rule_of("", ("fact",)) is None


def test_an_answer_that_is_no_json_is_asked_for_again(tmp_path):
    asker = Scripted(lambda r: about(r) if r.attempt == 2 else "I would say: barrels")
    written = vlm([page(1)], asker, tmp_path, VlmOptions(check=False))
    assert written.kept() == {"vlm: concept": 1, "vlm: fact": 1}
    assert [r.attempt for r in asker.requests] == [0, 1, 2]
    stubborn = Scripted(lambda r: "barrels")
    written = vlm([page(1), page(2)], stubborn, tmp_path / "b", VlmOptions(attempts=2))
    assert written.counts == {"vlm: not the JSON asked for": 2} and len(stubborn.requests) == 4


def test_a_refused_page_is_passed_over_and_many_in_a_row_stop_the_run(tmp_path, caplog):
    odd = Scripted(lambda r: Refusal("too large", "8 GB") if r.prompt.split()[-2] in "135" else about(r))
    written = vlm([page(n) for n in range(1, 7)], odd, tmp_path, VlmOptions(check=False, patience=2))
    assert written.counts == {"vlm: concept": 3, "vlm: fact": 3, "vlm: too large": 3}
    assert "a.pdf, page 3: too large (8 GB)" in caplog.text
    with pytest.raises(DataError, match="2 pages in a row got no answer.*too large.*run the command again to continue"):
        vlm([page(n) for n in (1, 3, 5)], odd, tmp_path, VlmOptions(check=False, patience=2))


# -------------------------------------------------------------------------------------- the cache


def test_a_run_that_is_stopped_goes_on_where_it_was(tmp_path):
    class Stop(Exception):
        pass

    def dies(request):
        if "search queries:" not in request.prompt and request.prompt.split()[-2] == "5":
            raise Stop
        return about(request)

    pages = [page(n) for n in range(1, 8)]
    with pytest.raises(Stop):
        vlm(pages, Scripted(dies), tmp_path)
    rest, told = Scripted(about), []
    resumed = vlm(pages, rest, tmp_path, progress=told.append)
    assert [r.prompt.split()[-2] for r in rest.requests if "search queries:" not in r.prompt] == ["4", "5", "6", "7"]
    assert (told[-1].requests, told[-1].cached) == (8, 6)
    whole = Scripted(about)
    assert resumed == vlm(pages, whole, tmp_path / "anew")
    again = Scripted(about)
    assert vlm(pages, again, tmp_path) == resumed and again.requests == []


def test_the_cache_is_of_this_page_this_prompt_and_this_model(tmp_path):
    def asked(pages, name="scripted", **options) -> int:
        asker = Scripted(about)
        asker.name = name
        vlm(pages, asker, tmp_path, VlmOptions(check=False, **options))
        return len(asker.requests)

    assert asked([page(1)]) == 1
    assert asked([page(1)]) == 0
    assert asked([Page("other", "b.pdf", 8, 9, None, page(1).text, None, (), None, "0001", "pdf")]) == 0  # moved
    assert asked([page(1, hash="changed")]) == 1
    assert asked([page(1)], name="another model") == 1
    assert asked([page(1)], per_page=2) == 1
    assert asked([page(1)], max_words=30) == 0  # a rule for what came back
    for file in (tmp_path / "asked").rglob("*.json"):
        file.write_text(file.read_text()[:20])
    assert asked([page(1)]) == 1  # half a file is asked for again
    assert asked([page(1)]) == 0


def test_what_was_not_understood_is_not_kept(tmp_path):
    vlm([page(1)], Scripted(lambda r: "barrels"), tmp_path, VlmOptions(attempts=1))
    assert list(tmp_path.rglob("*.json")) == []


def test_progress_says_rate_time_left_and_tokens():
    progress = Progress(10, 4, 9, requests=8, prompt_tokens=2_000_000, answer_tokens=500_000)
    progress.started = time.monotonic() - 2
    assert str(progress) == (
        "4/10 pages, 2.00 pages/s, 3 s left; 9 questions; 8 requests, 0 from the cache; 2,000,000 + 500,000 tokens"
    )


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kinds": ("fact", "joke")}, "kinds: choose from .*not joke"),
        ({"kinds": ()}, "kinds: choose from .*not none"),
        ({"show": "video"}, "show: choose auto.*not 'video'"),
        ({"attempts": 0}, "attempts is 0; give 1 or more"),
        ({"min_words": 9, "max_words": 8}, "min_words is 9, more than max_words, 8"),
    ],
)
def test_options_that_cannot_be_are_refused(options, why):
    with pytest.raises(DataError, match=why):
        VlmOptions(**options)
