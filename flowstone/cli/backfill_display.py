"""What a backfill looks like on a terminal."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from flowstone.backfills import BackfillHandle, BackfillProgress
from flowstone.cli.display import (
    NOT_TAKEN,
    failures_table,
    progress_table,
    show_unattended,
    show_waiting,
)
from flowstone.states import RunState, StepState
from flowstone.texts import printable

_STYLES: Final = {RunState.SUCCEEDED: "green", RunState.FAILED: "red", RunState.CANCELLED: "red"}
_LINE_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 5.0


def follow(
    handle: BackfillHandle, console: Console, timeout: float | None = None
) -> BackfillProgress:
    """Show a backfill until it has ended, or is paused; raise RunTimeout."""
    console.print(f"backfill {handle.id}, run {handle.run.id}", highlight=False)
    progress, teller = handle.progress(), _Teller(handle)
    with Live(console=console, auto_refresh=False) as live:
        for progress in handle.follow(timeout):
            teller.tell(live.console, progress)
            if console.is_terminal:
                # Of one that is refused, all that there is to say is why.
                shown = "" if progress.run.is_refused else picture(progress)
                live.update(shown, refresh=True)
    if not (console.is_terminal or progress.run.is_refused):
        console.print(picture(progress))
    if failures := failures_table(progress.run):
        console.print(failures)
    return progress


class _Teller:
    """Tells what is new, once: above the picture, and without a terminal in its place."""

    def __init__(self, handle: BackfillHandle) -> None:
        self._handle = handle
        self._began = time.monotonic()
        self._said = float("-inf")
        self._queues: set[str] = set()
        self._is_late = False
        self._waits = False

    def tell(self, console: Console, progress: BackfillProgress) -> None:
        now = time.monotonic()
        new = [one for one in progress.run.unattended if one.queue not in self._queues]
        self._queues.update(one.queue for one in new)
        show_unattended(console, new)
        is_late = not progress.run.planned and now - self._began > _PATIENCE_SECONDS
        if is_late and not self._is_late:
            console.print(NOT_TAKEN, style="yellow")
        waits = progress.state == RunState.WAITING
        if waits and not self._waits:
            show_waiting(console, self._handle.run)
        self._is_late, self._waits = is_late or self._is_late, waits
        if not console.is_terminal and progress.run.planned and now - self._said > _LINE_SECONDS:
            self._said = now
            console.print(line(progress), highlight=False, soft_wrap=True)


def picture(progress: BackfillProgress) -> Group:
    """Return a bar, a table with a line for each asset, and how it goes."""
    # In a grid, as a bar ends no line.
    bar = Table.grid()
    bar.add_row(ProgressBar(total=max(1, progress.total), completed=progress.ended, width=60))
    return Group(progress_table(progress.run, title(progress)), bar, line(progress))


def title(progress: BackfillProgress) -> str:
    """Return a line that says how the backfill stands."""
    style = _STYLES.get(progress.state, "yellow")
    stopping = " (being cancelled)" if progress.run.cancelling else ""
    steps = (
        f"{progress.ended:,} of {progress.total:,} steps" if progress.run.planned else "planning"
    )
    return f"backfill {progress.id} [{style}]{progress.state}[/]{stopping}, {steps}"


def line(progress: BackfillProgress) -> str:
    """Return how fast it goes, how long it takes, and what is in its way."""
    said = [f"{progress.ended:,} of {progress.total:,} steps"]
    if progress.fresh:
        said.append(f"{progress.fresh:,} were done before")
    if failed := progress.count(StepState.FAILED):
        said.append(f"[red]{failed:,} failed[/]")
    if progress.per_minute and progress.state == RunState.RUNNING:
        said.append(f"{progress.per_minute:,.0f} a minute")
    if progress.left is not None:
        said.append(f"about {duration(progress.left)} left")
    if progress.opens_at is not None:
        said.append(f"waits for its hours, until {_moment(progress.opens_at)}")
    if progress.awaits is not None:
        n = progress.awaits.count
        what = "1 partition" if n == 1 else f"{n:,} partitions"
        said.append(f"waits for {what}, until {_moment(progress.awaits.until)}")
    if progress.state == RunState.PAUSED:
        said.append(f"paused: {escape(printable(progress.pause_reason or 'by request'))}")
    return ", ".join(said)


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def duration(left: timedelta) -> str:
    """Return a time as people say it: "40 s", "3 min", "5 h 20 min", "2 d 4 h"."""
    minutes = round(left.total_seconds() / 60)
    if minutes < 2:  # noqa: PLR2004 - below, seconds say more
        return f"{left.total_seconds():.0f} s"
    hours, days = minutes // 60, minutes // 1440
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"
