"""`flowstone backfills`: how backfills stand, and what people do with them."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import backfills as api
from flowstone.backfills import BackfillHandle, BackfillProgress
from flowstone.cli.backfill import watch as follow_to_the_end
from flowstone.cli.backfill_display import duration, picture
from flowstone.cli.display import failures_table
from flowstone.cli.options import Timeout
from flowstone.states import StepState

app = typer.Typer(help="Backfills: how they stand; pause, resume, cancel and retry them.")

Id = Annotated[int, typer.Argument(help="The id of a backfill.")]
Why = Annotated[str | None, typer.Option("--reason", help="Why; it is kept, and shown to others.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20, as_json: AsJson = False
) -> None:
    """List the latest backfills, the newest first.

    Example: flowstone backfills list
    """
    found = [(handle, handle.progress()) for handle in api.backfills_list(limit)]
    if as_json:
        typer.echo(json.dumps([_as_json(*one) for one in found], ensure_ascii=False))
        return
    if not found:
        typer.echo("there is no backfill; `flowstone backfill SELECTION` makes one")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("id", "what", "state", "done", "failed", "left"):
        table.add_column(name, justify="left" if name in ("what", "state") else "right")
    for handle, progress in found:
        table.add_row(
            str(handle.id),
            escape(handle.title()),
            progress.state,
            f"{progress.ended:,} of {progress.total:,}",
            f"{progress.count(StepState.FAILED):,}",
            duration(progress.left) if progress.left else "",
        )
    Console().print(table)


@app.command()
def show(backfill: Id, *, as_json: AsJson = False) -> None:
    """Show how far a backfill is, how fast it goes, and how long it takes.

    Example: flowstone backfills show 3
    """
    handle = api.get_backfill(backfill)
    progress = handle.progress()
    if as_json:
        typer.echo(json.dumps(_as_json(handle, progress), ensure_ascii=False))
        return
    console = Console()
    console.print(handle.title(), markup=False, highlight=False, soft_wrap=True)
    console.print(picture(progress))
    if failures := failures_table(progress.run):
        console.print(failures)


@app.command()
def watch(backfill: Id, *, timeout: Timeout = None) -> None:
    """Show a backfill until it ends or is paused; the exit code is 1 unless it succeeds.

    Example: flowstone backfills watch 3
    """
    follow_to_the_end(api.get_backfill(backfill), Console(), timeout)


@app.command()
def pause(backfill: Id, *, reason: Why = None) -> None:
    """Let nothing more start; what runs ends by itself, and counts.

    Example: flowstone backfills pause 3 --reason "the source is moved"
    """
    done = api.get_backfill(backfill).pause(reason)
    typer.echo(f"backfill {backfill} is paused; {done.running} steps run to their end")


@app.command()
def resume(backfill: Id) -> None:
    """Let a paused backfill go on.

    Example: flowstone backfills resume 3
    """
    api.get_backfill(backfill).resume()
    typer.echo(f"backfill {backfill} goes on")


@app.command()
def cancel(
    backfill: Id,
    *,
    reason: Why = None,
    drain: Annotated[
        bool,
        typer.Option("--drain/--stop", help="Let what runs come to its end, or ask it to stop."),
    ] = True,
) -> None:
    """Cancel a backfill: what has not started never will.

    Example: flowstone backfills cancel 3
    """
    done = api.get_backfill(backfill).cancel(reason=reason, drain=drain)
    typer.echo(
        f"backfill {backfill}: {done.cancelled} steps will not start; "
        + (f"{done.running} still run" if done.running else f"it is {done.state}")
    )


@app.command()
def retry(backfill: Id) -> None:
    """Do what has failed, or was cancelled; what has succeeded is not done again.

    Example: flowstone backfills retry 3
    """
    handle = api.get_backfill(backfill).retry()
    typer.echo(f"backfill {backfill} goes on as run {handle.run.id}")


def _as_json(handle: BackfillHandle, progress: BackfillProgress) -> dict[str, Any]:
    return {
        "id": handle.id,
        "run": str(handle.run.id),
        "what": handle.title(),
        "state": progress.state,
        "steps": progress.steps,
        "total": progress.total,
        "ended": progress.ended,
        "fresh": progress.fresh,
        "per_minute": progress.per_minute,
        "seconds_left": progress.left.total_seconds() if progress.left else None,
        "pause_reason": progress.pause_reason,
        "opens_at": progress.opens_at.isoformat() if progress.opens_at else None,
        "awaits": progress.awaits.count if progress.awaits else 0,
        "awaits_until": progress.awaits.until.isoformat() if progress.awaits else None,
        "error": progress.run.error,
    }
