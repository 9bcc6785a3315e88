"""`make demo`: one month of real flights, through real workers, on this machine.

Starts everything, materializes a month with everything upstream, shows the
progress and the report, and stops everything again. `--partition 2013-07`
takes another month.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import polars as pl
from rich.console import Console
from rich.table import Table

from flowstone import (
    RunHandle,
    RunState,
    StepState,
    approvals_list,
    approve,
    history,
    lineage,
    materialize_all,
    runtime,
)
from flowstone.cli import INTERRUPTED, exit_code
from flowstone.cli.display import follow
from flowstone.dev import DevStack
from flowstone.errors import FlowStoneError, RunFailed
from flowstone.runtime import Runtime
from flowstone.settings import load_settings

ASSETS = "examples.flights.assets"


def main() -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.flights", description=__doc__)
    parser.add_argument("--partition", default="2013-01", help="the month, such as 2013-07")
    parser.add_argument("--timeout", type=float, default=600, help="seconds; 600 by default")
    arguments = parser.parse_args()
    console = Console()
    try:
        demo(console, arguments.partition, arguments.timeout)
    except FlowStoneError as error:
        console.print(f"error: {error.message}", style="red", markup=False, soft_wrap=True)
        return exit_code(error)
    except (KeyboardInterrupt, EOFError):
        console.print("stopped")
        return INTERRUPTED
    return 0


def demo(console: Console, partition: str, timeout: float) -> None:
    """Materialize the report of a month and show it."""
    settings = load_settings(assets=(ASSETS,))
    runtime.use(Runtime(settings))
    console.print("starting PostgreSQL, Valkey, a worker, beat and Flower ...")
    with DevStack(settings) as stack:
        console.print(f"Flower: {stack.flower_url}", highlight=False)
        began = time.monotonic()
        # Forced, so that there is something to see the second time, too.
        handle = materialize_all("monthly_report", partition=partition, force=True)
        progress = follow(handle, console, timeout, pauses=True)
        if progress.state == RunState.WAITING:
            _decide(handle, console)
            progress = follow(handle, console, timeout)
        if progress.state != RunState.SUCCEEDED:
            raise RunFailed(handle.explain())
        took = time.monotonic() - began
        console.print(report_table(handle.result(), partition))
        console.print(
            f"{progress.count()} steps in {took:.1f} s, "
            f"{progress.count() / took:.0f} a second, on {os.cpu_count()} cores",
            _asked_again(partition, timeout),
            _told(partition),
            f"outputs:  {settings.outputs}",
            f"logs:     {settings.home / 'logs'}",
            f"Flower:   {stack.flower_url}",
            sep="\n",
            highlight=False,
            soft_wrap=True,
        )
        if sys.stdin.isatty():
            console.input("Flower runs until you press Enter. ")
        else:
            console.print("Everything stops now; `make dev` keeps it running.", highlight=False)


def _decide(handle: RunHandle, console: Console) -> None:
    """Approve what waits for people, as one of them would."""
    for waiting in approvals_list(run=handle.id):
        approve(waiting.id, by="demo", reason="the winter was hard")
        console.print(
            f"approval {waiting.id} is given here; a task of its own goes on with the run",
            style="green",
            highlight=False,
        )


def _asked_again(partition: str, timeout: float) -> str:
    """Ask for the same again, and return one line about what had to be computed."""
    began = time.monotonic()
    handle = materialize_all("monthly_report", partition=partition)
    handle.wait(timeout)
    progress = handle.progress()
    fresh = progress.count(StepState.SKIPPED)
    took = time.monotonic() - began
    return f"asked again: {fresh} of {progress.count()} steps were fresh, {took:.1f} s"


def _told(partition: str) -> str:
    """Return one line about what the ledger knows of the report."""
    made_of = lineage.upstream("monthly_report", partition)
    checks = [
        check
        for one in made_of
        for check in history.check_results(one.asset, one.partition)
        if check.output_id == one.output_id
    ]
    passed = sum(check.passed for check in checks)
    said = f"lineage:  made of {len(made_of)} outputs; {passed} of {len(checks)} checks passed"
    approvals = lineage.produced("monthly_report", partition).approvals
    return said + "".join(f"; {one.state} by {one.decided_by}: {one.reason}" for one in approvals)


def report_table(report: pl.DataFrame, partition: str) -> Table:
    """Return the report as a table for people."""
    table = Table(title=f"Departures from New York City, {partition}", title_justify="left")
    table.add_column("carrier")
    for column in ("flights", "mean delay", "late", "late in bad weather"):
        table.add_column(column, justify="right")
    table.add_column("worst route")
    for row in report.iter_rows(named=True):
        table.add_row(
            row["name"],
            f"{row['flights']:,}",
            f"{row['mean_delay']:.1f} min",
            f"{row['late_share']:.0%}",
            f"{row['late_in_bad_weather']:,}",
            row["worst_route"],
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
