"""`flowstone get` and `flowstone exists`: the values that assets have."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from flowstone import reading
from flowstone.cli.options import Partition, key_of

OfRun = Annotated[str | None, typer.Option("--run", help="That of this run, not the latest.")]


def get(
    asset: Annotated[str, typer.Argument(help="The asset to read.")],
    *,
    partition: Partition = None,
    run: OfRun = None,
    version: Annotated[
        int | None, typer.Option(help="That of this version; `flowstone versions` lists them.")
    ] = None,
) -> None:
    """Print the value of an asset: JSON as JSON, anything else as Python prints it.

    Example: flowstone get monthly_report --partition 2013-01
    """
    typer.echo(_shown(reading.get(asset, key_of(partition), run=run, version=version)))


def _shown(value: Any) -> str:  # noqa: ANN401 - any value of a user
    try:
        return json.dumps(value, ensure_ascii=False, indent=2)
    except (TypeError, ValueError):
        return str(value)


def exists(
    asset: Annotated[str, typer.Argument(help="The asset to look for.")],
    *,
    partition: Partition = None,
    run: OfRun = None,
) -> None:
    """Say whether an asset has a value that can be read; the exit code is 1 if it has not.

    Example: flowstone exists monthly_report --partition 2013-01
    """
    found = reading.exists(asset, key_of(partition), run=run)
    typer.echo("yes" if found else "no")
    raise typer.Exit(not found)
