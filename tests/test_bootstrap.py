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


def test_intervals_of_few_objects_cover_the_truth():
    """95 % of them, up to what a hundred tries tell: the plain bootstrap's are right in 50 % for two objects."""
    rng = np.random.default_rng(0)
    for count in (2, 4, 16):
        found = [estimate(rng.normal(0, 1, count)) for _ in range(100)]
        assert sum(each.low <= 0 <= each.high for each in found) >= 89
    assert estimate([1.0, 3.0]).standard_error == pytest.approx(1.0, rel=0.03)


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
