"""How far long work has come."""

from __future__ import annotations

import logging

from smart_train.core import progress_log
from smart_train.core.progress_log import ProgressLog, format_duration


def test_progress_is_logged_with_the_time_left_and_short_work_says_nothing(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    now = [0.0]
    monkeypatch.setattr(progress_log.time, "perf_counter", lambda: now[0])
    log = ProgressLog("documents encoded", 1000, done=200, every=30)
    for seconds in (10, 10, 10):
        now[0] += seconds
        log.add(100)
    assert [record.message for record in caplog.records] == ["documents encoded: 500 of 1000, about 50 s left"]
    assert [format_duration(seconds) for seconds in (40, 480, 12000)] == ["40 s", "8 min", "3 h 20 min"]
