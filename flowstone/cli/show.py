"""`flowstone show`: what an asset is, and what of it there is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowstone import reading, runtime
from flowstone.asset import Asset
from flowstone.cli.graph import read_as
from flowstone.cli.options import Partition, key_of
from flowstone.errors import (
    BadConfig,
    LedgerUnavailable,
    StorageUnavailable,
    UnknownAsset,
    WrongMigration,
)
from flowstone.graph import AssetGraph
from flowstone.limits import told_rate
from flowstone.outcome import StoredOutput
from flowstone.partition import UnpartitionedSet
from flowstone.partition_key import label
from flowstone.reading import AssetStatus
from flowstone.runtime import Runtime
from flowstone.store import outputs

_SHOWN = 10


def show(
    asset: Annotated[str | None, typer.Argument(help="An asset; all of them without.")] = None,
    *,
    partition: Partition = None,
) -> None:
    """Show an asset: what it reads, who reads it, and its latest outputs.

    With a partition, or where no definitions are loaded, show how it stands in the ledger.

    Example: flowstone show monthly_report --partition 2013-01
    """
    here = runtime.current()
    console = Console()
    if asset is None:
        console.print(_all(here.registry.graph))
        return
    graph = here.registry.graph
    if partition is not None or not graph.assets:
        console.print(_standing(reading.status(asset, key_of(partition))))
        return
    console.print(_facts(graph[asset], graph))
    _print_outputs(console, here, graph[asset])
    if isinstance(graph[asset].partitions, UnpartitionedSet):
        with contextlib.suppress(UnknownAsset, LedgerUnavailable, WrongMigration):
            console.print(_standing(reading.status(asset)))


def _standing(status: AssetStatus) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    facts = {
        "asset": status.asset,
        "partition": str(status.partition),
        "state": status.state,
        "because": status.latest and status.latest.stale_reason,
        "version": status.latest and f"{status.latest.id} of run {status.latest.run_id}",
        "made": status.latest and f"{status.latest.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
        "rows": status.latest and status.latest.output.rows,
        "bytes": status.latest and f"{status.latest.output.size:,}",
        "computing": "\n".join(f"{open.state} in run {open.run_id}" for open in status.computing),
        "last failure": status.failure
        and f"{status.failure.message} (run {status.failure.run_id})",
        "checks": "\n".join(
            f"{check.name} {'passed' if check.passed else 'did not pass'}"
            + (f": {check.message}" if check.message else "")
            for check in status.checks
        ),
    }
    for name, value in facts.items():
        if value not in (None, ""):
            table.add_row(f"[bold]{name}", escape(str(value)))
    return table


def _all(graph: AssetGraph) -> Table:
    table = Table("asset", "partitions", "reads")
    for name in graph.order:
        asset = graph[name]
        reads = ", ".join(d.asset for d in asset.dependencies)
        table.add_row(name, str(asset.partitions), reads)
    return table


def _facts(asset: Asset, graph: AssetGraph) -> Table:
    reads = [read_as(graph, asset.name, dependency) for dependency in asset.dependencies]
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in {
        "asset": asset.name,
        "description": asset.description,
        "partitions": str(asset.partitions),
        "reads": "\n".join(reads),
        "read by": ", ".join(graph.readers(asset.name)),
        "queue": asset.queue,
        "retries": _retries(asset),
        "limits": "\n".join(_limits(asset)),
        "resources": ", ".join(asset.requires),
        "defined": asset.location,
    }.items():
        if value:
            table.add_row(f"[bold]{name}", escape(value))
    return table


def _retries(asset: Asset) -> str:
    retry = asset.retry
    if retry.max_attempts == 1:
        return "none"
    delays = [replace(retry, jitter="none").delay(n) for n in range(1, retry.max_attempts)]
    shown = ", ".join(f"{delay:g}" for delay in delays[:_SHOWN]) + (
        ", ..." * (len(delays) > _SHOWN)
    )
    return f"{len(delays)}, after {'up to ' * (retry.jitter == 'full')}{shown} s"


def _limits(asset: Asset) -> Iterator[str]:
    if asset.timeout is not None:
        yield f"interrupted after {asset.timeout.soft:g} s, killed after {asset.timeout.hard:g} s"
    if asset.pool is not None:
        yield f"takes {asset.weight} of the pool {asset.pool}"
    if asset.max_running is not None:
        yield f"at most {asset.max_running} at once"
    if asset.rate is not None:
        key = f", shared as {asset.rate.key}" if asset.rate.key else ""
        yield f"starts {told_rate(asset.rate.interval, asset.rate.burst)}{key}"


def _path(here: Runtime, output: StoredOutput) -> str:
    try:
        return here.outputs.describe(output).path
    except (StorageUnavailable, BadConfig):
        return output.location


def _print_outputs(console: Console, here: Runtime, asset: Asset) -> None:
    try:
        with here.ledger.begin() as conn:
            found = outputs.latest_of(conn, asset.name)
    except (LedgerUnavailable, WrongMigration) as error:
        # What is defined can be shown without a database.
        console.print(f"outputs are not shown: {error.message}", style="yellow", markup=False)
        return
    shown = f"the last {_SHOWN} of " if len(found) > _SHOWN else ""
    table = Table("partition", "rows", "bytes", title=f"outputs: {shown}{len(found)}")
    table.add_column("location", overflow="fold")
    for named in found[-_SHOWN:]:
        rows = "" if named.output.rows is None else f"{named.output.rows:,}"
        table.add_row(
            escape(label(named.partition)),
            rows,
            f"{named.output.size:,}",
            escape(_path(here, named.output)),
        )
    console.print(table)
