"""What callers use: submit runs and follow them. Needs only the names of assets, not their code."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID, uuid4

from flowstone import inline, outbox, planning, reconcile, runtime, submission
from flowstone.asset import Asset
from flowstone.embedded import ensure_postgres
from flowstone.errors import RunFailed
from flowstone.handle import RunHandle
from flowstone.partition import UNPARTITIONED, Key
from flowstone.plan import Plan
from flowstone.request import Request
from flowstone.runtime import Runtime
from flowstone.states import RunState
from flowstone.store import migrate, progress, runs, workers
from flowstone.store.cancellation import GRACE_SECONDS, Cancellation
from flowstone.store.pausing import Paused
from flowstone.store.progress import RunSummary
from flowstone.store.workers import Unattended, Worker
from flowstone.submission import Assets, Config, Conflicts, Priorities


def materialize(
    asset: str | Asset,
    *,
    partition: Key = UNPARTITIONED,
    config: Config | None = None,
    resources: Config | None = None,
    io: Mapping[str, str] | None = None,
    force: bool = True,
    max_in_flight: int | None = None,
    on_conflict: Conflicts = "join",
    idempotency_key: str | None = None,
    priority: Priorities = "normal",
    deadline: float | None = None,
    pool: str | None = None,
) -> RunHandle:
    """Queue the materialization of one asset x partition, and return at once.

    It reads the latest outputs of what the asset depends on. `partition` is the
    key itself or its text; `config` holds values for the config models of assets,
    by their names. `resources` holds values for those of resources, which must then be
    defined in this process, too; a secret is given as `Env("NAME")`, and None is not given.
    `io` names the IO managers of assets in this run, where not those of their definitions.
    Without `force` it is skipped if it is fresh.

    `on_conflict` says what happens where another run is computing the same asset x
    partition: "join" waits for it, and takes its output if that is made of the same;
    "queue" waits, and then computes; "refuse" fails. With an `idempotency_key`, up to 200
    characters of your choice, all calls with the same key get the run of the first.

    `priority` is "high", "normal" or "low"; a run that has not ended `deadline` seconds after
    its submission fails; each step takes a slot of the `pool`, if one is named, beside those
    that its asset takes.

    Raises BadConfig, UnknownResource, KeyReused for the key of a different request, or
    LedgerUnavailable, and then nothing has been recorded. A broker that is away is no error: the
    run is recorded, and starts when that is back. Names and keys are checked by the coordinator:
    a run for which they are wrong fails and says so; and so does one with a bad config, where
    this process does not have the definitions.
    """
    request = submission.request(
        asset,
        partition,
        upstream=False,
        force=force,
        on_conflict=on_conflict,
        resources=resources,
        io=io,
        priority=priority,
        deadline=deadline,
        pool=pool,
    )
    return _submit(request, config, max_in_flight, idempotency_key)


def materialize_all(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    config: Config | None = None,
    resources: Config | None = None,
    io: Mapping[str, str] | None = None,
    force: bool = False,
    max_in_flight: int | None = None,
    on_conflict: Conflicts = "join",
    idempotency_key: str | None = None,
    priority: Priorities = "normal",
    deadline: float | None = None,
    pool: str | None = None,
) -> RunHandle:
    """Queue the materialization of assets with everything upstream of them.

    What is fresh is skipped, and its output used again; `force` computes it anew. The
    arguments and errors are those of `materialize`.
    """
    request = submission.request(
        assets,
        partition,
        upstream=True,
        force=force,
        on_conflict=on_conflict,
        resources=resources,
        io=io,
        priority=priority,
        deadline=deadline,
        pool=pool,
    )
    return _submit(request, config, max_in_flight, idempotency_key)


def _submit(
    request: Request, config: Config | None, max_in_flight: int | None, key: str | None
) -> RunHandle:
    here = runtime.current()
    # Where it has no address to send to, nothing is recorded.
    sender = outbox.sender(here)
    run_id, _ = submission.record(here, request, config, max_in_flight, driver="celery", key=key)
    # That of an earlier call too: it may have died before it could.
    outbox.wake(sender, run_id)
    return RunHandle(run_id, here)


def materialize_sync(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    upstream: bool = False,
    config: Config | None = None,
    resources: Config | None = None,
    io: Mapping[str, str] | None = None,
    force: bool | None = None,
    on_conflict: Conflicts = "join",
    idempotency_key: str | None = None,
    priority: Priorities = "normal",
    deadline: float | None = None,
    pool: str | None = None,
) -> RunHandle:
    """Materialize assets here and now, in this process and without a broker.

    What is fresh is skipped with `upstream`, as by `materialize_all`, and computed
    without, as by `materialize`; `force` says otherwise. Plan, steps and ledger are those
    of `materialize`; retries wait for as long as they would in a worker. Without
    `FLOWSTONE_DATABASE_URL`, and if `flowstone dev` does not run, it starts PostgreSQL for
    as long as this process lives. `on_conflict` and `idempotency_key` are those of
    `materialize`; the run of an earlier call with the same key is waited for. Raises
    RunFailed where the run does not succeed, from the error of the first step that failed
    here, which is its `original`; and BadConfig or KeyReused as `materialize`.
    """
    here = runtime.current()
    _ensure_ledger(here)
    reconcile.close_abandoned(here)
    forced = _forced(force, upstream)
    request = submission.request(
        assets,
        partition,
        upstream=upstream,
        force=forced,
        on_conflict=on_conflict,
        resources=resources,
        io=io,
        priority=priority,
        deadline=deadline,
        pool=pool,
    )
    run_id, is_new = submission.record(
        here, request, config, None, driver="inline", key=idempotency_key
    )
    handle = RunHandle(run_id, here)
    error = None
    if is_new:
        error = inline.drive_to_the_end(here, handle)
    else:
        inline.watch(here, handle)
    if handle.status() != RunState.SUCCEEDED:
        raise RunFailed(handle.explain(), original=error) from error
    return handle


def _ensure_ledger(here: Runtime) -> None:
    if here.settings.database_url is None and ensure_postgres(here.settings.home):
        migrate.upgrade(here.ledger)


def preview(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    upstream: bool = False,
    config: Config | None = None,
    resources: Config | None = None,
    io: Mapping[str, str] | None = None,
    force: bool | None = None,
    pool: str | None = None,
) -> Plan:
    """Return the plan that these assets would have now; nothing is recorded, nothing runs.

    Unlike those that submit, this needs the assets' code. The arguments are those of
    `materialize_sync`. Raises UnknownAsset, BadPartition, MissingInput, BadConfig or
    LedgerUnavailable.
    """
    here = runtime.current()
    request = submission.request(
        assets,
        partition,
        upstream=upstream,
        force=_forced(force, upstream),
        resources=resources,
        io=io,
        pool=pool,
    )
    with here.ledger.begin() as conn:
        return planning.preview(conn, here, request, submission.json_config(config or {}))


def save_plan(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    upstream: bool = False,
    config: Config | None = None,
    resources: Config | None = None,
    io: Mapping[str, str] | None = None,
    force: bool | None = None,
    max_in_flight: int | None = None,
    priority: Priorities = "normal",
    pool: str | None = None,
) -> RunHandle:
    """Plan a run now that `RunHandle.start` starts later, exactly as it was planned.

    Arguments and errors are those of `preview`; after an error nothing is recorded.
    """
    here = runtime.current()
    request = submission.request(
        assets,
        partition,
        upstream=upstream,
        force=_forced(force, upstream),
        resources=resources,
        io=io,
        priority=priority,
        pool=pool,
    )
    run_id = uuid4()
    with here.ledger.begin() as conn:
        values = submission.json_config(config or {}), submission.window(here, max_in_flight)
        submission.create(conn, run_id, request, *values, driver="celery")
        planning.hold(conn, here, run_id)
    return RunHandle(run_id, here)


def _forced(force: bool | None, upstream: bool) -> bool:
    return not upstream if force is None else force


def runs_list(limit: int = 20) -> list[RunSummary]:
    """Return the latest runs, the newest first."""
    with runtime.current().ledger.begin() as conn:
        return progress.recent(conn, limit)


def workers_list() -> list[Worker]:
    """Return the workers that are there, by name."""
    with runtime.current().ledger.begin() as conn:
        return workers.listed(conn)


def unattended() -> list[Unattended]:
    """Return the queues that no worker consumes, though something waits in them."""
    with runtime.current().ledger.begin() as conn:
        return workers.unattended(conn)


def run(run_id: str | UUID) -> RunHandle:
    """Return the handle of a run by its id, or by how that begins; raise UnknownRun."""
    here = runtime.current()
    with here.ledger.begin() as conn:
        return RunHandle(runs.find(conn, str(run_id)), here)


def cancel(
    run_id: str | UUID,
    *,
    reason: str | None = None,
    grace: float = GRACE_SECONDS,
    drain: bool = False,
) -> Cancellation:
    """Cancel a run by its id, or by how that begins; see `RunHandle.cancel`."""
    return run(run_id).cancel(reason=reason, grace=grace, drain=drain)


def pause(run_id: str | UUID, reason: str | None = None) -> Paused:
    """Pause a run by its id, or by how that begins; see `RunHandle.pause`."""
    return run(run_id).pause(reason)


def resume(run_id: str | UUID) -> RunHandle:
    """Resume a run by its id, or by how that begins; see `RunHandle.resume`."""
    return run(run_id).resume()
