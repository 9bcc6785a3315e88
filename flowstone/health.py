"""Whether one part is alive, for orchestrators: they restart what is not, and look at nothing else.

So a part is called ill only for what its own restart may cure. Where the ledger or the broker is
away, all would be restarted at once, for nothing: that is told, and is no illness of theirs.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

from flowstone.checkup import apart, ask_held, ask_ledger, soon
from flowstone.facts import Unknown
from flowstone.liveness import Beat, left_waiting, of_beat
from flowstone.queues import CONTROL_QUEUE
from flowstone.settings import Settings


@dataclass(frozen=True)
class Health:
    """What is said of a part."""

    is_alive: bool
    said: str
    """One line."""


def own_worker() -> str:
    """Return the name that Celery gives a worker of this machine by itself."""
    return f"celery@{socket.gethostname()}"


def of_ledger(settings: Settings) -> Health:
    """Return whether the ledger answers, and has the schema of this version."""
    address, ledger = apart(ask_ledger(settings).answer(soon()))
    for part in (address, ledger):
        if isinstance(part, Unknown):
            return Health(False, f"{part.why}; {part.remedy}")
    return Health(True, f"the ledger at {address} answers, and is migrated")


def of_worker(settings: Settings, name: str) -> Health:
    """Return whether a worker has told the ledger lately that it is there, and takes messages."""
    _, ledger = apart(ask_ledger(settings).answer(soon()))
    if isinstance(ledger, Unknown):
        return Health(True, f"not known: {ledger.why}; a restart of {name} would not help")
    worker = next((one for one in ledger.workers if one.name == name), None)
    if worker is None:
        return Health(False, f"{name} is silent: it has not told the ledger lately that it runs")
    seen = f"{name} was seen {worker.silent:.0f} s ago"
    held = ask_held(settings, ledger)
    if isinstance(held, Unknown):
        return Health(True, f"{seen}; whether it takes messages is not known: {held.why}")
    if left := left_waiting(worker, ledger.waits, held):
        return Health(False, f"{seen}, but takes nothing from {', '.join(left)}")
    return Health(True, seen)


def of_beat_service(settings: Settings) -> Health:
    """Return whether a message of beat's has come lately, or may lie where nobody takes it."""
    _, ledger = apart(ask_ledger(settings).answer(soon()))
    if isinstance(ledger, Unknown):
        return Health(True, f"not known: {ledger.why}; a restart of beat would not help")
    ticked = ledger.vitals.ticked
    said = (
        "beat has never ticked" if ticked is None else f"the last tick has come {ticked:.0f} s ago"
    )
    if of_beat(ticked, settings.reconcile_seconds, 0) is Beat.TICKS:
        return Health(True, said)
    held = ask_held(settings, ledger)
    if isinstance(held, Unknown):
        return Health(True, f"{said}; not known why: {held.why}")
    if of_beat(ticked, settings.reconcile_seconds, held[CONTROL_QUEUE]) is Beat.IS_NOT_HEARD:
        return Health(True, f"{said}; nobody takes what lies in the queue {CONTROL_QUEUE!r}")
    return Health(False, f"{said}, and its queue is empty")
