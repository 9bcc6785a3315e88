"""`flowstone status` and `flowstone runs`: how runs stand."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import client
from flowstone.cli.display import progress_table, title
from flowstone.cli.options import RunId
from flowstone.errors import RunFailed, RunRefused
from flowstone.partition_key import label
from flowstone.states import RunState


def status(
    run: RunId,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how far a run is; the exit code is 1 if it has failed or was cancelled.

    Example: flowstone status 3f1c
    """
    handle = client.run(run)
    progress = handle.progress()
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
                }
            )
        )
    else:
        console = Console()
        console.print(progress_table(progress, title(handle, progress)))
        for error in handle.errors():
            console.print(
                f"{error.step} {error.state}: {error.type}: {error.message}",
                markup=False,
                highlight=False,
            )
    if progress.is_refused:
        raise RunRefused(handle.explain())
    if progress.state in (RunState.FAILED, RunState.CANCELLED):
        raise RunFailed(handle.explain())


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
    Console().print(table)
