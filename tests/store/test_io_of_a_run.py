"""Where the outputs of a run go: by the definition, by the environment, by the run itself."""

from __future__ import annotations

from typing import Any

import pytest

import flowstone
from flowstone import materialize_sync
from flowstone.asset import asset
from flowstone.errors import BadConfig, RunFailed
from flowstone.registry import build_registry
from tests.store.runs_by_hand import query

KEPT_BY = "SELECT s.asset, o.io FROM flowstone.outputs o JOIN flowstone.steps s ON s.id = o.step_id"


@pytest.fixture
def here(make_runtime: Any, tmp_path: Any) -> Any:
    @asset(io="rows")
    def source() -> list[int]:
        return [1, 2]

    @asset
    def total(source: list[int]) -> int:
        return sum(source)

    elsewhere = {"rows": "postgresql:", "lake": str(tmp_path / "lake")}
    return make_runtime(build_registry([source, total]), io=elsewhere)


def test_an_asset_says_where_its_outputs_go_and_a_run_may_say_otherwise(here: Any) -> None:
    materialize_sync("total", upstream=True)
    assert set(query(here.ledger, KEPT_BY)) == {("source", "rows"), ("total", "default")}
    handle = materialize_sync("total", upstream=True, force=True, io={"source": "lake"})
    assert set(query(here.ledger, KEPT_BY)) == {
        ("source", "rows"),
        ("total", "default"),
        ("source", "lake"),
    }
    assert handle.result() == flowstone.get("total") == 3
    # What is there already stays where it is, and is read there.
    assert [v.output.io for v in flowstone.versions("source")] == ["lake", "rows"]
    assert flowstone.get("source", version=flowstone.versions("source")[1].id) == [1, 2]


def test_another_place_makes_nothing_stale(here: Any) -> None:
    materialize_sync("total", upstream=True)
    plan = flowstone.preview("total", upstream=True, io={"source": "lake"})
    assert [step.reason for step in plan.steps] == ["fresh", "fresh"]


def test_what_a_run_chooses_holds_for_whoever_resumes_it(here: Any) -> None:
    handle = flowstone.save_plan("source", io={"source": "lake"})
    handle.cancel()
    with here.ledger.begin() as conn:
        from uuid import uuid4  # noqa: PLC0415 - the only test that needs these

        from flowstone.store import resumption, runs  # noqa: PLC0415

        made = resumption.create(conn, uuid4(), handle.id, actor="test")
        assert runs.get(conn, made).request.io == {"source": "lake"}


@pytest.mark.parametrize(
    ("io", "message"),
    [
        ({"source": "laek"}, "asset 'source': there is no IO manager 'laek'; did you mean 'lake'"),
        ({"sorce": "lake"}, "for 'sorce', which this run does not compute; did you mean 'source'"),
    ],
)
def test_a_choice_that_there_is_not_fails_the_run_when_it_is_planned(
    here: Any, io: Any, message: str
) -> None:
    with pytest.raises(RunFailed, match=message):
        materialize_sync("total", upstream=True, io=io)
    assert query(here.ledger, "SELECT count(*) FROM flowstone.steps") == [(0,)]


def test_a_choice_of_another_type_is_refused(here: Any) -> None:
    with pytest.raises(BadConfig, match="io must be a mapping of asset -> name"):
        materialize_sync("total", io="lake")  # type: ignore[arg-type]
