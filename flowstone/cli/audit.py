"""`flowstone audit`: who changed what, when and why; and whether the log of it is whole."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import audit
from flowstone.errors import BadConfig
from flowstone.partition_key import step_name
from flowstone.texts import printable

app = typer.Typer(
    help="The audit log: each change of state, by whom and why.", no_args_is_help=True
)

Run = Annotated[str | None, typer.Option(help="Rows of this run: its id, or the beginning of it.")]
AssetName = Annotated[
    str | None, typer.Option("--asset", "-a", help="Rows about the steps of this asset.")
]


@app.callback()
def audit_log() -> None:
    """Read the audit log."""


@app.command()
def log(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    run: Run = None,
    asset: AssetName = None,
) -> None:
    """Show the latest rows, the newest first.

    Example: flowstone audit log --run 3f1c
    """
    table = Table("at", "actor", "action", "run", "about", "from", "to", "reason")
    for row in audit.latest(limit, run=run, asset=asset):
        table.add_row(
            f"{datetime.fromisoformat(row['at']).astimezone():%m-%d %H:%M:%S}",
            escape(printable(row["actor"])),
            row["action"],
            (row["run_id"] or "")[:8],
            escape(_about(row["details"])),
            _state(row["before"]),
            _state(row["after"]),
            escape(printable(row["reason"] or "")),
        )
    Console().print(table)


def _about(details: Mapping[str, Any]) -> str:
    if "asset" in details and "partition" in details:
        return step_name(details["asset"], details["partition"])
    return str(details.get("asset", details.get("step", "")))


def _state(changed: Mapping[str, Any] | None) -> str:
    return str((changed or {}).get("state", ""))


@app.command()
def verify(
    expect: Annotated[
        str | None, typer.Option(help="A head that was printed earlier; it must be in the chain.")
    ] = None,
) -> None:
    """Recompute the chain of hashes; the exit code is 1 if a row or a seal was tampered with.

    Example: flowstone audit verify
    """
    found = audit.verify(expect)
    for finding in found.findings:
        typer.echo(str(finding))
    if found.count > len(found.findings):
        typer.echo(f"and {found.count - len(found.findings)} more findings")
    if found.count:
        raise typer.Exit(1)
    more = f"; {found.awaiting} more await a seal" if found.awaiting else ""
    typer.echo(f"{found.rows} rows, head {found.head}{more}")


@app.command()
def export(
    since: Annotated[
        str | None, typer.Option(help="From this time on: 2026-01-31 or 2026-01-31T12:00Z, in UTC.")
    ] = None,
    run: Run = None,
    asset: AssetName = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file to write, instead of printing.")
    ] = None,
) -> None:
    """Print the log as lines of JSON, the oldest row first.

    Example: flowstone audit export --since 2026-01-31 --output audit.jsonl
    """
    lines = audit.export_lines(since=since, run=run, asset=asset)
    try:
        opened = nullcontext(sys.stdout.buffer) if output is None else output.open("wb")
    except OSError as error:
        raise BadConfig(f"{output} cannot be written: {error.strerror}") from None
    with opened as file:
        for line in lines:
            file.write(line.encode() + b"\n")
