"""What may be asked of people: refused where it is written, if nobody could ever decide it."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone.approval import Approval, Ask, Escalation, Terms, wait_for_approval
from flowstone.errors import DefinitionError
from flowstone.quorum import unknown_roles


@pytest.mark.parametrize("approvers", [["ann", "bob"], ["ann", "Ann@x", "ann "]])
def test_a_quorum_is_of_people_however_they_are_written(approvers: list[str]) -> None:
    people = 2 if "bob" in approvers else 1
    with pytest.raises(DefinitionError, match=f"quorum=3, but only {people} may approve"):
        Approval(approvers=approvers, quorum=3)
    assert Ask(approvers=approvers, quorum=people).quorum == people
    assert Ask(approvers=[*approvers, "role:staff"], quorum=3).quorum == 3
    assert Ask(quorum=3).quorum == 3


@pytest.mark.parametrize("what", ["options", "approvers", "notify"])
@pytest.mark.parametrize("name", ["a\0b", "a\udc80"])
def test_what_the_ledger_cannot_keep_is_refused(what: str, name: str) -> None:
    given: dict[str, Any] = {what: ["ann", name]}
    with pytest.raises(DefinitionError) as caught:
        Approval(**given)
    assert f"{what}= has {name!r}" in caught.value.message
    with pytest.raises(DefinitionError, match="approvers= has"):
        Escalation(approvers=[name])


def test_nobody_is_no_approver() -> None:
    with pytest.raises(DefinitionError, match="'@host', which is nobody's name"):
        Ask(approvers=["ann", "@host"])


def test_roles_that_there_are_not_are_told_with_how_to_add_them() -> None:
    roles = {"Finance": ("ann",), "nobody": ()}
    asked = ["ann", "role:finance", "role:nobody", "role:finanse"]
    assert unknown_roles(asked, roles) == {
        "role:finanse": "FLOWSTONE_ROLES has no role 'finanse'; did you mean 'Finance'?; add it, "
        'such as {"finanse": ["ann", "bob"]}'
    }


def test_all_that_an_approval_says_is_asked_and_by_wait_for_approval_too() -> None:
    given: dict[str, Any] = {
        "options": ["all", "some"],
        "approvers": ["ann", "bob"],
        "quorum": 2,
        "four_eyes": True,
        "timeout": 60,
        "on_timeout": "escalate",
        "escalation": [Escalation(approvers=["eve"])],
        "remind_every": 10,
        "notify": ["team"],
    }
    assert given.keys() == Terms.__dataclass_fields__.keys()
    bare = Ask()
    assert all(getattr(Ask(**given), name) != getattr(bare, name) for name in given)
    asked = Ask(message="7?", context={"made": 7}, **given)
    made = Approval(message=lambda it: f"{it}?", context=lambda it: {"made": it}, **given)
    assert made.ask(7) == asked
    assert wait_for_approval(message="7?", context={"made": 7}, **given).ask == asked
