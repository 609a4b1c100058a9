"""The figures show what was recorded: load against hand-computed values."""

import numpy as np

from seeklet.finetune.demo.plots import relative_load
from seeklet.finetune.demo.train import History, StepRecord


def history(loads: list[list[list[int]]]) -> History:
    return History(steps=[StepRecord(i, 1.0, 1.0, 1.0, 1.0, 1e-3, load) for i, load in enumerate(loads, start=1)])


def test_relative_load_by_hand() -> None:
    # One layer, two experts, four steps in two columns: (6, 2) and (4, 4) tokens, means 4 and 4.
    load = relative_load(history([[[4, 0]], [[2, 2]], [[1, 3]], [[3, 1]]]), max_columns=2)
    np.testing.assert_allclose(load, [[[1.5, 1.0], [0.5, 1.0]]])


def test_relative_load_with_fewer_steps_than_columns() -> None:
    assert relative_load(history([[[3, 1], [2, 2]]]), max_columns=60).shape == (2, 2, 1)
