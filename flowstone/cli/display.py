"""What a run looks like on a terminal: a table that lives, or lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from flowstone.handle import Progress, RunHandle, Unattended
from flowstone.states import FINAL_STEP_STATES, RunState, StepState
from flowstone.texts import printable

GROUPS: Final = {
    "done": frozenset({StepState.SUCCEEDED}),
    "skipped": frozenset({StepState.SKIPPED}),
    "running": frozenset({StepState.RUNNING, StepState.RETRYING}),
    "failed": frozenset({StepState.FAILED, StepState.UPSTREAM_FAILED, StepState.CANCELLED}),
}
"""What the columns count; all other states are waiting."""

STYLES: Final = {
    "done": "green",
    "skipped": "cyan",
    "running": "yellow",
    "waiting": "dim",
    "failed": "red",
}
"""The columns, in their order."""

NOT_TAKEN: Final = "no worker has taken it yet; all are busy, perhaps, or the broker is away"
"""What is said of a run that waits for a coordinator."""

_LINE_SECONDS: Final = 2.0
_PATIENCE_SECONDS: Final = 5.0


def grouped(states: dict[StepState, int]) -> dict[str, int]:
    """Return the number of steps for each column."""
    counts = {
        group: sum(states.get(state, 0) for state in members) for group, members in GROUPS.items()
    }
    counts["waiting"] = sum(states.values()) - sum(counts.values())
    return {group: counts[group] for group in STYLES}


def progress_table(progress: Progress, title: str) -> Table:
    """Return a table with a line for each asset."""
    table = Table(title=title, title_justify="left", show_footer=bool(progress.steps))
    total = grouped(_total(progress))
    table.add_column("asset", footer="all")
    for group in STYLES:
        table.add_column(group, justify="right", footer=str(total[group]))
    for asset, states in progress.steps.items():
        counts = grouped(dict(states))
        table.add_row(
            asset,
            *(f"[{STYLES[g]}]{n}[/]" if n else "[dim].[/]" for g, n in counts.items()),
        )
    return table


def failures_table(progress: Progress) -> Table | None:
    """Return a table of the assets that failed or did not run, or None if no step has failed.

    The run must have ended.
    """
    assets = (progress.error or {}).get("assets")
    if not assets:
        return None
    more = progress.error["more"] if progress.error else 0
    table = Table("asset", "steps", "first error", caption=f"and {more} more" if more else None)
    failed = [a for a in progress.steps if a in assets and StepState.FAILED in assets[a]["steps"]]
    for asset in (*failed, *(a for a in progress.steps if a in assets and a not in failed)):
        first = assets[asset]["first"]
        step, error = escape(first["step"]), escape(printable(first["error"]))
        table.add_row(
            asset,
            _undone(assets[asset]["steps"]),
            f"{step}: {error}" if asset in failed and step != asset else error,
        )
    return table


def _undone(steps: Mapping[str, int]) -> str:
    """Return "3 of 31 failed", or "failed" for an asset with one step, and so on."""
    total = sum(steps.values())
    names = {StepState.FAILED: "failed", StepState.UPSTREAM_FAILED: "not run"}
    return ", ".join(
        name if total == 1 else f"{steps[state]} of {total} {name}"
        for state, name in names.items()
        if steps.get(state)
    )


def follow(
    handle: RunHandle, console: Console, timeout: float | None = None, *, pauses: bool = False
) -> Progress:
    """Show a run until it has ended; raise RunTimeout after `timeout` seconds.

    What `pauses` is shown until all that is left of it waits for people, or for signals.
    """
    console.print(f"run {handle.id}", highlight=False)
    patience = _PATIENCE_SECONDS if timeout is None else min(_PATIENCE_SECONDS, timeout)
    if (
        handle.wait_until_planned(patience) == RunState.REQUESTED
        and not handle.progress().unattended
    ):
        console.print(NOT_TAKEN, style="yellow")
    show = _follow_live if console.is_terminal else _follow_lines
    progress = show(handle, console, handle.follow(timeout), pauses=pauses)
    if failures := failures_table(progress):
        console.print(failures)
    return progress


def _follow_live(
    handle: RunHandle, console: Console, followed: Iterator[Progress], *, pauses: bool
) -> Progress:
    progress = handle.progress()
    with Live(console=console, refresh_per_second=8) as live:
        for last, progress in _pairs(followed):
            show_unattended(live.console, _newly_unattended(last, progress))
            _show_newly_waiting(live.console, handle, last, progress)
            if progress.steps:
                live.update(progress_table(progress, title(handle, progress)))
            if pauses and progress.state == RunState.WAITING:
                break
    return progress


def _follow_lines(
    handle: RunHandle, console: Console, followed: Iterator[Progress], *, pauses: bool
) -> Progress:
    progress, said = handle.progress(), float("-inf")
    for last, progress in _pairs(followed):
        show_unattended(console, _newly_unattended(last, progress))
        _show_newly_waiting(console, handle, last, progress)
        if not progress.steps:
            continue
        if progress.is_final or time.monotonic() - said > _LINE_SECONDS:
            said = time.monotonic()
            counts = ", ".join(f"{n} {group}" for group, n in grouped(_total(progress)).items())
            console.print(f"{progress.state}: {counts}", highlight=False)
        if pauses and progress.state == RunState.WAITING:
            break
    if progress.steps:
        console.print(progress_table(progress, title(handle, progress)))
    return progress


def _pairs(shown: Iterable[Progress]) -> Iterator[tuple[Progress | None, Progress]]:
    last = None
    for progress in shown:
        yield last, progress
        last = progress


def _newly_unattended(last: Progress | None, now: Progress) -> list[Unattended]:
    # The number of steps changes while they become ready; to be told once is enough.
    before = {one.queue for one in last.unattended} if last else set()
    return [one for one in now.unattended if one.queue not in before]


def _show_newly_waiting(
    console: Console, handle: RunHandle, last: Progress | None, now: Progress
) -> None:
    # Before, the run has something else to do, and people are told of it by `status`.
    if now.state == RunState.WAITING and (last is None or last.state != RunState.WAITING):
        show_waiting(console, handle)


def show_waiting(console: Console, handle: RunHandle) -> None:
    """Print which steps wait for people, or for signals, and since when."""
    for step in handle.waiting():
        text = printable(str(step))
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def show_unattended(console: Console, unattended: Iterable[Unattended]) -> None:
    """Print in which queues steps wait that no worker consumes, and what to do."""
    for one in unattended:
        console.print(str(one), style="yellow", markup=False, highlight=False, soft_wrap=True)


def title(handle: RunHandle, progress: Progress) -> str:
    """Return a line that says how the run stands."""
    styles = {RunState.SUCCEEDED: "green", RunState.FAILED: "red", RunState.CANCELLED: "red"}
    style = styles.get(progress.state, "yellow")
    total = progress.count()
    final = progress.count(*FINAL_STEP_STATES)
    stopping = " (being cancelled)" if progress.cancelling else ""
    return (
        f"run {str(handle.id)[:8]} [{style}]{progress.state}[/]{stopping}, {final} of {total} steps"
    )


def _total(progress: Progress) -> dict[StepState, int]:
    return {state: progress.count(state) for state in StepState}
