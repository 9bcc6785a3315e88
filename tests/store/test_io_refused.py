"""What a run cannot choose: places that are no names, and the memory of a worker."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone import submission
from flowstone.asset import asset
from flowstone.client import materialize_sync, save_plan
from flowstone.errors import BadConfig, KeyReused
from flowstone.handle import RunHandle
from flowstone.partition import UNPARTITIONED
from flowstone.planning import plan_run
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import query


@pytest.fixture
def here(make_runtime: RuntimeFactory) -> Runtime:
    @asset
    def total() -> int:
        return 1

    places = {"lake": "memory://lake-of-refusals", "rows": "postgresql:"}
    return make_runtime(build_registry([total]), io=places)


@pytest.mark.parametrize(
    "io", [{"total": ""}, {"": "rows"}, {"total": "a/b"}, {"a\0": "rows"}, {"total": "\0"}]
)
def test_what_is_no_name_is_refused_before_it_is_recorded(here: Runtime, io: Any) -> None:
    with pytest.raises(BadConfig, match="which is no name of an asset or of an IO manager"):
        materialize_sync("total", io=io)
    assert query(here.ledger, "SELECT count(*) FROM flowstone.runs") == [(0,)]


def test_the_choice_is_a_part_of_the_request(here: Runtime) -> None:
    first = materialize_sync("total", io={"total": "rows"}, idempotency_key="one")
    again = materialize_sync("total", io={"total": "rows"}, idempotency_key="one")
    assert again.id == first.id
    with pytest.raises(KeyReused):
        materialize_sync("total", idempotency_key="one")


def test_workers_keep_nothing_in_the_memory_of_one_of_them(here: Runtime) -> None:
    assert materialize_sync("total", io={"total": "lake"}).result() == 1
    request = submission.request(
        "total", UNPARTITIONED, upstream=False, force=True, io={"total": "lake"}
    )
    run_id, _ = submission.record(here, request, None, None, driver="celery", key=None)
    plan_run(here, run_id)
    said = "asset 'total': the IO manager 'lake' keeps outputs in the memory of one process"
    assert said in RunHandle(run_id, here).explain()
    with pytest.raises(BadConfig, match=said):
        save_plan("total", io={"total": "lake"})
