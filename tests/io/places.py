"""Attempts that store values."""

from __future__ import annotations

from uuid import uuid4

from flowstone.io import Place


def place(partition: str = "-", attempt: int = 1, asset: str = "made") -> Place:
    return Place(asset, partition, 7, attempt, uuid4())
