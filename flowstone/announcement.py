"""What people and programs are told of an approval: a text, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from flowstone.gate import TIMEOUT, Gate
from flowstone.partition_key import label, step_name
from flowstone.states import GateState
from flowstone.store.gates import Asked

MAX_CONTEXT: Final = 1000
"""Characters of the context that a text holds; the JSON has all of it."""

MAX_LINE: Final = 200
"""Characters of each part of it."""

_HAPPENED: Final[Mapping[str, str]] = {
    "requested": "waits for a decision",
    "reminder": "still waits for a decision",
    "escalated": "waits for a decision of others, as nobody has decided in time",
    "void": "does not count any more",
    "withdrawn": "is not needed any more",
}
_ENDED: Final[Mapping[GateState, str]] = {
    GateState.APPROVED: "was approved",
    GateState.REJECTED: "was rejected",
    GateState.EXPIRED: "has failed",
}
_THEN: Final[Mapping[str | None, str]] = {
    "approve": "then it counts as approved",
    "reject": "then it counts as rejected",
    "escalate": "then others are asked",
    "fail": "then its step fails",
}


@dataclass(frozen=True)
class Announcement:
    """What is told of an event; `id` is the same however often that is tried."""

    id: int
    title: str
    text: str
    """Plain, in lines."""
    payload: Mapping[str, Any]
    """JSON values."""


def announce(id: int, event: str, asked: Asked, link: str | None = None) -> Announcement:
    """Return what is told of an event of an approval, as it stands by now.

    `link` is where the one who is told may decide, without which they are told the command.
    """
    return Announcement(
        id, _title(event, asked), "\n".join(_lines(asked, link)), _payload(event, asked, link)
    )


def _title(event: str, asked: Asked) -> str:
    gate = asked.gate
    step = step_name(asked.asset, asked.partition)
    return f"Approval {gate.id}: {step} {_ended(gate) or _HAPPENED.get(event, event)}"


def _ended(gate: Gate) -> str | None:
    """Return how it has ended, or None; what was told before that is told late otherwise."""
    said = _ENDED.get(gate.state)
    if said is None:
        return _HAPPENED.get(gate.state)
    by = ", as nobody has decided in time" if gate.closed_by == TIMEOUT else f" by {gate.closed_by}"
    return said + by


def _lines(asked: Asked, link: str | None) -> Iterator[str]:
    gate = asked.gate
    if gate.message:
        yield gate.message
    yield from _context(gate.context)
    if gate.options:
        yield f"Options: {', '.join(gate.options)}"
    if gate.state == GateState.OPEN:
        yield f"Asked: {_people(gate)}"
        if gate.expires_at is not None:
            yield f"Until: {_written(gate.expires_at)}; {_THEN[gate.on_timeout]}"
    else:
        if gate.chosen is not None:
            yield f"Chosen: {gate.chosen}"
        if gate.reason and not (gate.closed_by == TIMEOUT and gate.state in _ENDED):
            yield f"Reason: {gate.reason}"
    yield f"Run: {asked.run_id}"
    yield link or f"flowstone approvals show {gate.id}"


def _context(context: Mapping[str, Any]) -> Iterator[str]:
    left = MAX_CONTEXT
    for name, value in context.items():
        line = f"{name}: {value if isinstance(value, str) else json.dumps(value)}"
        left -= min(len(line), MAX_LINE)
        if left < 0:
            yield "..."
            return
        yield line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}..."


def _people(gate: Gate) -> str:
    if not gate.approvers:
        return "anybody" if gate.quorum == 1 else f"any {gate.quorum} people"
    said = ", ".join(gate.approvers)
    return said if gate.quorum == 1 else f"{said}; {gate.quorum} of them have to approve"


def _written(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _payload(event: str, asked: Asked, link: str | None) -> Mapping[str, Any]:
    gate = asked.gate
    return {
        "event": event,
        "approval": gate.id,
        "state": str(gate.state),
        "asset": asked.asset,
        "partition": label(asked.partition) or None,
        "run": str(asked.run_id),
        "message": gate.message,
        "context": dict(gate.context),
        "options": list(gate.options),
        "subject": gate.subject,
        "approvers": list(gate.approvers),
        "quorum": gate.quorum,
        "expires_at": gate.expires_at and gate.expires_at.isoformat(),
        "on_timeout": gate.on_timeout,
        "decision": _decision(gate),
        "link": link,
    }


def _decision(gate: Gate) -> Mapping[str, Any] | None:
    if gate.closed_at is None:
        return None
    return {
        "by": gate.closed_by,
        "at": gate.closed_at.isoformat(),
        "reason": gate.reason,
        "option": gate.chosen,
        "is_edited": gate.edited is not None,
    }
