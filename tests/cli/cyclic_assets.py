"""Two assets that read each other."""

from __future__ import annotations

from flowstone import asset


@asset
def a(b: int) -> int:
    return b


@asset
def b(a: int) -> int:
    return a
