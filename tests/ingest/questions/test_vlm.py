"""Questions of a model: what it is asked, what of its answers counts, retries, the cache, and what that costs."""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

from smart_train.core.errors import DataError
from smart_train.ingest.pages import Page
from smart_train.ingest.questions.asking import (
    Answer,
    Asking,
    Progress,
    Refusal,
    Request,
    kind_of,
    parse_check,
    parse_queries,
)
from smart_train.ingest.questions.endpoint import EndpointAsker, data_uri
from smart_train.ingest.questions.queries import Written, round_trip
from smart_train.ingest.questions.vlm import vlm

TEXT = "The harbour of Vik freezes in January, and then the ferry to Holm carries forty barrels of copper each week. "


def page(number: int, text: str = TEXT, image: str | None = None, file: str = "a.pdf", hash: str = "") -> Page:
    digest = hash or f"{number:04d}"
    return Page(f"f-{number:05d}", file, number, 9, None, f"{text} {number}", None, (), image, digest, "pdf")


def answer(*rows: tuple[str, str]) -> str:
    return json.dumps({"queries": [{"kind": kind, "query": query, "answer": "yes"} for kind, query in rows]})


class Scripted:
    """An asker whose answers a function gives; it keeps what it was asked."""

    name, at_once = "scripted", 3

    def __init__(self, reply) -> None:
        self.reply, self.asked = reply, []

    def ask(self, requests):
        self.asked += requests
        return [r if isinstance(r, Refusal) else Answer(r, 100, 10) for r in map(self.reply, requests)]


def about(request: Request) -> str:
    """Two questions with the page's number in them, and all found good."""
    if "search queries:" in request.prompt:
        return '{"good": [1, 2]}'
    number = request.prompt.split()[-2]
    return answer(("fact", f"barrels carried by ferry {number}"), ("concept", f"why does harbour {number} freeze"))


# -------------------------------------------------------------------------------------------------- one run


def test_every_page_is_asked_about_and_every_question_knows_its_page(tmp_path):
    asker = Scripted(about)
    seen: list[str] = []
    written = vlm([page(n) for n in range(1, 5)], asker, tmp_path, progress=lambda p: seen.append(str(p)))
    assert [(q.text, q.document, q.rule, q.source, q.page) for q in written.questions[:2]] == [
        ("barrels carried by ferry 1", "f-00001", "vlm: fact", "", 1),
        ("why does harbour 1 freeze", "f-00001", "vlm: concept", "", 1),
    ]
    assert written.counts == written.kept() == {"vlm: concept": 4, "vlm: fact": 4} and written.masked == {}
    assert len(asker.asked) == 8 and len(seen) == 2  # a question and a check a page, in groups of three and one
    assert "4/4 pages" in seen[1] and "8 requests and 0 from the cache; 800 + 80 tokens" in seen[1]


def test_the_prompt_says_what_is_wanted_and_shows_the_page(tmp_path):
    asker = Scripted(about)
    both = page(1, image="images/p.png")
    vlm([both, page(2)], asker, tmp_path, Asking(kinds=("figure", "fact"), a_page=2, check=False))
    shown, text = asker.asked
    assert shown.image == tmp_path / "images/p.png" and TEXT not in shown.prompt
    assert text.image is None and TEXT in text.prompt
    for needed in ("up to 2 search queries", "- figure:", "- fact:", "JSON", '"this page"', '"this image"'):
        assert needed in shown.prompt
    assert "- concept:" not in shown.prompt
    for show, has_image, has_text in (("text", False, True), ("image", True, False), ("both", True, True)):
        asker = Scripted(about)
        vlm([both], asker, tmp_path / show, Asking(show=show, check=False, characters=40))
        (request,) = asker.asked
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
    written = vlm([page(1)], Scripted(lambda r: replies), tmp_path, Asking(check=False))
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
    written = vlm([page(1)], Scripted(lambda r: answer(("fact", text))), tmp_path, Asking(check=False))
    assert (written.counts == {"vlm: fact: points at the page": 1}) == points
    assert len(written.questions) == (not points)


def test_the_same_question_of_two_pages_is_no_question_and_a_copy_is_not_asked_about(tmp_path):
    asker = Scripted(lambda r: answer(("fact", "Barrels to Holm?!"), ("fact", about(r)[40:70].replace('"', ""))))
    pages = [page(1), page(2), page(3, hash="0001")]
    written = vlm(pages, asker, tmp_path, Asking(check=False))
    assert [q.document for q in written.questions] == ["f-00001", "f-00002"]
    assert written.counts == {"vlm: fact": 2, "vlm: fact: not unique": 2, "vlm: copy of a page": 1}
    assert len(asker.asked) == 2


def test_pages_without_anything_to_ask_about_are_counted(tmp_path):
    asker = Scripted(about)
    blank = Page("f-1", "a", 1, 1, None, "page left empty", None, (), None, "h", "text")
    assert vlm([blank], asker, tmp_path).counts == {"vlm: nothing to ask about": 1}
    assert asker.asked == []


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


# ------------------------------------------------------------------------------------------ what comes back


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
    assert kind_of("Facts", ("fact",)) == "vlm: fact"
    assert kind_of("Table / figure", ("figure", "fact")) == "vlm: figure"
    assert kind_of("concept", ("fact",)) is None and kind_of("", ("fact",)) is None


def test_an_answer_that_is_no_json_is_asked_for_again(tmp_path):
    asker = Scripted(lambda r: about(r) if r.attempt == 2 else "I would say: barrels")
    written = vlm([page(1)], asker, tmp_path, Asking(check=False))
    assert written.kept() == {"vlm: concept": 1, "vlm: fact": 1}
    assert [r.attempt for r in asker.asked] == [0, 1, 2]
    stubborn = Scripted(lambda r: "barrels")
    written = vlm([page(1), page(2)], stubborn, tmp_path / "b", Asking(attempts=2))
    assert written.counts == {"vlm: not the JSON asked for": 2} and len(stubborn.asked) == 4


def test_a_refused_page_is_passed_over_and_many_in_a_row_stop_the_run(tmp_path, caplog):
    odd = Scripted(lambda r: Refusal("too large", "8 GB") if r.prompt.split()[-2] in "135" else about(r))
    written = vlm([page(n) for n in range(1, 7)], odd, tmp_path, Asking(check=False, patience=2))
    assert written.counts == {"vlm: concept": 3, "vlm: fact": 3, "vlm: too large": 3}
    assert "a.pdf, page 3: too large (8 GB)" in caplog.text
    with pytest.raises(DataError, match="2 pages in a row got no answer.*too large.*run it again"):
        vlm([page(n) for n in (1, 3, 5)], odd, tmp_path, Asking(check=False, patience=2))


# ---------------------------------------------------------------------------------------------- the cache


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
    assert [r.prompt.split()[-2] for r in rest.asked if "search queries:" not in r.prompt] == ["4", "5", "6", "7"]
    assert (told[-1].asked, told[-1].cached) == (8, 6)
    whole = Scripted(about)
    assert resumed == vlm(pages, whole, tmp_path / "anew")
    again = Scripted(about)
    assert vlm(pages, again, tmp_path) == resumed and again.asked == []


def test_the_cache_is_of_this_page_this_prompt_and_this_model(tmp_path):
    def asked(pages, name="scripted", **options) -> int:
        asker = Scripted(about)
        asker.name = name
        vlm(pages, asker, tmp_path, Asking(check=False, **options))
        return len(asker.asked)

    assert asked([page(1)]) == 1
    assert asked([page(1)]) == 0
    assert asked([Page("other", "b.pdf", 8, 9, None, page(1).text, None, (), None, "0001", "pdf")]) == 0  # moved
    assert asked([page(1, hash="changed")]) == 1
    assert asked([page(1)], name="another model") == 1
    assert asked([page(1)], a_page=2) == 1
    assert asked([page(1)], most=30) == 0  # a rule for what came back
    for file in (tmp_path / "asked").rglob("*.json"):
        file.write_text(file.read_text()[:20])
    assert asked([page(1)]) == 1  # half a file is asked for again
    assert asked([page(1)]) == 0


def test_what_was_not_understood_is_not_kept(tmp_path):
    vlm([page(1)], Scripted(lambda r: "barrels"), tmp_path, Asking(attempts=1))
    assert list(tmp_path.rglob("*.json")) == []


def test_progress_tells_rate_time_left_and_cost():
    progress = Progress(10, 4, 9, asked=8, read=2_000_000, written=500_000, prices=(0.5, 2.0))
    progress.begun = time.monotonic() - 2
    assert progress.cost == 2.0
    assert str(progress) == (
        "4/10 pages, 2.00 a second, 3 s left; 9 questions; 8 requests and 0 from the cache; "
        "2,000,000 + 500,000 tokens, 2.00"
    )


@pytest.mark.parametrize("options", [{"kinds": ("fact", "joke")}, {"kinds": ()}, {"show": "video"}, {"attempts": 0}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(DataError):
        Asking(**options)


# ----------------------------------------------------------------------------------------- the round trip


def test_a_question_stays_where_its_page_is_among_the_first_k(tmp_path):
    written = vlm([page(n) for n in (1, 2)], Scripted(about), tmp_path)
    texts = []

    def ranker(queries):
        texts.extend(queries)
        return [["f-00002", "f-00001"] if "barrels" in q else ["f-00001", "f-00002"] for q in queries]

    kept = round_trip(written, ranker, k=1)
    assert texts == [q.text for q in written.questions]
    assert [(q.text, q.page) for q in kept.questions] == [
        ("why does harbour 1 freeze", 1), ("barrels carried by ferry 2", 2)
    ]  # fmt: skip
    missed = "not among the first 1"
    assert kept.counts == {"vlm: concept": 1, "vlm: fact": 1, f"vlm: fact: {missed}": 1, f"vlm: concept: {missed}": 1}
    assert kept.dropped() == {missed: 2}
    assert round_trip(written, ranker, k=2).questions == written.questions
    copies = round_trip(written, ranker, k=1, same=lambda name: "one and the same")
    assert copies.questions == written.questions
    assert round_trip(Written(counts={"vlm: fact: too long": 1}), ranker).counts == {"vlm: fact: too long": 1}
    with pytest.raises(DataError, match="0 rankings for 4"):
        round_trip(written, lambda queries: [])
    with pytest.raises(DataError, match="1 or more"):
        round_trip(written, ranker, k=0)


# ------------------------------------------------------------------------------------------- an endpoint


class Chat:
    """A chat server on loopback whose replies a function gives: (status, headers, body) of (request number, body)."""

    def __init__(self, reply) -> None:
        self.reply, self.bodies, self.heads, self.paths = reply, [], [], []
        chat, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(chat.bodies)
                    chat.bodies.append(body)
                    chat.heads.append(dict(self.headers))
                    chat.paths.append(self.path)
                status, headers, out = chat.reply(number, body)
                raw = out if isinstance(out, bytes) else json.dumps(out).encode()
                try:
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": len(raw)}.items():
                        self.send_header(name, str(value))
                    self.end_headers()
                    self.wfile.write(raw)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up waiting

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def completion(text: str, read: int = 7, written: int = 3) -> dict:
    usage = {"prompt_tokens": read, "completion_tokens": written}
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


def asker(chat: Chat, waits: list[float] | None = None, **options) -> EndpointAsker:
    return EndpointAsker(chat.url, "tiny", sleep=(waits if waits is not None else []).append, **options)


def test_a_request_holds_the_page_and_the_key_stays_in_its_header(tmp_path):
    file = tmp_path / "p.png"
    Image.new("RGB", (8, 8), "red").save(file)
    with Chat(lambda n, b: (200, {}, completion("hello"))) as chat:
        one = EndpointAsker(chat.url + "/chat/completions/", "tiny", key="s3cret", more={"top_p": 0.5})
        assert one.ask([Request("what?", file), Request("again?", None, 2)]) == [Answer("hello", 7, 3)] * 2
    first, second = sorted(chat.bodies, key=lambda b: b["seed"])
    picture, text = first["messages"][0]["content"]
    assert text == {"type": "text", "text": "what?"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == file.read_bytes()
    assert (first["model"], first["temperature"], first["top_p"]) == ("tiny", 0.0, 0.5)
    assert first["response_format"] == {"type": "json_object"} and first["max_tokens"] == 600
    assert (second["seed"], second["messages"][0]["content"]) == (2, [{"type": "text", "text": "again?"}])
    assert second["temperature"] > 0
    assert chat.paths == ["/v1/chat/completions"] * 2
    assert all(h["Authorization"] == "Bearer s3cret" for h in chat.heads)
    assert "s3cret" not in repr(one) + one.name
    with Chat(lambda n, b: (200, {}, completion("x"))) as chat:
        asker(chat).ask([Request("q")])
        assert "Authorization" not in chat.heads[0]


def test_what_passes_is_tried_again_with_growing_waits():
    script = [(500, {}, b"down"), (429, {}, b"slow"), (200, {}, b"<html>"), (200, {}, {"error": "odd"}),
              (200, {}, completion("there"))]  # fmt: skip
    waits: list[float] = []
    with Chat(lambda n, b: script[n]) as chat:
        assert asker(chat, waits, wait=8.0).ask([Request("q")]) == [Answer("there", 7, 3)]
    assert len(chat.bodies) == 5 and len(waits) == 4
    assert all(0.5 * 8 * 2**n <= wait <= 8 * 2**n for n, wait in enumerate(waits))


def test_a_server_that_says_how_long_is_believed_within_bounds():
    headers = ["7", "Fri, 01 Jan 2100 00:00:00 GMT", "soon"]
    waits: list[float] = []
    with Chat(lambda n, b: (429, {"Retry-After": headers[n]}, b"") if n < 3 else (200, {}, completion("x"))) as chat:
        assert asker(chat, waits).ask([Request("q")]) == [Answer("x", 7, 3)]
    assert waits[:2] == [7.0, 300.0] and 2.0 <= waits[2] <= 4.0


def test_what_never_passes_is_a_refusal_of_that_page_alone():
    def reply(number, body):
        text = body["messages"][0]["content"][-1]["text"]
        return {"large": (413, {}, b"too large"), "down": (503, {}, b"busy")}.get(text) or (200, {}, completion("x"))

    with Chat(reply) as chat:
        found = asker(chat, tries=3, parallel=2).ask([Request("large"), Request("fine"), Request("down")])
    assert found == [
        Refusal("refused with status 413", "too large"), Answer("x", 7, 3), Refusal("status 503 after 3 tries", "busy")
    ]  # fmt: skip
    assert len(chat.bodies) == 5


def test_a_slow_server_is_given_up_and_tried_again():
    def reply(number, body):
        if number == 0:
            time.sleep(0.6)
        return 200, {}, completion("late")

    waits: list[float] = []
    with Chat(reply) as chat:
        assert asker(chat, waits, timeout=0.2).ask([Request("q")]) == [Answer("late", 7, 3)]
    assert len(chat.bodies) == 2 and len(waits) == 1


def test_no_server_is_a_refusal_that_says_so():
    with Chat(lambda n, b: (200, {}, {})) as chat:
        gone = asker(chat, tries=2)
    (refusal,) = gone.ask([Request("q")])
    assert refusal.reason == "no connection after 2 tries" and "refused" in refusal.detail.lower()


@pytest.mark.parametrize(("status", "told"), [(401, "key is wrong"), (403, "may not"), (404, "no such model")])
def test_a_wrong_key_address_or_model_stops_everything_at_once(status, told):
    with Chat(lambda n, b: (status, {}, b"no")) as chat, pytest.raises(DataError, match=told) as error:
        asker(chat, key="s3cret", parallel=1).ask([Request("q")] * 3)
    assert "s3cret" not in str(error.value) and len(chat.bodies) <= 2


def test_a_redirect_is_not_followed_so_the_key_goes_nowhere_else():
    with Chat(lambda n, b: (200, {}, completion("stolen"))) as other:
        for status in (302, 307):
            with Chat(lambda n, b, s=status: (s, {"Location": other.url}, b"")) as chat:
                (refusal,) = asker(chat, key="s3cret").ask([Request("q")])
                assert refusal.reason == f"refused with status {status}"
        assert other.bodies == []


def test_a_server_without_a_json_mode_is_asked_without(caplog):
    def reply(number, body):
        return (400, {}, b"unknown field response_format") if "response_format" in body else (200, {}, completion("x"))

    with Chat(reply) as chat, caplog.at_level(logging.INFO):
        one = asker(chat, tries=1)
        assert one.ask([Request("q")]) + one.ask([Request("q")]) == [Answer("x", 7, 3)] * 2
    assert ["response_format" in body for body in chat.bodies] == [True, False, False]
    assert "takes no response_format" in caplog.text


def test_answers_in_parts_and_without_usage_are_read():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    script = [{"choices": [{"message": {"content": parts}}]}, {"choices": [{"message": {"content": None}}]}]
    with Chat(lambda n, b: (200, {}, script[n])) as chat:
        one = asker(chat, parallel=1)
        assert one.ask([Request("q")]) + one.ask([Request("q")]) == [Answer("ab"), Answer("")]


def test_an_endpoint_writes_questions_and_goes_on_after_it_was_down(tmp_path):
    """The whole way over a real socket: some 429 and 500, a broken answer, then an outage and a second run."""
    up = {"now": True}

    def reply(number, body):
        if not up["now"]:
            return 500, {}, b"down"
        if number % 5 == 1:
            return 429, {}, b""
        if number % 7 == 3:
            return 200, {}, completion('{"queries": [{"kind')
        prompt = body["messages"][0]["content"][-1]["text"]
        return 200, {}, completion(about(Request(prompt)))

    pages = [page(n) for n in range(1, 13)]
    with Chat(reply) as chat:
        one = asker(chat, parallel=1, tries=2)
        done = vlm(pages[:6], one, tmp_path)
        up["now"] = False
        with pytest.raises(DataError, match="2 pages in a row"):
            vlm(pages, one, tmp_path, Asking(patience=2))
        up["now"] = True
        told: list[tuple[int, int]] = []
        whole = vlm(pages, one, tmp_path, progress=lambda p: told.append((p.cached, p.read)))
    assert whole.kept() == {"vlm: concept": 12, "vlm: fact": 12}
    assert whole.questions[:12] == done.questions and told[-1][0] == 12 and told[-1][1] >= 7 * 12


@pytest.mark.parametrize(
    ("url", "told"), [("localhost:8000", "no address"), ("ftp://a/v1", "no address"), ("http://me:pw@a/v1", "key")]
)
def test_an_address_that_is_none_is_refused(url, told):
    with pytest.raises(DataError, match=told):
        EndpointAsker(url, "m")


def test_a_missing_image_says_which(tmp_path):
    with pytest.raises(DataError, match="gone.png.*ingest the folder again"):
        data_uri(tmp_path / "gone.png")


# ------------------------------------------------------------------------------------------- a local model


@pytest.fixture(scope="module")
def local(tiny_qwen3vl: Path):
    from smart_train.ingest.questions.local_model import LocalAsker

    asker = LocalAsker(str(tiny_qwen3vl), batch=2, tokens=6, pixels=64 * 64)
    # with the drawn weights, tied to the input's, it repeats its last token whatever it is asked
    head = torch.nn.Linear(64, asker.model.lm_head.weight.shape[0], bias=False)
    torch.nn.init.normal_(head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    asker.model.lm_head = head
    return asker


def test_a_local_model_answers_about_pages_and_texts_the_same_alone_and_in_a_batch(local, tmp_path):
    Image.new("RGB", (200, 90), "red").save(tmp_path / "a.png")
    Image.effect_noise((60, 150), 80).save(tmp_path / "b.png")
    requests = [Request("what is the total?", tmp_path / "a.png"), Request("which harbour and which winter page?"),
                Request("name", tmp_path / "b.png"), Request("a")]  # fmt: skip
    together = local.ask(requests)
    alone = [local.ask([request])[0] for request in requests]
    assert together == alone
    assert len({a.text for a in together}) == 4
    assert all(isinstance(a, Answer) and 0 < a.written <= 6 for a in together)
    tokenizer = local.processor.tokenizer
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": requests[3].prompt}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert together[3].read == len(chat["input_ids"])
    assert together[0].read > len(tokenizer(requests[0].prompt)["input_ids"]) + 4  # the image's tokens too


def test_a_repetition_is_another_answer_and_the_first_is_always_the_same(local):
    before = torch.get_rng_state()
    first, again = local.ask([Request("harbour")]), local.ask([Request("harbour")])
    repeated = [local.ask([Request("harbour", None, attempt)])[0].text for attempt in (1, 1, 2, 3)]
    assert first == again and repeated[0] == repeated[1]
    assert len({first[0].text, *repeated}) > 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_local_model_that_writes_nonsense_is_counted_page_by_page(local, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "images/p.png")
    written = vlm([page(1, image="images/p.png"), page(2)], local, tmp_path, Asking(attempts=2, characters=60))
    assert written.questions == [] and written.counts == {"vlm: not the JSON asked for": 2}


def test_local_models_that_cannot_be_asked_are_refused(tiny_bert, tmp_path, local):
    from smart_train.ingest.questions.local_model import LocalAsker

    with pytest.raises(DataError, match="not a chat model|no chat template"):
        LocalAsker(str(tiny_bert))
    with pytest.raises(DataError, match="not a chat model"):
        LocalAsker(str(tmp_path))
    with pytest.raises(DataError, match="1 or more"):
        LocalAsker("x", batch=0)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="bad.png.*not a readable image"):
        local.ask([Request("q", tmp_path / "bad.png")])


def test_a_language_model_is_asked_about_texts_and_not_about_images(tiny_models, tmp_path):
    import tiny
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from smart_train.ingest.questions.local_model import LocalAsker

    tokenizer = AutoTokenizer.from_pretrained(tiny_models("qwen3_right"))
    tokenizer.chat_template = tiny.CHAT
    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, head_dim=16)  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = LocalAsker(str(tmp_path), tokens=4)
    texts = [Request("what is the total amount due of the company?"), Request("harbour")]
    assert model.ask(texts) == [model.ask([text])[0] for text in texts]
    with pytest.raises(DataError, match="takes no images"):
        model.ask([Request("q", tmp_path / "a.png")])


def test_a_base_model_finds_pages_again(tiny_bert):
    from smart_train.data.collection import Collection, Document
    from smart_train.evaluation.encode import encode
    from smart_train.evaluation.ranking import rank_all
    from smart_train.ingest.questions.local_model import base_ranker
    from smart_train.models.encoder import SmartEncoder

    encoder = SmartEncoder.from_pretrained(str(tiny_bert))
    texts = ["invoice total amount due", "harbour winter bridge", "violin lantern mountain river", "music kitchen"]
    corpus = {f"d{n}": Document(f"d{n}", text) for n, text in enumerate(texts)}
    queries = ["winter harbour", "the kitchen", "amount of the invoice"]
    found = base_ranker(encoder, corpus, top=2, mode="late")(queries)
    asked = Collection("x", corpus, {str(n): q for n, q in enumerate(queries)}, {str(n): {"d3": 1} for n in range(3)})
    whole = encode(encoder, asked)
    expected = rank_all(whole.queries, whole.documents, whole.query_ids, whole.document_ids, top=4)["late"]
    assert found == [[d for d, _ in expected[str(n)]][:2] for n in range(3)]
