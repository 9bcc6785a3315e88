"""What must be sent stands in rows first, and is sent when those are committed.

The ledger is the outbox, so nothing here fails where the broker is away: what could not be sent,
the reconciler finds in the rows, and sends it.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from flowstone.canvas import Publisher, client_app
from flowstone.errors import BrokerUnavailable, FlowStoneError
from flowstone.log import get_logger
from flowstone.runtime import Runtime
from flowstone.store.gates import Asked

log = get_logger("flowstone.outbox")


def sender(runtime: Runtime) -> Publisher:
    """Return what this process sends with; nothing is connected for that.

    Raises BadConfig where FLOWSTONE_BROKER_URL is no address of a broker.
    """
    made = Publisher(client_app(runtime.settings.broker, runtime.settings.results))
    made.check_address()
    return made


def wake(sender: Publisher, run_id: UUID) -> None:
    """Send for the coordinator of a run that is recorded; it takes a few seconds at the most."""
    try:
        sender.wake(run_id)
    except BrokerUnavailable as error:
        log.warning(
            "the run is recorded, and starts as soon as the broker is back",
            run_id=str(run_id),
            error=error.message,
        )


def carry_on(runtime: Runtime, asked: Asked) -> None:
    """Send the continuation of a step whose gate was decided, and have people told of it.

    An inline run has none: its own process sees the decision.
    """
    if asked.driver != "celery":
        return
    try:
        made = sender(runtime)
        made.carry_on(asked)
        if asked.gate.kind == "approval":
            made.notify()
    except FlowStoneError as error:
        log.warning(
            "decided, and the step goes on as soon as the reconciler finds it",
            gate=asked.gate.label,
            error=error.message,
        )


def notify(runtime: Runtime) -> None:
    """Have people told at once of what was asked or decided; beat does so a little later, too."""
    try:
        sender(runtime).notify()
    except FlowStoneError as error:
        log.warning("people are told as soon as the broker is back", error=error.message)


def wake_others(runtime: Runtime, run_ids: Iterable[UUID]) -> None:
    """Send for the coordinators of runs for which this process has done something.

    What it has done is recorded, and it waits for none of them.
    """
    waiting = list(run_ids)
    if not waiting:
        return
    try:
        made = sender(runtime)
        for run_id in waiting:
            made.wake(run_id)
    except FlowStoneError as error:
        log.warning("coordinators not woken", runs=len(waiting), error=error.message)
