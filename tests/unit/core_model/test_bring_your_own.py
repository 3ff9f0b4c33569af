"""The example runs, learns, and its code is imported only with leave."""

import pytest

from core_model import UserCodeError, make_task, read_learning
from examples.bring_your_own import run


def test_the_example_learns(capsys):
    scores = run.main(rounds=5)
    assert set(scores) == {"press", "mill"}
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("1 ")
    for score in scores.values():
        assert score["mean_absolute_error"] < 0.4  # Guessing zero costs 0.64, the mean of |signal|.


def test_without_leave_nothing_runs():
    config = read_learning(run.HERE / "learning.toml")
    assert config.entry_points() == {f"{run.MODULE}:model", f"{run.MODULE}:loss"}
    with pytest.raises(UserCodeError, match=r"sensors:model"):
        make_task(config, f"{run.MODULE}:press")
