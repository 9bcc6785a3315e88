"""What a worker says of the steps that its processes can say nothing more of.

It speaks from the process that watches over those, which must go on with its own work: the
ledger is asked with little patience, and what it does not hear of now, the reconciler finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final
from uuid import UUID

from flowstone.errors import FlowStoneError
from flowstone.log import get_logger
from flowstone.settings import Settings
from flowstone.store import flights, losses, slots
from flowstone.store.ledger import Connection, Ledger
from flowstone.store.losses import Freed, Message

__all__ = ["Message", "hand_back", "lose"]

log = get_logger("flowstone.losses")

PATIENCE: Final = 2.0
"""Seconds that a connection, a statement or a lock may each take where a worker has to go on."""

LAST_PATIENCE: Final = 5.0
"""The same for one that stops, and has nothing else to do."""

Wake = Callable[[UUID], None]
"""Wakes the coordinator of a run."""


def lose(settings: Settings, message: Message, *, worker: str, end: str, wake: Wake) -> None:
    """Tell the ledger at once that the process has died which ran the step of a message.

    Nothing is changed where it did not run it any more. Raises no error.
    """
    _free(
        Ledger(settings.database, patience=PATIENCE),
        lambda conn: losses.lose(conn, message, worker=worker, end=end),
        worker,
        wake,
    )


def hand_back(
    settings: Settings, messages: Iterable[Message], *, worker: str, reason: str, wake: Wake
) -> frozenset[int]:
    """Give the steps of messages, as far as `worker` still runs them, to whoever takes them.

    Returns those steps: what computes them has lost them, and can commit nothing. Raises no
    error; where the ledger is away, they stay until their leases end.
    """
    taken = list(messages)
    if not taken:
        return frozenset()
    freed = _free(
        Ledger(settings.database, patience=LAST_PATIENCE),
        lambda conn: losses.hand_back(conn, taken, worker=worker, reason=reason),
        worker,
        wake,
    )
    return frozenset(step.step_id for step in freed)


def _free(
    ledger: Ledger, work: Callable[[Connection], list[Freed]], worker: str, wake: Wake
) -> list[Freed]:
    """Free steps, and close the ledger: the process may fork, and no child may share it."""
    try:
        freed = ledger.in_turn(work)
        _go_on(ledger, freed, worker, wake)
    except FlowStoneError as error:
        log.warning("left to the reconciler", worker=worker, error=error.message)
        return []
    finally:
        ledger.close()
    return freed


def _go_on(ledger: Ledger, freed: Sequence[Freed], worker: str, wake: Wake) -> None:
    """Settle what was joined to the steps, and wake all runs that can go on."""
    runs = {step.run_id for step in freed}
    keys = {key for step in freed for key in step.takes}
    try:
        waiting = set(runs)
        for run_id in sorted(runs):
            waiting |= ledger.in_turn(partial(flights.leave, run_id=run_id, actor=worker))
        if keys:
            waiting |= ledger.in_turn(partial(slots.may_go_on, keys=keys))
        for run_id in sorted(waiting):
            wake(run_id)
    except FlowStoneError as error:
        log.warning("runs are left to the reconciler", worker=worker, error=error.message)
