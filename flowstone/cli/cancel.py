"""`flowstone cancel` and `flowstone resume`: end a run early, and take it up again."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from flowstone import client
from flowstone.cli.options import Detach, RunId, Timeout
from flowstone.cli.run import watch
from flowstone.handle import RunHandle
from flowstone.states import RunState
from flowstone.store.cancellation import GRACE_SECONDS, Cancellation

Reason = Annotated[
    str | None, typer.Option(help="Why; it is kept with the run and in the audit log.")
]


def cancel(
    run: RunId,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that running steps have to end by themselves.")
    ] = GRACE_SECONDS,
    reason: Reason = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Let what runs come to its end, however long it takes.")
    ] = False,
) -> None:
    """Cancel a run: nothing of it starts any more, and what runs is asked to stop.

    Example: flowstone cancel 3f1c --grace 10
    """
    handle = client.run(run)
    typer.echo(_told(handle, handle.cancel(reason=reason, grace=grace, drain=drain), drain=drain))


def _told(handle: RunHandle, done: Cancellation, *, drain: bool) -> str:
    """Return one line about what a cancellation has brought about."""
    if done.already and done.state == RunState.CANCELLED:
        return f"run {handle.id} is cancelled already"
    if done.already:
        return f"run {handle.id} is being cancelled already; {done.running} steps still run"
    if done.state == RunState.CANCELLED:
        return f"run {handle.id} is cancelled; {done.cancelled} steps will not run"
    if done.running and drain:
        return (
            f"run {handle.id} is being cancelled: {done.cancelled} steps will not run, "
            f"{done.running} come to their end"
        )
    if done.running:
        return (
            f"run {handle.id} is being cancelled: {done.cancelled} steps will not run, "
            f"{done.running} still run and have {done.grace:g} s to end"
        )
    return f"run {handle.id} is {done.state}: all its steps were done"


def pause(run: RunId, reason: Reason = None) -> None:
    """Let nothing more of a run start; what runs ends by itself. `flowstone start` lets it go on.

    Example: flowstone pause 3f1c
    """
    handle = client.run(run)
    done = handle.pause(reason)
    typer.echo(f"run {handle.id} is paused; {done.running} steps run to their end")


def resume(run: RunId, detach: Detach = False, timeout: Timeout = None) -> None:
    """Run what a failed or cancelled run has left undone, as a new run with the same plan.

    Example: flowstone resume 3f1c
    """
    handle = client.resume(run)
    if detach:
        typer.echo(str(handle.id))
        return
    watch(handle, Console(), timeout)
