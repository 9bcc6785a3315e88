"""Planning of a run: its request becomes the rows of a plan, or the reason why it cannot."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any
from uuid import UUID

from flowstone.classification import error_text, error_type
from flowstone.config_values import shown_values
from flowstone.errors import (
    BadConfig,
    Conflict,
    FlowStoneError,
    PlainSecret,
    did_you_mean,
    is_time_limit,
)
from flowstone.limits import asset_key, is_pool, rate_key
from flowstone.log import get_logger
from flowstone.made_of import (
    asset_config,
    check_names,
    chosen_values,
    refuse_secrets,
    without_secrets,
)
from flowstone.partition import Moment
from flowstone.partition_key import step_name
from flowstone.plan import Draft, Plan, PlannedStep, draft_plan
from flowstone.request import OnConflict, Request
from flowstone.resource_config import check_overrides
from flowstone.runtime import Runtime
from flowstone.states import RunState
from flowstone.store import (
    dynamic_keys,
    flights,
    partition_states,
    plans,
    rates,
    runs,
    slots,
)
from flowstone.store.ledger import Connection, is_of_database
from flowstone.store.runs import Run
from flowstone.summary import one_line
from flowstone.texts import storable

log = get_logger("flowstone.coordinator")

ACTOR = "coordinator"


def plan_run(runtime: Runtime, run_id: UUID) -> None:
    """Plan a requested run; one that cannot be planned fails, with the reason.

    Raises LedgerUnavailable, LedgerRefused, or what ends the task; then the run is as before.
    """
    with runtime.ledger.begin() as conn:
        run = runs.lock(conn, run_id)
        if run.state != RunState.REQUESTED:
            return
        try:
            # What is written while the plan is made is not there if it cannot be made.
            with conn.begin_nested():
                _plan(conn, runtime, run)
        except Exception as error:
            if is_of_database(error) or is_time_limit(error):
                raise
            kept: dict[str, Any] = {}
            if isinstance(error, PlainSecret):
                kept["config"] = without_secrets(runtime.registry.graph.assets, run.config)
            runs.fail(conn, run_id, _reason(runtime, run_id, error), actor=ACTOR, **kept)


def _reason(runtime: Runtime, run_id: UUID, error: Exception) -> dict[str, str]:
    """Return why a run cannot be planned; what no part of FlowStone has foreseen is logged whole.

    That is a fault of the definitions or of FlowStone, and would be the same the next time.
    """
    if isinstance(error, FlowStoneError):
        return {"type": error.type, "message": error.message}
    secrets = runtime.resources.secrets
    told = secrets.without(error)
    log.error("a run cannot be planned", run_id=str(run_id), exc_info=told)
    said = one_line(error_type(error), secrets.mask(error_text(error)))
    return {"type": error_type(error), "message": storable(f"planning has raised {said}")}


def _plan(conn: Connection, runtime: Runtime, run: Run) -> None:
    """Make the plan of a run, and write it while it is made."""
    drafted = draft(conn, runtime, run.request, run.config)
    if run.driver == "celery":
        _refuse_memory(runtime, drafted.assets, run.request)
    if run.request.on_conflict == OnConflict.REFUSE:
        steps = tuple(drafted.steps)
        _refuse_conflict(conn, run, steps)
        drafted = replace(drafted, steps=iter(steps))
    slots.declare(conn, _declared(runtime, drafted.assets, run.request))
    plans.write(conn, run.id, drafted, actor=ACTOR)
    # Last, as those who start wait for it.
    graph = runtime.registry.graph
    limited = [(name, rate) for name in drafted.assets if (rate := graph[name].rate) is not None]
    rates.declare(conn, {rate_key(rate, name): rate for name, rate in limited})


def _declared(runtime: Runtime, assets: Iterable[str], request: Request) -> dict[str, int]:
    """Return how many slots there are of what the plan takes, as this process knows it."""
    declared = dict(runtime.settings.pools)
    takes: set[str] = set()
    for name in assets:
        asset = runtime.registry.graph[name]
        takes.update(asset.policy(request.pool).takes)
        if asset.max_running is not None:
            declared[asset_key(name)] = asset.max_running
    return {key: declared[key] for key in takes if key in declared}


def _refuse_conflict(conn: Connection, run: Run, steps: Iterable[PlannedStep]) -> None:
    own = [s.node for s in steps if not (s.skipped or s.awaits_until)]
    found = flights.open_elsewhere(conn, run.id, own)
    if found is not None:
        raise Conflict(conflict_said(step_name(*found.node), found.run_id))


def conflict_said(name: str, run_id: UUID) -> str:
    """Return why a run is refused, another one of which computes the same."""
    return (
        f"{name} is being computed by run {run_id}; wait for its end or cancel it, "
        "or submit with on_conflict 'join' or 'queue'"
    )


def preview(
    conn: Connection, runtime: Runtime, request: Request, config: Mapping[str, Any]
) -> Plan:
    """Return the plan that a request would have now; raises what `build_plan` raises."""
    drafted = draft(conn, runtime, request, config)
    return Plan(tuple(drafted.steps), drafted.configs)


def draft(conn: Connection, runtime: Runtime, request: Request, config: Mapping[str, Any]) -> Draft:
    """Return the plan that a request would have now, whose steps are still to be made.

    Raises what `draft_plan` raises, and BadConfig or UnknownResource.
    """
    graph = runtime.registry.graph
    refuse_secrets(graph.assets, config)
    configs: dict[str, Any] = {}

    def config_of(name: str) -> Any:  # noqa: ANN401 - any model
        made = asset_config(graph[name], config)
        if made is not None:
            configs[name] = shown_values(made)
        return chosen_values(graph[name], made, request.resources)

    at = Moment(datetime.now(UTC), cache(partial(dynamic_keys.keys, conn)))

    def standing(name: str, keys: Sequence[str]) -> Mapping[str, str]:
        asset = graph[name]
        return partition_states.standing(conn, name, keys, asset.code_hash, asset.partitions.cut)

    latest = partial(plans.latest, conn)
    drafted = draft_plan(request, graph, latest, at, config_of, standing=standing)
    drafted = replace(drafted, configs=configs)
    check_names(config, drafted.assets)
    _check_io(runtime, drafted.assets, request)
    _check_resources(drafted.assets, runtime, request.resources)
    _check_pools(conn, runtime, drafted.assets, request)
    return drafted


def hold(conn: Connection, runtime: Runtime, run_id: UUID) -> None:
    """Plan a requested run, and pause it before its first step; raises as `draft` does."""
    _plan(conn, runtime, runs.lock(conn, run_id))
    runs.move(conn, run_id, RunState.PAUSED, actor=ACTOR)


def _check_io(runtime: Runtime, planned: Collection[str], request: Request) -> None:
    """Raise BadConfig unless there is an IO manager for each asset that the run computes."""
    for name in request.io:
        if name not in planned:
            raise BadConfig(
                f"an IO manager is given for {name!r}, which this run does not compute"
                + did_you_mean(name, planned)
            )
    graph = runtime.registry.graph
    for name in planned:
        try:
            runtime.outputs.manager(request.io.get(name, graph[name].io))
        except BadConfig as error:
            raise BadConfig(f"asset {name!r}: {error.message}") from error


def _refuse_memory(runtime: Runtime, assets: Iterable[str], request: Request) -> None:
    """Raise BadConfig where outputs would be gone with the process of the worker that made them."""
    graph = runtime.registry.graph
    for name in assets:
        io = request.io.get(name, graph[name].io)
        if runtime.settings.addresses[io].startswith("memory:"):
            raise BadConfig(
                f"asset {name!r}: the IO manager {io!r} keeps outputs in the memory of one "
                "process, where no other worker finds them; it is for materialize_sync and tests"
            )


def _check_pools(
    conn: Connection, runtime: Runtime, assets: Iterable[str], request: Request
) -> None:
    """Raise BadConfig where a step takes slots that there are not, and never will be."""
    graph = runtime.registry.graph
    takes = {name: graph[name].policy(request.pool).takes for name in assets}
    pools = {key for taken in takes.values() for key in taken if is_pool(key)}
    known = slots.totals(conn, pools, runtime.settings.pools) if pools else {}
    for name, taken in takes.items():
        for pool, count in taken.items():
            if is_pool(pool) and pool not in known:
                raise BadConfig(
                    f"asset {name!r} takes slots of the pool {pool!r}, which has none"
                    f"{did_you_mean(pool, known)}; say how many with FLOWSTONE_POOLS, or "
                    f"`flowstone pools set {pool} 4`"
                )
            # One without any slot is closed for a time.
            if is_pool(pool) and 0 < known[pool] < count:
                raise BadConfig(
                    f"asset {name!r} takes {count} slots of the pool {pool!r}, which has "
                    f"{known[pool]}; give it more, or the asset a smaller weight"
                )


def _check_resources(
    planned: Iterable[str], runtime: Runtime, overrides: Mapping[str, Mapping[str, Any]]
) -> None:
    check_overrides(runtime.registry.resources, runtime.settings.resources, overrides)
    graph = runtime.registry.graph
    required = {name for asset in planned for name in graph[asset].requires}
    for name in overrides:
        if name not in required:
            raise BadConfig(
                f"resource {name!r} is given for the run, which computes nothing that requires it"
                + did_you_mean(name, required)
            )
