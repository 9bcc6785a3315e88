"""`flowstone run`: submit a run and watch it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from flowstone import client
from flowstone.cli.display import follow
from flowstone.cli.options import (
    AssetConfig,
    Detach,
    Force,
    Managers,
    Override,
    Partition,
    Pool,
    RunPriority,
    Timeout,
    Upstream,
    Window,
    config_of,
    key_of,
    managers_of,
    overrides_of,
)
from flowstone.errors import RunFailed, RunRefused
from flowstone.handle import RunHandle
from flowstone.priority import Priority
from flowstone.request import OnConflict
from flowstone.states import RunState


def run(
    asset: Annotated[
        str, typer.Argument(help="The asset to materialize, or a selection such as tag:daily.")
    ],
    *,
    partition: Partition = None,
    upstream: Upstream = False,
    force: Force = None,
    config: AssetConfig = None,
    resource: Override = None,
    io: Managers = None,
    on_conflict: Annotated[
        OnConflict,
        typer.Option(
            help="Where another run is computing the same: wait and share its output, "
            "wait and compute, or fail."
        ),
    ] = OnConflict.JOIN,
    idempotency_key: Annotated[
        str | None, typer.Option(help="A second request with the same key gets the same run.")
    ] = None,
    priority: RunPriority = Priority.NORMAL,
    deadline: Annotated[
        float | None,
        typer.Option(min=0, help="Fail the run if it has not ended after so many seconds."),
    ] = None,
    pool: Pool = None,
    max_in_flight: Window = None,
    detach: Detach = False,
    timeout: Timeout = None,
) -> None:
    """Materialize an asset on the workers, and show the progress.

    Example: flowstone run monthly_report --partition 2013-01 --upstream
    """
    submit = client.materialize_all if upstream else client.materialize
    force = not upstream if force is None else force
    handle = submit(
        asset,
        partition=key_of(partition),
        force=force,
        config=config_of(config),
        resources=overrides_of(resource),
        io=managers_of(io),
        on_conflict=on_conflict.value,
        idempotency_key=idempotency_key,
        priority=priority.value,
        deadline=deadline,
        pool=pool,
        max_in_flight=max_in_flight,
    )
    if detach:
        typer.echo(str(handle.id))
        return
    watch(handle, Console(), timeout)


def watch(handle: RunHandle, console: Console, timeout: float | None) -> None:
    """Show a run to its end, and raise RunFailed unless it succeeds.

    Ctrl-C ends the watching and not the run.
    """
    try:
        progress = follow(handle, console, timeout)
    except KeyboardInterrupt:
        short = str(handle.id)[:8]
        Console(stderr=True).print(
            f"the run goes on: `flowstone status {short}` shows it, "
            f"`flowstone cancel {short}` ends it",
            highlight=False,
            soft_wrap=True,
        )
        raise
    if progress.is_refused:
        raise RunRefused(handle.explain())
    if progress.state != RunState.SUCCEEDED:
        raise RunFailed(handle.explain())
