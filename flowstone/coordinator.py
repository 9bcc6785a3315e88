"""The run coordinator: plan once, expand what is ready, finish.

It is idempotent, and any number of it may run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import UUID

from flowstone.errors import (
    BrokerUnavailable,
    Conflict,
    FlowStoneError,
)
from flowstone.expand import MAX_CHAIN, Canvas, expand, places
from flowstone.freshness import Input
from flowstone.log import get_logger
from flowstone.made_of import (
    asset_config,
    made_of,
)
from flowstone.partition_key import step_name
from flowstone.planning import ACTOR, conflict_said, plan_run
from flowstone.priority import FIRST, message_level
from flowstone.request import OnConflict
from flowstone.runtime import Runtime
from flowstone.states import WORKING_RUN_STATES, RunState
from flowstone.store import (
    backfill_hours,
    backfills,
    cancellation,
    deadlines,
    dispatch,
    failing,
    flights,
    pausing,
    run_waits,
    runs,
    slots,
)
from flowstone.store.backfills import Terms
from flowstone.store.dispatch import DispatchedStep, Follower, Ready
from flowstone.store.failing import Reason
from flowstone.store.ledger import Connection
from flowstone.store.runs import Run

log = get_logger("flowstone.coordinator")

Publish = Callable[[Canvas, Mapping[int, DispatchedStep]], None]
"""Hands a canvas to whatever runs it; raises if it did not take it."""


Wake = Callable[[UUID], None]
"""Wakes the coordinator of a run."""


def _leave(run_id: UUID) -> None:
    """Leave a run to the reconciler."""


def coordinate(runtime: Runtime, run_id: UUID, publish: Publish, wake: Wake = _leave) -> None:
    """Bring a run as far as it can go now, and wake others whose turn it is at its slots.

    Raises UnknownRun, LedgerUnavailable, or what `publish` raises; in the last case
    all that was not published is ready again.
    """
    with runtime.ledger.begin() as conn:
        if runs.get(conn, run_id).driver == "inline":
            # Its own process goes on with it, which may be the only one that has its assets.
            return
    plan_run(runtime, run_id)
    go_on(runtime, run_id, publish, wake)


def go_on(runtime: Runtime, run_id: UUID, publish: Publish, wake: Wake = _leave) -> None:
    """Send what is ready of a planned run, or close it if nothing is left.

    Raises what `coordinate` raises.
    """
    taken = take_ready(runtime, run_id)
    for sent, canvas in enumerate(taken.canvases):
        try:
            publish(canvas, taken.steps)
        except BaseException:
            _take_back(runtime, taken.canvases[sent:], taken.steps)
            raise
    for other in sorted(taken.others):
        wake(other)


def go_on_or_wake(runtime: Runtime, run_id: UUID, publish: Publish, wake: Wake) -> None:
    """Go on with the run of a step that has ended; where that fails, wake a coordinator for it.

    It saves the message to a coordinator, which takes as long as a step of its own.
    Raises no error: the end of the step is in the ledger, and must not look like a
    failure of the step. What nobody hears of now, the reconciler finds.
    """
    try:
        try:
            go_on(runtime, run_id, publish, wake)
        except BrokerUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            log.warning("a coordinator is woken instead", run_id=str(run_id), error=str(error))
            wake(run_id)
    except BrokerUnavailable as error:
        log.warning("the run goes on when the broker is back", error=error.message)


@dataclass(frozen=True)
class Taken:
    """What of a run is marked as dispatched, and has to be sent."""

    canvases: Sequence[Canvas] = ()
    steps: Mapping[int, DispatchedStep] = field(default_factory=dict)
    """The members of the canvases, by their ids."""
    others: frozenset[UUID] = frozenset()
    """Runs whose turn it is at the slots that this one waits for."""


def take_ready(runtime: Runtime, run_id: UUID) -> Taken:
    """Mark what is ready as dispatched, and return it; close the run if nothing is left."""
    # Where another run has come first, nothing of this is left: the fresh look finds its steps.
    return runtime.ledger.in_turn(lambda conn: _take_ready(conn, runtime, run_id))


def _take_ready(conn: Connection, runtime: Runtime, run_id: UUID) -> Taken:
    # The lock lets one coordinator at a time dispatch; one that comes while another
    # works waits for it, and then sees all that the other did not.
    run = runs.lock(conn, run_id)
    if run.is_being_cancelled:
        cancellation.sweep(conn, run, actor=ACTOR)
        return Taken()
    if run.state == RunState.PAUSED and run.started_at is not None:
        # What ran has ended by itself, and nothing else may be left.
        runs.close_if_done(conn, run_id, actor=ACTOR)
        return Taken()
    if _end_if_late(conn, run) or run.state not in WORKING_RUN_STATES:
        return Taken()
    terms = _terms(conn, run)
    if terms is not None and not _may_start(conn, run, terms):
        _end_or_wait(conn, run)
        return Taken()
    ready = _give_way(conn, runtime, run)
    # A process can run one step at a time; what it has not begun must stand in nobody's way.
    is_inline = run.driver == "inline"
    budget = min(1, ready.budget) if is_inline else ready.budget
    # What waits for its turn in a chain would take the place of what could run.
    is_narrow = terms is not None and terms.is_narrow
    chords = not is_inline and not is_narrow and runtime.settings.counts_chords
    longest = 1 if is_narrow else MAX_CHAIN
    canvases = expand(ready.steps, ready.nodes, budget, chords=chords, longest=longest)
    if not canvases:
        _end_or_wait(conn, run)
        return Taken(others=ready.others)
    if run.state != RunState.RUNNING:
        runs.mark_running(conn, run_id, actor=ACTOR)
    marked = dispatch.mark(conn, canvases, _levels(run, ready, canvases))
    return Taken(canvases, marked, ready.others)


def _end_or_wait(conn: Connection, run: Run) -> None:
    """Close a run of which no step is left, or note that all that is left of it waits."""
    if runs.close_if_done(conn, run.id, actor=ACTOR) is None:
        run_waits.settle(conn, run, actor=ACTOR)


def _terms(conn: Connection, run: Run) -> Terms | None:
    return None if run.backfill is None else backfills.terms(conn, run.backfill)


def _may_start(conn: Connection, run: Run, terms: Terms) -> bool:
    """Return whether steps of a backfill may start now; one in which too many fail is paused."""
    if terms.hours is not None:
        opens_at = terms.hours.opens_at(datetime.now(UTC))
        if opens_at != run.opens_at:
            backfill_hours.wait(conn, run.id, opens_at)
        if opens_at is not None:
            return False
    if terms.stop_ratio is None:
        return True
    since = run.started_at or run.created_at
    failed = backfills.too_many_failed(conn, run.id, terms.stop_ratio, since)
    if failed is None or not runs.has_open_steps(conn, run.id):
        return True
    said = (
        f"{failed} steps have failed, {terms.stop_ratio:.0%} or more of those that have ended; "
        "see to that, and let it go on, or cancel it"
    )
    pausing.pause(conn, run.id, reason=said, actor=ACTOR)
    return False


def _levels(run: Run, ready: Ready, canvases: Sequence[Canvas]) -> Mapping[int, int]:
    """Return where the message of each member stands in the order of all."""
    # What a run that starves has in flight does not start; the first of these have to.
    place_of = places(canvases, 0 if run.boost else ready.ahead)
    in_flight = max(place_of.values()) + 1
    return {
        step: message_level(
            run.request.priority.level,
            run.boost,
            # What holds slots must not wait behind the bulk of its run.
            place=min(place, FIRST - 1) if ready.nodes[step].limited else place,
            in_flight=in_flight,
        )
        for step, place in place_of.items()
    }


def end_if_late(runtime: Runtime, run_id: UUID) -> bool:
    """End a run whose deadline has passed; return whether that was so."""
    return runtime.ledger.in_turn(lambda conn: _end_if_late(conn, runs.lock(conn, run_id)))


def _end_if_late(conn: Connection, run: Run) -> bool:
    if not run.is_late or run.is_being_cancelled or run.state == RunState.PAUSED:
        return False
    deadlines.end(conn, run, actor=ACTOR)
    return True


def _give_way(conn: Connection, runtime: Runtime, run: Run) -> Ready:
    """Return what the run can dispatch, when it has given way where another run is ahead."""
    ready = _ready(conn, run.id)
    while ready.followers:
        if run.state == RunState.PLANNED:
            runs.mark_running(conn, run.id, actor=ACTOR)
        if run.request.on_conflict == OnConflict.REFUSE:
            _refuse(conn, run, ready.followers)
        else:
            expected = _expected(conn, runtime, run, ready.followers)
            flights.join(conn, expected, actor=ACTOR)
        # What has joined leaves room in the window. A leader that has ended meanwhile is none.
        ready = _ready(conn, run.id)
    return ready


def _ready(conn: Connection, run_id: UUID) -> Ready:
    """Return what could be dispatched, with the steps for which there are slots."""
    ready = dispatch.ready(conn, run_id)
    if not ready.wants_slots:
        return ready
    # Who joins another run's step needs no slot.
    followers = slots.followers(conn, run_id)
    if followers:
        return replace(ready, followers=[*ready.followers, *followers])
    admitted = slots.admit(conn, run_id)
    if admitted.steps:
        ready = dispatch.ready(conn, run_id, admitted.steps)
    return replace(ready, others=admitted.others)


def _refuse(conn: Connection, run: Run, followers: Sequence[Follower]) -> None:
    for follower in followers:
        name = step_name(follower.asset, follower.partition)
        reason = Reason(Conflict.type, conflict_said(name, follower.leading_run))
        failing.fail_pending(conn, follower.step_id, name, run.id, reason, actor=ACTOR)


def _expected(
    conn: Connection, runtime: Runtime, run: Run, followers: Sequence[Follower]
) -> Mapping[Follower, str | None]:
    """Return what the output of each leader must be made of, to serve its follower."""
    if run.request.on_conflict == OnConflict.QUEUE:
        return dict.fromkeys(followers)
    read = flights.inputs(conn, [follower.step_id for follower in followers])
    return {
        follower: _fingerprint(runtime, run, follower.asset, read.get(follower.step_id, ()))
        for follower in followers
    }


def _fingerprint(runtime: Runtime, run: Run, name: str, inputs: Sequence[Input]) -> str | None:
    try:
        asset = runtime.registry.graph[name]
        return str(made_of(asset, asset_config(asset, run.config), inputs, run.request.resources))
    except FlowStoneError:
        # The definitions have changed since the run was planned; the step itself will say so.
        return None


def _take_back(
    runtime: Runtime, canvases: Sequence[Canvas], steps: Mapping[int, DispatchedStep]
) -> None:
    with runtime.ledger.begin() as conn:
        dispatch.withdraw(conn, canvases, steps)
