"""The rules of the reconciler: each names an invariant, and puts right what breaks it.

A rule is bounded, changes rows by guarded statements, and skips those that somebody else has
locked. So any number of reconcilers may apply it at once, and each fault is put right once. What a
row takes with it, such as the rest of its canvas, may be locked as well: then all that the rule
has found is left to the next pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from flowstone import continuation, execution
from flowstone.errors import LedgerUnavailable
from flowstone.log import get_logger
from flowstone.partition_key import step_name
from flowstone.runtime import Runtime
from flowstone.store import (
    ageing,
    awaited,
    backfill_hours,
    cancellation,
    continuing,
    deadlines,
    flights,
    gate_clock,
    lost_messages,
    queue_timeout,
    repair_counts,
    repairs,
    run_waits,
    slots,
    workers,
)
from flowstone.store.found import Found
from flowstone.store.ledger import Connection
from flowstone.store.losses import Freed
from flowstone.store.steps import Claim

log = get_logger("flowstone.reconcile")

ACTOR: Final = "reconciler"


@dataclass(frozen=True)
class Told:
    """What the broker has said when it was asked."""

    mark: str | None
    """The mark that the ledger had; None where there was none yet."""
    new_mark: str | None = None
    """What the broker has been given instead, as it did not know that one."""
    empty: Sequence[str] = ()
    """The queues in which messages should lie, and none does."""

    @property
    def has_lost_all(self) -> bool:
        """Whether it has forgotten what it was given; before the first mark nobody can tell."""
        return self.mark is not None and self.new_mark is not None


@dataclass(frozen=True)
class Sight:
    """What a pass knows before its first rule."""

    runtime: Runtime
    tells_deaths: bool
    """Whether a lease that has ended means a death; an outage of the ledger is that of nobody."""
    idle_after: float
    """The seconds that a new run is left to the message that its client has sent."""
    lost_after: float
    """The seconds after which a message is lost that was overtaken, or a retry that was due."""
    told: Told | None = None
    """None where the broker was not asked, or is away."""


@dataclass(frozen=True)
class Repaired:
    """What a rule has put right."""

    count: int = 0
    to_wake: frozenset[UUID] = frozenset()
    """Runs that can go on."""
    to_kill: Sequence[tuple[int, UUID]] = ()
    """Steps, each with its canvas, whose process should not run any more."""


NOTHING: Final = Repaired()

Find = Callable[[Connection, Sight], Sequence[Found]]
Work = Callable[[Connection, Sight], Repaired]
Count = Callable[[Connection, int], None]
"""Counts repairs, in the transaction that makes them."""


def _always(_: Sight) -> bool:
    return True


@dataclass(frozen=True)
class Rule:
    """One invariant, what breaks it, and what restores it."""

    name: str
    invariant: str
    """What always holds, or does again after the next pass."""
    look: Find = field(repr=False)
    """Returns what `repair` would put right now, and changes nothing."""
    repair: Callable[[Sight, Count], Repaired] = field(repr=False)
    when: Callable[[Sight], bool] = field(default=_always, repr=False)
    """Whether a pass knows enough for the rule; neither of the two is asked else."""

    def find(self, conn: Connection, sight: Sight) -> Sequence[Found]:
        """Return what `apply` would put right now, and change nothing."""
        return self.look(conn, sight) if self.when(sight) else ()

    def apply(self, sight: Sight) -> Repaired:
        """Put right what is found, and count it; raise LedgerUnavailable."""
        if not self.when(sight):
            return NOTHING
        return self.repair(sight, lambda conn, count: repair_counts.add(conn, self.name, count))


def _at_once(work: Work) -> Callable[[Sight, Count], Repaired]:
    """Return a repair that is one transaction, the counting included."""

    def repair(sight: Sight, count: Count) -> Repaired:
        def counted(conn: Connection) -> Repaired:
            done = work(conn, sight)
            count(conn, done.count)
            return done

        return sight.runtime.ledger.in_turn(counted)

    return repair


def _freed(steps: Sequence[Freed]) -> Repaired:
    return Repaired(len(steps), frozenset(step.run_id for step in steps))


def _plain(look: Callable[[Connection], Sequence[Found]]) -> Find:
    return lambda conn, _: look(conn)


def _plainly(work: Callable[[Connection], Repaired]) -> Callable[[Sight, Count], Repaired]:
    return _at_once(lambda conn, _: work(conn))


def _tells_deaths(sight: Sight) -> bool:
    return sight.tells_deaths


def _end_late(conn: Connection) -> Repaired:
    return Repaired(len(deadlines.passed(conn, actor=ACTOR)))


def _end_cancelled(conn: Connection) -> Repaired:
    ended = cancellation.overdue(conn, actor=ACTOR)
    return Repaired(
        len(ended), to_kill=[(step.step_id, step.canvas) for run in ended for step in run.taken]
    )


def _forget_workers(conn: Connection) -> Repaired:
    gone = workers.gone(conn)
    for name in gone:
        log.warning("a worker is gone", worker=name)
    return Repaired(len(gone))


def _find_queue_timeouts(conn: Connection, sight: Sight) -> Sequence[Found]:
    return queue_timeout.find(conn, sight.runtime.settings.queue_timeout)


def _time_out_queues(conn: Connection, sight: Sight) -> Repaired:
    late = queue_timeout.time_out(conn, sight.runtime.settings.queue_timeout)
    if late:
        log.warning("steps have failed, as no worker consumes their queue", steps=len(late))
    return Repaired(len(late))


def _turn_hours(conn: Connection) -> Repaired:
    turned = backfill_hours.turn(conn)
    return Repaired(len(turned), frozenset(t.run_id for t in turned if t.opens_at is None))


def _find_starving(conn: Connection, sight: Sight) -> Sequence[Found]:
    return ageing.find(conn, sight.runtime.settings.ageing)


def _age(conn: Connection, sight: Sight) -> Repaired:
    return Repaired(len(ageing.age(conn, sight.runtime.settings.ageing)))


def _free_due(conn: Connection) -> Repaired:
    return _freed(repairs.due_retries(conn))


def _end_awaited(conn: Connection) -> Repaired:
    return _freed(awaited.end(conn, actor=ACTOR))


def _look_at_gates(conn: Connection) -> Repaired:
    looked = gate_clock.look(conn)
    return Repaired(looked.count, looked.freed)


def _overdue(conn: Connection, sight: Sight) -> Sequence[Claim]:
    """Return the claims that are overdue, of assets whose policy this process knows."""
    runtime = sight.runtime
    return [c for c in repairs.timed_out(conn) if execution.policy_of(runtime, c.asset) is not None]


def _find_timed_out(conn: Connection, sight: Sight) -> Sequence[Found]:
    return [
        Found(step_name(claim.asset, claim.partition), claim.run_id)
        for claim in _overdue(conn, sight)
    ]


def _end_timed_out(sight: Sight, count: Count) -> Repaired:
    """End each attempt in a transaction of its own, as that is what ends one anywhere else."""
    with sight.runtime.ledger.begin() as conn:
        overdue = _overdue(conn, sight)
    ended, to_wake = [], set[UUID]()
    for claim in overdue:
        try:
            waiting = execution.end_overdue(sight.runtime, claim, lambda conn: count(conn, 1))
        except LedgerUnavailable as error:
            if not error.is_locked:
                raise
            # The processes of those that were ended are still to be killed.
            log.warning("what is left of a rule is left to the next pass", rule="timed_out")
            break
        if waiting is not None:
            ended.append((claim.step_id, claim.canvas))
            to_wake |= waiting
    return Repaired(len(ended), frozenset(to_wake), ended)


def _end_abandoned(conn: Connection) -> Repaired:
    return Repaired(len(cancellation.abandoned(conn, actor=ACTOR)))


def _free_expired(conn: Connection) -> Repaired:
    return Repaired(len(repairs.expired_leases(conn)))


def _has_new_mark(sight: Sight) -> bool:
    return sight.told is not None and sight.told.new_mark is not None


def _has_lost_all(sight: Sight) -> bool:
    return sight.told is not None and sight.told.has_lost_all


def _find_all_lost(conn: Connection, sight: Sight) -> Sequence[Found]:
    return lost_messages.find_all_lost(conn) if _has_lost_all(sight) else ()


def _free_all_lost(conn: Connection, sight: Sight) -> Repaired:
    assert sight.told is not None
    assert sight.told.new_mark is not None
    # The first mark is only noted.
    is_first = lost_messages.mark_anew(conn, sight.told.mark, sight.told.new_mark)
    return _freed(lost_messages.all_lost(conn)) if is_first and _has_lost_all(sight) else NOTHING


def _empty(sight: Sight) -> Sequence[str]:
    return () if sight.told is None else sight.told.empty


def _find_lost(conn: Connection, sight: Sight) -> Sequence[Found]:
    return lost_messages.find_lost(conn, sight.runtime.settings.message_seconds, _empty(sight))


def _free_lost(conn: Connection, sight: Sight) -> Repaired:
    return _freed(lost_messages.lost(conn, sight.runtime.settings.message_seconds, _empty(sight)))


def _find_overdue_retries(conn: Connection, sight: Sight) -> Sequence[Found]:
    return repairs.find_overdue_retries(conn, sight.lost_after)


def _free_overdue_retries(conn: Connection, sight: Sight) -> Repaired:
    return Repaired(len(repairs.overdue_retries(conn, sight.lost_after)))


def _find_stranded(conn: Connection, sight: Sight) -> Sequence[Found]:
    return repairs.find_stranded(conn, sight.lost_after)


def _free_stranded(conn: Connection, sight: Sight) -> Repaired:
    return Repaired(len(repairs.stranded(conn, sight.lost_after)))


def _find_uncontinued(conn: Connection, sight: Sight) -> Sequence[Found]:
    return continuing.find_left(conn, sight.runtime.settings.message_seconds)


def _go_on_uncontinued(sight: Sight, count: Count) -> Repaired:
    """Let each step go on in a transaction of its own, as each locks its run."""
    done = 0

    def counted(conn: Connection) -> None:
        nonlocal done
        done += 1
        count(conn, 1)

    to_wake = continuation.go_on_left(
        sight.runtime, sight.runtime.settings.message_seconds, actor=ACTOR, count=counted
    )
    return Repaired(done, to_wake)


def _free_stray(conn: Connection) -> Repaired:
    freed = continuing.stray(conn, actor=ACTOR)
    return Repaired(len(freed), frozenset(step.run_id for step in freed))


def _settle_left(conn: Connection) -> Repaired:
    settled = flights.left(conn, actor=ACTOR)
    return Repaired(len(settled), flights.to_wake(settled))


def _old_enough(find: Callable[[Connection, float], Sequence[Found]]) -> Find:
    return lambda conn, sight: find(conn, sight.idle_after)


def _find_slots(conn: Connection) -> Sequence[Found]:
    return [Found(str(run_id), run_id) for run_id in sorted(slots.may_go_on(conn))]


def _wake(found: Iterable[Found]) -> Repaired:
    to_wake = frozenset(run.run_id for run in found if run.run_id is not None)
    return Repaired(len(to_wake), to_wake)


def _waking(name: str, invariant: str, find: Find) -> Rule:
    """Return a rule that changes nothing itself: a coordinator does, which is woken for it."""
    return Rule(name, invariant, find, _at_once(lambda conn, sight: _wake(find(conn, sight))))


LEFT_BEHIND: Final = (
    Rule(
        "retry_due",
        "a step whose parked retry is due is ready",
        _plain(repairs.find_due_retries),
        _plainly(_free_due),
    ),
    Rule(
        "gate_due",
        "an approval or a signal that is not decided in time ends as it says",
        _plain(gate_clock.find),
        _plainly(_look_at_gates),
    ),
    Rule(
        "awaited",
        "what a roll-up waits for is missing, and its grace time is not over",
        _plain(awaited.find),
        _plainly(_end_awaited),
    ),
    # Before the leases: who was killed in time has no fault that counts as the loss of a process.
    Rule(
        "timed_out",
        "no attempt runs on after its hard timeout",
        _find_timed_out,
        _end_timed_out,
    ),
    # Before what is queued for long, so that the steps of a dead process do not count as lost.
    Rule(
        "inline_abandoned",
        "a run of materialize_sync ends with its process",
        _plain(cancellation.find_abandoned),
        _plainly(_end_abandoned),
        _tells_deaths,
    ),
    Rule(
        "lease_expired",
        "a step that runs has a process that renews its lease",
        _plain(repairs.find_expired_leases),
        _plainly(_free_expired),
        _tells_deaths,
    ),
    # Before those below, which find the same after a far longer time.
    Rule(
        "broker_lost_messages",
        "what is queued was handed to a broker that has kept what it was given",
        _find_all_lost,
        _at_once(_free_all_lost),
        _has_new_mark,
    ),
    Rule(
        "message_lost",
        "a step that could start has a message in a queue, or in the hands of a worker",
        _find_lost,
        _at_once(_free_lost),
        lambda sight: bool(_empty(sight)),
    ),
    Rule(
        "retry_overdue",
        "a retry that waits as a message comes when it is due",
        _find_overdue_retries,
        _at_once(_free_overdue_retries),
    ),
    Rule(
        "step_stranded",
        "no message is overtaken by one that was sent later and is not more urgent",
        _find_stranded,
        _at_once(_free_stranded),
    ),
    Rule(
        "continuation_lost",
        "what was decided, or has come, carries its step on",
        _find_uncontinued,
        _go_on_uncontinued,
    ),
    Rule(
        "nothing_asked",
        "a step that waits has an open request",
        _plain(continuing.find_stray),
        _plainly(_free_stray),
    ),
    # Last, as all of these take steps away from those who are joined to them.
    Rule(
        "followers_left",
        "a joined step waits for one that is active",
        _plain(flights.find_left),
        _plainly(_settle_left),
    ),
)
"""The rules that whoever waits for a run of its own applies, too, where there may be no worker."""

ABANDONED: Final = tuple(r for r in LEFT_BEHIND if r.name in ("inline_abandoned", "followers_left"))
"""Those that clear what stands in the way of a new run, where a process has died."""

RULES: Final = (
    # First, so that a step which is to end does not count as lost.
    Rule(
        "deadline_passed",
        "a run ends when its deadline has passed",
        _plain(deadlines.find),
        _plainly(_end_late),
    ),
    Rule(
        "cancel_overdue",
        "a run that is being cancelled ends when its grace is over",
        _plain(cancellation.find_overdue),
        _plainly(_end_cancelled),
    ),
    Rule(
        "worker_gone",
        "a worker that is listed was seen a moment ago",
        _plain(workers.find_gone),
        _plainly(_forget_workers),
    ),
    Rule(
        "queue_timeout",
        "no step waits for ever in a queue that no worker consumes",
        _find_queue_timeouts,
        _at_once(_time_out_queues),
    ),
    Rule(
        "backfill_hours",
        "steps of a backfill start within its hours, and only then",
        _plain(backfill_hours.find),
        _plainly(_turn_hours),
    ),
    # Before what is queued for long counts as lost.
    Rule("run_aged", "a run that starves becomes more urgent", _find_starving, _at_once(_age)),
    *LEFT_BEHIND,
    # At the end, as what was freed above is ready now.
    _waking("run_unplanned", "a run that was requested is planned", _old_enough(repairs.unplanned)),
    _waking(
        "run_idle",
        "a step that is ready, and for which the window has room, is dispatched",
        _old_enough(repairs.idle),
    ),
    _waking(
        "slots_idle", "a step that is ready, and has its slots, is dispatched", _plain(_find_slots)
    ),
    _waking("run_unclosed", "a run without open steps is closed", _old_enough(repairs.unclosed)),
    _waking(
        "run_not_waiting",
        "a run of which all that is left waits is waiting",
        _plain(run_waits.find_untold),
    ),
)
"""All rules, in the order in which a pass applies them."""
