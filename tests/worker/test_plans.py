"""Plans on a real worker: what is cut off, what is optional, and a plan that was saved."""

from __future__ import annotations

from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState
from tests.worker.ledger_view import LedgerView


def test_a_run_is_cut_off_where_its_source_comes_out_the_same(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    first = flowstone.materialize_all("after_feeds")
    assert first.result(timeout=60) == 17
    again = flowstone.materialize_all("after_feeds")
    assert again.result(timeout=60) == 17
    assert view.states(again.id) == {
        "feed": "succeeded",
        "feed_a": "skipped",
        "feed_b": "skipped",
        "feeds": "skipped",
        "after_feeds": "skipped",
    }
    assert view.actions(again.id)["step.skipped"] == 4
    forced = flowstone.materialize_all("after_feeds", force=True)
    assert forced.wait(60) == RunState.SUCCEEDED
    assert set(view.states(forced.id).values()) == {"succeeded"}


def test_a_run_of_which_all_is_fresh_ends_at_once(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    assert flowstone.materialize_all("bottom").wait(60) == RunState.SUCCEEDED
    again = flowstone.materialize_all("bottom")
    assert again.result(timeout=60) == [2, 3]
    assert set(view.states(again.id).values()) == {"skipped"}
    assert view.attempts(again.id, "bottom") == []
    assert [line.reason for line in again.plan()] == ["fresh"] * 4


def test_what_is_optional_and_fails_does_not_stop_what_reads_it(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    handle = flowstone.materialize_all("after_all_the_same")
    assert handle.wait(60) == RunState.FAILED
    assert view.states(handle.id) == {
        "broken": "failed",
        "untouched": "succeeded",
        "after_broken": "upstream_failed",
        "in_spite": "succeeded",
        "joins_in_spite": "succeeded",
        "after_all_the_same": "succeeded",
    }
    # The run as a whole failed, so its values are read as the latest ones.
    again = flowstone.materialize("after_all_the_same", force=False)
    assert again.result(timeout=60) == len("in spite of None") + 2


def test_a_saved_plan_runs_as_it_was_planned(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    assert flowstone.materialize_all("left").wait(60) == RunState.SUCCEEDED
    saved = flowstone.save_plan("left")
    planned = [(step.asset, step.partition, step.reason, step.reads) for step in saved.plan()]
    assert saved.status() == RunState.PAUSED
    # There is a newer `top` when it is started, but the plan has named the one before.
    assert flowstone.materialize("top").wait(60) == RunState.SUCCEEDED
    assert saved.start().result(timeout=60) == 2
    assert [(s.asset, s.partition, s.reason, s.reads) for s in saved.plan()] == planned
    read = view.rows(
        "SELECT l.upstream_step_id FROM flowstone.lineage l "
        "JOIN flowstone.steps s ON s.id = l.step_id WHERE s.run_id = :r",
        r=saved.id,
    )
    oldest = view.rows("SELECT min(id) AS id FROM flowstone.steps WHERE asset = 'top'")
    assert [row.upstream_step_id for row in read] == [oldest[0].id]
