"""One step, end to end: claim, load inputs, call the function, stage the output, commit."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from flowstone import claiming
from flowstone.alarm import Alarm
from flowstone.attempt import compute, failure_of, time_limit
from flowstone.claiming import Early
from flowstone.errors import (
    FlowStoneError,
    LedgerRefused,
    LedgerUnavailable,
)
from flowstone.limits import is_rate
from flowstone.outcome import (
    Failed,
    Failure,
    Outcome,
    Retrying,
    Skipped,
    Stopped,
    Succeeded,
    Void,
    Waiting,
)
from flowstone.retry import Retry
from flowstone.runtime import Runtime
from flowstone.states import StepState
from flowstone.store import (
    asking,
    cancellation,
    dispatch,
    failing,
    flights,
    gates,
    rates,
    slots,
    steps,
)
from flowstone.store.ledger import Connection
from flowstone.store.steps import Claim, Refused

_NOT_ASKED: Final = Failure(
    "cancelled", "the run is being cancelled, so that nobody is asked", "", retryable=False
)


@dataclass(frozen=True)
class Ended:
    """An attempt whose outcome is in the ledger."""

    claim: Claim
    outcome: Outcome
    wake: frozenset[UUID]
    """The runs whose coordinator must be woken."""
    error: BaseException | None


@dataclass(frozen=True)
class Fenced:
    """An attempt that had lost its lease: another one has the step, and nothing was written."""

    claim: Claim


def execute(
    runtime: Runtime, step_id: int, canvas: UUID, *, worker: str, park_after: float = math.inf
) -> Ended | Fenced | Refused | Early:
    """Run a step that has been dispatched in `canvas`, and record how it ended.

    A retry that is due in more than `park_after` seconds leaves the canvas; of a step that takes
    slots, any does. Returns Refused, and does nothing, where the step has gone elsewhere, and
    Early where its rate does not let it start yet. Raises LedgerUnavailable; whatever the asset
    raises becomes an outcome.
    """
    claim = claiming.claim(runtime, step_id, canvas, worker=worker)
    if not isinstance(claim, Claim):
        return claim
    if claim.takes:
        # It must not hold its slots while it waits.
        park_after = 0
    # The alarm is taken around all of it: one that is set for what this runs within, a step that
    # computes others, must not ring while the outcome is recorded.
    with Alarm() as alarm, runtime.leases.held(claim.token):
        outcome, error = compute(runtime, claim, park_after, alarm)
        _pause_rate(runtime, claim, outcome)
        try:
            recorded = _record_patiently(runtime, claim, outcome)
        except LedgerRefused as refusal:
            # Nothing of a success without its lineage and its audit row: the attempt has failed.
            outcome = failure_of(runtime, claim, refusal, Retry(), park_after)
            error = runtime.resources.secrets.without(refusal)
            recorded = _record_patiently(runtime, claim, outcome)
    if recorded is None:
        return Fenced(claim)
    return Ended(claim, recorded, _to_wake(runtime, claim, recorded), error)


def _pause_rate(runtime: Runtime, claim: Claim, outcome: Outcome) -> None:
    """Let all that share the rate of the step wait where a server has asked for that."""
    if not isinstance(outcome, Failed | Retrying) or not any(map(is_rate, claim.takes)):
        return
    seconds = outcome.failure.retry_after
    if seconds is None:
        return
    # Before the failure is recorded, so that nothing starts in between.
    with contextlib.suppress(LedgerUnavailable), runtime.ledger.autocommit() as conn:
        rates.pause(conn, claim.step_id, seconds)


def policy_of(runtime: Runtime, asset: str) -> Retry | None:
    """Return when an asset is tried again, or None where this process has not its definition."""
    try:
        return runtime.registry.graph[asset].retry
    except FlowStoneError:
        return None


def end_overdue(
    runtime: Runtime, claim: Claim, count: Callable[[Connection], None]
) -> frozenset[UUID] | None:
    """Record that an attempt has been killed by its hard timeout, if it has not ended by itself.

    What follows is what follows from any error, except that a retry leaves the canvas, as
    nobody has its message any more. To `count` it is part of the same transaction. Returns the
    runs to wake, or None if it had ended, or this process does not know the asset.
    """
    policy = policy_of(runtime, claim.asset)
    if policy is None:
        return None
    error = time_limit(runtime, claim).killed
    outcome = failure_of(runtime, claim, error, policy, park_after=-1)

    def record(conn: Connection) -> Outcome | None:
        written = _write_unless_stopped(conn, claim, outcome)
        if written is not None:
            count(conn)
        return written

    recorded = runtime.ledger.in_turn(record)
    return None if recorded is None else _to_wake(runtime, claim, recorded)


def _to_wake(runtime: Runtime, claim: Claim, outcome: Outcome) -> frozenset[UUID]:
    """Settle what was joined to the step, and return the runs that can go on."""
    try:
        with runtime.ledger.autocommit() as conn:
            due = dispatch.due(conn, claim.run_id, claim.step_id)
            # What takes slots goes on where there are some, be it of this run or of others.
            wanted = slots.wanted_by(conn, claim.run_id) if due.wants_slots else ()
            keys = {*claim.takes, *wanted}
            admitted = slots.may_go_on(conn, keys) if keys else frozenset()
        mine = frozenset([claim.run_id] if due.coordinator else [])
        return mine | admitted | _settle(runtime, claim, outcome, followers=due.followers)
    except LedgerUnavailable:
        # The step is committed, and the reconciler settles its followers. A wake-up too many
        # does no harm.
        return frozenset([claim.run_id])


def _settle(
    runtime: Runtime, claim: Claim, outcome: Outcome, *, followers: bool
) -> frozenset[UUID]:
    match outcome:
        case Retrying(parked=False):
            return frozenset()
        case Waiting():
            left = runtime.ledger.in_turn(
                lambda conn: flights.leave(conn, claim.run_id, claim.worker)
            )
            # What has joined it waits for the same now.
            with runtime.ledger.autocommit() as conn:
                return left | flights.followers(conn, claim.step_id)
        case Void() | Retrying() | Failed() | Stopped():
            # With the step, others of its run have ended, or have left its canvas.
            return runtime.ledger.in_turn(
                lambda conn: flights.leave(conn, claim.run_id, claim.worker)
            )
        case Succeeded() | Skipped():
            if not followers:
                return frozenset()
            settled = runtime.ledger.in_turn(
                lambda conn: flights.settle(conn, [claim.step_id], actor=claim.worker)
            )
            return flights.to_wake(settled)


def _record_patiently(runtime: Runtime, claim: Claim, outcome: Outcome) -> Outcome | None:
    """Record an outcome, for as long as a lease if the database is away: the work is done.

    A connection that breaks during a commit leaves open whether it was one. So where a
    second try finds the step gone, the attempt itself tells.
    """
    end = time.monotonic() + runtime.leases.seconds
    for pause in itertools.chain([0.1, 0.5, 1], itertools.repeat(2.0)):
        try:
            recorded = _record(runtime, claim, outcome)
            return outcome if not recorded and _is_recorded(runtime, claim, outcome) else recorded
        except LedgerUnavailable:
            if time.monotonic() > end:
                raise
            time.sleep(pause)
    raise AssertionError("itertools.repeat has no end")


def _record(runtime: Runtime, claim: Claim, outcome: Outcome) -> Outcome | None:
    """Write an outcome, in one transaction, and return it; None if the attempt is fenced off."""
    if isinstance(outcome, Succeeded):
        with runtime.ledger.autocommit() as conn:
            return outcome if steps.commit(conn, claim, outcome) else None
    with runtime.ledger.begin() as conn:
        return _write_unless_stopped(conn, claim, outcome)


def _write_unless_stopped(
    conn: Connection, claim: Claim, outcome: Waiting | Void | Skipped | Failed | Retrying | Stopped
) -> Outcome | None:
    if isinstance(outcome, Retrying | Waiting):
        halted = cancellation.halted(conn, claim.run_id)
        if halted.is_cancelled:
            outcome = Stopped(outcome.failure if isinstance(outcome, Retrying) else _NOT_ASKED)
        elif halted.is_paused and isinstance(outcome, Retrying):
            # As a message it would start the step when it is due.
            outcome = replace(outcome, parked=True)
    return outcome if _write(conn, claim, outcome) else None


def _write(
    conn: Connection, claim: Claim, outcome: Waiting | Void | Skipped | Failed | Retrying | Stopped
) -> bool:
    match outcome:
        case Waiting():
            return asking.ask(conn, claim, outcome)
        case Void(reason):
            return gates.renew(conn, claim, reason)
        case Skipped(reuses):
            return steps.skip(conn, claim, reuses)
        case Retrying(failure, delay, parked):
            return steps.retry(conn, claim, failure, delay, park=parked)
        case Failed(failure, refused):
            return failing.fail(conn, claim, failure, refused)
        case Stopped(failure):
            return cancellation.stop(conn, claim, failure)


def _is_recorded(runtime: Runtime, claim: Claim, outcome: Outcome) -> bool:
    states = {
        Succeeded: StepState.SUCCEEDED,
        Skipped: StepState.SKIPPED,
        Retrying: StepState.RETRYING,
        Failed: StepState.FAILED,
        Stopped: StepState.CANCELLED,
        Void: "void",
    }
    with runtime.ledger.autocommit() as conn:
        state = outcome.state if isinstance(outcome, Waiting) else states[type(outcome)]
        return steps.is_recorded(conn, claim, state)
