"""`flowstone plan`: what a run would do, told before it runs, and done exactly so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowstone.embedded import ValkeyServer
from flowstone.store.ledger import Ledger
from tests.cli.conftest import DEADLINE, ROOT, Cli, Ran
from tests.store.runs_by_hand import count, query

ASSETS = """
from flowstone import DailyPartitions, Dep, MonthlyPartitions, asset

@asset(partitions=DailyPartitions("2026-01-01", "2026-01-31"))
def day(context):
    return context.partition.day

@asset(partitions=MonthlyPartitions("2026-01", "2026-01"))
def month(day):
    return sum(day.values())

@asset
def extra():
    return 1

@asset(deps={"extra": Dep("extra", optional=True)})
def total(month, extra):
    return sum(month.values()) + (extra or 0)
"""
MATERIALIZE = """
import sys
from flowstone import UNPARTITIONED, materialize_sync
asset, partition = sys.argv[1:]
materialize_sync(asset, partition=partition or UNPARTITIONED, upstream=True)
"""


class Project:
    """A folder with a module of assets, and the ledger of its own."""

    def __init__(self, cli: Cli, folder: Path, **settings: str) -> None:
        self.cli = cli.inside(folder)
        self.module = folder / "my_assets.py"
        self.module.write_text(ASSETS)
        self.settings = {"assets": "my_assets", **settings}

    def __call__(self, *arguments: str) -> Ran:
        return self.cli(*arguments, **self.settings)

    def plan(self, *arguments: str) -> Any:
        ran = self("plan", *arguments, "--json")
        assert ran.code == 0, ran
        return json.loads(ran.out)

    def materialize(self, asset: str, partition: str = "") -> None:
        subprocess.run(
            [sys.executable, "-c", MATERIALIZE, asset, partition],
            cwd=self.cli.folder,
            env=self.cli.environment(**self.settings) | {"PYTHONPATH": str(ROOT)},
            timeout=DEADLINE,
            check=True,
        )

    def edit(self, old: str, new: str) -> None:
        before = self.module.read_text()
        assert old in before
        self.module.write_text(before.replace(old, new))


@pytest.fixture
def project(cli: Cli, database: str, valkey: ValkeyServer, tmp_path: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    urls = {"database_url": database, "broker_url": valkey.url, "result_url": valkey.url}
    return Project(cli, folder, **urls)


def test_a_plan_says_for_each_step_in_order_why_it_runs_and_what_it_reads_and_records_nothing(
    project: Project, ledger: Ledger
) -> None:
    plan = project.plan("total", "--upstream")
    days = [f"2026-01-{number:02}" for number in range(1, 32)]
    assert [(s["asset"], s["partition"]) for s in plan["steps"]] == [
        *(("day", day) for day in days),
        ("extra", None),
        ("month", "2026-01"),
        ("total", None),
    ]
    assert {(s["action"], s["reason"]) for s in plan["steps"]} == {("run", "missing")}
    assert plan["steps"][-2]["reads"] == [
        {
            "asset": "day",
            "mapping": "the windows inside",
            "optional": False,
            "needs": None,
            "partitions": days,
        }
    ]
    assert plan["steps"][-1]["reads"] == [
        {
            "asset": "month",
            "mapping": "all partitions",
            "optional": False,
            "needs": None,
            "partitions": ["2026-01"],
        },
        {
            "asset": "extra",
            "mapping": "unpartitioned",
            "optional": True,
            "needs": None,
            "partitions": [None],
        },
    ]
    assert (plan["run"], plan["counts"]) == (None, {"run": 34})
    assert [count(ledger, table) for table in ("runs", "steps", "audit")] == [0, 0, 0]


@pytest.mark.slow
def test_a_plan_tells_what_is_fresh_and_what_has_changed(project: Project) -> None:
    project.materialize("month", "2026-01")
    assert project.plan("month", "-p", "2026-01", "-u")["counts"] == {"skip": 32}
    forced = project.plan("month", "-p", "2026-01", "-u", "--force")
    assert {s["reason"] for s in forced["steps"]} == {"forced"}
    one = project.plan("month", "-p", "2026-01")
    assert [(s["asset"], s["action"], s["reason"]) for s in one["steps"]] == [
        ("month", "run", "forced")
    ]
    assert project.plan("month", "-p", "2026-01", "--no-force")["counts"] == {"skip": 1}

    project.edit("return sum(day.values())", "return -sum(day.values())")
    changed = project("plan", "total", "-u")
    assert changed.code == 0
    lines = [" ".join(line.split()) for line in changed.out.splitlines()]
    assert "day[2026-01-01 .. 2026-01-31] (31) skip fresh" in lines
    assert "extra run missing" in lines
    assert "month[2026-01] run code changed day (the windows inside, 31)" in lines
    assert "total run missing month (all partitions)" in lines
    assert "34 steps: 31 skip, 3 run" in lines

    each = project("plan", "total", "-u", "--steps").out
    assert "day[2026-01-17]" in each
    assert "(31)" not in each.replace("inside, 31)", "")


def test_a_missing_optional_input_is_told(project: Project) -> None:
    project.materialize("month", "2026-01")
    plan = project.plan("total")
    assert [(s["asset"], s["action"], s["reason"]) for s in plan["steps"]] == [
        ("extra", "skip", "never materialized, and optional"),
        ("total", "run", "forced"),
    ]


@pytest.mark.slow
def test_a_saved_plan_is_a_paused_run_whose_plan_does_not_change(
    project: Project, ledger: Ledger
) -> None:
    project.materialize("month", "2026-01")
    saved = project.plan("total", "--save")
    assert saved["counts"] == {"skipped": 1, "pending": 1}
    project.materialize("extra")
    project.edit("return sum(day.values())", "return 0")
    project.materialize("month", "2026-01")
    again = project.plan("--run", saved["run"])
    assert [
        {**s, "reads": [{**r, "mapping": None} for r in s["reads"]]} for s in saved["steps"]
    ] == (again["steps"])
    assert json.loads(project("status", saved["run"], "--json").out)["state"] == "paused"
    first = query(
        ledger,
        "SELECT e.upstream = min(o.step_id) FROM flowstone.edges e "
        "JOIN flowstone.steps s ON s.id = e.downstream AND s.run_id = :r "
        "JOIN flowstone.steps u ON u.asset = 'month' JOIN flowstone.outputs o ON o.step_id = u.id "
        "WHERE e.pinned GROUP BY e.upstream",
        r=saved["run"],
    )
    assert first == [(True,)], "it reads the month that was the latest when it was planned"

    started = project("start", saved["run"][:8], "--detach")
    assert (started.code, started.out.strip()) == (0, saved["run"])
    error = project("start", saved["run"]).refused(2)
    assert "is in state running; only one that is paused can be started" in error


def test_a_saved_plan_can_be_cancelled(project: Project) -> None:
    saved = project.plan("extra", "--save")["run"]
    assert "cancelled" in project("cancel", saved).out
    assert "state cancelled" in project("start", saved).refused(2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["totl"], "asset 'totl' is not defined; did you mean 'total'?"),
        (["day"], "give a partition such as 2026-01-01"),
        (["day", "-p", "2027-01-01"], "2027-01-01 lies outside 2026-01-01 to 2026-01-31"),
        (["total"], "month[2026-01], read by total, has never been materialized"),
        (["--run", "abcdef"], "no run begins with 'abcdef'"),
    ],
)
def test_what_cannot_be_planned_is_told_and_nothing_is_saved(
    project: Project, ledger: Ledger, arguments: list[str], said: str
) -> None:
    assert said in project("plan", *arguments).refused(2)
    if "--run" not in arguments:
        assert said in project("plan", *arguments, "--save").refused(2)
    assert count(ledger, "runs") == 0


@pytest.mark.parametrize("arguments", [[], ["total", "--run", "3f1c"]])
def test_either_an_asset_or_a_run_is_given(project: Project, arguments: list[str]) -> None:
    ran = project("plan", *arguments)
    assert ran.code == 2
    assert "give an asset, or --run with the id of a run" in ran.err
