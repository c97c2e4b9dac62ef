"""Arguments that several commands share."""

from __future__ import annotations

import pytest

from smart_train.cli.benchmark import _result_name
from smart_train.cli.main import main
from smart_train.core.hub import display_name


@pytest.mark.parametrize("command", ["evaluate", "probe"])
@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_a_seed_that_no_generator_takes_is_refused_before_anything_is_read(command, seed, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "nowhere", "--model", "nothing", "--output", "out", "--seed", seed])
    assert ended.value.code == 2 and "is not a whole number of 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "heavy"])
def test_a_weight_that_would_make_every_score_nan_is_refused_before_anything_is_read(weight, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "nowhere", "--model", "nothing", f"--late-weight={weight}"])
    assert ended.value.code == 2 and "is not a finite number" in capsys.readouterr().err


def test_a_run_s_adapter_is_told_by_its_run_and_never_by_where_it_lies(tmp_path):
    (tmp_path / "mine" / "adapter").mkdir(parents=True)
    (tmp_path / "free").mkdir()
    run, free = str(tmp_path / "mine" / "adapter"), str(tmp_path / "free")
    assert [display_name(run), display_name(free), display_name("me/mine")] == ["mine/adapter", "free", "me/mine"]
    assert [_result_name(run), _result_name(free), _result_name("me/mine")] == ["local/mine", "local/free", "me/mine"]
