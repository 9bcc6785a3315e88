"""`flowstone dev`: everything on one machine, until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from rich.console import Console
from rich.table import Table

from flowstone import runtime
from flowstone.dev import DevStack
from flowstone.errors import BadConfig, ServerError

_CHECK_SECONDS = 0.5


def dev() -> None:
    """Start PostgreSQL, Valkey, a worker, beat and Flower, and stop them on Ctrl-C.

    A server whose URL is configured is used, not started.

    Example: FLOWSTONE_ASSETS=examples.flights.assets flowstone dev
    """
    here = runtime.current()
    if not here.settings.assets:
        raise BadConfig("FLOWSTONE_ASSETS names no module; set it, for example to my_assets")
    # A graph with a fault is told at once, rather than by each run.
    assets = len(here.registry.graph.assets)
    ready, stop = threading.Event(), threading.Event()
    _on_signals(ready, stop)
    console = Console()
    console.print(f"starting, with {assets} assets ...")
    with DevStack(here.settings) as stack:
        ready.set()
        console.print(_table(stack))
        console.print(f"ready; Flower is at {stack.flower_url}. Ctrl-C stops everything.")
        while not stop.wait(_CHECK_SECONDS):
            if failure := stack.failed():
                raise ServerError(failure)
        console.print("stopping ...")
    console.print("stopped")


def _on_signals(ready: threading.Event, stop: threading.Event) -> None:
    def ask_to_stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature
        # Before all is ready, and where one asks a second time, stop whatever is going on.
        if stop.is_set() or not ready.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)


def _table(stack: DevStack) -> Table:
    table = Table("part", "address", "log")
    for part in stack.parts:
        table.add_row(part.name, part.address, str(part.log or ""))
    return table
