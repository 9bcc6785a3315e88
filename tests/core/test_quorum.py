"""Who may decide, and what a vote brings about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.approval import person
from flowstone.errors import BadConfig, BadDecision, FlowStoneError, NotAllowed
from flowstone.gate import Gate
from flowstone.quorum import Vote, after, decided, is_approver, may_vote, tally
from flowstone.states import GateState

NOW = datetime(2026, 1, 31, 12, 30, tzinfo=UTC)
ROLES = {"finance": ("Carl", "dora"), "nobody": ()}
PEOPLE = ["ann", "bob", "carl", "dora", "eve"]


def gate(**given: Any) -> Gate:
    """Return an open approval."""
    usual: dict[str, Any] = dict.fromkeys(Gate.__dataclass_fields__)
    usual |= {"id": 12, "kind": "approval", "state": GateState.OPEN, "created_at": NOW}
    usual |= {"context": {}, "options": [], "approvers": [], "quorum": 1, "four_eyes": False}
    return Gate(**{**usual, **given})


def vote(actor: str, approves: bool = True, **given: Any) -> Vote:
    return Vote(actor, approves, "python", **given)


def refusal(asked: Gate, said: Vote, *before: Vote, **given: Any) -> FlowStoneError:
    with pytest.raises(FlowStoneError) as caught:
        after(asked, before, said, **{"roles": ROLES, **given})
    return caught.value


@pytest.mark.parametrize("actor", ["ann", "Ann@laptop", "CARL@host", "dora"])
def test_names_and_roles_are_compared_without_host_and_case(actor: str) -> None:
    asked = gate(approvers=["ANN@work", "role:Finance"])
    assert after(asked, [], vote(actor), roles=ROLES) == GateState.APPROVED


def test_somebody_else_is_told_who_may() -> None:
    error = refusal(gate(approvers=["ann", "role:finance", "role:nobody"]), vote("eve@host"))
    assert isinstance(error, NotAllowed)
    assert error.message == (
        "eve@host may not decide about approval 12; these may: ann, role:finance (Carl, dora), "
        "role:nobody (nobody)"
    )


def test_a_role_that_there_is_not_is_told_to_who_is_not_named_otherwise() -> None:
    asked = gate(approvers=["ann", "role:finanse"])
    error = refusal(asked, vote("carl"))
    assert isinstance(error, BadConfig)
    assert "FLOWSTONE_ROLES has no role 'finanse'; did you mean 'finance'?" in error.message
    assert after(asked, [], vote("ann"), roles=ROLES) == GateState.APPROVED


@pytest.mark.parametrize("actor", ["", "@host", "timeout", "Timeout@host"])
def test_nobody_decides_nothing(actor: str) -> None:
    assert "is nobody's name" in refusal(gate(), vote(actor)).message


def test_with_four_eyes_whoever_has_started_the_run_may_not_decide() -> None:
    started = ["ann@a", "bob@b"]
    for actor in ("ann@other", "BOB"):
        error = refusal(gate(four_eyes=True), vote(actor), launchers=started)
        assert isinstance(error, NotAllowed)
        assert "has started the run" in error.message
    four_eyes = gate(four_eyes=True)
    assert after(four_eyes, [], vote("eve"), launchers=started, roles={}) == GateState.APPROVED
    assert after(gate(), [], vote("ann"), launchers=started, roles={}) == GateState.APPROVED


def test_nobody_votes_twice_not_even_against() -> None:
    first = vote("ann@a", at=NOW, reason="looks fine")
    for approves in (True, False):
        error = refusal(gate(quorum=2), vote("Ann@b", approves), first)
        assert isinstance(error, NotAllowed)
        assert error.message == (
            "approval 12: ann@a has approved at 2026-01-31 12:30:00 UTC: looks fine; nobody votes "
            "twice, and 1 of 2 have approved"
        )


def test_options_are_chosen_where_there_are_any() -> None:
    asked = gate(options=["full", "sample"])
    assert after(asked, [], vote("ann", option="full"), roles={}) == GateState.APPROVED
    assert after(asked, [], vote("ann", approves=False), roles={}) == GateState.REJECTED
    assert refusal(asked, vote("ann", option="ful")).message == (
        "approval 12 has no option 'ful'; did you mean 'full'?; an approval chooses one of: full, "
        "sample"
    )
    assert "asks for an option; an approval chooses one of" in refusal(asked, vote("ann")).message
    assert "has no options; approve it without 'full'" in (
        refusal(gate(), vote("ann", option="full")).message
    )


def test_those_of_a_quorum_approve_the_same() -> None:
    asked = gate(options=["full", "sample"], quorum=2)
    first = vote("ann", option="full")
    error = refusal(asked, vote("bob", option="sample"), first)
    assert isinstance(error, BadDecision)
    assert error.message == (
        "approval 12: ann has approved with 'full'; approve with the same option, or reject"
    )
    assert isinstance(refusal(gate(quorum=2), vote("ann"), edits=True), BadDecision)
    assert after(gate(), [], vote("ann"), roles={}, edits=True) == GateState.APPROVED


votes = st.builds(vote, st.sampled_from([*PEOPLE, "Ann@x", "BOB@y"]), st.booleans())


@given(
    st.lists(votes, max_size=8),
    st.integers(1, 4),
    st.lists(st.sampled_from(["ann", "bob", "role:finance"]), max_size=3),
    st.booleans(),
    st.lists(st.sampled_from(PEOPLE), max_size=2),
)
def test_it_is_decided_by_the_first_rejection_or_by_as_many_people_as_are_needed(
    said: list[Vote], quorum: int, approvers: list[str], four_eyes: bool, launchers: list[str]
) -> None:
    asked = gate(quorum=quorum, approvers=approvers, four_eyes=four_eyes)
    counted: list[Vote] = []
    state = GateState.OPEN
    for one in said:
        allowed = may_vote(asked, counted, one.actor, launchers=launchers, roles=ROLES)
        try:
            state = after(asked, counted, one, launchers=launchers, roles=ROLES)
        except FlowStoneError:
            assert not allowed
            continue
        assert allowed
        counted.append(one)
        if state != GateState.OPEN:
            break
    people = [person(one.actor) for one in counted]
    assert len(set(people)) == len(people)
    assert all(is_approver(asked, who, ROLES) for who in people)
    assert not (four_eyes and set(people) & set(launchers))
    approvals = sum(one.approves for one in counted)
    assert (state == GateState.APPROVED) == (approvals == quorum)
    assert (state == GateState.REJECTED) == (approvals < len(counted))
    assert tally(quorum, counted) == f"{approvals} of {quorum}"


def test_a_decision_is_told_with_who_what_when_and_why() -> None:
    closed: dict[str, Any] = {"closed_at": NOW, "closed_by": "ann@a", "reason": "looks fine"}
    approved = gate(state=GateState.APPROVED, chosen="full", edited={"value": 1}, **closed)
    assert decided(approved) == (
        "ann@a has approved an edited value with 'full' at 2026-01-31 12:30:00 UTC: looks fine"
    )
    late = gate(state=GateState.REJECTED, **{**closed, "closed_by": "timeout", "reason": None})
    assert decided(late) == ("rejected at 2026-01-31 12:30:00 UTC: nobody had decided in time")
