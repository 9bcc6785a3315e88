"""The handle of a run: its state, its progress, its results. Read from the ledger alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID, uuid4

from flowstone.asset import Asset
from flowstone.errors import (
    BadConfig,
    RunFailed,
    RunTimeout,
    UnknownAsset,
    did_you_mean,
)
from flowstone.outbox import sender, wake, wake_others
from flowstone.partition_key import decode_key
from flowstone.remaining import StoredStep
from flowstone.runtime import Runtime, whoami
from flowstone.states import FINAL_RUN_STATES, RunState, StepState
from flowstone.store import (
    cancellation,
    flights,
    outputs,
    pausing,
    plans,
    pools,
    progress,
    reasons,
    resumption,
    runs,
    slots,
    waiting_steps,
    workers,
)
from flowstone.store.cancellation import GRACE_SECONDS, Cancellation
from flowstone.store.ledger import Connection
from flowstone.store.pausing import Paused
from flowstone.store.pools import Wait
from flowstone.store.progress import StepError
from flowstone.store.reasons import Reason
from flowstone.store.runs import Run
from flowstone.store.waiting_steps import WaitingStep
from flowstone.store.workers import Unattended

__all__ = [
    "Cancellation",
    "Paused",
    "Progress",
    "Reason",
    "RunHandle",
    "Unattended",
    "Wait",
    "WaitingStep",
]

POLL_SECONDS: Final = 0.2
"""How long to wait before looking again at what another process does."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: the number of steps by asset and state, assets in the plan's order."""

    state: RunState
    steps: Mapping[str, Mapping[StepState, int]]
    error: Mapping[str, Any] | None
    """Why the run has failed or was cancelled; see `flowstone.summary` for failed steps."""
    cancelling: bool = False
    """Whether nothing more of the run will start, while some of it still runs."""
    planned: bool = True
    unattended: Sequence[Unattended] = ()
    """The queues in which something of the run waits, and which no worker consumes."""

    @property
    def is_refused(self) -> bool:
        """Whether the run could not be planned."""
        return self.state == RunState.FAILED and not self.planned

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


def progress_of(
    conn: Connection, run: Run, steps: Mapping[str, Mapping[StepState, int]]
) -> Progress:
    """Return how far a run is whose steps have been counted."""
    return Progress(
        run.state,
        steps,
        run.error,
        cancelling=run.is_being_cancelled,
        planned=run.planned_at is not None,
        unattended=workers.unattended(conn, run.id),
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
            return progress_of(conn, runs.get(conn, self.id), progress.by_asset(conn, self.id))

    def status(self) -> RunState:
        """Return the state of the run."""
        with self._runtime.ledger.begin() as conn:
            return runs.get(conn, self.id).state

    def errors(self) -> list[StepError]:
        """Return the steps that have failed or are tried again, with their errors."""
        with self._runtime.ledger.begin() as conn:
            return progress.errors(conn, self.id)

    def reasons(self, asset: str | Asset, limit: int = 20) -> list[Reason]:
        """Return why the first `limit` steps of an asset that are not done are not done.

        For a step that did not run because of others, that is the way to the one that has
        failed. Raises UnknownAsset for an asset that is not in the run.
        """
        with self._runtime.ledger.begin() as conn:
            planned = progress.by_asset(conn, self.id)
            if str(asset) not in planned:
                raise UnknownAsset(
                    f"asset {str(asset)!r} is not in run {self.id}"
                    + did_you_mean(str(asset), planned)
                )
            return reasons.of_asset(conn, self.id, str(asset), limit)

    def waits(self) -> Sequence[Wait]:
        """Return for what slots the ready steps of the run wait, if they do."""
        with self._runtime.ledger.begin() as conn:
            return pools.waits(conn, self.id)

    def waiting(self) -> list[WaitingStep]:
        """Return the steps of the run that wait for people, or for signals from outside.

        Those are among them that have joined such a step of another run.
        """
        with self._runtime.ledger.begin() as conn:
            return waiting_steps.of_run(conn, self.id)

    def wait(self, timeout: float | None = None) -> RunState:
        """Wait until the run has ended, and return its final state.

        Raises RunTimeout after `timeout` seconds; the run itself goes on.
        """
        deadline = Deadline(timeout)
        while (state := self.status()) not in FINAL_RUN_STATES:
            deadline.sleep(f"run {self.id} is still {state}")
        return state

    def wait_until_planned(self, timeout: float) -> RunState:
        """Wait up to `timeout` seconds for a coordinator to take the run, and return its state."""
        end = time.monotonic() + timeout
        while (state := self.status()) == RunState.REQUESTED and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return state

    def result(self, asset: str | Asset | None = None, timeout: float | None = None) -> Any:  # noqa: ANN401
        """Wait for the run and return the value that it has made of an asset.

        A run that resumes another one has made what that made, too. `asset` defaults to the
        one that was requested. An asset of which several partitions were computed gives a
        dict of key -> value. Raises RunFailed, RunTimeout, or UnknownAsset for an asset that
        the run did not compute.
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
        values = {decode_key(o.partition): self._runtime.read(name, o.output) for o in found}
        return next(iter(values.values())) if len(values) == 1 else values

    def cancel(
        self, *, reason: str | None = None, grace: float = GRACE_SECONDS, drain: bool = False
    ) -> Cancellation:
        """Cancel the run: what has not started never will, what runs is asked to stop.

        A running step sees `Context.cancelled`; if it ends by itself within `grace` seconds,
        its output counts. After that it is stopped by force. The run ends as cancelled as
        soon as nothing of it runs. With `drain`, what runs is not asked to stop, and may take as
        long as it likes. To cancel it again changes nothing. Raises RunEnded
        where the run has succeeded or failed, BadConfig, or LedgerUnavailable.
        """
        if not 0 <= grace < float("inf"):
            raise BadConfig(f"grace is a number of seconds, 0 or more; not {grace}")
        # Failures and the reconciler lock steps in an order that may cross with this one.
        ledger, me = self._runtime.ledger, whoami()
        done = ledger.in_turn(
            lambda conn: cancellation.request(
                conn, self.id, grace=grace, reason=reason, actor=me, drain=drain
            )
        )
        # A step that ended meanwhile did not see the cancellation, nor was it seen.
        state = ledger.in_turn(lambda conn: cancellation.settle(conn, self.id, actor=me))
        waiting = ledger.in_turn(lambda conn: flights.leave(conn, self.id, me))
        # Those that wait for slots which this run has left, perhaps.
        wake_others(self._runtime, waiting | ledger.in_turn(slots.may_go_on))
        return replace(done, state=state)

    def plan(self) -> list[StoredStep]:
        """Return the steps of the stored plan, each after what it reads, with its reason.

        The plan does not change; the state of each step is its present one. A run that has
        not been planned yet has none.
        """
        with self._runtime.ledger.begin() as conn:
            runs.get(conn, self.id)
            return plans.read(conn, self.id)

    def configs(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the config of each asset of the stored plan that takes one, by its name.

        Defaults are included, and the values of secret fields are "***".
        """
        with self._runtime.ledger.begin() as conn:
            configs = runs.get(conn, self.id).planned_config
            # PostgreSQL keeps no order of keys.
            return {asset: dict(sorted(values.items())) for asset, values in configs.items()}

    def start(self) -> RunHandle:
        """Let a run go on that is paused, or start one whose plan was saved; return this handle.

        It does exactly what the plan says, from the outputs that were the latest then.
        Raises CannotStart, BadConfig or LedgerUnavailable; then it has not started. Where the
        broker is away, it begins when that is back.
        """
        outbox = sender(self._runtime)
        with self._runtime.ledger.begin() as conn:
            runs.start(conn, self.id, actor=whoami())
        wake(outbox, self.id)
        return self

    def pause(self, reason: str | None = None) -> Paused:
        """Let nothing more of the run start; what runs ends by itself, and counts.

        `start` lets it go on. Raises CannotPause for a run that is not going on.
        """
        ledger, me = self._runtime.ledger, whoami()
        done = ledger.in_turn(lambda conn: pausing.pause(conn, self.id, reason=reason, actor=me))
        # Who has joined what does not start now goes on alone.
        waiting = ledger.in_turn(lambda conn: flights.leave(conn, self.id, me))
        wake_others(self._runtime, waiting | ledger.in_turn(slots.may_go_on))
        return done

    def resume(self) -> RunHandle:
        """Queue a new run for the workers that does what this one has left undone.

        Returns its handle. It has the same plan: what has succeeded is read, not computed
        again. Raises CannotResume where the run is still open, has succeeded, or has been
        resumed already; BadConfig or LedgerUnavailable; and then nothing was recorded. Where the
        broker is away, it begins when that is back.
        """
        outbox = sender(self._runtime)
        with self._runtime.ledger.begin() as conn:
            made = resumption.create(conn, uuid4(), self.id, actor=whoami())
        wake(outbox, made)
        return RunHandle(made, self._runtime)

    def explain(self) -> str:
        """Return one line that says how the run stands, and why if it has failed."""
        now = self.progress()
        if now.error:
            return f"run {self.id} {now.state}: {now.error['message']}"
        errors = self.errors()
        if not errors:
            return f"run {self.id} {now.state}"
        more = now.count(StepState.FAILED) - 1
        said = (errors[0].message.splitlines() or [""])[0]
        return f"run {self.id} {now.state}: {errors[0].step}: {errors[0].type}: {said}" + (
            f" (and {more} more failed steps)" if more > 0 else ""
        )

    def follow(self, timeout: float | None = None) -> Iterator[Progress]:
        """Yield the progress whenever it has changed, last when the run has ended.

        Raises RunTimeout after `timeout` seconds; the run itself goes on.
        """
        deadline = Deadline(timeout)
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


class Deadline:
    """The end of a caller's patience, `seconds` from now; None has no end."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def sleep(self, otherwise: str, seconds: float = POLL_SECONDS) -> None:
        """Wait a moment; raise RunTimeout, with what is the case instead, at the end."""
        if self._end is not None and time.monotonic() > self._end:
            raise RunTimeout(f"{otherwise} after {self._seconds:g} s")
        time.sleep(seconds)


def _only(run: runs.Run) -> str:
    if len(run.request.assets) == 1:
        return run.request.assets[0]
    raise UnknownAsset(
        f"run {run.id} computes {', '.join(run.request.assets)}; say which one: result('name')"
    )
