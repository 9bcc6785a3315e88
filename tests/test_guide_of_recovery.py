"""docs/recovery.md says what the reconciler does: its table is that of the rules."""

from __future__ import annotations

import re

from flowstone import reconcile
from flowstone.collector import STAGED_FILE, SWEEP_SECONDS
from flowstone.rules import RULES
from flowstone.settings import Settings
from flowstone.store import cancellation, lost_messages, repairs
from flowstone.store.workers import BEAT_SECONDS, GONE_SECONDS
from tests.pages import PAGES, ROOT, section

PAGE = PAGES[ROOT / "docs" / "recovery.md"]


def test_the_table_names_each_rule_and_its_invariant_in_the_order_of_a_pass() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE)
    assert rows == [(rule.name, rule.invariant) for rule in RULES]


def test_the_numbers_are_those_of_the_code() -> None:
    assert repairs.BATCH == lost_messages.BATCH == 500
    assert cancellation.BATCH == 100
    assert repairs.DUE_BATCH == lost_messages.LOSS_BATCH == 10_000
    assert reconcile.lost_after(300) == 360
    assert reconcile.IDLE_SECONDS == 5
    assert (BEAT_SECONDS, GONE_SECONDS, SWEEP_SECONDS) == (20, 60, 600)
    named = {"reconcile_seconds": 10, "message_seconds": 30, "lease_seconds": 60}
    assert {name: Settings.model_fields[name].default for name in named} == named
    assert f"`{STAGED_FILE}`" in PAGE
    for name in set(re.findall(r"FLOWSTONE_([A-Z_]+[A-Z])", PAGE)):
        assert name.lower() in Settings.model_fields


def test_the_readme_leads_there() -> None:
    text = section("What you can do")
    assert "(docs/recovery.md)" in text
    assert f"{len(RULES)} rules" in text
