"""What callers use: submit runs and follow them. Needs only the names of assets, not their code."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID, uuid4

from flowstone import coordinator, reconcile, runtime
from flowstone.asset import NAME, Asset
from flowstone.canvas import Publisher, client_app
from flowstone.embedded import ensure_postgres
from flowstone.errors import (
    BadConfig,
    BrokerUnavailable,
    FlowStoneError,
    KeyReused,
    LedgerUnavailable,
    RunFailed,
    UnknownAsset,
)
from flowstone.execution import Ended, execute
from flowstone.expand import members
from flowstone.handle import POLL_SECONDS, RunHandle, wake_others
from flowstone.outcome import Retrying
from flowstone.partition import UNPARTITIONED, Key
from flowstone.partition_key import encode_key
from flowstone.plan import OnConflict, Plan, Request
from flowstone.runtime import Runtime, whoami
from flowstone.states import FINAL_RUN_STATES, RunState
from flowstone.store import migrate, progress, runs
from flowstone.store.cancellation import GRACE_SECONDS, Cancellation
from flowstone.store.ledger import Connection
from flowstone.store.progress import RunSummary

MAX_WINDOW = 1_000_000
"""The largest window of a run; beyond it, no window would serve as well."""

Assets = str | Asset | Sequence[str | Asset]
Config = Mapping[str, Mapping[str, Any]]
Conflicts = Literal["join", "queue", "refuse"]
Driver = Literal["celery", "inline"]

MAX_IDEMPOTENCY_KEY = 200
"""Characters of an idempotency key."""


def materialize(
    asset: str | Asset,
    *,
    partition: Key = UNPARTITIONED,
    config: Config | None = None,
    force: bool = True,
    max_in_flight: int | None = None,
    on_conflict: Conflicts = "join",
    idempotency_key: str | None = None,
) -> RunHandle:
    """Queue the materialization of one asset x partition, and return at once.

    It reads the latest outputs of what the asset depends on. `partition` is the
    key itself or its text; `config` holds values for the config models of assets,
    by their names. Without `force` it is skipped if it is fresh.

    `on_conflict` says what happens where another run is computing the same asset x
    partition: "join" waits for it, and takes its output if that is made of the same;
    "queue" waits, and then computes; "refuse" fails. With an `idempotency_key`, up to 200
    characters of your choice, all calls with the same key get the run of the first.

    Raises BadConfig, KeyReused for the key of a different request, LedgerUnavailable or
    BrokerUnavailable, and then nothing has been recorded. Names and keys are checked by
    the coordinator: a run for which they are wrong fails and says so.
    """
    request = _request(asset, partition, upstream=False, force=force, on_conflict=on_conflict)
    return _submit(request, config, max_in_flight, idempotency_key)


def materialize_all(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    config: Config | None = None,
    force: bool = False,
    max_in_flight: int | None = None,
    on_conflict: Conflicts = "join",
    idempotency_key: str | None = None,
) -> RunHandle:
    """Queue the materialization of assets with everything upstream of them.

    What is fresh is skipped, and its output used again; `force` computes it anew. The
    arguments and errors are those of `materialize`.
    """
    request = _request(assets, partition, upstream=True, force=force, on_conflict=on_conflict)
    return _submit(request, config, max_in_flight, idempotency_key)


def _submit(
    request: Request, config: Config | None, max_in_flight: int | None, key: str | None
) -> RunHandle:
    here = runtime.current()
    publisher = Publisher(client_app(here.settings.broker, here.settings.results))
    with here.ledger.autocommit():
        # A request that nobody would hear of must not be recorded.
        publisher.check()
    run_id, is_new = _record(here, request, config, max_in_flight, driver="celery", key=key)
    try:
        # That of an earlier call too: it may have died before it could.
        publisher.wake(run_id)
    except BrokerUnavailable as error:
        if is_new:
            _withdraw(here, run_id, error)
        raise
    return RunHandle(run_id, here)


def _withdraw(here: Runtime, run_id: UUID, error: FlowStoneError) -> None:
    reason = {"type": error.type, "message": error.message}
    with here.ledger.begin() as conn:
        runs.withdraw(conn, run_id, reason, actor=whoami())


def materialize_sync(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    upstream: bool = False,
    config: Config | None = None,
    force: bool | None = None,
    on_conflict: Conflicts = "join",
    idempotency_key: str | None = None,
) -> RunHandle:
    """Materialize assets here and now, in this process and without a broker.

    What is fresh is skipped with `upstream`, as by `materialize_all`, and computed
    without, as by `materialize`; `force` says otherwise. Plan, steps and ledger are those
    of `materialize`; retries wait for as long as they would in a worker. Without
    `FLOWSTONE_DATABASE_URL`, and if `flowstone dev` does not run, it starts PostgreSQL for
    as long as this process lives. `on_conflict` and `idempotency_key` are those of
    `materialize`; the run of an earlier call with the same key is waited for. Raises
    RunFailed where the run does not succeed, and BadConfig or KeyReused as `materialize`.
    """
    here = runtime.current()
    _ensure_ledger(here)
    reconcile.close_abandoned(here)
    forced = _forced(force, upstream)
    request = _request(assets, partition, upstream=upstream, force=forced, on_conflict=on_conflict)
    run_id, is_new = _record(here, request, config, None, driver="inline", key=idempotency_key)
    handle = RunHandle(run_id, here)
    if is_new:
        _drive_to_the_end(here, handle)
    else:
        _watch(here, handle)
    if handle.status() != RunState.SUCCEEDED:
        raise RunFailed(handle.explain())
    return handle


def _drive_to_the_end(here: Runtime, handle: RunHandle) -> None:
    try:
        with here.leases.driven(handle.id):
            _drive(here, handle)
    except BaseException:
        # Nobody else would go on with it.
        with contextlib.suppress(FlowStoneError):
            handle.cancel(reason="interrupted")
        raise


def _drive(here: Runtime, handle: RunHandle) -> None:
    """Bring a run to its end in this process."""
    coordinator.plan_run(here, handle.id)
    pause = _Pause(here)
    while handle.status() not in FINAL_RUN_STATES:
        canvases, steps = coordinator.take_ready(here, handle.id)
        for canvas in canvases:
            for member in members(canvas):
                _execute_here(here, member, steps[member].canvas)
        if not canvases and handle.status() not in FINAL_RUN_STATES:
            # All that is left is joined to steps of other runs.
            pause.wait()


def _watch(here: Runtime, handle: RunHandle) -> None:
    """Wait for the end of a run that another process brings there."""
    pause = _Pause(here)
    while handle.status() not in FINAL_RUN_STATES:
        pause.wait()


class _Pause:
    """Waits for other processes, and now and then looks whether they still live.

    There may be no worker on this machine that would apply the reconciler's rules.
    """

    def __init__(self, here: Runtime) -> None:
        self._here = here
        self._next = self._later()

    def _later(self) -> float:
        return time.monotonic() + self._here.leases.seconds / 3

    def wait(self) -> None:
        """Wait for a moment."""
        time.sleep(POLL_SECONDS)
        if time.monotonic() > self._next:
            self._next = self._later()
            with contextlib.suppress(LedgerUnavailable):
                wake_others(self._here, reconcile.repair(self._here).to_wake)


def _execute_here(here: Runtime, step_id: int, canvas: UUID) -> None:
    while True:
        ended = execute(here, step_id, canvas, worker=whoami())
        if isinstance(ended, Ended):
            wake_others(here, ended.wake - {ended.claim.run_id})
        if isinstance(ended, Ended) and isinstance(ended.error, KeyboardInterrupt):
            raise ended.error
        if not (isinstance(ended, Ended) and isinstance(ended.outcome, Retrying)):
            return
        time.sleep(ended.outcome.delay)


def _ensure_ledger(here: Runtime) -> None:
    if here.settings.database_url is None and ensure_postgres(here.settings.home):
        migrate.upgrade(here.ledger)


def preview(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    upstream: bool = False,
    config: Config | None = None,
    force: bool | None = None,
) -> Plan:
    """Return the plan that these assets would have now; nothing is recorded, nothing runs.

    Unlike those that submit, this needs the assets' code. The arguments are those of
    `materialize_sync`. Raises UnknownAsset, BadPartition, MissingInput, BadConfig or
    LedgerUnavailable.
    """
    here = runtime.current()
    request = _request(assets, partition, upstream=upstream, force=_forced(force, upstream))
    with here.ledger.begin() as conn:
        return coordinator.preview(conn, here, request, _json_config(config or {}))


def save_plan(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    upstream: bool = False,
    config: Config | None = None,
    force: bool | None = None,
    max_in_flight: int | None = None,
) -> RunHandle:
    """Plan a run now that `RunHandle.start` starts later, exactly as it was planned.

    Arguments and errors are those of `preview`; after an error nothing is recorded.
    """
    here = runtime.current()
    request = _request(assets, partition, upstream=upstream, force=_forced(force, upstream))
    run_id = uuid4()
    with here.ledger.begin() as conn:
        values = _json_config(config or {}), _window(here, max_in_flight)
        _create(conn, run_id, request, *values, driver="celery")
        coordinator.hold(conn, here, run_id)
    return RunHandle(run_id, here)


def _forced(force: bool | None, upstream: bool) -> bool:
    return not upstream if force is None else force


def runs_list(limit: int = 20) -> list[RunSummary]:
    """Return the latest runs, the newest first."""
    with runtime.current().ledger.begin() as conn:
        return progress.recent(conn, limit)


def run(run_id: str | UUID) -> RunHandle:
    """Return the handle of a run by its id, or by how that begins; raise UnknownRun."""
    here = runtime.current()
    with here.ledger.begin() as conn:
        return RunHandle(runs.find(conn, str(run_id)), here)


def cancel(
    run_id: str | UUID, *, reason: str | None = None, grace: float = GRACE_SECONDS
) -> Cancellation:
    """Cancel a run by its id, or by how that begins; see `RunHandle.cancel`."""
    return run(run_id).cancel(reason=reason, grace=grace)


def resume(run_id: str | UUID) -> RunHandle:
    """Resume a run by its id, or by how that begins; see `RunHandle.resume`."""
    return run(run_id).resume()


def _request(
    assets: Assets,
    partition: Key,
    *,
    upstream: bool,
    force: bool,
    on_conflict: str = OnConflict.JOIN,
) -> Request:
    many = [assets] if isinstance(assets, str | Asset) else list(assets)
    names = tuple(dict.fromkeys(str(asset) for asset in many))
    if not names:
        raise UnknownAsset("no asset is named; give at least one")
    for name in names:
        if not NAME.fullmatch(name):
            raise UnknownAsset(f"{name!r} is not the name of an asset")
    return Request(names, encode_key(partition), upstream, force, _on_conflict(on_conflict))


def _on_conflict(given: str) -> OnConflict:
    try:
        return OnConflict(given)
    except ValueError:
        known = ", ".join(repr(str(choice)) for choice in OnConflict)
        raise BadConfig(f"on_conflict is {given!r}; it must be one of {known}") from None


def _record(
    here: Runtime,
    request: Request,
    config: Config | None,
    max_in_flight: int | None,
    *,
    driver: Driver,
    key: str | None,
) -> tuple[UUID, bool]:
    """Record a request, unless there is a run with its key; return the run, and if it is new."""
    _check_key(key)
    run_id = uuid4()
    values = _json_config(config or {}), _window(here, max_in_flight)
    lease = here.leases.seconds if driver == "inline" else None
    with here.ledger.begin() as conn:
        if _create(conn, run_id, request, *values, driver=driver, key=key, lease=lease):
            return run_id, True
        assert key is not None
        return _same(runs.of_key(conn, key), request, values[0], key), False


def _same(found: runs.Run, request: Request, config: Mapping[str, Any], key: str) -> UUID:
    """Return the run of an idempotency key; raise KeyReused if it is not the one asked for."""
    if (found.request, found.config) != (request, config):
        raise KeyReused(
            f"the idempotency key {key!r} belongs to run {found.id}, whose request or config is "
            "a different one; use another key"
        )
    return found.id


def _check_key(key: str | None) -> None:
    given: Any = key  # as the caller may not check types
    if given is None:
        return
    if not isinstance(given, str) or not given.strip() or len(given) > MAX_IDEMPOTENCY_KEY:
        raise BadConfig(f"an idempotency key is a text of 1 to {MAX_IDEMPOTENCY_KEY} characters")
    if not given.isprintable():
        raise BadConfig(f"the idempotency key {given!r} holds characters that cannot be printed")


def _create(
    conn: Connection,
    run_id: UUID,
    request: Request,
    config: Mapping[str, Any],
    window: int,
    *,
    driver: Driver,
    key: str | None = None,
    lease: float | None = None,
) -> bool:
    return runs.create(
        conn,
        run_id,
        request,
        config=config,
        driver=driver,
        max_in_flight=window,
        actor=whoami(),
        idempotency_key=key,
        lease=lease,
    )


def _window(here: Runtime, max_in_flight: int | None) -> int:
    if max_in_flight is not None and not 0 < max_in_flight <= MAX_WINDOW:
        raise BadConfig(f"max_in_flight is {max_in_flight}; it must lie from 1 to {MAX_WINDOW}")
    return max_in_flight or here.settings.max_in_flight


def _json_config(config: Config) -> dict[str, Any]:
    given: Any = config  # as the caller may not check types
    if not isinstance(given, Mapping) or not all(isinstance(c, Mapping) for c in given.values()):
        raise BadConfig("config must be a mapping of asset -> mapping of values")
    try:
        text = json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadConfig(f"config must hold JSON values only: {error}") from None
    if "\\u0000" in text:
        raise BadConfig("config holds the character NUL, which PostgreSQL cannot store")
    back: dict[str, Any] = json.loads(text)
    return back
