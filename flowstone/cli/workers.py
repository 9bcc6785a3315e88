"""`flowstone workers`: who is there, and what waits for someone who is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import client, runtime
from flowstone.checkup import half_dead_workers
from flowstone.cli.display import show_unattended
from flowstone.facts import Unknown


def workers() -> None:
    """List the workers that are there, with their queues, and the queues that nobody consumes.

    One that is there, and has processes free, but takes no messages though some wait for it,
    "takes nothing": restart it.

    Example: flowstone workers
    """
    console = Console()
    table = Table()
    # A name is what commands take, and so is shown whole.
    table.add_column("worker", overflow="fold")
    for column in ("queues", "version", "busy", "since", "last seen"):
        table.add_column(column)
    deaf = _half_dead(console)
    for worker in client.workers_list():
        table.add_row(
            escape(worker.name),
            escape(", ".join(worker.queues)),
            worker.version or "",
            "" if worker.processes is None else f"{worker.busy} of {worker.processes}",
            f"{worker.started_at.astimezone():%m-%d %H:%M:%S}",
            f"{worker.silent:.0f} s ago"
            + ("\n[red]takes nothing[/]" if worker.name in deaf else ""),
        )
    console.print(table)
    for name, queues in deaf.items():
        _say(
            console,
            f"{name} takes nothing from {', '.join(queues)}, where messages wait; restart it",
        )
    show_unattended(console, client.unattended())


def _half_dead(console: Console) -> Mapping[str, Sequence[str]]:
    found = half_dead_workers(runtime.current().settings)
    if isinstance(found, Unknown):
        _say(console, f"whether all of them take messages is not known: {found.why}")
        return {}
    return found


def _say(console: Console, line: str) -> None:
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
