"""docs/notifications.md says what happens in time, and who is told of it: it is so."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from pydantic import SecretStr

from flowstone import notifiers, notify
from flowstone.approval import ON_TIMEOUT
from flowstone.registry import build_registry
from flowstone.rules import LEFT_BEHIND
from flowstone.settings import load_settings
from flowstone.signalling import OnSignalTimeout
from flowstone.store import gate_clock, notifications
from flowstone.store.gate_tables import EVENTS
from flowstone.store.ledger import Ledger
from tests.hook import Hook
from tests.pages import PAGES, ROOT, block, section
from tests.store.gates_by_hand import ask_for, row, shift
from tests.store.runs_by_hand import query

PAGE = PAGES[ROOT / "docs" / "notifications.md"]
SECRET = "s" * 32


def test_the_example_ends_as_the_guide_says(ledger: Ledger) -> None:
    named: dict[str, Any] = {"__name__": "guide"}
    exec(block("python", "Timeouts and notifications"), named)  # noqa: S102 - the page is ours
    approval = named["report"].approval
    gate = ask_for(ledger, approval.ask({"rows": 3}))

    def after(hours: float) -> Any:
        shift(ledger, gate, 3600 * hours)
        ledger.in_turn(gate_clock.look)
        return row(ledger, gate)

    assert after(1.01).approvers == ["ann", "bob"]
    assert after(3).approvers == ["role:heads"]
    assert after(23).state == "open"
    ended = after(1)
    assert (ended.state, ended.closed_by) == ("rejected", "timeout")
    told = query(ledger, "SELECT event FROM flowstone.notifications ORDER BY id")
    events = ["requested", "reminder", "escalated", "reminder", "expired"]
    assert [event for (event,) in told] == events


def test_the_tables_name_each_end_and_each_event() -> None:
    ends = re.findall(r"^\|[^|]*\| `\"(\w+)\"`", section("Timeouts"), re.MULTILINE)
    assert sorted(ends) == sorted([*ON_TIMEOUT, *get_args(OnSignalTimeout)])
    assert '`"reject"`, the default' in section("Timeouts")
    events = re.findall(r"^\| `(\w+)` \|", section("Who is told"), re.MULTILINE)
    assert events == list(EVENTS)
    assert "gate_due" in {rule.name for rule in LEFT_BEHIND}


def test_the_setting_of_the_guide_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    (value,) = re.findall(r"FLOWSTONE_NOTIFY='(.+)'", block("console", "Who is told"))
    monkeypatch.setenv("FLOWSTONE_NOTIFY", value)
    assert list(load_settings().notify) == ["team", "ann", "tickets"]


def test_a_webhook_gets_what_the_guide_shows_and_can_check_it(
    ledger: Ledger, make_runtime: Any
) -> None:
    named: dict[str, Any] = {}
    exec(block("python", "Webhooks"), named)  # noqa: S102 - the page is ours
    is_true = named["is_from_flowstone"]
    ask_for(ledger)
    with Hook() as hook:
        addresses = {"team": SecretStr(hook.url)}
        here = make_runtime(build_registry([]), notify=addresses, shared_secret=SecretStr(SECRET))
        assert notify.deliver(here) == 1
    (got,) = hook.got
    assert list(got.said) == list(json.loads(block("json", "Webhooks")))
    header = got.headers["Flowstone-Signature"]
    assert is_true(SECRET, header, got.body)
    assert not is_true("o" * 32, header, got.body)
    assert not is_true(SECRET, header, got.body + b" ")
    late = re.sub(r"t=\d+", "t=1700000000", header)
    assert not is_true(SECRET, late, got.body)
    assert f"`{notifiers.ID_HEADER}`" in PAGE


def test_the_numbers_are_those_of_the_code() -> None:
    assert (notify.FIRST_DELAY, notify.MAX_DELAY, notify.MAX_TRIES) == (30, 3600, 12)
    delays = [notify.delay_after(tries) or 0 for tries in range(1, notify.MAX_TRIES)]
    assert 4.5 < sum(delays) / 3600 < 5.5
    assert notify.LINK_SECONDS == 7 * 86400
    assert notifiers.TIMEOUT_SECONDS == 10
    assert (notifications.TRIED_OFTEN, notifications.GIVEN_UP_HOURS) == (3, 24)
    for name in set(re.findall(r"FLOWSTONE_([A-Z_]+[A-Z])", PAGE)):
        assert name.lower() in type(load_settings()).model_fields
