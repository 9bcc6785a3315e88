"""`flowstone graph`: the assets of a selection, for people, for programs, and as a diagram."""

from __future__ import annotations

import json

import pytest

from flowstone.asset import Asset, Dep, asset
from flowstone.client import materialize_sync
from flowstone.errors import BadSelection, UnknownAsset
from flowstone.partition import DailyPartitions, MonthlyPartitions
from flowstone.registry import build_registry
from tests.cli.in_process import InProcess
from tests.conftest import RuntimeFactory


def definitions() -> list[Asset]:
    january = DailyPartitions("2026-01-01", "2026-01-31")

    @asset(partitions=january, group="raw", tags={"daily": "", "source": "api"}, owners=["ann"])
    def day() -> int:
        return 1

    @asset(group="raw", kind="table#1")
    def extra() -> int:
        return 1

    @asset(
        partitions=MonthlyPartitions("2026-01", "2026-01"),
        deps={"extra": Dep("extra", optional=True)},
    )
    def month(day: dict[str, int], extra: int | None) -> int:
        return sum(day.values()) + (extra or 0)

    @asset(tags=["daily"])
    def alone() -> None: ...

    return [day, extra, month, alone]


@pytest.fixture
def flowstone(make_runtime: RuntimeFactory) -> InProcess:
    make_runtime(build_registry(definitions()))
    return InProcess()


def test_assets_are_shown_in_the_order_of_the_graph(flowstone: InProcess) -> None:
    shown = flowstone("graph", "+month").stdout
    assert shown == (
        "day  daily, 2026-01-01 to 2026-01-31, UTC\n"
        "    group raw; tags daily, source=api; owners ann\n"
        "extra  unpartitioned\n"
        "    group raw; kind table#1\n"
        "month  monthly, 2026-01 to 2026-01, UTC\n"
        "    reads day (the windows inside), extra (unpartitioned, optional)\n"
        "assets: 3 of 4\n"
    )
    assert flowstone("graph").stdout.endswith("assets: 4\n")
    (month,) = json.loads(flowstone("graph", "month", "--json").stdout)
    assert month.pop("location").startswith(__file__)
    assert month == {
        "asset": "month",
        "description": "",
        "partitions": "monthly, 2026-01 to 2026-01, UTC",
        "reads": [
            {"asset": "day", "mapping": "the windows inside", "optional": False},
            {"asset": "extra", "mapping": "unpartitioned", "optional": True},
        ],
        "group": None,
        "kind": None,
        "tags": {},
        "owners": [],
    }
    (day,) = json.loads(flowstone("graph", "tag:source=api", "--json").stdout)
    assert (day["tags"], day["owners"]) == ({"daily": "", "source": "api"}, ["ann"])


def test_a_diagram_frames_groups_and_has_the_selected_assets_only(flowstone: InProcess) -> None:
    assert flowstone("graph", "+month and not day", "--mermaid").stdout.splitlines() == [
        "flowchart LR",
        '    subgraph g0["raw"]',
        '        a0["extra"]',
        "    end",
        '    a1["month"]',
        '    a0 -. "unpartitioned" .-> a1',
    ]


def test_a_bad_selection_is_refused(flowstone: InProcess) -> None:
    for selection, error in [
        ("tag:dialy", BadSelection),
        ("(a", BadSelection),
        ("x", UnknownAsset),
    ]:
        with pytest.raises(error):
            flowstone("graph", selection)
    assert "ask for one of them" in flowstone.refused("graph", "--json", "--mermaid")


def test_lineage_shows_the_assets_of_a_selection_only(flowstone: InProcess) -> None:
    materialize_sync("month", partition="2026-01", upstream=True)
    asked = ("lineage", "month", "-p", "2026-01")
    found = json.loads(flowstone(*asked, "--only", "extra or alone", "--json").stdout)
    assert [one["asset"] for one in found] == ["month", "extra"]
    shown = flowstone(*asked, "--only", "tag:daily").stdout
    assert "outputs: 31, assets: 1" in shown
    assert "extra" not in shown
    assert "did you mean 'daily'" in flowstone.refused(*asked, "--only", "tag:dialy")
