"""The reconciler: finds what a crash or a lost message has left behind, and puts it right.

It runs from beat, in any number, and decides by rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID, uuid4

from flowstone import audit, execution
from flowstone.errors import BrokerUnavailable
from flowstone.log import get_logger
from flowstone.priority import message_level
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from flowstone.store import (
    ageing,
    cancellation,
    deadlines,
    flights,
    lost_messages,
    queue_timeout,
    repairs,
    slots,
    watch,
    workers,
)
from flowstone.store.ledger import Connection
from flowstone.store.losses import Freed

log = get_logger("flowstone.reconcile")

LOST_MESSAGE_SECONDS: Final = 360.0
"""How long a message may be under way, at the least, before it counts as lost."""

IDLE_SECONDS: Final = 5.0
"""How long a new run is left to the message that its client has sent."""


ACTOR: Final = "reconciler"


Wake = Callable[[UUID, int], None]
"""Sends for the coordinator of a run, by a message of the given level."""


class Broker(Protocol):
    """What the reconciler asks the broker; each raises BrokerUnavailable."""

    def knows(self, mark: str) -> bool:
        """Return whether the broker has kept a mark, and so its messages."""

    def remember(self, mark: str) -> None:
        """Have the broker keep a mark as long as its messages."""

    def is_empty(self, queue: str) -> bool:
        """Return whether no message waits in a queue."""


def lost_after(ageing: float) -> float:
    """Return how long a message may be under way before it counts as lost.

    It is longer than ageing takes, with some passes of the reconciler: where a run only waits
    behind others, the first of its steps are sent again and start, so that the rest, whose
    messages lie in the queue, is left there.
    """
    return max(LOST_MESSAGE_SECONDS, ageing + 60)


def _let_run(steps: Iterable[tuple[int, UUID]]) -> None:
    """Leave processes alone whose steps were taken from them: they can commit nothing."""


def reconcile(
    runtime: Runtime,
    wake: Wake,
    kill: Callable[[Iterable[tuple[int, UUID]]], None] = _let_run,
    broker: Broker | None = None,
) -> Mapping[str, int]:
    """Apply every rule once, then wake the runs that can go on; return the repairs by rule.

    `kill` ends the processes of steps, each with its canvas, that did not stop in time. Without
    a `broker` to ask, messages are found lost only by how long nothing has moved.
    Raises LedgerUnavailable, or what `wake` and `kill` raise, when all else is done; the next
    pass finds the same again, except for the processes, which then run to their end for nothing.
    """
    # First, so that a step which is to end does not count as lost.
    late = runtime.ledger.in_turn(lambda conn: deadlines.passed(conn, actor=ACTOR))
    taken = runtime.ledger.in_turn(lambda conn: cancellation.overdue(conn, actor=ACTOR))
    attended = _attend(runtime)
    lost = _lost_messages(runtime, broker)
    repaired = repair(runtime)
    with runtime.ledger.begin() as conn:
        # What this worker was started with holds from now on.
        slots.declare(conn, runtime.settings.pools)
        to_wake = repaired.to_wake.union(
            (step.run_id for freed in lost.values() for step in freed),
            repairs.runs_to_wake(conn, IDLE_SECONDS),
            slots.may_go_on(conn),
        )
        urgent = ageing.of_runs(conn, to_wake)
    try:
        # A broker that is away keeps nothing of the above from being done.
        overdue = [*((step.step_id, step.canvas) for step in taken), *repaired.timed_out]
        if overdue:
            kill(overdue)
        for run_id in sorted(to_wake):
            # Not before all steps, as what keeps runs going else is: each pass sends them anew,
            # and where many runs are open, workers that are slow would do nothing else.
            wake(run_id, message_level(*urgent[run_id], place=0, in_flight=1))
    finally:
        # Last, as nobody waits for it.
        audit.seal(runtime, batches=audit.PASS)
    return {
        "deadline_passed": len(late),
        "cancel_overdue": len(taken),
        **attended,
        **{rule: len(freed) for rule, freed in lost.items()},
        **repaired.counts,
        "run_woken": len(to_wake),
    }


def _lost_messages(runtime: Runtime, broker: Broker | None) -> dict[str, list[Freed]]:
    """Free the steps whose messages the broker does not have, as far as it can be asked."""
    found: dict[str, list[Freed]] = {"broker_lost_messages": [], "message_lost": []}
    if broker is None:
        return found
    try:
        found["broker_lost_messages"] = _all_lost(runtime, broker)
        found["message_lost"] = _lost(runtime, broker)
    except BrokerUnavailable as error:
        log.warning("nobody looks for lost messages in this pass", error=error.message)
    return found


def _all_lost(runtime: Runtime, broker: Broker) -> list[Freed]:
    """Free all that waits as a message where the broker has lost the mark, and so everything."""
    with runtime.ledger.begin() as conn:
        seen = lost_messages.mark(conn)
    if seen is not None and broker.knows(seen):
        return []
    new = uuid4().hex
    # Before the ledger has it: where this process dies in between, the old one is missed again.
    broker.remember(new)
    return runtime.ledger.in_turn(lambda conn: _free_all(conn, seen, new))


def _free_all(conn: Connection, seen: str | None, new: str) -> list[Freed]:
    is_first = lost_messages.mark_anew(conn, seen, new)
    # Before the first mark nobody can tell whether anything was lost.
    return lost_messages.all_lost(conn) if is_first and seen is not None else []


def _lost(runtime: Runtime, broker: Broker) -> list[Freed]:
    """Free what could start for long, and should lie in a queue that is empty."""
    patience = runtime.settings.message_seconds
    with runtime.ledger.begin() as conn:
        suspected = lost_messages.suspected_queues(conn, patience)
    empty = [queue for queue in suspected if broker.is_empty(queue)]
    if not empty:
        return []
    return runtime.ledger.in_turn(lambda conn: lost_messages.lost(conn, patience, empty))


def _attend(runtime: Runtime) -> dict[str, int]:
    """Look after the queues that no worker consumes, and the runs that starve."""
    ledger, settings = runtime.ledger, runtime.settings
    gone = ledger.in_turn(workers.gone)
    for name in gone:
        log.warning("a worker is gone", worker=name)
    for unattended in ledger.in_turn(queue_timeout.note):
        log.warning(str(unattended))
    late = ledger.in_turn(lambda conn: queue_timeout.time_out(conn, settings.queue_timeout))
    # Before what is queued for long counts as lost.
    aged = ledger.in_turn(lambda conn: ageing.age(conn, settings.ageing))
    return {"worker_gone": len(gone), "queue_timeout": len(late), "run_aged": len(aged)}


@dataclass(frozen=True)
class Pass:
    """What one pass has put right."""

    counts: Mapping[str, int]
    """Repairs by rule."""
    to_wake: frozenset[UUID]
    """Runs that were waiting for steps of others, or for a retry, and wait no longer."""
    timed_out: Sequence[tuple[int, UUID]]
    """The steps, each with its canvas, whose process should not run any more."""


def repair(runtime: Runtime) -> Pass:
    """Apply the rules that need nobody but the ledger, once; raise LedgerUnavailable."""
    due = runtime.ledger.in_turn(repairs.due_retries)
    # Before the leases: who was killed in time has no fault that counts as the loss of a process.
    timed_out, to_wake = _end_overdue(runtime)
    counts = runtime.ledger.in_turn(lambda conn: _free(conn, runtime.settings))
    # Last, as all of these take steps away from those who are joined to them.
    settled = runtime.ledger.in_turn(lambda conn: flights.left(conn, actor=ACTOR))
    return Pass(
        {
            "retry_due": len(due),
            "timed_out": len(timed_out),
            **counts,
            "followers_left": len(settled),
        },
        flights.to_wake(settled).union(to_wake, (step.run_id for step in due)),
        timed_out,
    )


def _end_overdue(runtime: Runtime) -> tuple[list[tuple[int, UUID]], set[UUID]]:
    """End the attempts whose hard timeout is over; return them, and the runs to wake."""
    with runtime.ledger.begin() as conn:
        found = repairs.timed_out(conn)
    ended, to_wake = [], set[UUID]()
    for claim in found:
        waiting = execution.end_overdue(runtime, claim)
        if waiting is not None:
            ended.append((claim.step_id, claim.canvas))
            to_wake |= waiting
    return ended, to_wake


def _free(conn: Connection, settings: Settings) -> dict[str, int]:
    # An outage of the ledger is the death of nobody.
    is_watched = watch.look(conn, settings.lease_seconds)
    patience = lost_after(settings.ageing)
    return {
        # First, so that the steps of a dead process do not count as lost.
        "inline_abandoned": len(cancellation.abandoned(conn, actor=ACTOR)) if is_watched else 0,
        "lease_expired": len(repairs.expired_leases(conn)) if is_watched else 0,
        "retry_overdue": len(repairs.overdue_retries(conn, patience)),
        "step_stranded": len(repairs.stranded(conn, patience)),
    }


def close_abandoned(runtime: Runtime) -> None:
    """Close the inline runs whose process has died, so that they stand in nobody's way."""
    runtime.ledger.in_turn(lambda conn: cancellation.abandoned(conn, actor=ACTOR))
    runtime.ledger.in_turn(lambda conn: flights.left(conn, actor=ACTOR))
