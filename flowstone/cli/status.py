"""`flowstone status` and `flowstone runs`: how runs stand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import client
from flowstone.cli.display import NOT_TAKEN, failures_table, progress_table, show_unattended, title
from flowstone.cli.options import RunId
from flowstone.errors import RunFailed, RunRefused
from flowstone.handle import Progress, Reason, RunHandle, Wait, WaitingStep
from flowstone.limits import is_rate
from flowstone.partition_key import label
from flowstone.states import DONE_STEP_STATES, RunState
from flowstone.texts import printable

_SHOWN: Final = 20
"""The most steps that wait of which each has a line."""


def status(
    run: RunId,
    asset: Annotated[
        str | None, typer.Option("--asset", "-a", help="Show why steps of this asset are not done.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a run is; the exit code is 1 if it has failed or was cancelled.

    Example: flowstone status 3f1c
    """
    handle = client.run(run)
    progress = handle.progress()
    reasons = handle.reasons(asset) if asset is not None else []
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "id": str(handle.id),
                    "state": progress.state,
                    "cancelling": progress.cancelling,
                    "error": progress.error,
                    "steps": progress.steps,
                    "errors": [vars(error) for error in handle.errors()],
                    "unattended": [vars(queue) for queue in progress.unattended],
                    "waits": [vars(wait) for wait in handle.waits()],
                    "waiting": [_waiting(step) for step in handle.waiting()],
                }
                | ({"reasons": [vars(reason) for reason in reasons]} if asset else {})
            )
        )
    elif asset is not None:
        _show_reasons(asset, reasons, progress)
    else:
        _show(handle, progress)
    if progress.is_refused:
        raise RunRefused(handle.explain())
    if progress.state in (RunState.FAILED, RunState.CANCELLED):
        raise RunFailed(f"run {handle.id} {progress.state}" if asset else handle.explain())


def _show(handle: RunHandle, progress: Progress) -> None:
    console = Console()
    console.print(progress_table(progress, title(handle, progress)))
    show_unattended(console, progress.unattended)
    if progress.state == RunState.REQUESTED and not progress.unattended:
        console.print(NOT_TAKEN, style="yellow")
    for wait in handle.waits():
        console.print(f"waiting: {_told(wait)}", markup=False, highlight=False)
    _show_waiting(console, handle.waiting())
    if failures := failures_table(progress):
        console.print(failures)
        return
    for error in handle.errors():
        console.print(
            printable(f"{error.step} {error.state}: {error.type}: {error.message}"),
            markup=False,
            highlight=False,
        )


def _show_waiting(console: Console, steps: Sequence[WaitingStep]) -> None:
    for step in steps[:_SHOWN]:
        text = printable(str(step))
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if (more := len(steps) - _SHOWN) > 0:
        console.print(f"and {more} more steps wait; `flowstone approvals list` has the approvals")


def _waiting(step: WaitingStep) -> dict[str, Any]:
    return {
        "step": step.name,
        "kind": step.kind,
        "id": step.id,
        "message": step.message,
        "signal": step.signal,
        "since": step.since.isoformat(),
        "expires_at": step.expires_at and step.expires_at.isoformat(),
    }


def _told(wait: Wait) -> str:
    if is_rate(wait.key):
        return f"{wait.steps} steps for {wait.key}; see `flowstone rates`"
    what = f"{wait.steps} steps for slots of {wait.key}"
    if not wait.slots:
        return f"{what}, which has none; see `flowstone pools`"
    return f"{what}, of which {wait.taken} of {wait.slots} are taken"


def _show_reasons(asset: str, reasons: Sequence[Reason], progress: Progress) -> None:
    console = Console()
    for reason in reasons:
        said = f": {reason}" if str(reason) else ""
        console.print(f"{reason.step} {reason.state}{said}", markup=False, highlight=False)
    steps = progress.steps[asset]
    done = sum(steps.get(state, 0) for state in DONE_STEP_STATES)
    console.print(
        f"{done} of {sum(steps.values())} steps of {asset} are done", markup=False, highlight=False
    )


def runs(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
) -> None:
    """List the latest runs, the newest first.

    Example: flowstone runs --limit 5
    """
    table = Table("run", "state", "assets", "partition", "submitted", "took")
    for run in client.runs_list(limit):
        took = run.finished_at - run.created_at if run.finished_at else None
        table.add_row(
            str(run.id)[:8],
            run.state,
            escape(", ".join(run.assets)),
            escape(label(run.partition)),
            f"{run.created_at.astimezone():%m-%d %H:%M:%S}",
            f"{took.total_seconds():.1f} s" if took else "",
        )
    console = Console()
    console.print(table)
    show_unattended(console, client.unattended())
