"""Error rates and how sure they are, from counts per clip."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def error_rate(errors: np.ndarray, units: np.ndarray) -> float:
    """All errors by all words (or characters) of the references: long clips count more than short ones.

    Args:
      errors: int `[clips]`, substitutions, deletions and insertions of each.
      units: int `[clips]`, words of each reference.

    Returns:
      The rate, which insertions can lift above 1; NaN without words.
    """
    total = int(units.sum())
    return float(errors.sum()) / total if total else float("nan")


def bootstrap_interval(
    errors: np.ndarray, units: np.ndarray, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float] | None:
    """The interval that holds the error rate with probability `level`: percentiles over resampled sets of clips.

    Clips are drawn, not words, since errors come in company. The seed is fixed: the same counts have the same interval.

    Args:
      errors, units: as for `error_rate`; each clip has at least one word.
      resamples: sets to draw, each of as many clips as there are.
      level: share of them that the interval holds.
      seed: of the drawing.

    Returns:
      Lower and upper end, or None for fewer than two clips, which cannot vary.
    """
    clips = len(errors)
    if clips < 2:
        return None
    random = np.random.default_rng(seed)
    rates = np.empty(resamples)
    for i in range(resamples):  # one at a time: all at once would take gigabytes for a large set
        drawn = random.integers(clips, size=clips)
        rates[i] = errors[drawn].sum() / units[drawn].sum()
    lower, upper = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)
