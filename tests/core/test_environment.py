"""Variables that a launcher sets: whole numbers that fit together, or one sentence."""

from __future__ import annotations

import pytest

from smart_train.cli.main import main
from smart_train.core.environment import check_launch
from smart_train.core.errors import LaunchError

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)


def test_what_a_launcher_sets_is_taken_and_so_is_nothing(monkeypatch):
    check_launch()
    for name in LAUNCHED:
        monkeypatch.delenv(name)
    check_launch()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("RANK", "first", "RANK is 'first', and a launcher sets it to a whole number"),
        ("RANK", "2", "RANK is 2 and WORLD_SIZE is 2"),
        ("RANK", "-1", "RANK is -1 and WORLD_SIZE is 2"),
        ("RANK", "", "RANK is ''"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is 0"),
        ("WORLD_SIZE", "nan", "WORLD_SIZE is 'nan'"),
        ("LOCAL_RANK", "cuda:0", "LOCAL_RANK is 'cuda:0'"),
        ("MASTER_PORT", "http", "MASTER_PORT is 'http'"),
        ("MASTER_ADDR", "", "WORLD_SIZE is 2 without MASTER_ADDR"),
    ],
)
def test_what_no_launcher_sets_is_told_by_every_command(name, value, told, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=told):
        check_launch()
    assert main(["doctor", "nowhere.yaml"]) == 2
    assert told in capsys.readouterr().err
