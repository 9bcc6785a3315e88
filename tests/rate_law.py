"""What a rate promises: the law that starts are held to."""

from __future__ import annotations

from collections.abc import Iterable

MICROSECOND = 1e-6
"""The ledger keeps times no finer."""


def assert_kept(starts: Iterable[float], seconds: float, burst: int = 1) -> None:
    """Assert that in no stretch of t seconds there are more than burst + t / seconds starts."""
    ordered = sorted(starts)
    for first, begin in enumerate(ordered):
        for last in range(first + burst, len(ordered)):
            count = last - first + 1
            took = ordered[last] - begin
            least = seconds * (count - burst)
            assert took >= least - MICROSECOND * count, f"{count} starts in {took} s, not {least}"
