"""A chat endpoint over a real socket: requests, repetitions, waits, refusals, and where the key goes."""

from __future__ import annotations

import base64
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from chat_models import about, page
from PIL import Image

from smart_train.core.errors import DataError
from smart_train.ingest.questions.chat_endpoint import ChatEndpoint, data_uri
from smart_train.ingest.questions.chat_model import Answer, Refusal, Request
from smart_train.ingest.questions.vlm import VlmOptions, vlm


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


def asker(chat: Chat, waits: list[float] | None = None, **options) -> ChatEndpoint:
    return ChatEndpoint(chat.url, "tiny", sleep=(waits if waits is not None else []).append, **options)


def test_a_request_holds_the_page_and_the_key_stays_in_its_header(tmp_path):
    file = tmp_path / "p.png"
    Image.new("RGB", (8, 8), "red").save(file)
    with Chat(lambda n, b: (200, {}, completion("hello"))) as chat:
        one = ChatEndpoint(chat.url + "/chat/completions/", "tiny", key="s3cret", more={"top_p": 0.5})
        assert one.answer([Request("what?", file), Request("again?", None, 2)]) == [Answer("hello", 7, 3)] * 2
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
        asker(chat).answer([Request("q")])
        assert "Authorization" not in chat.heads[0]


def test_what_passes_is_tried_again_with_growing_waits():
    script = [(500, {}, b"down"), (429, {}, b"slow"), (200, {}, b"<html>"), (200, {}, {"error": "odd"}),
              (200, {}, completion("there"))]  # fmt: skip
    waits: list[float] = []
    with Chat(lambda n, b: script[n]) as chat:
        assert asker(chat, waits, wait=8.0).answer([Request("q")]) == [Answer("there", 7, 3)]
    assert len(chat.bodies) == 5 and len(waits) == 4
    assert all(0.5 * 8 * 2**n <= wait <= 8 * 2**n for n, wait in enumerate(waits))


def test_a_server_that_says_how_long_is_believed_within_bounds():
    headers = ["7", "Fri, 01 Jan 2100 00:00:00 GMT", "soon"]
    waits: list[float] = []
    with Chat(lambda n, b: (429, {"Retry-After": headers[n]}, b"") if n < 3 else (200, {}, completion("x"))) as chat:
        assert asker(chat, waits).answer([Request("q")]) == [Answer("x", 7, 3)]
    assert waits[:2] == [7.0, 300.0] and 2.0 <= waits[2] <= 4.0


def test_what_never_passes_is_a_refusal_of_that_page_alone():
    def reply(number, body):
        text = body["messages"][0]["content"][-1]["text"]
        return {"large": (413, {}, b"too large"), "down": (503, {}, b"busy")}.get(text) or (200, {}, completion("x"))

    with Chat(reply) as chat:
        found = asker(chat, tries=3, parallel=2).answer([Request("large"), Request("fine"), Request("down")])
    assert found == [
        Refusal("refused with status 413", "too large"), Answer("x", 7, 3), Refusal("status 503 after 3 tries", "busy")
    ]  # fmt: skip
    assert len(chat.bodies) == 5


def test_a_slow_server_is_given_up_and_tried_again():
    again = threading.Event()

    def reply(number, body):
        if number == 0:
            again.wait(60)
        again.set()
        return 200, {}, completion("late")

    waits: list[float] = []
    with Chat(reply) as chat:
        assert asker(chat, waits, timeout=2.0).answer([Request("q")]) == [Answer("late", 7, 3)]
    assert len(chat.bodies) == 2 and len(waits) == 1


def test_no_server_is_a_refusal_that_says_so():
    with Chat(lambda n, b: (200, {}, {})) as chat:
        gone = asker(chat, tries=2)
    (refusal,) = gone.answer([Request("q")])
    assert refusal.reason == "no connection after 2 tries" and "refused" in refusal.detail.lower()


@pytest.mark.parametrize(("status", "told"), [(401, "key is wrong"), (403, "may not"), (404, "no such model")])
def test_a_wrong_key_address_or_model_stops_everything_at_once(status, told):
    with Chat(lambda n, b: (status, {}, b"no")) as chat, pytest.raises(DataError, match=told) as error:
        asker(chat, key="s3cret", parallel=1).answer([Request("q")] * 3)
    assert "s3cret" not in str(error.value) and len(chat.bodies) == 1


def test_a_redirect_is_not_followed_so_the_key_goes_nowhere_else():
    with Chat(lambda n, b: (200, {}, completion("stolen"))) as other:
        for status in (302, 307):
            with Chat(lambda n, b, s=status: (s, {"Location": other.url}, b"")) as chat:
                (refusal,) = asker(chat, key="s3cret").answer([Request("q")])
                assert refusal.reason == f"refused with status {status}"
        assert other.bodies == []


def test_a_server_without_a_json_mode_is_asked_without(caplog):
    def reply(number, body):
        return (400, {}, b"unknown field response_format") if "response_format" in body else (200, {}, completion("x"))

    with Chat(reply) as chat, caplog.at_level(logging.INFO):
        one = asker(chat, tries=1)
        assert one.answer([Request("q")]) + one.answer([Request("q")]) == [Answer("x", 7, 3)] * 2
    assert ["response_format" in body for body in chat.bodies] == [True, False, False]
    assert "takes no response_format" in caplog.text


def test_answers_in_parts_and_without_usage_are_read():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    script = [{"choices": [{"message": {"content": parts}}]}, {"choices": [{"message": {"content": None}}]}]
    with Chat(lambda n, b: (200, {}, script[n])) as chat:
        one = asker(chat, parallel=1)
        assert one.answer([Request("q")]) + one.answer([Request("q")]) == [Answer("ab"), Answer("")]


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
            vlm(pages, one, tmp_path, VlmOptions(patience=2))
        up["now"] = True
        told: list[tuple[int, int]] = []
        whole = vlm(pages, one, tmp_path, progress=lambda p: told.append((p.cached, p.prompt_tokens)))
    assert whole.kept() == {"vlm: concept": 12, "vlm: fact": 12}
    assert whole.questions[:12] == done.questions and told[-1][0] == 12 and told[-1][1] >= 7 * 12


@pytest.mark.parametrize(
    ("url", "told"), [("localhost:8000", "no address"), ("ftp://a/v1", "no address"), ("http://me:pw@a/v1", "key")]
)
def test_an_address_that_is_none_is_refused(url, told):
    with pytest.raises(DataError, match=told):
        ChatEndpoint(url, "m")


def test_a_missing_image_says_which(tmp_path):
    with pytest.raises(DataError, match="gone.png.*ingest the folder again"):
        data_uri(tmp_path / "gone.png")
