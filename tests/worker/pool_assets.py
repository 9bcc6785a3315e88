"""Assets that take slots, for the tests of pools on real workers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flowstone import Context, Retry, StaticPartitions, asset

PARTS = StaticPartitions([f"p{number}" for number in range(6)])


class Doors(BaseModel):
    """A folder in which each step says that it runs, and finds that it may end."""

    folder: str = "."
    open: bool = True


@asset(pool="single", partitions=PARTS)
def row() -> int:
    return 1


@asset
def rows(row: dict[Any, int]) -> int:
    return sum(row.values())


@asset
def before_gate() -> int:
    return 1


@asset(pool="single", config=Doors)
def gate(before_gate: int, context: Context) -> int:
    """Wait until it may end."""
    folder = Path(context.config.folder)
    note = folder / f"note-{context.attempt}"
    note.write_text(str(os.getpid()))
    note.rename(folder / f"attempt-{context.attempt}")
    end = time.monotonic() + 60
    while not (folder / "open").exists():
        if time.monotonic() > end:
            raise RuntimeError("nobody has opened the gate")
        time.sleep(0.01)
    return before_gate


@asset(pool="single", retry=Retry(max_attempts=2, base=0.05, factor=1))
def flaky(context: Context) -> int:
    if context.attempt < 2:
        raise ConnectionError("not yet")
    return 1


@asset
def after_flaky(flaky: int) -> int:
    return flaky
