"""Quorums: who may decide about an approval, and what a vote brings about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from flowstone.approval import ROLE, person
from flowstone.errors import BadConfig, BadDecision, FlowStoneError, NotAllowed, did_you_mean
from flowstone.gate import TIMEOUT, Gate
from flowstone.states import GateState

Roles = Mapping[str, Sequence[str]]
"""The names of people by role, as FLOWSTONE_ROLES has them."""


@dataclass(frozen=True)
class Vote:
    """What somebody has said of an approval."""

    actor: str
    approves: bool
    channel: str
    reason: str | None = None
    option: str | None = None
    at: datetime | None = None
    """When it was said; None for what is said now."""

    def __str__(self) -> str:
        """Return what people are told of it: who, what, when, and why."""
        what = "has approved" if self.approves else "has rejected"
        return f"{self.actor} {what}{_more(self.option, self.at, self.reason)}"


def decided(gate: Gate) -> str:
    """Return who has decided what, when, and why: of one that is approved, rejected, expired."""
    if gate.state == GateState.EXPIRED or gate.closed_by == TIMEOUT:
        late = _more(gate.chosen, gate.closed_at, "nobody had decided in time")
        return f"{gate.state}{late}"
    edited = " an edited value" if gate.edited is not None else ""
    more = _more(gate.chosen, gate.closed_at, gate.reason)
    return f"{gate.closed_by} has {gate.state}{edited}{more}"


def _more(option: str | None, at: datetime | None, reason: str | None) -> str:
    chosen = f" with {option!r}" if option is not None else ""
    when = f" at {at:%Y-%m-%d %H:%M:%S %Z}" if at is not None else ""
    return f"{chosen}{when}{f': {reason}' if reason else ''}"


def tally(quorum: int, votes: Iterable[Vote]) -> str:
    """Return how many of those that are needed have approved, as "1 of 2"."""
    return f"{sum(vote.approves for vote in votes)} of {quorum}"


def after(
    gate: Gate,
    votes: Sequence[Vote],
    vote: Vote,
    *,
    launchers: Iterable[str] = (),
    roles: Roles,
    edits: bool = False,
) -> GateState:
    """Return what an open approval is after one more vote: open, approved or rejected.

    `votes` are those before, `launchers` have started the run, and `edits` says whether this one
    puts another value in the place of the proposed one. Raises NotAllowed for somebody who may
    not decide, BadDecision for what does not fit what was asked, and BadConfig for a role that
    the settings do not have.
    """
    check_voter(gate, votes, vote.actor, launchers=launchers, roles=roles)
    if not vote.approves:
        return GateState.REJECTED
    _check_option(gate, votes, vote.option)
    if edits and gate.quorum > 1:
        raise BadDecision(
            f"{gate.label} needs {gate.quorum} who approve the same value, so nobody may edit it; "
            "approve or reject it as it is"
        )
    given = sum(one.approves for one in votes) + 1
    return GateState.APPROVED if given >= gate.quorum else GateState.OPEN


def may_vote(
    gate: Gate, votes: Sequence[Vote], actor: str, *, launchers: Iterable[str], roles: Roles
) -> bool:
    """Return whether somebody may still say something of an approval."""
    try:
        check_voter(gate, votes, actor, launchers=launchers, roles=roles)
    except FlowStoneError:
        return False
    return True


def check_voter(
    gate: Gate, votes: Sequence[Vote], actor: str, *, launchers: Iterable[str], roles: Roles
) -> None:
    """Raise NotAllowed for somebody who may not decide, or BadConfig for an unknown role."""
    check_approver(gate, actor, roles)
    who = person(actor)
    if gate.four_eyes and who in map(person, launchers):
        raise NotAllowed(
            f"{actor} has started the run, and may not decide about {gate.label}, which asks for "
            "four eyes; somebody else has to"
        )
    if (first := next((vote for vote in votes if person(vote.actor) == who), None)) is not None:
        raise NotAllowed(
            f"{gate.label}: {first}; nobody votes twice, and "
            f"{tally(gate.quorum, votes)} have approved"
        )


def check_approver(gate: Gate, actor: str, roles: Roles) -> None:
    """Raise NotAllowed for somebody who is not asked, or BadConfig for an unknown role."""
    who = person(actor)
    if not who or who == TIMEOUT:
        raise NotAllowed(f"{actor!r} is nobody's name; say by whom {gate.label} is decided")
    if not is_approver(gate, actor, roles):
        raise _refused(gate, actor, roles)


def is_approver(gate: Gate, actor: str, roles: Roles) -> bool:
    """Return whether somebody is among those who are asked; without any named, everybody is."""
    return is_among(gate.approvers, actor, roles)


def is_among(approvers: Sequence[str], actor: str, roles: Roles) -> bool:
    """Return whether somebody is one of these approvers; without any named, everybody is."""
    if not approvers:
        return True
    who = person(actor)
    return any(who in map(person, _people(name, roles) or ()) for name in approvers)


def unknown_roles(approvers: Iterable[str], roles: Roles) -> Mapping[str, str]:
    """Return those of the approvers that are roles which the settings do not have.

    Each with what people are told: what is missing, and how to add it.
    """
    return {name: _no_role(name, roles) for name in approvers if _people(name, roles) is None}


def _people(approver: str, roles: Roles) -> Sequence[str] | None:
    """Return who an approver is, by name; None for a role that there is not."""
    if not approver.startswith(ROLE):
        return [approver]
    wanted = _role(approver)
    return next((who for role, who in roles.items() if role.lower() == wanted), None)


def _role(approver: str) -> str:
    return approver.removeprefix(ROLE).strip().lower()


def _refused(gate: Gate, actor: str, roles: Roles) -> FlowStoneError:
    for approver in gate.approvers:
        if _people(approver, roles) is None:
            return BadConfig(
                f"{gate.label} may be decided by {approver}, and {_no_role(approver, roles)}"
            )
    allowed = ", ".join(_told(approver, roles) for approver in gate.approvers)
    return NotAllowed(f"{actor} may not decide about {gate.label}; these may: {allowed}")


def _no_role(approver: str, roles: Roles) -> str:
    role = _role(approver)
    return (
        f"FLOWSTONE_ROLES has no role {role!r}{did_you_mean(role, roles)}; add it, such as "
        f'{{"{role}": ["ann", "bob"]}}'
    )


def _told(approver: str, roles: Roles) -> str:
    if not approver.startswith(ROLE):
        return approver
    return f"{approver} ({', '.join(_people(approver, roles) or ()) or 'nobody'})"


def _check_option(gate: Gate, votes: Sequence[Vote], option: str | None) -> None:
    if not gate.options:
        if option is not None:
            raise BadDecision(f"{gate.label} has no options; approve it without {option!r}")
        return
    if option not in gate.options:
        chosen = "asks for an option" if option is None else f"has no option {option!r}"
        near = "" if option is None else did_you_mean(option, gate.options)
        raise BadDecision(
            f"{gate.label} {chosen}{near}; an approval chooses one of: {', '.join(gate.options)}"
        )
    # Those who make up the quorum have to approve the same.
    for vote in votes:
        if vote.approves and vote.option != option:
            raise BadDecision(f"{gate.label}: {vote}; approve with the same option, or reject")
