"""How urgent a run is at this moment, in SQL."""

from __future__ import annotations


def urgency(runs: str) -> str:
    """Return the level of the runs that a query calls `runs`, 0 for the most urgent.

    `flowstone.priority.urgency` says the same in Python.
    """
    return f"greatest(0, {runs}.priority - {runs}.boost)"
