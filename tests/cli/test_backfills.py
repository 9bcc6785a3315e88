"""`flowstone backfill` and `flowstone backfills`: what people see, and do."""

from __future__ import annotations

import json
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest

from flowstone import AtLeast, Dep, Ratio, asset, runtime
from flowstone.asset import Asset
from flowstone.cli import app
from flowstone.errors import RunRefused
from flowstone.registry import build_registry, load_registry
from tests.cli.in_process import InProcess
from tests.conftest import RuntimeFactory
from tests.store import backfill_assets
from tests.store.backfill_assets import BROKEN
from tests.store.local_worker import LocalWorker, stand_in


@pytest.fixture
def flowstone() -> InProcess:
    return InProcess()


@pytest.fixture
def local(make_runtime: RuntimeFactory, monkeypatch: pytest.MonkeyPatch) -> LocalWorker:
    """A worker that begins when a run is submitted, and works when the test says so."""
    BROKEN.clear()
    here = make_runtime(load_registry([backfill_assets.__name__]))
    runtime.use(here)
    made = LocalWorker(here)
    stand_in(monkeypatch, made)
    return made


@pytest.fixture
def busy(local: LocalWorker, monkeypatch: pytest.MonkeyPatch) -> LocalWorker:
    """The same, which works at once."""
    stand_in(monkeypatch, local, busy=True)
    return local


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_backfill_is_shown_to_its_end(flowstone: InProcess, busy: LocalWorker) -> None:
    shown = flowstone("backfill", "+monthly_report", "-p", "2013-01..2013-02")
    assert shown.exit_code == 0
    assert "backfill 1 succeeded, 61 of 61 steps" in shown.stdout
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    again = flowstone("backfill", "+monthly_report", "-p", "2013-01", "-p", "2013-03")
    assert "64 of 64 steps, 32 were done before" in words(again.stdout)


def test_what_has_failed_is_told_with_the_way_to_do_it_again(
    flowstone: InProcess, busy: LocalWorker
) -> None:
    BROKEN.add(date(2013, 2, 5))
    said = flowstone.refused("backfill", "+monthly_report", "-p", "2013-02")
    assert "raw[2013-02-05]" in said
    assert said.endswith("`flowstone backfills retry 1` does the rest again")
    assert "1 failed" in words(flowstone("backfills", "show", "1").stdout)
    BROKEN.clear()
    assert flowstone("backfills", "retry", "1").stdout.startswith("backfill 1 goes on as run ")
    assert flowstone("backfills", "watch", "1").exit_code == 0


def test_people_halt_it_let_it_go_on_and_end_it(flowstone: InProcess, local: LocalWorker) -> None:
    assert flowstone("backfills", "list").stdout.startswith("there is no backfill")
    begun = flowstone("backfill", "raw", "-p", "2013-01", "--order", "newest", "--detach")
    assert begun.stdout == "1\n"
    assert local.messages[0].partition == "d:2013-01-31"
    paused = flowstone("backfills", "pause", "1", "--reason", "the source is moved")
    assert paused.stdout == "backfill 1 is paused; 0 steps run to their end\n"
    assert "paused: the source is moved" in words(flowstone("backfills", "show", "1").stdout)
    assert "is paused: the source is moved" in flowstone.refused("backfills", "watch", "1")
    (listed,) = json.loads(flowstone("backfills", "list", "--json").stdout)
    assert (listed["what"], listed["state"], listed["total"]) == ("raw, 2013-01", "paused", 31)
    assert flowstone("backfills", "resume", "1").stdout == "backfill 1 goes on\n"
    assert "raw, 2013-01" in flowstone("backfills", "list").stdout
    ended = flowstone("backfills", "cancel", "1")
    assert ended.stdout == "backfill 1: 31 steps will not start; it is cancelled\n"


def test_a_preview_is_the_plan_and_nothing_is_recorded(
    flowstone: InProcess, local: LocalWorker
) -> None:
    shown = words(flowstone("backfill", "+monthly_report", "-p", "2013-02", "--preview").stdout)
    assert "raw[2013-02-01 .. 2013-02-28] run missing (28)" in shown
    assert shown.endswith("29 steps: 29 run")
    assert flowstone("backfills", "list").stdout.startswith("there is no backfill")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["backfill", "+(raw"], "in '+(raw'"),
        (["backfill", "raw", "--hours", "22-6"], "write them as 22:00-06:00"),
        (["backfill", "raw", "--hours", "22:00-06:00", "--zone", "Mars"], "'Mars' is not an IANA"),
        (["backfill", "raw", "--stop-ratio", "20"], "stop_ratio is 20"),
        (["backfills", "show", "7"], "there is no backfill 7"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    flowstone: InProcess, local: LocalWorker, arguments: list[str], said: str
) -> None:
    assert said in flowstone.refused(*arguments)
    assert not local.messages


def test_plans_and_runs_take_selections_too(flowstone: InProcess, busy: LocalWorker) -> None:
    planned = words(flowstone("plan", "+monthly_report", "-p", "2013-02").stdout)
    assert planned.endswith("29 steps: 29 run")
    done = flowstone("run", "+monthly_report", "-p", "2013-02")
    assert done.exit_code == 0
    assert "29 of 29 steps" in done.stdout
    downwards = words(flowstone("plan", "raw+1", "-p", "2013-02-03", "--force").stdout)
    assert "raw[2013-02-03]" in downwards
    assert downwards.endswith("2 steps: 2 run")
    nothing = flowstone.refused("plan", "tag:daily", "-p", "2013-02")
    assert "tag:daily" in nothing


def test_any_run_is_paused_and_started_again(flowstone: InProcess, local: LocalWorker) -> None:
    handle = local.begin("monthly_report", partition="2013-01")
    short = str(handle.id)[:8]
    said = flowstone("pause", short, "--reason", "the source is moved").stdout
    assert said == f"run {handle.id} is paused; 0 steps run to their end\n"
    local.messages.clear()
    assert flowstone("start", short, "--detach").stdout == f"{handle.id}\n"
    assert len(local.messages) == 32
    drained = flowstone("cancel", short, "--drain").stdout
    assert drained == f"run {handle.id} is cancelled; 32 steps will not run\n"


def test_json_tells_what_was_begun_and_is_refused_where_there_is_none(
    flowstone: InProcess, local: LocalWorker
) -> None:
    refused = flowstone("backfill", "raw", "-p", "2013-01", "--json")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--json goes with --preview or --detach" in words(refused.stderr)
    assert flowstone("backfills", "list").stdout.startswith("there is no backfill")
    made = json.loads(flowstone("backfill", "raw", "-p", "2013-01", "--json", "--detach").stdout)
    assert made["id"] == 1
    assert UUID(made["run"])


def test_a_zone_without_hours_is_refused(flowstone: InProcess, local: LocalWorker) -> None:
    refused = flowstone("backfill", "raw", "--zone", "Europe/Berlin")
    assert refused.exit_code == 2
    assert "--zone is that of --hours" in words(refused.stderr)


def test_of_a_refused_one_there_is_no_table(flowstone: InProcess, busy: LocalWorker) -> None:
    with pytest.raises(RunRefused, match="has never been materialized"):
        flowstone("backfill", "monthly_report", "-p", "2013-01")
    shown = flowstone.runner.invoke(app, ["backfill", "monthly_report", "-p", "2013-01"])
    assert [line.split(",")[0] for line in shown.stdout.splitlines()] == ["backfill 2"]


def report(**options: Any) -> Asset:
    @asset(partitions=backfill_assets.MONTHS, deps={"raw": Dep("raw", **options)})
    def patient(raw: dict[date, int | None]) -> int:
        return len(raw)

    return patient


def test_what_it_waits_for_is_told(
    flowstone: InProcess, make_runtime: RuntimeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = report(grace=timedelta(days=365 * 100))
    here = make_runtime(build_registry([backfill_assets.raw, patient]))
    stand_in(monkeypatch, LocalWorker(here))
    assert flowstone("backfill", "patient", "-p", "2013-02", "--detach").stdout == "1\n"
    said = "waits for 28 partitions, until 2113-02-05 00:00 UTC"
    assert said in words(flowstone("backfills", "show", "1").stdout)
    told = json.loads(flowstone("backfills", "show", "1", "--json").stdout)
    assert (told["awaits"], told["awaits_until"][:10]) == (28, "2113-02-05")
    flowstone("backfills", "cancel", "1")
    assert "waits for" not in words(flowstone("backfills", "show", "1").stdout)


@pytest.mark.parametrize(
    ("options", "said", "optional"),
    [
        ({"needs": AtLeast(3)}, "needs at least 3)", False),
        ({"needs": Ratio(0.9)}, "needs 90%)", False),
        ({"optional": True}, "raw optional (", True),
    ],
)
def test_a_plan_tells_how_much_is_enough(
    flowstone: InProcess,
    make_runtime: RuntimeFactory,
    options: dict[str, Any],
    said: str,
    optional: bool,
) -> None:
    make_runtime(build_registry([backfill_assets.raw, report(**options)]))
    assert said in words(flowstone("plan", "patient", "-p", "2013-02", "-u").stdout)
    planned = json.loads(flowstone("plan", "patient", "-p", "2013-02", "-u", "--json").stdout)
    (read,) = planned["steps"][-1]["reads"]
    assert read["optional"] is optional
