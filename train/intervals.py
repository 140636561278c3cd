"""Confidence intervals of shares."""

from __future__ import annotations


def confidence_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share of which `correct` of `n` > 0 photos were observed."""
    from scipy.stats import binomtest  # here, because the import takes a second

    low, high = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(low), float(high)
