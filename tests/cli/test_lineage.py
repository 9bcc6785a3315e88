"""`flowstone lineage` and `flowstone produced`, as a user without the assets asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowstone.asset import Asset, asset
from flowstone.client import materialize_sync
from flowstone.context import Context
from flowstone.partition import DailyPartitions, MonthlyPartitions
from flowstone.registry import build_registry
from tests.cli.conftest import Cli, Ran
from tests.conftest import RuntimeFactory

# Each of them starts the command line, as a process of its own, several times.
pytestmark = pytest.mark.slow

COLUMNS = """
from flowstone import asset

@asset
def a(): ...

@asset(columns={"x": ["a.y", "a.z"]})
def b(a): ...

@asset(columns={"w": ["b.x"]})
def c(b): ...
"""


def definitions() -> list[Asset]:
    @asset(partitions=DailyPartitions("2026-01-01", "2026-01-31"))
    def day(context: Context) -> int:
        return int(context.partition.day)

    @asset
    def once() -> int:
        return 1

    @asset(partitions=MonthlyPartitions("2026-01", "2026-01"))
    def month(day: dict[Any, int], once: int) -> int:
        return sum(day.values()) * once

    return [day, once, month]


class Asked:
    """The command line of somebody who has the ledger and nothing else."""

    def __init__(self, cli: Cli, database: str) -> None:
        self.cli, self.database = cli, database

    def __call__(self, *arguments: str, **settings: str) -> Ran:
        return self.cli(
            *arguments, **{"database_url": self.database, "assets": "no.such.module"} | settings
        )

    def json(self, *arguments: str, **settings: str) -> Any:
        ran = self(*arguments, "--json", **settings)
        assert ran.code == 0, ran
        return json.loads(ran.out)


@pytest.fixture
def asked(cli: Cli, database: str, make_runtime: RuntimeFactory, tmp_path: Path) -> Asked:
    make_runtime(build_registry(definitions()))
    materialize_sync("month", partition="2026-01", upstream=True)
    return Asked(cli.inside(tmp_path), database)


def test_what_a_value_was_made_of_and_what_it_has_gone_into(asked: Asked) -> None:
    shown = asked("lineage", "month", "-p", "2026-01")
    assert shown.code == 0
    assert "month[2026-01] (made " in shown.out
    assert "day[2026-01-01 .. 2026-01-31] (31)" in shown.out
    assert "outputs: 32, assets: 2" in shown.out
    every = asked("lineage", "month", "-p", "2026-01", "--steps").out
    assert all(f"day[2026-01-{day:02d}]" in every for day in range(1, 32))
    found = asked.json("lineage", "day", "-p", "2026-01-07", "--downstream")
    assert [(one["asset"], one["partition"], one["depth"]) for one in found] == [
        ("day", "2026-01-07", 0),
        ("month", "2026-01", 1),
    ]
    assert found[1]["via"] == [found[0]["output_id"]]
    assert "was made of nothing" in asked("lineage", "once").out


def test_what_is_affected_and_how_it_stands(asked: Asked, make_runtime: RuntimeFactory) -> None:
    made_at = asked.json("produced", "month", "-p", "2026-01")["output"]["made_at"]

    def standing(*more: str) -> str:
        found = asked.json("lineage", "once", "--impact", *more)
        assert [one["asset"] for one in found] == ["once", "month"]
        return str(found[1]["standing"])

    assert standing() == "current"

    @asset(name="once")
    def changed() -> int:
        return 2

    day, _, month = definitions()
    make_runtime(build_registry([day, changed, month]))
    materialize_sync("once")
    assert standing() == "out of date"
    assert standing("--as-of", made_at) == "current"
    assert "out of date" in asked("lineage", "once", "--impact").out


def test_what_produced_a_value(asked: Asked) -> None:
    shown = asked("produced", "month", "-p", "2026-01").out
    found = asked.json("produced", "month", "-p", "2026-01")
    for fact in ("month[2026-01]", "why      missing", "attempt  1 on ", "day[2026-01-31]"):
        assert fact in shown
    assert found["output"]["sha256"] in shown
    assert found["made_by"]["run_id"][:8] in shown
    assert len(found["inputs"]) == 32
    run = found["made_by"]["run_id"]
    assert asked.json("produced", "month", "-p", "2026-01", "--run", run[:8]) == found
    # The time that is shown is one that can be given.
    made = next(line for line in shown.splitlines() if line.startswith("made  ")).split(None, 1)
    assert asked.json("produced", "month", "-p", "2026-01", "--as-of", made[1].strip()) == found


WRONG = [
    (("produced", "mont"), "'mont' was never materialized; did you mean 'month'?"),
    (("lineage", "month"), "has partitions; say which, such as 2026-01"),
    (("lineage", "once", "-p", "x"), "has no partitions; leave partition 'x' out"),
    (("lineage", "month", "-p", "2026-02"), "there is one for 2026-01"),
    (("lineage", "once", "--as-of", "2026-01-10"), "has no time zone"),
    (("lineage", "once", "--as-of", "now"), "'now' is not a time; write it as 2026-01-10T"),
    (("lineage", "once", "--as-of", "2020-01-01T00:00Z"), "the first one was made at "),
    (("lineage", "once", "--depth", "0"), "depth is 0; it counts from 1"),
    (("lineage", "once", "--downstream", "--impact"), "ask one at a time"),
    (("lineage", "once", "--impact", "--run", "x"), "not on one of its runs"),
    (("lineage", "once", "--column", "x", "--depth", "1"), "it goes with --downstream only"),
    (("produced", "once", "--run", "ffffffff"), "no run begins with 'ffffffff'"),
    (("lineage", "once", "--column", "x"), "module 'no.such.module' of FLOWSTONE_ASSETS"),
]


@pytest.mark.slow
def test_what_is_wrong_is_said_in_one_line(asked: Asked) -> None:
    for arguments, says in WRONG:
        assert says in asked(*arguments).refused(2)


def test_a_column_is_followed_through_the_definitions(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "with_columns.py").write_text(COLUMNS)
    here = cli.inside(tmp_path)
    settings = {"assets": "with_columns"}
    assert here("lineage", "c", "--column", "w", **settings).out == "b.x\n  a.y\n  a.z\n"
    down = here("lineage", "a", "--column", "y", "--downstream", "--json", **settings)
    assert json.loads(down.out) == [
        {"asset": "b", "column": "x", "depth": 1},
        {"asset": "c", "column": "w", "depth": 2},
    ]
    refused = here("lineage", "c", "--column", "v", **settings).refused(2)
    assert "asset 'c' declares no column 'v'; it has w" in refused
