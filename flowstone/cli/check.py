"""`flowstone check`: run the checks of an asset on what there is, or show what they have said."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import history, rechecking
from flowstone.cli.options import Partition, key_of


class Said(Protocol):
    """What a check has said, now or earlier."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def passed(self) -> bool: ...  # noqa: D102
    @property
    def blocking(self) -> bool: ...  # noqa: D102
    @property
    def severity(self) -> str: ...  # noqa: D102
    @property
    def message(self) -> str: ...  # noqa: D102


def check(
    asset: Annotated[str, typer.Argument(help="The asset to check.")],
    *,
    partition: Partition = None,
    version: Annotated[int | None, typer.Option(help="Check this version, not the latest.")] = None,
    past: Annotated[
        bool, typer.Option("--history", help="Show what checks have said, and run none.")
    ] = False,
) -> None:
    """Run the checks of an asset on its latest value; the exit code is 1 if one does not pass.

    Checks of severity "warn" do not count for that.

    Example: flowstone check raw_flights --partition 2013-01-15
    """
    key = key_of(partition)
    if past:
        table = _table("version", "when", "run")
        for old in history.check_results(asset, key):
            table.add_row(
                *_row(old),
                "in quarantine" if old.output_id is None else str(old.output_id),
                f"{old.checked_at.astimezone():%Y-%m-%d %H:%M:%S}",
                str(old.run_id)[:8],
            )
        Console().print(table)
        return
    said = rechecking.run_checks(asset, key, version=version)
    table = _table()
    for one in said:
        table.add_row(*_row(one))
    Console().print(table)
    raise typer.Exit(_failed(said))


def _failed(said: Iterable[Said]) -> bool:
    return any(not one.passed and one.severity == "error" for one in said)


def _table(*more: str) -> Table:
    return Table("check", "", "severity", "message", *more)


def _row(one: Said) -> tuple[str, str, str, str]:
    result = "[green]passed" if one.passed else "[red]did not pass"
    severity = f"{one.severity}, blocking" if one.blocking else one.severity
    return escape(one.name), result, severity, escape(one.message)
