"""Days that wait at a gate, and their months."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path

from pydantic import BaseModel

from flowstone import Context, DailyPartitions, MonthlyPartitions, asset

GATE_SECONDS = 60


class Gate(BaseModel):
    """The folder in which the file `open` lets all days end."""

    folder: str = "."


@asset(partitions=DailyPartitions("2013-01-01", "2013-02-28"), config=Gate)
def day(context: Context) -> int:
    """Wait for the file `open`."""
    folder = Path(context.config.folder)
    (folder / f"began-{context.partition}").touch()
    end = time.monotonic() + GATE_SECONDS
    while not (folder / "open").exists():
        if time.monotonic() > end:
            raise RuntimeError("nobody has opened the gate")
        time.sleep(0.01)
    return int(context.partition.day)


@asset(partitions=MonthlyPartitions("2013-01", "2013-02"))
def month(day: dict[date, int]) -> int:
    """Add up the days."""
    return sum(day.values())
