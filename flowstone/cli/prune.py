"""`flowstone prune`: delete from the ledger what is old, and needed by nothing that is kept."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from flowstone import prune as retention
from flowstone import runtime
from flowstone.cli.options import DryRun
from flowstone.runtime import whoami


def prune(
    dry_run: DryRun = False,
) -> None:
    """Delete what the setting `retention` lets go, never what lineage, latest or audit needs.

    Example: flowstone prune --dry-run
    """
    here = runtime.current()
    if here.settings.retention.keeps_all:
        typer.echo(
            "everything is kept; set FLOWSTONE_RETENTION to days, such as "
            '{"tracebacks": 30, "checks": 90, "runs": 90}'
        )
        return
    done = retention.prune(here, actor=whoami(), dry_run=dry_run)
    if not done.rows:
        typer.echo("nothing is old enough, or all of it is needed")
        return
    table = Table("rows of", "would be deleted" if dry_run else "deleted")
    table.columns[1].justify = "right"
    for name, rows in done.rows.items():
        table.add_row(name, f"{rows:,}")
    Console().print(table)
