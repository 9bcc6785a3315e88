"""A large backfill whose steps wait at a gate, small runs beside it, and other queues."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import BaseModel

from flowstone import Context, DailyPartitions, Retry, asset

BACKFILL_STEPS = 10_000
GATE_SECONDS = 60


class Gate(BaseModel):
    """The folder in which each step says that it has begun, and finds that it may go on."""

    folder: str = "."


@asset(partitions=DailyPartitions("1990-01-01", "2017-05-18"), config=Gate)
def filled(context: Context) -> int:
    """Wait for the file `open-KEY`."""
    folder = Path(context.config.folder)
    (folder / f"began-{context.partition}").touch()
    end = time.monotonic() + GATE_SECONDS
    while not (folder / f"open-{context.partition}").exists():
        if time.monotonic() > end:
            raise RuntimeError("nobody has opened the gate")
        time.sleep(0.01)
    return 1


@asset
def backfilled(filled: dict[object, int]) -> int:
    return len(filled)


@asset
def question() -> str:
    return "what?"


@asset
def answer(question: str) -> str:
    return f"{question} that!"


@asset
def told(answer: str) -> str:
    return answer.upper()


@asset(retry=Retry(max_attempts=2, base=30, factor=1))
def comes_back() -> None:
    raise ConnectionError("the source is closed")


@asset(queue="backfill")
def follows(question: str) -> str:
    """In a queue that the worker of some tests does not consume."""
    return question


@asset(queue="backfill")
def meets(question: str, beside: str) -> str:
    return question + beside


@asset
def beside() -> str:
    return "and?"


@asset(queue="gpu")
def trained(question: str) -> str:
    return question


@asset
def served(trained: str) -> str:
    return trained
