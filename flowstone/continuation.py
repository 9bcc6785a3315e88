"""The continuation: carries a step on after its approval was decided, or its signal has come."""

from __future__ import annotations

import math
from collections.abc import Callable
from uuid import UUID

from flowstone.asset import Handler
from flowstone.claiming import Early
from flowstone.errors import FlowStoneError, LedgerUnavailable
from flowstone.execution import Ended, Fenced, execute
from flowstone.gate import Gate, Kind
from flowstone.log import get_logger
from flowstone.queues import ASSET_QUEUES
from flowstone.runtime import Runtime
from flowstone.states import GateState
from flowstone.store import continuing, gates
from flowstone.store.continuing import Carried, Freed
from flowstone.store.gates import Asked
from flowstone.store.ledger import Connection
from flowstone.store.steps import Refused

__all__ = ["Carried", "Freed", "carry_on", "go_on_left", "run"]

log = get_logger("flowstone.continuation")


def _uncounted(conn: Connection) -> None:
    """Count nothing."""


def carry_on(runtime: Runtime, kind: Kind, gate_id: int, *, worker: str) -> Carried | Freed | None:
    """Take the step of a gate that was decided, to `run` it here, or leave it to its coordinator.

    Returns None where it goes on already, has ended, or is to be asked for still: nothing is to
    be done then. Raises LedgerUnavailable.
    """
    with runtime.ledger.begin() as conn:
        asked = gates.get(conn, gate_id)
    if asked is None or asked.gate.kind != kind or asked.driver != "celery":
        log.warning("nothing goes on behind this", kind=kind, id=gate_id)
        return None
    alone = _can_run_anywhere(runtime, asked)
    return runtime.ledger.in_turn(
        lambda conn: continuing.carry_on(conn, gate_id, alone=alone, actor=worker)
    )


def _can_run_anywhere(runtime: Runtime, asked: Asked) -> bool:
    """Return whether a worker of any queue can do it, or that of the asset has to."""
    try:
        asset = runtime.registry.graph[asked.asset]
    except FlowStoneError:
        # It fails where it is dispatched, and says why.
        return False
    handlers: dict[GateState, Handler | None] = {
        GateState.APPROVED: asset.on_approved,
        GateState.REJECTED: asset.on_rejected,
        GateState.RECEIVED: asset.on_signal,
        GateState.EXPIRED: asset.on_signal,
    }
    runs_code = handlers.get(asked.gate.state) is not None or _is_staged_anew(asked.gate)
    return not runs_code or asset.queue in ASSET_QUEUES


def _is_staged_anew(gate: Gate) -> bool:
    return gate.edited is not None or gate.payload is not None


def go_on_left(
    runtime: Runtime,
    age: float,
    *,
    actor: str,
    run_id: UUID | None = None,
    count: Callable[[Connection], None] = _uncounted,
) -> frozenset[UUID]:
    """Let the steps go on, of one run perhaps, whose continuation has not come for `age` seconds.

    They go on as any other step that is ready. Each is a transaction of its own, of which to
    `count` it is a part. Where somebody else holds what one needs, the rest is left to the next
    look. Returns the runs to wake. Raises LedgerUnavailable.
    """
    with runtime.ledger.begin() as conn:
        found = continuing.left(conn, age, run_id)
    to_wake = set[UUID]()
    for gate_id in found:

        def free(conn: Connection, gate_id: int = gate_id) -> Carried | Freed | None:
            done = continuing.carry_on(conn, gate_id, alone=False, actor=actor)
            if isinstance(done, Freed):
                count(conn)
            return done

        try:
            done = runtime.ledger.in_turn(free)
        except LedgerUnavailable as error:
            if not error.is_locked:
                raise
            # The runs of those that go on are still to be woken.
            log.warning("what has not gone on is left to the next look", id=gate_id)
            break
        if isinstance(done, Freed):
            to_wake.add(done.run_id)
    return frozenset(to_wake)


def run(
    runtime: Runtime, step_id: int, canvas: UUID, *, worker: str
) -> Ended | Fenced | Refused | Early:
    """Run the step that `carry_on` has taken, to its outcome; raise LedgerUnavailable.

    Nothing else is in its canvas, so that a retry waits in the ledger.
    """
    return execute(runtime, step_id, canvas, worker=worker, park_after=-math.inf)
