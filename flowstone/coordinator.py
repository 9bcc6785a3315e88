"""The run coordinator: plan once, expand what is ready, finish.

It is idempotent, and any number of it may run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from flowstone.errors import BadConfig, BrokerUnavailable, FlowStoneError, did_you_mean
from flowstone.execution import asset_config, config_values
from flowstone.expand import Canvas, expand
from flowstone.log import get_logger
from flowstone.plan import Plan, Request, build_plan
from flowstone.runtime import Runtime
from flowstone.states import RunState
from flowstone.store import cancellation, dispatch, plans, runs
from flowstone.store.dispatch import DispatchedStep
from flowstone.store.ledger import Connection

log = get_logger("flowstone.coordinator")

ACTOR = "coordinator"

Publish = Callable[[Canvas, Mapping[int, DispatchedStep]], None]
"""Hands a canvas to whatever runs it; raises if it did not take it."""


def coordinate(runtime: Runtime, run_id: UUID, publish: Publish) -> None:
    """Bring a run as far as it can go now.

    Raises UnknownRun, LedgerUnavailable, or what `publish` raises; in the last case
    all that was not published is ready again.
    """
    plan_run(runtime, run_id)
    go_on(runtime, run_id, publish)


def go_on(runtime: Runtime, run_id: UUID, publish: Publish) -> None:
    """Send what is ready of a planned run, or close it if nothing is left.

    Raises what `coordinate` raises.
    """
    canvases, steps = take_ready(runtime, run_id)
    for sent, canvas in enumerate(canvases):
        try:
            publish(canvas, steps)
        except BaseException:
            _take_back(runtime, canvases[sent:], steps)
            raise


def go_on_or_wake(
    runtime: Runtime, run_id: UUID, publish: Publish, wake: Callable[[UUID], None]
) -> None:
    """Go on with the run of a step that has ended; where that fails, wake a coordinator for it.

    It saves the message to a coordinator, which takes as long as a step of its own.
    Raises no error: the end of the step is in the ledger, and must not look like a
    failure of the step. What nobody hears of now, the reconciler finds.
    """
    try:
        try:
            go_on(runtime, run_id, publish)
        except BrokerUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            log.warning("a coordinator is woken instead", run_id=str(run_id), error=str(error))
            wake(run_id)
    except BrokerUnavailable as error:
        log.warning("nobody goes on before the broker is back", error=error.message)


def plan_run(runtime: Runtime, run_id: UUID) -> None:
    """Plan a requested run; one that cannot be planned fails, with the reason."""
    with runtime.ledger.begin() as conn:
        run = runs.lock(conn, run_id)
        if run.state != RunState.REQUESTED:
            return
        try:
            plan = _plan(conn, runtime, run)
        except FlowStoneError as error:
            reason = {"type": error.type, "message": error.message}
            runs.fail(conn, run_id, reason, actor=ACTOR)
        else:
            plans.write(conn, run_id, plan, actor=ACTOR)


def _plan(conn: Connection, runtime: Runtime, run: runs.Run) -> Plan:
    return preview(conn, runtime, run.request, run.config)


def preview(
    conn: Connection, runtime: Runtime, request: Request, config: Mapping[str, Any]
) -> Plan:
    """Return the plan that a request would have now; raises what `build_plan` raises."""
    graph = runtime.registry.graph
    plan = build_plan(
        request,
        graph,
        partial(plans.latest, conn),
        datetime.now(UTC),
        lambda asset: config_values(asset_config(graph[asset], config)),
    )
    _check_config(plan, config)
    return plan


def hold(conn: Connection, runtime: Runtime, run_id: UUID) -> None:
    """Plan a requested run, and pause it before its first step; raises as `build_plan` does."""
    run = runs.lock(conn, run_id)
    plans.write(conn, run_id, _plan(conn, runtime, run), actor=ACTOR)
    runs.move(conn, run_id, RunState.PAUSED)


def _check_config(plan: Plan, config: Mapping[str, Any]) -> None:
    planned = {step.asset for step in plan.steps}
    for name in config:
        if name not in planned:
            raise BadConfig(
                f"config is given for {name!r}, which this run does not compute"
                + did_you_mean(name, planned)
            )


def take_ready(
    runtime: Runtime, run_id: UUID
) -> tuple[Sequence[Canvas], Mapping[int, DispatchedStep]]:
    """Mark what is ready as dispatched, and return it; close the run if nothing is left."""
    with runtime.ledger.begin() as conn:
        # The lock lets one coordinator at a time dispatch; one that comes while another
        # works waits for it, and then sees all that the other did not.
        run = runs.lock(conn, run_id)
        if run.is_being_cancelled:
            cancellation.sweep(conn, run, actor=ACTOR)
            return (), {}
        if run.state not in (RunState.PLANNED, RunState.RUNNING):
            return (), {}
        budget = dispatch.window_left(conn, run_id, run.max_in_flight)
        ready, nodes = dispatch.ready(conn, run_id, budget)
        canvases = expand(ready, nodes, budget)
        if not canvases:
            runs.close_if_done(conn, run_id, actor=ACTOR)
            return (), {}
        if run.state == RunState.PLANNED:
            runs.mark_running(conn, run_id)
        return canvases, dispatch.mark(conn, canvases)


def _take_back(
    runtime: Runtime, canvases: Sequence[Canvas], steps: Mapping[int, DispatchedStep]
) -> None:
    with runtime.ledger.begin() as conn:
        dispatch.withdraw(conn, canvases, steps)
