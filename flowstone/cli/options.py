"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from flowstone.partition import UNPARTITIONED, Key

RunId = Annotated[str, typer.Argument(help="The id of a run, or the beginning of it.")]

Partition = Annotated[
    str | None, typer.Option("--partition", "-p", help="Its partition, such as 2013-01-15.")
]

Upstream = Annotated[
    bool, typer.Option("--upstream", "-u", help="Materialize everything upstream, too.")
]

Force = Annotated[
    bool | None,
    typer.Option(
        "--force/--no-force",
        help="Compute what is fresh, or skip it; by default it is skipped with --upstream only.",
        show_default=False,
    ),
]

Detach = Annotated[bool, typer.Option("--detach", "-d", help="Print the run's id and do not wait.")]

Timeout = Annotated[
    float | None,
    typer.Option(min=0, help="Stop waiting after so many seconds; the run goes on."),
]


def key_of(partition: str | None) -> Key:
    """Return the key that the option names."""
    return UNPARTITIONED if partition is None else partition
