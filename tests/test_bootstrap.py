"""The bootstrap over objects."""

import numpy as np
import pytest

from threedim.evaluation.bootstrap import estimate


def test_error_and_interval_of_a_mean():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = estimate(values)
    assert found.mean == pytest.approx(values.mean())
    error = values.std() / 20
    assert found.standard_error == pytest.approx(error, rel=0.03)
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert found == estimate(values)


def test_share_above_zero():
    assert estimate([1.0, 2.0, 3.0]).positive == 1
    assert estimate([-1.0, -2.0]).positive == 0
    # Of sets of two, the mean is above zero unless both are -1: 3 in 4.
    assert estimate([-1.0, 2.0]).positive == pytest.approx(0.75, abs=0.02)


def test_one_object_has_no_error_and_none_is_refused():
    assert estimate([2.5]) == (2.5, None, None, None, None)
    for values in ([], [[1.0]]):
        with pytest.raises(ValueError, match="one figure per object"):
            estimate(values)
