"""What is said of repeated measurements: six figures, whether two sets differ, and ratios of pairs with an interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

STATISTICS = ("min", "mean", "median", "p95", "max", "stdev")

CONFIDENCE = 0.95


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Min, mean, median, 95th percentile (between the neighbours, linearly), max and sample standard deviation (0 for one).

    Raises:
      ValueError: there are no values.
    """
    if not values:
        raise ValueError("nothing to summarize")
    x = np.asarray(values, np.float64)
    return {
        "min": float(x.min()),
        "mean": float(x.mean()),
        "median": float(np.median(x)),
        "p95": float(np.percentile(x, 95)),
        "max": float(x.max()),
        "stdev": float(x.std(ddof=1)) if len(x) > 1 else 0.0,
    }


def is_noise(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Whether two summaries' medians differ no more than their own runs do: one lies between the other's min and p95."""
    return before["min"] <= after["median"] <= before["p95"] or after["min"] <= before["median"] <= after["p95"]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Median of pairwise ratios with a distribution-free interval.

    Attributes:
      median: of all pairs.
      low, high: the interval's ends.
      confidence: probability with which such an interval covers the true median; below 0.95 where there are too few pairs.
      pairs: how many there were.
    """

    median: float
    low: float
    high: float
    confidence: float
    pairs: int

    @property
    def shows_difference(self) -> bool:
        """Whether the interval excludes 1 with 95 % confidence."""
        return self.confidence >= CONFIDENCE and not self.low <= 1.0 <= self.high


def paired_ratio(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """`second / first`, pair by pair.

    The interval goes from the k-th smallest ratio to the k-th largest, with the largest k whose coverage
    `1 - 2 * P(Binomial(n, 1/2) < k)` is still 95 %: it assumes no distribution, only that pairs are alike. Fewer than six
    pairs cannot give 95 %; then it is the whole range, with the confidence that this has.

    Raises:
      ValueError: the lengths differ, there are no pairs, or a value is not positive.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"pairs are needed: got {len(first)} and {len(second)} values")
    if min(*first, *second) <= 0:
        raise ValueError("ratios need positive values")
    ratios = np.sort(np.asarray(second, np.float64) / np.asarray(first, np.float64))
    n, k = len(ratios), 1
    while 2 * (k + 1) <= n and _coverage(n, k + 1) >= CONFIDENCE:
        k += 1
    return Ratio(float(np.median(ratios)), float(ratios[k - 1]), float(ratios[n - k]), _coverage(n, k), n)


def _coverage(n: int, k: int) -> float:
    """Probability that the k-th smallest and k-th largest of n values enclose the median."""
    return 1.0 - 2.0 * sum(math.comb(n, i) for i in range(k)) / 2.0**n
