"""`flowstone backfill`: many partitions of many assets, in one go."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from flowstone import backfills as api
from flowstone.cli.backfill_display import follow
from flowstone.cli.options import (
    AssetConfig,
    Managers,
    Override,
    Pool,
    RunPriority,
    Timeout,
    config_of,
    managers_of,
    overrides_of,
)
from flowstone.cli.plan import show_preview
from flowstone.errors import RunFailed, RunRefused
from flowstone.partition import Key
from flowstone.priority import Priority
from flowstone.request import Only, Order
from flowstone.states import RunState


def backfill(
    selection: Annotated[
        list[str], typer.Argument(help="The assets, such as +monthly_report, tag:daily or 'raw_*'.")
    ],
    *,
    partitions: Annotated[
        list[str] | None,
        typer.Option(
            "--partitions",
            "-p",
            help="Partitions of the assets that are named: 2013-02, 2013-01..2013-06 or all. May "
            "be given several times; by default all.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[Only | None, typer.Option(help="Of these, only what is so.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compute what has succeeded already, too.")
    ] = False,
    max_parallel: Annotated[
        int | None, typer.Option(min=1, help="The most steps that run at once.")
    ] = None,
    order: Annotated[Order, typer.Option(help="Which partitions start first.")] = Order.OLDEST,
    stop_ratio: Annotated[
        float | None,
        typer.Option(help="Pause when this part of the steps has failed, such as 0.2."),
    ] = None,
    hours: Annotated[
        str | None, typer.Option(help="When steps may start, such as 22:00-06:00.")
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="The time zone of these hours; UTC, if it is left out.")
    ] = None,
    config: AssetConfig = None,
    resource: Override = None,
    io: Managers = None,
    pool: Pool = None,
    priority: RunPriority = Priority.LOW,
    idempotency_key: Annotated[
        str | None, typer.Option(help="A second request with the same key gets the same backfill.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Show the plan that it would have, and do nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --preview or --detach: print JSON.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the id of the backfill and do not wait.")
    ] = False,
    timeout: Timeout = None,
) -> None:
    """Compute many partitions of the selected assets, and show the progress.

    The partitions are those of the assets that are named; of what a + brings in,
    they follow. What has succeeded is skipped.

    Example: flowstone backfill +monthly_report -p 2013-01..2013-06 --max-parallel 4
    """
    if as_json and not (preview or detach):
        raise typer.BadParameter("--json goes with --preview or --detach")
    if zone is not None and hours is None:
        raise typer.BadParameter("--zone is that of --hours; give both, or neither")
    chosen: list[Key] | str = list(partitions) if partitions else api.ALL
    if preview:
        plan = api.preview_backfill(
            selection,
            chosen,
            only=None if only is None else only.value,
            force=force,
            config=config_of(config),
            resources=overrides_of(resource),
            io=managers_of(io),
            pool=pool,
        )
        show_preview(plan, as_json=as_json)
        return
    handle = api.backfill(
        selection,
        chosen,
        only=None if only is None else only.value,
        force=force,
        max_parallel=max_parallel,
        order=order.value,
        config=config_of(config),
        resources=overrides_of(resource),
        io=managers_of(io),
        priority=priority.value,
        pool=pool,
        stop_ratio=stop_ratio,
        hours=hours,
        zone=zone,
        idempotency_key=idempotency_key,
    )
    if detach:
        made = {"id": handle.id, "run": str(handle.run.id)}
        typer.echo(json.dumps(made) if as_json else str(handle.id))
        return
    watch(handle, Console(), timeout)


def watch(handle: api.BackfillHandle, console: Console, timeout: float | None) -> None:
    """Show a backfill until it ends or is paused, and raise RunFailed unless it succeeds.

    Ctrl-C ends the watching and not the backfill.
    """
    try:
        progress = follow(handle, console, timeout)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            f"the backfill goes on: `flowstone backfills show {handle.id}` shows it, "
            f"`flowstone backfills pause {handle.id}` halts it",
            highlight=False,
            soft_wrap=True,
        )
        raise
    if progress.run.is_refused:
        raise RunRefused(handle.run.explain())
    if progress.state == RunState.PAUSED:
        raise RunFailed(f"backfill {handle.id} is paused: {progress.pause_reason or 'by request'}")
    if progress.state != RunState.SUCCEEDED:
        raise RunFailed(
            f"{handle.run.explain()}; `flowstone backfills retry {handle.id}` does the rest again"
        )
