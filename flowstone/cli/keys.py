"""`flowstone keys`: the keys of dynamic partitions."""

from __future__ import annotations

from typing import Annotated

import typer

from flowstone import dynamic
from flowstone.partition_key import encode_key, label
from flowstone.texts import printable

app = typer.Typer(help="Keys of dynamic partitions.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The name of DynamicPartitions(NAME).")]

Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="Keys, which are texts.")]

By = Annotated[str | None, typer.Option(help="Who does it; you, if it is left out.")]

Reason = Annotated[str | None, typer.Option(help="Why; for the audit log.")]


@app.command()
def add(name: Name, keys: Keys, by: By = None, reason: Reason = None) -> None:
    """Add keys; those that are there already stay as they are.

    Example: flowstone keys add customers acme globex
    """
    added = dynamic.add_partitions(name, keys, by=by, reason=reason)
    typer.echo(_said("added to", name, added, keys, "there already"))


@app.command()
def remove(name: Name, keys: Keys, by: By = None, reason: Reason = None) -> None:
    """Remove keys; what was made for them stays, and can be read.

    Example: flowstone keys remove customers acme
    """
    removed = dynamic.remove_partitions(name, keys, by=by, reason=reason)
    typer.echo(_said("removed from", name, removed, keys, "not there"))


@app.command("list")
def list_(name: Name) -> None:
    """List the keys, in the order in which they were added.

    Example: flowstone keys list customers
    """
    for key in dynamic.dynamic_partitions(name):
        typer.echo(printable(label(encode_key(key))))


def _said(done: str, name: str, count: int, keys: list[str], others: str) -> str:
    rest = len(set(keys)) - count
    keys_ = "1 key" if count == 1 else f"{count} keys"
    return f"{keys_} {done} {name}" + (
        f"; {rest} {'was' if rest == 1 else 'were'} {others}" if rest else ""
    )
