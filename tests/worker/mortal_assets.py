"""Assets whose process dies while they compute, or whose worker is stopped meanwhile."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flowstone import Context, Retry, StaticPartitions, asset

PARTS = 48
LONG = tuple(f"p{number:02}" for number in range(0, PARTS, 4))
"""The parts that wait at the gate."""
GATE_SECONDS = 120


class Gate(BaseModel):
    """Where an attempt says that it waits, and finds that it may go on."""

    folder: str = "."


def _wait_at(folder: Path, name: str, *, polite: bool = True) -> None:
    """Wait for the file `open`; `name` holds the id of the process that waits."""
    note = folder / f"note-{name}"
    note.write_text(str(os.getpid()))
    note.rename(folder / name)
    end = time.monotonic() + GATE_SECONDS
    while not (folder / "open").exists():
        if time.monotonic() > end:
            raise RuntimeError("nobody has opened the gate")
        try:
            time.sleep(0.01)
        except SystemExit:
            if polite:
                (folder / f"cleaned-{name}").touch()
                raise


@asset
def before_gate() -> int:
    return 1


@asset(config=Gate)
def gate(before_gate: int, context: Context) -> int:
    _wait_at(Path(context.config.folder), f"attempt-{context.attempt}")
    return before_gate + 1


@asset
def after_gate(gate: int) -> int:
    return gate + 1


@asset(config=Gate)
def stubborn(context: Context) -> int:
    """Be deaf to whoever asks the process to end."""
    folder = Path(context.config.folder)
    _wait_at(folder, f"stubborn-{context.attempt}", polite=context.attempt > 1)
    return 1


@asset
def deadly() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


@asset
def after_deadly(deadly: int) -> int:
    return deadly


@asset(retry=Retry(max_lost=1))
def deadly_at_once() -> int:
    os._exit(3)


@asset
def harmless() -> int:
    return 1


@asset
def after_harmless(harmless: int) -> int:
    return harmless + 1


@asset(retry=Retry(max_attempts=2, base=0, factor=1))
def unlucky(context: Context) -> int:
    """Die, then fail, then succeed."""
    if context.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if context.attempt == 2:
        raise ConnectionError("no answer")
    return context.attempt


@asset(partitions=StaticPartitions([f"p{number:02}" for number in range(PARTS)]), config=Gate)
def part(context: Context) -> int:
    if context.partition in LONG:
        name = f"{context.partition}-{context.attempt}"
        _wait_at(Path(context.config.folder), name)
    return 1


@asset
def whole(part: dict[Any, int]) -> int:
    return sum(part.values())


@asset(partitions=StaticPartitions(["a", "b", "c", "d", "e", "f"]))
def item() -> int:
    return 1


@asset
def items(item: dict[Any, int]) -> int:
    return sum(item.values())
