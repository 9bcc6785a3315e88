"""What a backfill looks like on a terminal."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from flowstone.backfills import BackfillHandle, BackfillProgress
from flowstone.cli.display import NOT_TAKEN, failures_table, progress_table, show_unattended
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
    began = time.monotonic()
    told = said = float("-inf")
    queues: set[str] = set()
    progress = handle.progress()
    with Live(console=console, auto_refresh=False) as live:
        for progress in handle.follow(timeout):
            new = [one for one in progress.run.unattended if one.queue not in queues]
            queues.update(one.queue for one in new)
            show_unattended(live.console, new)
            now = time.monotonic()
            if not progress.run.planned and now - began > _PATIENCE_SECONDS and told < 0:
                told = now
                live.console.print(NOT_TAKEN, style="yellow")
            if console.is_terminal:
                live.update(picture(progress), refresh=True)
            elif progress.run.planned and now - said > _LINE_SECONDS:
                said = now
                live.console.print(line(progress), highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.print(picture(progress))
    if failures := failures_table(progress.run):
        console.print(failures)
    return progress


def picture(progress: BackfillProgress) -> Group:
    """Return a bar, a table with a line for each asset, and how it goes."""
    bar = ProgressBar(total=max(1, progress.total), completed=progress.ended, width=60)
    table: Table = progress_table(progress.run, title(progress))
    return Group(table, bar, line(progress))


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
    if progress.per_minute and not progress.is_final:
        said.append(f"{progress.per_minute:,.0f} a minute")
    if progress.left is not None and progress.state == RunState.RUNNING:
        said.append(f"about {duration(progress.left)} left")
    if progress.opens_at is not None:
        said.append(f"waits for its hours, until {progress.opens_at:%Y-%m-%d %H:%M} UTC")
    if progress.state == RunState.PAUSED:
        said.append(f"paused: {escape(printable(progress.pause_reason or 'by request'))}")
    return ", ".join(said)


def duration(left: timedelta) -> str:
    """Return a time as people say it: "40 s", "3 min", "5 h 20 min", "2 d 4 h"."""
    minutes = round(left.total_seconds() / 60)
    if minutes < 2:  # noqa: PLR2004 - below, seconds say more
        return f"{left.total_seconds():.0f} s"
    hours, days = minutes // 60, minutes // 1440
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"
