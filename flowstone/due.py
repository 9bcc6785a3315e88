"""What time asks for at a gate: a reminder, others to be asked, or an end; decided from its row.

Whoever looks late finds one thing, however many were due meanwhile: reminders that were missed are
told once, and each level of an escalation has its whole time from when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flowstone.approval import has_role, person
from flowstone.gate import Gate
from flowstone.quorum import Vote


@dataclass(frozen=True)
class Remind:
    """Those who are asked are reminded, and once more at `remind_at`."""

    remind_at: datetime


@dataclass(frozen=True)
class Escalate:
    """Others are asked, who take the place of those that were."""

    level: int
    approvers: Sequence[str]
    quorum: int
    expires_at: datetime | None
    on_timeout: str | None
    remind_at: datetime | None
    escalation: Sequence[Mapping[str, Any]]
    """The levels that are left after this one."""


@dataclass(frozen=True)
class Approve:
    """It counts as approved, with the first of the options if there are any."""

    chosen: str | None
    by_votes: bool = False
    """Whether votes have made it so, with the option of these: nobody else would be asked next."""


@dataclass(frozen=True)
class Reject:
    """It counts as rejected."""


@dataclass(frozen=True)
class Fail:
    """Its step fails."""


@dataclass(frozen=True)
class Continue:
    """Its step goes on without the signal."""


Due = Remind | Escalate | Approve | Reject | Fail | Continue


def due(gate: Gate, now: datetime, votes: Sequence[Vote] = ()) -> Due | None:
    """Return what is due at an open gate, the end before a reminder; None is nothing.

    `votes` are those of who has approved already, where that takes several.
    """
    if gate.expires_at is not None and gate.expires_at <= now:
        return _at_its_end(gate, now, votes)
    if gate.remind_at is not None and gate.remind_at <= now:
        return _remind(gate, now)
    return None


def _at_its_end(gate: Gate, now: datetime, votes: Sequence[Vote]) -> Due:
    match gate.on_timeout:
        case "escalate":
            return _escalate(gate, now, votes)
        case "approve":
            return Approve(gate.options[0] if gate.options else None)
        case "reject":
            return Reject()
        case "continue":
            return Continue()
    return Fail()


def _remind(gate: Gate, now: datetime) -> Remind:
    assert gate.remind_every is not None
    return Remind(now + timedelta(seconds=gate.remind_every))


def _escalate(gate: Gate, now: datetime, votes: Sequence[Vote]) -> Escalate | Approve:
    first, *rest = gate.escalation
    approvers, timeout = first["approvers"], first["timeout"]
    quorum = _reachable(gate.quorum, approvers, votes)
    if len(votes) >= quorum:
        # All who would be asked have approved, with the same option, and nobody votes twice.
        return Approve(votes[0].option, by_votes=True)
    return Escalate(
        level=gate.level + 1,
        approvers=approvers,
        quorum=quorum,
        expires_at=None if timeout is None else now + timedelta(seconds=timeout),
        on_timeout=first["on_timeout"],
        # They are told at this moment that they are asked.
        remind_at=None if gate.remind_every is None else _remind(gate, now).remind_at,
        escalation=rest,
    )


def _reachable(quorum: int, approvers: Sequence[str], votes: Sequence[Vote]) -> int:
    """Return a quorum, or what all of the approvers make it where these are too few.

    Who has approved before still counts, and votes no more. A role may be any number of people.
    """
    if has_role(approvers):
        return quorum
    return min(quorum, len({person(name) for name in (*approvers, *(v.actor for v in votes))}))
