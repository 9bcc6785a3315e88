"""`flowstone pools`: how many slots there are, who holds them, and how many there shall be."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import pools as api
from flowstone.pools import PoolStatus

app = typer.Typer(help="Pools: slots that steps take while they are dispatched.")

Name = Annotated[str, typer.Argument(help="A pool, or asset:NAME for the steps of an asset.")]

Reason = Annotated[str | None, typer.Option(help="Why; for the audit log, and for who looks.")]


@app.callback(invoke_without_command=True)
def pools(context: typer.Context) -> None:
    """List the pools: their slots, how many are taken, and how many steps wait for them.

    Example: flowstone pools
    """
    if context.invoked_subcommand is None:
        _show(api.list_pools())


@app.command("set")
def set_(
    name: Name,
    slots: Annotated[int, typer.Argument(min=0, help="How many; 0 closes it for a time.")],
    reason: Reason = None,
) -> None:
    """Give a pool more or fewer slots from now on, whatever the settings say.

    Example: flowstone pools set warehouse 2 --reason "nightly load"
    """
    api.set_pool(name, slots, reason=reason)
    typer.echo(f"{name} has {slots} slots")


@app.command()
def reset(name: Name, reason: Reason = None) -> None:
    """Give a pool the slots again that the settings, or its asset, say.

    Example: flowstone pools reset warehouse
    """
    api.reset_pool(name, reason=reason)
    typer.echo(f"{name} has the slots again that the settings say")


def _show(found: list[PoolStatus]) -> None:
    if not found:
        typer.echo("there are no pools; FLOWSTONE_POOLS or `flowstone pools set` makes one")
        return
    table = Table("pool", "slots", "taken", "waiting")
    table.add_column("", overflow="fold")
    for pool in found:
        table.add_row(
            escape(pool.name),
            str(pool.slots),
            str(pool.taken),
            str(pool.waiting),
            escape(_note(pool)),
        )
    Console().print(table)


def _note(pool: PoolStatus) -> str:
    if pool.actor is None:
        return ""
    because = f": {pool.reason}" if pool.reason else ""
    usual = "" if pool.declared is None else f", else {pool.declared}"
    return f"set by {pool.actor}{because}{usual}"
