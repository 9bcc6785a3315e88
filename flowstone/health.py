"""Whether one part is alive, for orchestrators: they restart what is not, and look at nothing else.

So a part is called ill only for what its own restart may cure. Where the ledger or the broker is
away, all would be restarted at once, for nothing: that is told, and is no illness of theirs.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from flowstone.checkup import apart, ask_held, ask_ledger, soon
from flowstone.facts import Unknown
from flowstone.liveness import Beat, heard_for, left_waiting, of_beat
from flowstone.probe import node_name
from flowstone.queues import CONTROL_QUEUE
from flowstone.settings import Settings
from flowstone.store.workers import Worker

_NAMED: Final = 5
"""How many workers are named where the one that is asked for is not there."""


@dataclass(frozen=True)
class Health:
    """What is said of a part."""

    is_alive: bool
    said: str
    """One line."""


def of_ledger(settings: Settings) -> Health:
    """Return whether the ledger answers, and has the schema of this version."""
    address, ledger = apart(ask_ledger(settings).answer(soon()))
    for part in (address, ledger):
        if isinstance(part, Unknown):
            return Health(False, f"{part.why}; {part.remedy}")
    return Health(True, f"the ledger at {address} answers, and is migrated")


def of_worker(settings: Settings, name: str | None = None) -> Health:
    """Return whether a worker has told the ledger lately that it is there, and takes messages.

    `name` is that of `celery worker -n NAME`. Without one it is about the worker that Celery names
    by itself, or about the only one of this host.
    """
    _, ledger = apart(ask_ledger(settings).answer(soon()))
    if isinstance(ledger, Unknown):
        return Health(True, f"not known: {ledger.why}; a restart of the worker would not help")
    worker = _find(ledger.workers, name)
    if worker is None:
        return Health(False, _silent(ledger.workers, name))
    name = worker.name
    seen = f"{name} was seen {worker.silent:.0f} s ago"
    held = ask_held(settings, ledger)
    if isinstance(held, Unknown):
        return Health(True, f"{seen}; whether it takes messages is not known: {held.why}")
    if left := left_waiting(worker, ledger.waits, held):
        return Health(False, f"{seen}, but takes nothing from {', '.join(left)}")
    return Health(True, seen)


def _find(workers: Iterable[Worker], name: str | None) -> Worker | None:
    there = {one.name: one for one in workers}
    found = there.get(node_name(name or ""))
    if found is not None or name:
        return found
    here = [one for one in there.values() if one.name.partition("@")[2] == socket.gethostname()]
    return here[0] if len(here) == 1 else None


def _silent(workers: Sequence[Worker], name: str | None) -> str:
    said = f"{node_name(name or '')} is silent: it has not told the ledger lately that it runs"
    if not workers:
        return f"{said}; nor has any other worker"
    others = ", ".join(one.name for one in workers[:_NAMED])
    more = f" and {len(workers) - _NAMED} more" if len(workers) > _NAMED else ""
    return f"{said}; those that have: {others}{more}"


def of_beat_service(settings: Settings) -> Health:
    """Return whether a message of beat's has come lately, or may lie where nobody takes it."""
    _, ledger = apart(ask_ledger(settings).answer(soon()))
    if isinstance(ledger, Unknown):
        return Health(True, f"not known: {ledger.why}; a restart of beat would not help")
    ticked, interval = ledger.vitals.ticked, settings.reconcile_seconds
    heard = heard_for(ledger.workers, ledger.vitals.clock)
    said = (
        "beat has never ticked" if ticked is None else f"the last tick has come {ticked:.0f} s ago"
    )
    state = of_beat(ticked, interval, 0, heard)
    if state is Beat.TICKS:
        return Health(True, said)
    if heard is not None and state is Beat.IS_AWAITED:
        return Health(True, f"{said}; but the workers have been up for {heard:.0f} s only")
    held = ask_held(settings, ledger)
    if isinstance(held, Unknown):
        return Health(True, f"{said}; not known why: {held.why}")
    if held[CONTROL_QUEUE]:
        return Health(True, f"{said}; nobody takes what lies in the queue {CONTROL_QUEUE!r}")
    return Health(False, f"{said}, and its queue is empty")
