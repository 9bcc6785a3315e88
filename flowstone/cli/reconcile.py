"""`flowstone reconcile`: one pass of the reconciler now, or what it would do, and has done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import reconcile as reconciler
from flowstone import runtime
from flowstone.canvas import Publisher, client_app
from flowstone.cli.options import DryRun
from flowstone.errors import BrokerUnavailable
from flowstone.reconcile import Pass
from flowstone.rules import RULES
from flowstone.runtime import Runtime
from flowstone.store.found import Found

_NAMED: Final = 10
"""How many of what a rule finds are named."""


def reconcile(
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put right at once what crashes and lost messages have left behind, as beat has it done.

    What counts are the settings and the assets that this shell names, as those of a worker do.

    Example: flowstone reconcile --dry-run
    """
    here = runtime.current()
    publisher = Publisher(client_app(here.settings.broker, here.settings.results))
    if dry_run:
        found = _find(here, publisher)
        counts = {rule: len(these) for rule, these in found.items()}
        done = None
    else:
        found = {}
        done = reconciler.make_pass(here, publisher.wake, publisher.kill, broker=publisher)
        counts = dict(done.counts)
    rows = _rows(here, counts, found)
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "rules": rows}, indent=2))
    else:
        _show(rows, "would repair" if dry_run else "repaired")
    if done is not None:
        _tell(done)


def _tell(done: Pass) -> None:
    """Say which rules have failed, and raise the error of what could not be done, if there is one.

    What was repaired is committed all the same, and was shown before.
    """
    for rule, error in done.failed.items():
        typer.echo(f"the rule {rule} has failed: {type(error).__name__}: {error}", err=True)
    done.check()


def _find(here: Runtime, publisher: Publisher) -> Mapping[str, Sequence[Found]]:
    try:
        return reconciler.find(here, publisher)
    except BrokerUnavailable as error:
        typer.echo(f"nobody looks for lost messages: {error.message}", err=True)
        return reconciler.find(here)


def _rows(
    here: Runtime, counts: Mapping[str, int], found: Mapping[str, Sequence[Found]]
) -> list[dict[str, Any]]:
    so_far = reconciler.repaired(here)
    invariants = {rule.name: rule.invariant for rule in RULES}
    return [
        {
            "rule": rule,
            "invariant": invariants[rule],
            "count": counts.get(rule, 0),
            "names": [str(one) for one in found.get(rule, ())[:_NAMED]],
            "so_far": so_far[rule].repaired if rule in so_far else 0,
            "last_at": so_far[rule].last_at.isoformat() if rule in so_far else None,
        }
        # What a sweep has deleted is counted there, too, but found by `flowstone gc --dry-run`.
        for rule in invariants
    ]


def _show(rows: Sequence[Mapping[str, Any]], doing: str) -> None:
    table = Table("rule", doing, "so far", "last", "which")
    shown = [row for row in rows if row["count"] or row["so_far"]]
    for row in shown:
        more = row["count"] - len(row["names"])
        which = [*row["names"], *([f"and {more} more"] if row["names"] and more else [])]
        last = (row["last_at"] or "")[:19].replace("T", " ")
        table.add_row(
            row["rule"],
            f"{row['count']:,}",
            f"{row['so_far']:,}",
            last,
            escape("\n".join(which)),
        )
    if shown:
        Console().print(table)
    if not any(row["count"] for row in rows):
        typer.echo("there is nothing to repair")
