"""The command line: `flowstone COMMAND`. Errors are one line, and each kind has its exit code."""

from __future__ import annotations

import logging
import sys
from typing import Final

import typer
from rich.console import Console

from flowstone.cli import (
    approvals,
    audit,
    backfill,
    backfills,
    cancel,
    check,
    db,
    dev,
    doctor,
    gc,
    graph,
    health,
    history,
    keys,
    lineage,
    partitions,
    plan,
    pools,
    prune,
    rates,
    reconcile,
    run,
    serve,
    show,
    signal,
    status,
    values,
    workers,
)
from flowstone.errors import (
    BrokerUnavailable,
    FlowStoneError,
    LedgerUnavailable,
    RunFailed,
    RunRefused,
    RunTimeout,
    ServerError,
    WrongMigration,
)
from flowstone.texts import printable

FAILED: Final = 1
BAD_INPUT: Final = 2
UNAVAILABLE: Final = 3
TIMED_OUT: Final = 4
INTERRUPTED: Final = 130

EXIT_CODES: Final = """
Exit codes: 0 success, 1 the run did not succeed, 2 bad input or definitions,
3 a server is away, not migrated or does not start, 4 timed out, 130 interrupted.
"""

app = typer.Typer(
    help="Asset-first data orchestration on Celery.",
    epilog=" ".join(EXIT_CODES.split()),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("dev")(dev.dev)
app.command("run")(run.run)
app.command("backfill")(backfill.backfill)
app.command("plan")(plan.plan)
app.command("start")(plan.start)
app.command("cancel")(cancel.cancel)
app.command("pause")(cancel.pause)
app.command("resume")(cancel.resume)
app.command("runs")(status.runs)
app.command("status")(status.status)
app.command("workers")(workers.workers)
app.command("show")(show.show)
app.command("graph")(graph.graph)
app.command("lineage")(lineage.lineage)
app.command("produced")(lineage.produced)
app.command("partitions")(partitions.partitions)
app.command("get")(values.get)
app.command("exists")(values.exists)
app.command("versions")(history.versions)
app.command("rollback")(history.rollback)
app.command("check")(check.check)
app.command("invalidate")(history.invalidate)
app.command("gc")(gc.gc)
app.command("prune")(prune.prune)
app.command("signal")(signal.signal)
app.command("serve")(serve.serve)
app.command("rates")(rates.rates)
app.command("reconcile")(reconcile.reconcile)
app.add_typer(approvals.app, name="approvals")
app.add_typer(audit.app, name="audit")
app.add_typer(backfills.app, name="backfills")
app.add_typer(pools.app, name="pools")
app.add_typer(keys.app, name="keys")
app.add_typer(db.app, name="db")
app.command("doctor")(doctor.doctor)
app.add_typer(health.app, name="health")


def main() -> None:
    """Run a command and leave with its exit code."""
    # The pool of connections would report each broken one with a traceback of its own.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    try:
        app()
    except FlowStoneError as error:
        Console(stderr=True).print(
            f"error: {printable(error.message)}",
            style="red",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def exit_code(error: FlowStoneError) -> int:
    """Return the exit code of an error."""
    match error:
        case RunRefused():
            return BAD_INPUT
        case RunFailed():
            return FAILED
        case RunTimeout():
            return TIMED_OUT
        case LedgerUnavailable() | BrokerUnavailable() | ServerError() | WrongMigration():
            return UNAVAILABLE
    return BAD_INPUT
