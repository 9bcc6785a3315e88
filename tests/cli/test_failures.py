"""What the command line says of a run that has failed."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from flowstone import Context, Retry, StaticPartitions, Timeout, asset, materialize_sync
from flowstone.client import runs_list
from flowstone.errors import RunFailed
from flowstone.registry import build_registry
from flowstone.store import losses, runs
from flowstone.store.ledger import Ledger
from flowstone.store.losses import Message
from tests.cli.conftest import Cli
from tests.store.runs_by_hand import HandRun

pytestmark = pytest.mark.slow


@pytest.fixture
def failed(make_runtime: Any) -> str:
    """The id of a run of which one step failed, and two others did not run."""

    @asset(partitions=StaticPartitions(["[eu]", "us"]))
    def part(context: Context) -> str:
        if context.partition == "[eu]":
            raise ValueError("no data\nin [bold]this[/bold] region")
        return "data"

    @asset
    def whole(part: dict[str, str]) -> int:
        return len(part)

    @asset
    def report(whole: int) -> int:
        return whole

    make_runtime(build_registry([part, whole, report]))
    with pytest.raises(RunFailed):
        materialize_sync(report, upstream=True)
    return str(runs_list(1)[0].id)


def test_status_shows_the_assets_that_failed_and_those_that_did_not_run(
    cli: Cli, database: str, failed: str
) -> None:
    shown = cli("status", failed[:8], database_url=database)
    rows = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "│ part │ 1 of 2 failed │ part[[eu]]: ValueError: no data │" in rows
    assert "│ whole │ not run │ part[[eu]] failed │" in rows
    assert "│ report │ not run │ part[[eu]] failed │" in rows
    assert shown.refused(1) == (
        f"error: run {failed} failed: 1 of 3 assets failed: part (1 of 2 steps; first: "
        "part[[eu]]: ValueError: no data); 2 more were not run because of it: whole, report"
    )


def test_status_tells_of_timeouts_and_deadlines(cli: Cli, database: str, make_runtime: Any) -> None:
    @asset(timeout=Timeout(0.2, 30), retry=Retry(max_attempts=1))
    def slow() -> None:
        time.sleep(30)

    @asset
    def one() -> int:
        time.sleep(0.5)
        return 1

    @asset
    def two(one: int) -> None: ...

    make_runtime(build_registry([slow, one, two]))
    said = {}
    for name, deadline in (("slow", None), ("two", 0.2)):
        with pytest.raises(RunFailed):
            materialize_sync(name, upstream=True, deadline=deadline)
        said[name] = cli("status", str(runs_list(1)[0].id), database_url=database)
    assert "slow: timeout: slow took longer than 0.2 s, the timeout= of the asset" in said[
        "slow"
    ].refused(1)
    assert (
        said["two"]
        .refused(1)
        .endswith("did not end within 0.2 s, its deadline; resume it, or give it more time")
    )


def test_status_tells_why_an_asset_did_not_run(cli: Cli, database: str, failed: str) -> None:
    shown = cli("status", failed, "--asset", "report", database_url=database)
    assert shown.out.splitlines() == [
        "report upstream_failed: whole <- part[[eu]] failed: ValueError: no data",
        "0 of 1 steps of report are done",
    ]
    assert shown.refused(1) == f"error: run {failed} failed"
    unknown = cli("status", failed, "--asset", "reports", database_url=database).refused(2)
    assert unknown.endswith("did you mean 'report'?")


def test_programs_get_the_summary_and_the_way(cli: Cli, database: str, failed: str) -> None:
    shown = cli("status", failed, "--asset", "report", "--json", database_url=database)
    told = json.loads(shown.out)
    assert told["error"]["assets"]["part"]["steps"] == {"failed": 1, "succeeded": 1}
    assert told["reasons"] == [
        {
            "step": "report",
            "state": "upstream_failed",
            "message": "part[[eu]] failed: ValueError: no data",
            "way": ["whole", "part[[eu]]"],
        }
    ]


def test_what_kills_its_process_is_told_with_the_evidence(
    cli: Cli, database: str, ledger: Ledger
) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    for _ in range(3):
        run.dispatch()
        run.claim(1)
        with ledger.begin() as conn:
            message = Message(run.ids[1], run.canvas[1])
            losses.lose(conn, message, worker="w", end="signal 9 (SIGKILL)")
    with ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
    died = "the process that ran a1 has died 3 times (3 times signal 9 (SIGKILL); the last one "
    advice = "look for what kills it, such as the memory that it takes"
    status = cli("status", str(run.id), database_url=database)
    said = status.refused(1)
    assert f"a1: poison: {died}" in said
    assert advice in said
    shown = " ".join(cli("show", "a1", database_url=database).out.split())
    assert died in shown
    assert advice in shown
    for attempt in (1, 2, 3):
        assert re.search(
            rf"attempt {attempt} began \S+ \S+ UTC on w, and ran 0.\d s: signal 9", shown
        )
