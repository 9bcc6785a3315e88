"""`flowstone workers`: who is there, and what waits for someone who is not."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import client
from flowstone.cli.display import show_unattended


def workers() -> None:
    """List the workers that are there, with their queues, and the queues that nobody consumes.

    Example: flowstone workers
    """
    table = Table("worker", "queues", "since", "last seen")
    for worker in client.workers_list():
        table.add_row(
            escape(worker.name),
            escape(", ".join(worker.queues)),
            f"{worker.started_at.astimezone():%m-%d %H:%M:%S}",
            f"{worker.silent:.0f} s ago",
        )
    console = Console()
    console.print(table)
    show_unattended(console, client.unattended())
