"""`flowstone pools`, and what plan and status say of slots."""

from __future__ import annotations

from typing import Any

import pytest

import flowstone as api
from flowstone.registry import load_registry
from flowstone.runtime import Runtime
from tests.cli import pooled_assets
from tests.store.dispatcher import Dispatcher
from tests.store.runs_by_hand import query


@pytest.fixture
def celery(make_runtime: Any) -> Dispatcher:
    made: Runtime = make_runtime(load_registry([pooled_assets.__name__]), pools={"warehouse": 1})
    return Dispatcher(made)


@pytest.mark.slow
def test_pools_are_listed_changed_and_reset(flowstone: Any, celery: Dispatcher) -> None:
    assert "there are no pools" in flowstone("pools").out
    run_id = celery.submit("loads")
    row = next(line for line in flowstone("pools").out.splitlines() if "warehouse" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][:4] == ["warehouse", "1", "1", "2"]
    assert flowstone("pools", "set", "warehouse", "2", "--reason", "at night").out == (
        "warehouse has 2 slots\n"
    )
    listed = flowstone("pools").out
    assert "set by " in listed
    assert "at night" in listed
    assert flowstone("pools", "reset", "warehouse").code == 0
    assert "set by " not in flowstone("pools").out
    assert "no pool 'warehuose'; did you mean 'warehouse'" in flowstone(
        "pools", "reset", "warehuose"
    ).refused(2)
    status = flowstone("status", str(run_id)[:8]).out
    assert "waiting: 2 steps for slots of warehouse, of which 1 of 1 are taken" in status
    (pool,) = [pool for pool in api.list_pools() if pool.name == "warehouse"]
    assert (pool.slots, pool.taken, pool.waiting) == (1, 1, 2)


@pytest.mark.parametrize("command", [("run", "loads", "--detach"), ("plan", "loads", "--save")])
def test_the_options_of_a_run_are_kept_with_it(
    flowstone: Any, celery: Dispatcher, command: tuple[str, ...]
) -> None:
    api.set_pool("nightly", 2)
    options = ("--upstream", "--pool", "nightly", "--priority", "low", "--max-in-flight", "7")
    settings = {"assets": pooled_assets.__name__, "pools": '{"warehouse": 1}'}
    done = flowstone(*command, *options, **settings)
    assert done.code == 0, done
    ask = "SELECT request->>'pool', request->>'priority', priority, max_in_flight FROM "
    if command[0] == "plan":
        assert "each step of load takes 1 of nightly, 1 of warehouse" in done.out
    kept = query(celery.runtime.ledger, f"{ask} flowstone.runs")
    assert kept == [("nightly", "low", 2, 7)]


def test_a_deadline_is_kept_with_its_run(flowstone: Any, celery: Dispatcher) -> None:
    assert flowstone("run", "loads", "--detach", "--deadline", "90").code == 0
    asked = "SELECT deadline_at - created_at = interval '90 s' FROM flowstone.runs"
    assert query(celery.runtime.ledger, asked) == [(True,)]


def test_show_tells_the_limits_of_an_asset(flowstone: Any, celery: Dispatcher) -> None:
    out = flowstone("show", "limited", assets="tests.cli.limited_assets").out
    for said in (
        "3, after up to 6, 18, 54 s",
        "interrupted after 30 s, killed after 45 s",
        "takes 2 of the pool warehouse",
        "at most 3 at once",
        "starts 10 per minute, burst 2, shared as api",
    ):
        assert said in out
    assert "2, after 30, 90 s" in flowstone("show", "loads", assets=pooled_assets.__name__).out
