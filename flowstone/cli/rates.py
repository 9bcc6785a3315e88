"""`flowstone rates`: how often attempts may start, when the next one may, and what waits."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import runtime
from flowstone.limits import RATE, told_rate
from flowstone.store import rates as store


def rates() -> None:
    """List the rates: when the next attempt may start, and how many steps wait for their turn.

    Example: flowstone rates
    """
    with runtime.current().ledger.begin() as conn:
        found = store.standings(conn)
    if not found:
        typer.echo("there are no rates; @asset(rate=Rate(10, per='second')) makes one")
        return
    table = Table("key", "rate", "next start", "waiting")
    for one in found:
        table.add_row(
            escape(one.key.removeprefix(RATE)),
            told_rate(one.bucket.seconds, one.bucket.burst),
            "now" if one.bucket.next_at <= 0 else f"in {one.bucket.next_at:.3g} s",
            str(one.waiting),
        )
    Console().print(table)
