"""A failed run tells which assets failed and why; a step that did not run, whose fault that is."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone import Context, StaticPartitions, asset, materialize_sync
from flowstone.errors import RunFailed, UnknownAsset
from flowstone.handle import RunHandle
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.store import cancellation, repairs, runs
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import HandRun, query
from tests.store.test_dispatch import request


@pytest.fixture
def here(make_runtime: Any) -> Runtime:
    made: Runtime = make_runtime(build_registry([]))
    return made


def close(run: HandRun) -> Any:
    with run.ledger.begin() as conn:
        assert runs.close_if_done(conn, run.id, actor="test") == "failed"
        return runs.get(conn, run.id).error


def test_a_failed_run_keeps_a_summary_by_asset(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (), 3: (1,), 4: (3, 2), 5: ()})
    run.dispatch()
    run.fail(run.claim(1))
    run.fail(run.claim(2))
    run.do(5)
    assert close(run) == {
        "type": "steps_failed",
        "message": "2 of 5 assets failed: a1: ValueError: bad value, a2: ValueError: bad value; "
        "2 more were not run because of them: a3, a4",
        "assets": {
            name: {"steps": {state: 1}, "first": {"step": name, "error": error}}
            for name, state, error in [
                ("a1", "failed", "ValueError: bad value"),
                ("a2", "failed", "ValueError: bad value"),
                ("a3", "upstream_failed", "a1 failed"),
                ("a4", "upstream_failed", "a1 failed"),
            ]
        },
        "more": 0,
    }
    closed = "SELECT details FROM flowstone.audit WHERE action = 'run.failed'"
    assert query(ledger, closed) == [({"failed": 2, "succeeded": 1, "upstream_failed": 2},)]


def test_only_a_run_that_could_not_be_planned_is_refused(here: Runtime) -> None:
    run = HandRun(here.ledger, {1: ()})
    run.dispatch()
    run.fail(run.claim(1))
    close(run)
    failed = RunHandle(run.id, here).progress()
    assert (failed.state, failed.is_refused) == ("failed", False)
    unplanned = RunHandle(request(here, "nobody"), here)
    with here.ledger.begin() as conn:
        runs.fail(conn, unplanned.id, {"type": "x", "message": "no"}, actor="test")
    assert unplanned.progress().is_refused
    other = RunHandle(request(here, "nobody"), here)
    with here.ledger.begin() as conn:
        cancellation.request(conn, other.id, grace=0, reason=None, actor="test")
    assert not other.progress().is_refused


def test_a_run_that_was_cancelled_or_has_succeeded_has_no_summary(ledger: Ledger) -> None:
    good = HandRun(ledger, {1: ()})
    good.do(1)
    bad = HandRun(ledger, {2: (), 3: ()})
    bad.dispatch()
    bad.fail(bad.claim(2))
    with ledger.begin() as conn:
        assert runs.close_if_done(conn, good.id, actor="test") == "succeeded"
        cancellation.request(conn, bad.id, grace=0, reason="late", actor="me")
        found = [runs.get(conn, run.id).error for run in (good, bad)]
    assert found == [None, {"type": "cancelled", "message": "cancelled by me: late"}]


def test_a_step_that_did_not_run_knows_the_way_to_the_one_that_failed(here: Runtime) -> None:
    # 1 -> 2 -> 3 -> 4 -> 5 -> 6 -> 7, and 8 reads 2 and 5, 9 reads 1 and 7.
    dag: Any = {1: ()} | {n: (n - 1,) for n in range(2, 8)} | {8: (2, 5), 9: (1, 7), 10: ()}
    run = HandRun(here.ledger, dag)
    run.dispatch()
    run.fail(run.claim(1))
    handle = RunHandle(run.id, here)
    said = {f"a{n}": str(handle.reasons(f"a{n}")[0]) for n in (1, 2, 3, 7, 8, 9)}
    assert said == {
        "a1": "ValueError: bad value",
        "a2": "a1 failed: ValueError: bad value",
        "a3": "a2 <- a1 failed: ValueError: bad value",
        "a7": "a6 <- a5 <- (2 more) <- a2 <- a1 failed: ValueError: bad value",
        "a8": "a2 <- a1 failed: ValueError: bad value",
        "a9": "a1 failed: ValueError: bad value",
    }
    (reason,) = handle.reasons("a7")
    assert (reason.step, reason.state) == ("a7", "upstream_failed")
    assert reason.way == ("a6", "a5", "a4", "a3", "a2", "a1")


def test_the_way_of_a_step_below_two_failures_leads_to_the_first(here: Runtime) -> None:
    run = HandRun(here.ledger, {1: (), 2: (), 3: (1,), 4: (2,), 5: (3, 4)})
    run.dispatch()
    run.fail(run.claim(2))
    run.fail(run.claim(1))
    handle = RunHandle(run.id, here)
    assert handle.reasons("a5")[0].way == ("a4", "a2")
    assert handle.reasons("a3")[0].way == ("a1",)


def test_what_has_not_come_to_its_end_says_what_it_waits_for(here: Runtime) -> None:
    run = HandRun(here.ledger, {1: (), 2: (), 3: (1, 2), 4: ()})
    run.dispatch()
    run.retry(run.claim(1))
    run.do(4)
    handle = RunHandle(run.id, here)
    assert [str(r) for r in handle.reasons("a3")] == [""]
    assert [str(r) for r in handle.reasons("a1")] == ["ValueError: bad value"]
    assert handle.reasons("a4") == []
    with here.ledger.begin() as conn:
        assert repairs.overdue_retries(conn, -1)
    assert [str(r) for r in handle.reasons("a3")] == ["waits for 2 of the steps that it reads"]
    with pytest.raises(UnknownAsset, match=r"asset 'a33' is not in run .*; did you mean 'a3'"):
        handle.reasons("a33")


def test_a_step_that_killed_its_workers_is_named_by_what_did_not_run(here: Runtime) -> None:
    run = HandRun(here.ledger, {1: (), 2: (1,), 3: (2,)})
    for _ in range(3):
        run.dispatch()
        run.claim(1, lease=-1)
        with here.ledger.begin() as conn:
            repairs.expired_leases(conn)
    handle = RunHandle(run.id, here)
    said = str(handle.reasons("a3")[0])
    assert said.startswith("a2 <- a1 failed: poison: the process that ran a1 has died 3 times")
    assert "a1: poison" in close(run)["message"]


def test_a_reader_keeps_one_line_of_a_long_error(here: Runtime, make_runtime: Any) -> None:
    @asset
    def bad() -> None:
        raise ValueError("first line\n" + "x" * 9000)

    @asset
    def after(bad: None) -> None: ...

    made = make_runtime(build_registry([bad, after]))
    with pytest.raises(
        RunFailed, match="1 of 2 assets failed: bad: ValueError: first line; 1 more "
    ):
        materialize_sync(after, upstream=True)
    (error,) = query(made.ledger, "SELECT error FROM flowstone.steps WHERE asset = 'after'")[0]
    assert error["message"] == "bad failed: ValueError: first line"


def test_partitions_are_counted_and_the_first_one_is_named(make_runtime: Any) -> None:
    keys = [f"r{n}" for n in range(5)]

    @asset(partitions=StaticPartitions(keys))
    def part(context: Context) -> str:
        if context.partition in ("r1", "r3"):
            raise ValueError(f"no data for {context.partition}")
        return str(context.partition)

    @asset(partitions=StaticPartitions(keys))
    def clean(part: str) -> str:
        return part

    @asset
    def whole(clean: dict[str, str]) -> int:
        return len(clean)

    make_runtime(build_registry([part, clean, whole]))
    with pytest.raises(RunFailed) as caught:
        materialize_sync(whole, upstream=True)
    said = caught.value.message
    assert (
        "1 of 3 assets failed: part (2 of 5 steps; first: part[r1]: ValueError: no data for r1); "
        "2 more were not run because of it: clean (2 of 5 steps), whole"
    ) in said
