"""What is asked is of the kind that it is said to be, or refused before anybody waits for it."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone import Approval, Escalation, wait_for_approval
from flowstone.approval import Ask
from flowstone.errors import DefinitionError

WRONG: list[tuple[str, Any]] = [
    ("message", 5),
    ("message", None),
    ("context", [1]),
    ("context", "rows"),
    ("context", 0),
    ("options", 5),
    ("options", "yes"),
    ("options", [1]),
    ("approvers", {"ann": 1}),
    ("approvers", 5),
    ("approvers", iter(["ann"])),
    ("escalation", 5),
    ("escalation", ["ann"]),
    ("escalation", Escalation(approvers=["ann"])),
    ("notify", "team"),
    ("notify", 5),
    ("notify", ""),
    ("notify", [None]),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_field_of_another_kind_is_refused_by_its_name(name: str, value: Any) -> None:
    for make in (Ask, Approval, wait_for_approval):
        with pytest.raises(DefinitionError, match=f"approval: {name}="):
            make(**{name: value})


def test_when_is_a_function_or_nothing() -> None:
    wrong: Any = True
    with pytest.raises(DefinitionError, match="approval: when=True"):
        Approval(when=wrong)
    assert Approval(when=bool).ask(0) is None


@pytest.mark.parametrize("name", ["message", "context"])
def test_what_a_function_of_the_value_returns_is_looked_at_too(name: str) -> None:
    made: dict[str, Any] = {name: lambda value: value}
    with pytest.raises(DefinitionError, match=f"approval: {name}=5"):
        Approval(**made).ask(5)
