"""How far long work has come."""

from __future__ import annotations

import logging

from smart_train.evaluation import encode as pace
from smart_train.evaluation.encode import ProgressLog, format_duration


def test_pace_is_told_with_the_time_left_and_short_work_says_nothing(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    told = ProgressLog("documents encoded", 1000, done=200, every=30)
    for seconds in (10, 10, 10):
        now[0] += seconds
        told.add(100)
    assert [record.message for record in caplog.records] == ["documents encoded: 500 of 1000, about 50 s left"]
    assert [format_duration(seconds) for seconds in (40, 480, 12000)] == ["40 s", "8 min", "3 h 20 min"]
