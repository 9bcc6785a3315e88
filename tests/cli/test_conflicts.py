"""`flowstone run --on-conflict` and `--idempotency-key`, on a real ledger."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone.coordinator import coordinate
from flowstone.registry import load_registry
from flowstone.store.ledger import Ledger
from tests.cli import small_assets
from tests.store.runs_by_hand import query

pytestmark = pytest.mark.slow


def test_the_same_key_prints_the_same_run(flowstone: Any, ledger: Ledger) -> None:
    submit = ("run", "total", "--detach", "--idempotency-key", "today")
    first, again = flowstone(*submit), flowstone(*submit)
    assert (first.code, again.code, first.out) == (0, 0, again.out)
    error = flowstone(*submit, "--upstream").refused(2)
    assert f"the idempotency key 'today' belongs to run {first.out.strip()}" in error
    assert query(ledger, "SELECT count(*) FROM flowstone.runs") == [(1,)]


def test_a_run_that_refuses_a_conflict_is_bad_input(
    flowstone: Any, ledger: Ledger, make_runtime: Any
) -> None:
    detached = flowstone("run", "total", "--upstream", "--detach")
    refusing = flowstone("run", "total", "--upstream", "--on-conflict", "refuse", "--detach")
    here = make_runtime(load_registry([small_assets.__name__]))
    for (run_id,) in query(ledger, "SELECT id FROM flowstone.runs ORDER BY created_at"):
        coordinate(here, run_id, lambda *_: None)
    error = flowstone("status", refusing.out.strip()).refused(2)
    assert f"is being computed by run {detached.out.strip()}" in error
    assert "or submit with on_conflict 'join' or 'queue'" in error


def test_an_unknown_policy_is_bad_input(flowstone: Any) -> None:
    done = flowstone("run", "total", "--on-conflict", "wait")
    assert done.code == 2
    assert "'join', 'queue', 'refuse'" in done.err
