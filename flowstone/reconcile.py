"""The reconciler: finds what a crash or a lost message has left behind, and puts it right.

It runs from beat, in any number, and decides by rows alone; its rules are in `rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Protocol
from uuid import UUID, uuid4

from flowstone import audit
from flowstone.errors import BrokerUnavailable, LedgerUnavailable, is_celerys_limit
from flowstone.log import get_logger
from flowstone.priority import message_level
from flowstone.rules import (
    ABANDONED,
    LEFT_BEHIND,
    NOTHING,
    RULES,
    Repaired,
    Rule,
    Sight,
    Told,
)
from flowstone.runtime import Runtime
from flowstone.store import (
    ageing,
    lost_messages,
    queue_timeout,
    repair_counts,
    slots,
    vitals,
    watch,
)
from flowstone.store.found import Found
from flowstone.store.ledger import Connection
from flowstone.store.repair_counts import RepairCount
from flowstone.store.workers import Unattended

log = get_logger("flowstone.reconcile")

LOST_MESSAGE_SECONDS: Final = 360.0
"""How long a message may be under way, at the least, before it counts as lost if overtaken."""

IDLE_SECONDS: Final = 5.0
"""How long a new run is left to the message that its client has sent."""

LOCK_SECONDS: Final = 2.0
"""How long a rule waits for what another transaction has locked, before it is left out."""


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
    """Return how long a message may be under way before it counts as lost if it was overtaken.

    It is longer than ageing takes, with some passes of the reconciler: what that sends again is
    more urgent, and is not sent once more.
    """
    return max(LOST_MESSAGE_SECONDS, ageing + 60)


def _let_run(steps: Iterable[tuple[int, UUID]]) -> None:
    """Leave processes alone whose steps were taken from them: they can commit nothing."""


@dataclass(frozen=True)
class Pass:
    """What a pass has done, and what it could not do."""

    counts: Mapping[str, int]
    """The repairs by rule, and under `run_woken` how many runs were woken, by whatever rules."""
    failed: Mapping[str, Exception]
    """What rules have raised, by their names; the next pass tries them again."""
    unsent: Exception | None
    """Why processes were not killed, or runs not woken."""

    def check(self) -> None:
        """Raise the first error, if there was one."""
        for error in (*self.failed.values(), self.unsent):
            if error is not None:
                raise error


def reconcile(
    runtime: Runtime,
    wake: Wake,
    kill: Callable[[Iterable[tuple[int, UUID]]], None] = _let_run,
    broker: Broker | None = None,
) -> Mapping[str, int]:
    """Apply every rule once, as `make_pass` does, and return the counts.

    Raises what `make_pass` does, and when all else is done, what a rule, `wake` or `kill` has
    raised. The next pass finds the same again, except for the processes, which then run to their
    end for nothing.
    """
    done = make_pass(runtime, wake, kill, broker)
    done.check()
    return done.counts


def make_pass(
    runtime: Runtime,
    wake: Wake,
    kill: Callable[[Iterable[tuple[int, UUID]]], None] = _let_run,
    broker: Broker | None = None,
) -> Pass:
    """Apply every rule once, then wake the runs that can go on; return what was done.

    `kill` ends the processes of steps, each with its canvas, that did not stop in time. Without a
    `broker` to ask, nothing is found that only it can tell. A rule that raises keeps no other from
    being applied, nor does one that needs what another process has locked, which is left to the
    next pass. Raises LedgerUnavailable where the ledger is away.
    """
    with runtime.ledger.impatient(LOCK_SECONDS):
        sight = _look(runtime)
        if broker is not None:
            sight = replace(sight, told=_ask(runtime, broker))
        done, failed = _apply(RULES, sight)
        to_wake = _to_wake(done.values())
        with runtime.ledger.begin() as conn:
            urgent = ageing.of_runs(conn, to_wake)
        # A broker that is away keeps nothing else from being done.
        unsent = _send(done.values(), urgent, wake, kill)
        with _unless_locked("the seal"):
            # Last, as nobody waits for it.
            audit.seal(runtime, batches=audit.PASS)
    counts = {rule: repaired.count for rule, repaired in done.items()}
    return Pass(counts | {"run_woken": len(to_wake)}, failed, unsent)


def _apply(
    rules: Iterable[Rule], sight: Sight
) -> tuple[Mapping[str, Repaired], Mapping[str, Exception]]:
    """Apply rules one after the other; return what each has done, and what some have raised."""
    done, failed = dict[str, Repaired](), dict[str, Exception]()
    for rule in rules:
        done[rule.name] = NOTHING
        try:
            with _unless_locked(rule.name):
                done[rule.name] = rule.apply(sight)
        except Exception as error:
            if isinstance(error, LedgerUnavailable) or is_celerys_limit(error):
                raise
            log.exception("a rule has failed", rule=rule.name)
            failed[rule.name] = error
    return done, failed


def _send(
    done: Iterable[Repaired],
    urgent: Mapping[UUID, tuple[int, int]],
    wake: Wake,
    kill: Callable[[Iterable[tuple[int, UUID]]], None],
) -> Exception | None:
    """Have processes killed and runs woken; return what went wrong."""
    try:
        to_kill = [step for repaired in done for step in repaired.to_kill]
        if to_kill:
            kill(to_kill)
        for run_id in sorted(urgent):
            # Not before all steps, as what keeps runs going else is: each pass sends them anew,
            # and where many runs are open, workers that are slow would do nothing else.
            wake(run_id, message_level(*urgent[run_id], place=0, in_flight=1))
    except Exception as error:
        if is_celerys_limit(error):
            raise
        return error
    return None


@contextmanager
def _unless_locked(what: str) -> Iterator[None]:
    """Leave the block to the next pass where it waits for another process, which may be paused."""
    try:
        yield
    except LedgerUnavailable as error:
        if not (error.is_locked or error.is_overtaken):
            raise
        log.warning("left to the next pass, as another process holds it up", what=what)


def heard_beat(runtime: Runtime) -> None:
    """Note that a message of beat's has arrived; raise LedgerUnavailable."""
    with (
        runtime.ledger.impatient(LOCK_SECONDS),
        _unless_locked("beat"),
        runtime.ledger.autocommit() as conn,
    ):
        vitals.tick(conn)


def repair(runtime: Runtime) -> frozenset[UUID]:
    """Apply the rules that need nobody but the ledger; return the runs that can go on.

    Raises LedgerUnavailable.
    """
    return _put_right(runtime, LEFT_BEHIND)


def close_abandoned(runtime: Runtime) -> None:
    """Close the inline runs whose process has died, so that they stand in nobody's way.

    Where nobody has looked for a while, it cannot be told yet who has died: whoever waits for such
    a run finds out in time, see `repair`. Raises LedgerUnavailable.
    """
    _put_right(runtime, ABANDONED)


def _put_right(runtime: Runtime, rules: Iterable[Rule]) -> frozenset[UUID]:
    with runtime.ledger.impatient(LOCK_SECONDS):
        sight = _sight(runtime, tells_deaths=_is_watched(runtime, is_pass=False))
        # What fails here is told in the log, and by the passes: it is not the fault of who waits.
        done, _ = _apply(rules, sight)
        return _to_wake(done.values())


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


def _sight(runtime: Runtime, *, tells_deaths: bool) -> Sight:
    return Sight(runtime, tells_deaths, IDLE_SECONDS, lost_after(runtime.settings.ageing))


def _look(runtime: Runtime) -> Sight:
    """Note what the rules go by: that there was a pass, who consumes what, how many slots."""
    is_watched = _is_watched(runtime, is_pass=True)
    with _unless_locked("the queues that nobody consumes"):
        for unattended in runtime.ledger.in_turn(lambda conn: _note(conn, runtime)):
            log.warning(str(unattended))
    return _sight(runtime, tells_deaths=is_watched)


def _is_watched(runtime: Runtime, *, is_pass: bool) -> bool:
    """Note that somebody looks, and return whether leases that have ended mean a death."""
    lease = runtime.settings.lease_seconds
    # Each in a transaction of its own, which nobody can be paused in.
    with _unless_locked("that there was a pass"), runtime.ledger.autocommit() as conn:
        return watch.look(conn, lease, is_pass=is_pass)
    with runtime.ledger.autocommit() as conn:
        return watch.glance(conn, lease)


def _note(conn: Connection, runtime: Runtime) -> Sequence[Unattended]:
    new = queue_timeout.note(conn)
    # What this worker was started with holds from now on.
    slots.declare(conn, runtime.settings.pools)
    return new


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
