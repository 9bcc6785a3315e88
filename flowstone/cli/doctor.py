"""`flowstone doctor`: what is wrong with an installation, and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import runtime
from flowstone.checkup import examine
from flowstone.doctor import Finding, Level, diagnose, is_healthy

STYLES: Final = {
    Level.OK: "green",
    Level.WARNING: "yellow",
    Level.ERROR: "bold red",
    Level.SKIPPED: "dim",
}


def doctor(
    *,
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings fail, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look for what is wrong, and say what to do; the exit code is 1 if there is an error.

    It asks the ledger, the broker, the result backend and the settings of this process, changes
    nothing, and ends within 15 seconds.

    Example: flowstone doctor --strict
    """
    findings = diagnose(examine(runtime.current()))
    if as_json:
        healthy = is_healthy(findings, strict=strict)
        told = {"healthy": healthy, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(told, indent=2))
    else:
        _show(findings)
    raise typer.Exit(0 if is_healthy(findings, strict=strict) else 1)


def _show(findings: Sequence[Finding]) -> None:
    console = Console()
    table = Table("check", "")
    table.add_column("what was seen", overflow="fold")
    for one in findings:
        table.add_row(one.check, f"[{STYLES[one.level]}]{one.level}[/]", escape(one.seen))
    console.print(table)
    for one in findings:
        if one.remedy:
            said = f"{one.level}: {one.check}: {one.remedy}"
            # Not wrapped: it may be a command to copy.
            console.print(
                said, style=STYLES[one.level], markup=False, highlight=False, soft_wrap=True
            )
    bad = {level: sum(one.level is level for one in findings) for level in Level}
    counts = ", ".join(f"{number} {level}" for level, number in bad.items() if number)
    console.print(counts, highlight=False)
