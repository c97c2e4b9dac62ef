"""kill -9 at random moments of six commands: run again, they leave what an uninterrupted run leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import kill_moments  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("command", kill_moments.COMMANDS)
def test_a_command_that_is_killed_and_run_again_leaves_the_same_result(command, tmp_path):
    found = kill_moments.measure([command], 3, None, tmp_path)[command]["trials"]
    assert len(found) == 3
    assert [one for one in found if not one["same"]] == []
