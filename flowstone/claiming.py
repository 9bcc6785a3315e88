"""The start of an attempt: the claim of its step, in its turn where that has a rate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from flowstone.bucket import CLOSE, PATIENCE, Leaves, Starts, Waits
from flowstone.errors import LedgerUnavailable
from flowstone.runtime import Runtime
from flowstone.store import dispatch, flights, rates, slots, steps
from flowstone.store.ledger import Connection
from flowstone.store.rates import Left
from flowstone.store.steps import Claim, Refused


@dataclass(frozen=True)
class Early:
    """A step that may not start yet, because of its rate. This is no attempt."""

    key: str
    """That of the limit."""
    wait: float
    """The seconds until it is its turn."""
    has_left: bool = False
    """Whether it has left its canvas, and waits in the ledger; else it is to come again."""
    wake: frozenset[UUID] = frozenset()
    """The runs whose coordinator must be woken."""


def claim(runtime: Runtime, step_id: int, canvas: UUID, *, worker: str) -> Claim | Refused | Early:
    """Claim a step that has been dispatched in `canvas`.

    Where its rate lets it start only beyond the PATIENCE of a bucket, it leaves the canvas.
    Raises LedgerUnavailable.
    """
    claim_it = partial(
        steps.claim,
        step_id=step_id,
        canvas=canvas,
        worker=worker,
        lease=runtime.leases.seconds,
        release=runtime.settings.release,
        time_limit=runtime.settings.time_limit,
    )
    with runtime.ledger.autocommit() as conn:
        claimed = claim_it(conn)
    if isinstance(claimed, Claim) or claimed.rate is None:
        return claimed
    key = claimed.rate

    def in_turn(conn: Connection) -> Claim | Refused | Early | Left:
        match rates.turn(conn, step_id, canvas, key, patience=PATIENCE):
            case Starts():
                return claim_it(conn, in_turn=True)
            case Waits(wait=wait):
                return Early(key, wait)
            case Leaves(wait):
                return rates.leave(conn, step_id, canvas, wait)
            case None:
                return claimed

    while isinstance(found := runtime.ledger.in_turn(in_turn), Early) and found.wait <= CLOSE:
        time.sleep(found.wait)
    if isinstance(found, Left):
        wake = _go_on_after(runtime, step_id, found, worker)
        return Early(key, found.wait, has_left=True, wake=wake)
    return found


def _go_on_after(runtime: Runtime, step_id: int, left: Left, worker: str) -> frozenset[UUID]:
    """Give what a step had to those who wait for it, and return the runs that can go on."""
    try:
        with runtime.ledger.autocommit() as conn:
            # Its place in the window is free, too: for what is ready, with slots or without.
            due = dispatch.due(conn, left.run_id, step_id)
            wanted = slots.wanted_by(conn, left.run_id)
            admitted = slots.may_go_on(conn, left.keys.union(wanted))
        mine = frozenset([left.run_id] if due.coordinator else [])
        followers = runtime.ledger.in_turn(lambda conn: flights.leave(conn, left.run_id, worker))
        return mine | admitted | followers
    except LedgerUnavailable:
        # The reconciler finds them.
        return frozenset()
