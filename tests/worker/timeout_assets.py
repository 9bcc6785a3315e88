"""Assets that take too long: they heed what interrupts them, clean up, or do not care."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from flowstone import Context, Retry, Timeout, asset
from flowstone.errors import StepTimeout

LONG = 60.0
SOON = Retry(max_attempts=2, base=0.1, factor=1)


class Notes(BaseModel):
    """Where an asset leaves what it has to say."""

    folder: str = "."


@asset
def before() -> int:
    return 1


@asset(timeout=Timeout(0.5, 30), retry=SOON)
def slow(before: int, context: Context) -> int:
    """Take too long, once."""
    if context.attempt == 1:
        time.sleep(LONG)
    return before + context.attempt


@asset
def after_slow(slow: int) -> int:
    return slow + 1


@asset(timeout=Timeout(0.5, 30), config=Notes)
def careful(context: Context) -> str:
    try:
        time.sleep(LONG)
    except StepTimeout as error:
        Path(context.config.folder, "cleaned-up").write_text(error.message)
    return "half of it"


def ignore_all_signals() -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        with suppress(BaseException):
            time.sleep(LONG)


@asset(timeout=Timeout(0.3, 0.6), retry=SOON)
def stubborn(before: int, context: Context) -> int:
    """Do not end before it is killed, once; in a chain."""
    if context.attempt == 1:
        ignore_all_signals()
    return before + context.attempt


@asset
def after_stubborn(stubborn: int) -> int:
    return stubborn + 1


@asset
def part() -> int:
    return 10


@asset(timeout=Timeout(0.3, 0.6), retry=SOON)
def stubborn_part(context: Context) -> int:
    """Do the same in the header of a chord."""
    if context.attempt == 1:
        ignore_all_signals()
    return context.attempt


@asset
def joined(part: int, stubborn_part: int) -> int:
    return part + stubborn_part


@asset(timeout=Timeout(0.3, 0.6), retry=Retry(max_attempts=1))
def hopeless() -> None:
    ignore_all_signals()


@asset
def after_hopeless(hopeless: None) -> None: ...


@asset(timeout=Timeout(0.5, 30), retry=SOON)
def polite(context: Context) -> int:
    """Ask whether it should stop, where nothing can interrupt it."""
    end = time.monotonic() + LONG
    while context.attempt == 1 and time.monotonic() < end:
        context.raise_if_cancelled()
        time.sleep(0.01)
    return context.attempt


@asset
def one_that_runs(before: int, context: Context) -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        context.raise_if_cancelled()
        time.sleep(0.01)


@asset
def another_that_runs(before: int, context: Context) -> None:
    one_that_runs(before, context)


@asset(retry=Retry(base=1000, factor=1))
def parks() -> None:
    raise ConnectionError("no answer")


@asset
def waits_for_a_process(before: int) -> None: ...


@asset
def all_of_it(
    one_that_runs: None, another_that_runs: None, parks: None, waits_for_a_process: None
) -> None: ...
