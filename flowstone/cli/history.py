"""`flowstone versions`, `rollback` and `invalidate`: what an asset has been, and is no longer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import history
from flowstone.cli.options import DryRun, Partition, key_of
from flowstone.errors import BadConfig
from flowstone.history import Version
from flowstone.partition_key import encode_key, label

Reason = Annotated[str | None, typer.Option(help="Why; it is kept in the audit log.")]


def versions(
    asset: Annotated[str, typer.Argument(help="The asset whose versions to list.")],
    *,
    partition: Partition = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the versions of an asset, the newest first.

    Example: flowstone versions monthly_report --partition 2013-01
    """
    found = history.versions(asset, key_of(partition), limit=limit)
    if as_json:
        typer.echo(json.dumps([_as_json(version) for version in found]))
    else:
        Console().print(_table(found))


def _as_json(version: Version) -> dict[str, Any]:
    return {
        "version": version.id,
        "asset": version.asset,
        "partition": label(version.partition),
        "run": str(version.run_id),
        "made": version.created_at.isoformat(),
        "is_latest": version.is_latest,
        "state": _state(version),
        "code_version": version.code_version,
        "rows": version.output.rows,
        "bytes": version.output.size,
        "sha256": version.output.sha256,
        "io": version.output.io,
        "location": version.output.location,
    }


def _table(found: Sequence[Version]) -> Table:
    table = Table("version", "made", "run", "rows", "bytes", "sha256", "")
    for version in found:
        output = version.output
        table.add_row(
            str(version.id),
            f"{version.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
            str(version.run_id)[:8],
            "" if output.rows is None else f"{output.rows:,}",
            f"{output.size:,}",
            output.sha256[:8],
            escape(_state(version)),
        )
    return table


def _state(version: Version) -> str:
    notes = [
        "latest" if version.is_latest else "",
        f"stale: {version.stale_reason}" if version.stale_reason else "",
        "value deleted" if version.deleted_at else "",
    ]
    return ", ".join(note for note in notes if note)


def rollback(
    asset: Annotated[str, typer.Argument(help="The asset to roll back.")],
    *,
    partition: Partition = None,
    to: Annotated[
        int | None, typer.Option(help="The version to go to; the one before without.")
    ] = None,
    reason: Reason = None,
) -> None:
    """Make an older version of an asset its latest; readers get it from now on.

    Example: flowstone rollback monthly_report --partition 2013-01 --to 17 --reason "wrong rates"
    """
    version = history.rollback(asset, key_of(partition), to=to, reason=reason)
    typer.echo(
        f"the latest version of {version.name} is {version.id} now, of run {version.run_id}; "
        "what was made of another version is not fresh any more"
    )
    if version.stale_reason:
        typer.echo(f"it is stale ({version.stale_reason}): the next run computes it again")


def invalidate(
    asset: Annotated[str, typer.Argument(help="The asset to compute again.")],
    *,
    partition: Partition = None,
    cascade: Annotated[
        bool, typer.Option(help="Also what was made of it, directly or through others.")
    ] = True,
    reason: Reason = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Mark an asset, and all that was made of it, as stale: the next run computes it again.

    What will be marked is shown first.

    Example: flowstone invalidate raw_flights --partition 2013-01-15 --reason "late data"
    """
    found = history.invalidate(asset, key_of(partition), cascade=cascade, dry_run=True)
    table = Table("asset", "partition", "made", "run", "")
    for one in found:
        key = label(encode_key(one.partition))
        made = f"{one.made_at.astimezone():%Y-%m-%d %H:%M:%S}"
        note = "latest" if one.is_latest else "older version"
        table.add_row(one.asset, escape(key), made, str(one.run_id)[:8], note)
    if found:
        Console().print(table)
    if not found:
        typer.echo("all of it is stale already; the next run that needs it computes it")
        return
    if dry_run:
        typer.echo(f"{len(found)} outputs would be marked as stale")
        return
    if not yes and not sys.stdin.isatty():
        raise BadConfig("nobody can be asked here; add --yes to mark these, or --dry-run")
    if not yes:
        typer.confirm(f"Mark these {len(found)} outputs as stale?", abort=True)
    done = history.invalidate(asset, key_of(partition), cascade=cascade, reason=reason)
    typer.echo(f"{len(done)} outputs are stale now; the next run that needs them computes them")
