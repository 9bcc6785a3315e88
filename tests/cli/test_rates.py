"""`flowstone rates`, and what status says of a run that waits for its turn."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone.registry import load_registry
from flowstone.runtime import Runtime
from tests.cli import rated_assets
from tests.store.test_rates import Worker


@pytest.fixture
def worker(make_runtime: Any) -> Worker:
    made: Runtime = make_runtime(load_registry([rated_assets.__name__]))
    return Worker(made)


def row(out: str) -> list[str]:
    (line,) = [line for line in out.splitlines() if "per hour" in line]
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.mark.slow
def test_rates_are_listed_with_their_next_start_and_what_waits(
    flowstone: Any, worker: Worker
) -> None:
    assert "there are no rates" in flowstone("rates").out
    run_id = worker.submit("calls")
    assert row(flowstone("rates").out) == ["api", "10 per hour", "now", "3"]
    worker.start(worker.messages.pop())
    key, rate, start, waiting = row(flowstone("rates").out)
    assert (key, rate, waiting) == ("api", "10 per hour", "2")
    assert 200 < float(start.removeprefix("in ").removesuffix(" s")) <= 360
    status = flowstone("status", str(run_id)[:8]).out
    assert "waiting: 2 steps for rate:api; see `flowstone rates`" in status
