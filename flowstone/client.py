"""What callers use: submit runs and follow them. Needs only the names of assets, not their code."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from flowstone import coordinator, runtime
from flowstone.asset import Asset
from flowstone.canvas import Publisher, client_app
from flowstone.embedded import ensure_postgres
from flowstone.errors import (
    BadConfig,
    BrokerUnavailable,
    FlowStoneError,
    RunFailed,
    RunTimeout,
    UnknownAsset,
    did_you_mean,
)
from flowstone.execution import Ended, execute
from flowstone.expand import members
from flowstone.outcome import Retrying
from flowstone.partition import UNPARTITIONED, Key
from flowstone.partition_key import decode_key, encode_key
from flowstone.plan import Request
from flowstone.runtime import Runtime
from flowstone.states import FINAL_RUN_STATES, RunState, StepState
from flowstone.store import migrate, outputs, progress, runs
from flowstone.store.progress import RunSummary, StepError

Assets = str | Asset | Sequence[str | Asset]
Config = Mapping[str, Mapping[str, Any]]

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a run is: the number of steps by asset and state, assets in the plan's order."""

    state: RunState
    steps: Mapping[str, Mapping[StepState, int]]
    error: Mapping[str, Any] | None

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self.state in FINAL_RUN_STATES

    def count(self, *states: StepState) -> int:
        """Return the number of steps in the given states, or of all without any."""
        return sum(
            count
            for by_state in self.steps.values()
            for state, count in by_state.items()
            if not states or state in states
        )


class RunHandle:
    """A run that has been submitted. Iterating over it yields Progress until the run has ended."""

    def __init__(self, run_id: UUID, runtime: Runtime) -> None:
        self.id = run_id
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"RunHandle({str(self.id)!r})"

    def progress(self) -> Progress:
        """Return how far the run is; raise UnknownRun or LedgerUnavailable."""
        with self._runtime.ledger.begin() as conn:
            run = runs.get(conn, self.id)
            return Progress(run.state, progress.by_asset(conn, self.id), run.error)

    def status(self) -> RunState:
        """Return the state of the run."""
        with self._runtime.ledger.begin() as conn:
            return runs.get(conn, self.id).state

    def errors(self) -> list[StepError]:
        """Return the steps that have failed or are tried again, with their errors."""
        with self._runtime.ledger.begin() as conn:
            return progress.errors(conn, self.id)

    def wait(self, timeout: float | None = None) -> RunState:
        """Wait until the run has ended, and return its final state.

        Raises RunTimeout after `timeout` seconds; the run itself goes on.
        """
        deadline = _Deadline(timeout)
        while (state := self.status()) not in FINAL_RUN_STATES:
            deadline.sleep(f"run {self.id} is still {state}")
        return state

    def wait_until_planned(self, timeout: float) -> RunState:
        """Wait up to `timeout` seconds for a coordinator to take the run, and return its state."""
        end = time.monotonic() + timeout
        while (state := self.status()) == RunState.REQUESTED and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        return state

    def result(self, asset: str | Asset | None = None, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Wait for the run and return the value that it has made of an asset.

        `asset` defaults to the one that was requested. An asset of which the run
        computed several partitions gives a dict of key -> value. Raises RunFailed,
        RunTimeout, or UnknownAsset for an asset that the run did not compute.
        """
        if self.wait(timeout) != RunState.SUCCEEDED:
            raise RunFailed(self.explain())
        with self._runtime.ledger.begin() as conn:
            run = runs.get(conn, self.id)
            name = str(asset) if asset is not None else _only(run)
            found = outputs.of_run(conn, self.id, (name,))
            computed = progress.by_asset(conn, self.id)
        if not found:
            raise UnknownAsset(
                f"run {self.id} did not compute {name!r}{did_you_mean(name, computed)}"
            )
        values = {decode_key(o.partition): self._runtime.outputs.load(o.output) for o in found}
        return next(iter(values.values())) if len(values) == 1 else values

    def explain(self) -> str:
        """Return one line that says how the run stands, and why if it has failed."""
        now = self.progress()
        if now.error:
            return f"run {self.id} {now.state}: {now.error['message']}"
        errors = self.errors()
        if not errors:
            return f"run {self.id} {now.state}"
        more = now.count(StepState.FAILED) - 1
        return (
            f"run {self.id} {now.state}: {errors[0].step}: {errors[0].type}: {errors[0].message}"
            + (f" (and {more} more failed steps)" if more > 0 else "")
        )

    def follow(self, timeout: float | None = None) -> Iterator[Progress]:
        """Yield the progress whenever it has changed, last when the run has ended.

        Raises RunTimeout after `timeout` seconds; the run itself goes on.
        """
        deadline = _Deadline(timeout)
        last = None
        while last is None or not last.is_final:
            now = self.progress()
            if now != last:
                last = now
                yield now
            else:
                deadline.sleep(f"run {self.id} is still {now.state}")

    def __iter__(self) -> Iterator[Progress]:
        """Yield the progress whenever it has changed, last when the run has ended."""
        return self.follow()


class _Deadline:
    """The end of a caller's patience, `seconds` from now; None has no end."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def sleep(self, otherwise: str) -> None:
        """Wait a moment; raise RunTimeout, with what is the case instead, at the end."""
        if self._end is not None and time.monotonic() > self._end:
            raise RunTimeout(f"{otherwise} after {self._seconds:g} s")
        time.sleep(_POLL_SECONDS)


def materialize(
    asset: str | Asset,
    *,
    partition: Key = UNPARTITIONED,
    config: Config | None = None,
    max_in_flight: int | None = None,
) -> RunHandle:
    """Queue the materialization of one asset x partition, and return at once.

    It reads the latest outputs of what the asset depends on. `partition` is the
    key itself or its text; `config` holds values for the config models of assets,
    by their names. Raises BadConfig, LedgerUnavailable or BrokerUnavailable, and
    then nothing has been recorded. Names and keys are checked by the coordinator:
    a run for which they are wrong fails and says so.
    """
    return _submit([asset], partition, config, max_in_flight, upstream=False)


def materialize_all(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    config: Config | None = None,
    max_in_flight: int | None = None,
) -> RunHandle:
    """Queue the materialization of assets with everything upstream of them.

    The arguments and errors are those of `materialize`.
    """
    return _submit(assets, partition, config, max_in_flight, upstream=True)


def _submit(
    assets: Assets,
    partition: Key,
    config: Config | None,
    max_in_flight: int | None,
    *,
    upstream: bool,
) -> RunHandle:
    here = runtime.current()
    request = _request(assets, partition, upstream=upstream)
    app = client_app(here.settings.broker, here.settings.results)
    publisher = Publisher(app)
    # A request that nobody would hear of must not be recorded.
    publisher.check()
    run_id = _record(here, request, config, max_in_flight, driver="celery")
    try:
        publisher.wake(run_id)
    except BrokerUnavailable as error:
        _withdraw(here, run_id, error)
        raise
    return RunHandle(run_id, here)


def _withdraw(here: Runtime, run_id: UUID, error: FlowStoneError) -> None:
    reason = {"type": error.type, "message": error.message}
    with here.ledger.begin() as conn:
        runs.fail(conn, run_id, reason, actor=whoami())


def materialize_sync(
    assets: Assets,
    *,
    partition: Key = UNPARTITIONED,
    upstream: bool = False,
    config: Config | None = None,
) -> RunHandle:
    """Materialize assets here and now, in this process and without a broker.

    Plan, steps and ledger are those of `materialize`; retries wait for as long as
    they would in a worker. Without `FLOWSTONE_DATABASE_URL`, and if `flowstone dev`
    does not run, it starts PostgreSQL for as long as this process lives. Raises
    RunFailed where the run does not succeed.
    """
    here = runtime.current()
    _ensure_ledger(here)
    request = _request(assets, partition, upstream=upstream)
    run_id = _record(here, request, config, None, driver="inline")
    handle = RunHandle(run_id, here)
    coordinator.plan_run(here, run_id)
    while handle.status() not in FINAL_RUN_STATES:
        canvases, steps = coordinator.take_ready(here, run_id)
        for canvas in canvases:
            for member in members(canvas):
                _execute_here(here, member, steps[member].canvas)
    if handle.status() != RunState.SUCCEEDED:
        raise RunFailed(handle.explain())
    return handle


def _execute_here(here: Runtime, step_id: int, canvas: UUID) -> None:
    while True:
        ended = execute(here, step_id, canvas, worker=whoami())
        if not (isinstance(ended, Ended) and isinstance(ended.outcome, Retrying)):
            return
        time.sleep(ended.outcome.delay)


def _ensure_ledger(here: Runtime) -> None:
    if here.settings.database_url is None and ensure_postgres(here.settings.home):
        migrate.upgrade(here.ledger)


def runs_list(limit: int = 20) -> list[RunSummary]:
    """Return the latest runs, the newest first."""
    with runtime.current().ledger.begin() as conn:
        return progress.recent(conn, limit)


def run(run_id: str | UUID) -> RunHandle:
    """Return the handle of a run by its id, or by how that begins; raise UnknownRun."""
    here = runtime.current()
    with here.ledger.begin() as conn:
        return RunHandle(runs.find(conn, str(run_id)), here)


def _request(assets: Assets, partition: Key, *, upstream: bool) -> Request:
    many = [assets] if isinstance(assets, str | Asset) else list(assets)
    return Request(tuple(str(a) for a in many), encode_key(partition), upstream)


def _record(
    here: Runtime,
    request: Request,
    config: Config | None,
    max_in_flight: int | None,
    *,
    driver: str,
) -> UUID:
    run_id = uuid4()
    with here.ledger.begin() as conn:
        runs.create(
            conn,
            run_id,
            request,
            config=_json_config(config or {}),
            driver=driver,
            max_in_flight=max_in_flight or here.settings.max_in_flight,
            actor=whoami(),
        )
    return run_id


def _json_config(config: Config) -> dict[str, Any]:
    try:
        back: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BadConfig(f"config must hold JSON values only: {error}") from None
    return back


def _only(run: runs.Run) -> str:
    if len(run.request.assets) == 1:
        return run.request.assets[0]
    raise UnknownAsset(
        f"run {run.id} computes {', '.join(run.request.assets)}; say which one: result('name')"
    )


def whoami() -> str:
    """Return who acts, as user@host, for the audit log."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a user id that has no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
