"""A Hub that accepts a connection and never answers is given up on every road, with a sentence."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from smart_train.core import hub

ROOT = Path(__file__).parents[2]
ROADS = ["a base's files", "a base", "an adapter", "a dataset", "data pull", "data push", "publish"]


@pytest.mark.slow
def test_every_road_to_the_hub_gives_up_a_server_that_never_answers(tmp_path):
    script = ROOT / "tests" / "helpers" / "silent_hub.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('["')]  # others print there as well
    told = {row[0]: row[1:] for row in map(json.loads, lines)}
    assert list(told) == ROADS, done.stderr[-3000:]
    for road, (kind, message, status, _) in told.items():
        assert kind in ("BaseNotFound", "DataProblem", "DataError", "Unreachable", "PublishError"), (
            road,
            kind,
            message,
        )
        assert status in (1, 2) and "did not answer in time" in message, (road, message)
        assert "Traceback" not in message and "\n" not in message, (road, message)


TIMEOUTS = {
    "read": httpx.ReadTimeout("timed out"),
    "connect": httpx.ConnectTimeout("timed out"),
    "pool": httpx.PoolTimeout("timed out"),
    "python": TimeoutError("timed out"),
    "wrapped": OSError("We couldn't connect to the Hub"),
}


@pytest.mark.parametrize("kind", TIMEOUTS)
def test_every_kind_of_time_out_is_the_same_sentence(kind):
    error = TIMEOUTS[kind]
    if kind == "wrapped":
        error.__cause__ = httpx.ReadTimeout("timed out")
    assert hub.error_kind(error) == "silent"
    assert "did not answer in time" in hub.describe_failure(error)


def test_a_call_without_a_limit_gets_one_and_a_limit_that_it_has_stays(monkeypatch):
    from huggingface_hub import constants, get_session, set_client_factory
    from huggingface_hub.utils import _http

    server = socket.create_server(("127.0.0.1", 0))  # the system accepts; nobody answers
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    before, limits = _http._GLOBAL_CLIENT_FACTORY, []
    monkeypatch.setattr(hub, "SILENCE", 0.1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        hub.limit_waiting.cache_clear()
        hub.limit_waiting()
        get_session().event_hooks["request"].append(
            lambda request: limits.append(request.extensions["timeout"]["read"])
        )
        for given in (None, 0.2):
            with pytest.raises(Exception) as raised:
                get_session().get(address, timeout=given)
            assert hub.error_kind(raised.value) == "silent"
    finally:
        set_client_factory(before)
        hub.limit_waiting.cache_clear()
    assert limits == [0.1, 0.2]
