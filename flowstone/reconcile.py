"""The reconciler: finds what a crash or a lost message has left behind, and puts it right.

It runs from beat, in any number, and decides by rows alone; its rules are in `rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol
from uuid import UUID, uuid4

from flowstone import audit
from flowstone.errors import BrokerUnavailable
from flowstone.log import get_logger
from flowstone.priority import message_level
from flowstone.rules import ACTOR, LEFT_BEHIND, RULES, Repaired, Sight, Told
from flowstone.runtime import Runtime
from flowstone.store import (
    ageing,
    cancellation,
    flights,
    lost_messages,
    queue_timeout,
    repair_counts,
    slots,
    watch,
)
from flowstone.store.found import Found
from flowstone.store.ledger import Connection
from flowstone.store.repair_counts import RepairCount

log = get_logger("flowstone.reconcile")

LOST_MESSAGE_SECONDS: Final = 360.0
"""How long a message may be under way, at the least, before it counts as lost by that alone."""

IDLE_SECONDS: Final = 5.0
"""How long a new run is left to the message that its client has sent."""


Wake = Callable[[UUID, int], None]
"""Sends for the coordinator of a run, by a message of the given level."""


class Broker(Protocol):
    """What the reconciler asks the broker; each raises BrokerUnavailable."""

    def knows(self, mark: str) -> bool:
        """Return whether the broker has kept a mark, and so its messages."""

    def remember(self, mark: str) -> None:
        """Have the broker keep a mark as long as its messages."""

    def empty(self, queues: Iterable[str]) -> list[str]:
        """Return those of the queues in which no message waits."""


def lost_after(ageing: float) -> float:
    """Return how long a message may be under way before it counts as lost by that alone.

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

    Under `run_woken` is how many runs were woken, by whatever rules. `kill` ends the processes of
    steps, each with its canvas, that did not stop in time. Without a `broker` to ask, messages
    are found lost only by how long nothing has moved.
    Raises LedgerUnavailable, or what `wake` and `kill` raise, when all else is done; the next
    pass finds the same again, except for the processes, which then run to their end for nothing.
    """
    sight = _look(runtime)
    if broker is not None:
        sight = replace(sight, told=_ask(runtime, broker))
    done = {rule.name: rule.apply(sight) for rule in RULES}
    to_wake = _to_wake(done.values())
    with runtime.ledger.begin() as conn:
        urgent = ageing.of_runs(conn, to_wake)
    try:
        # A broker that is away keeps nothing of the above from being done.
        to_kill = [step for repaired in done.values() for step in repaired.to_kill]
        if to_kill:
            kill(to_kill)
        for run_id in sorted(to_wake):
            # Not before all steps, as what keeps runs going else is: each pass sends them anew,
            # and where many runs are open, workers that are slow would do nothing else.
            wake(run_id, message_level(*urgent[run_id], place=0, in_flight=1))
    finally:
        # Last, as nobody waits for it.
        audit.seal(runtime, batches=audit.PASS)
    return {rule: repaired.count for rule, repaired in done.items()} | {"run_woken": len(to_wake)}


def repair(runtime: Runtime) -> frozenset[UUID]:
    """Apply the rules that need nobody but the ledger; return the runs that can go on.

    Raises LedgerUnavailable.
    """
    with runtime.ledger.begin() as conn:
        is_watched = watch.look(conn, runtime.settings.lease_seconds)
    sight = _sight(runtime, tells_deaths=is_watched)
    return _to_wake([rule.apply(sight) for rule in LEFT_BEHIND])


def find(runtime: Runtime, broker: Broker | None = None) -> Mapping[str, Sequence[Found]]:
    """Return what each rule would put right now, by its name, and change nothing.

    A step may be found by several rules, of which the first puts it right. Without a `broker` to
    ask, nothing is found that only it can tell. Raises LedgerUnavailable or BrokerUnavailable.
    """
    with runtime.ledger.begin() as conn:
        sight = _sight(runtime, tells_deaths=watch.glance(conn, runtime.settings.lease_seconds))
    if broker is not None:
        sight = replace(sight, told=_told(runtime, broker))
    with runtime.ledger.begin() as conn:
        return {rule.name: rule.find(conn, sight) for rule in RULES}


def backlog(runtime: Runtime) -> Mapping[str, int]:
    """Return how much each rule would put right now, by its name, as far as the ledger tells.

    Each counts up to the most that one pass repairs. Raises LedgerUnavailable.
    """
    return {rule: len(found) for rule, found in find(runtime).items()}


def repaired(runtime: Runtime) -> Mapping[str, RepairCount]:
    """Return what each rule has put right so far, and when last; raise LedgerUnavailable."""
    with runtime.ledger.begin() as conn:
        return repair_counts.by_rule(conn)


def close_abandoned(runtime: Runtime) -> None:
    """Close the inline runs whose process has died, so that they stand in nobody's way."""
    runtime.ledger.in_turn(lambda conn: cancellation.abandoned(conn, actor=ACTOR))
    runtime.ledger.in_turn(lambda conn: flights.left(conn, actor=ACTOR))


def _sight(runtime: Runtime, *, tells_deaths: bool) -> Sight:
    return Sight(runtime, tells_deaths, IDLE_SECONDS, lost_after(runtime.settings.ageing))


def _look(runtime: Runtime) -> Sight:
    """Note what the rules go by: that there was a pass, who consumes what, how many slots."""
    return runtime.ledger.in_turn(lambda conn: _note(conn, runtime))


def _note(conn: Connection, runtime: Runtime) -> Sight:
    is_watched = watch.look(conn, runtime.settings.lease_seconds)
    for unattended in queue_timeout.note(conn):
        log.warning(str(unattended))
    # What this worker was started with holds from now on.
    slots.declare(conn, runtime.settings.pools)
    return _sight(runtime, tells_deaths=is_watched)


def _ask(runtime: Runtime, broker: Broker) -> Told | None:
    """Ask the broker what it still has, and give it a new mark where it does not know the old."""
    try:
        told = _told(runtime, broker)
        if told.new_mark is not None:
            # Before the ledger has it: where this process dies in between, the old one is missed
            # again.
            broker.remember(told.new_mark)
    except BrokerUnavailable as error:
        log.warning("nobody looks for lost messages in this pass", error=error.message)
        return None
    return told


def _told(runtime: Runtime, broker: Broker) -> Told:
    with runtime.ledger.begin() as conn:
        mark = lost_messages.mark(conn)
        suspected = lost_messages.suspected_queues(conn, runtime.settings.message_seconds)
    is_known = mark is not None and broker.knows(mark)
    return Told(
        mark,
        new_mark=None if is_known else uuid4().hex,
        empty=broker.empty(suspected),
    )


def _to_wake(done: Iterable[Repaired]) -> frozenset[UUID]:
    return frozenset(run_id for repaired in done for run_id in repaired.to_wake)
