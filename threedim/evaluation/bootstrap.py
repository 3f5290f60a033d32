"""How sure a mean over objects is: the bootstrap (Efron 1979)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

_RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean over objects, and what other objects might have given. The last four are None for a single object."""

    mean: float
    standard_error: float | None
    low: float | None  # ends of the 95 % interval
    high: float | None
    positive: float | None  # share of the resampled means above zero


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one figure per object, and its spread over 10,000 sets drawn from these objects with replacement.

    For two methods scored on the same objects, pass the differences (a paired bootstrap). The same for the same values.
    Intervals and errors of few objects would be too narrow: both are widened by sqrt(n / (n - 1)), and intervals as
    those of Student's t are beside a normal distribution's (Hesterberg 2015).

    Raises:
      ValueError: without values.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected one figure per object, got shape {values.shape}")
    if len(values) == 1:
        return Estimate(float(values[0]), None, None, None, None)
    drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    means, mean, few = values[drawn].mean(axis=1), values.mean(), math.sqrt(len(values) / (len(values) - 1))
    wider = few * scipy.stats.t.ppf(0.975, len(values) - 1) / scipy.stats.norm.ppf(0.975)
    low, high = mean + wider * (np.percentile(means, [2.5, 97.5]) - mean)
    return Estimate(float(mean), few * float(means.std()), float(low), float(high), float(np.mean(means > 0)))
