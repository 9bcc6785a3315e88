"""`flowstone db`: the schema of the ledger."""

from __future__ import annotations

import typer

from flowstone import runtime
from flowstone.store import migrate
from flowstone.store.ledger import HEAD

app = typer.Typer(help="The schema of the ledger.", no_args_is_help=True)


@app.callback()
def db() -> None:
    """Manage the schema of the ledger."""


@app.command()
def upgrade() -> None:
    """Bring the database to the schema of this version; safe to run at any time.

    Example: flowstone db upgrade
    """
    before = migrate.upgrade(runtime.current().ledger)
    if before == HEAD:
        typer.echo(f"the ledger is at revision {HEAD} already")
    else:
        typer.echo(f"the ledger was at {before or 'no revision'}, and is now at {HEAD}")
