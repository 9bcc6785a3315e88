"""Values in rows, in S3 and in files, on real workers."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from tests.s3 import S3Service
from tests.worker import io_assets
from tests.worker.ledger_view import LedgerView

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([io_assets.__name__])


@pytest.fixture
def settings(settings: Settings, bucket: str) -> Settings:
    io = {"lake": f"{bucket}/values", "rows": "postgresql:"}
    return settings.model_copy(update={"io": io})


@pytest.fixture
def worker_environment(
    worker_environment: dict[str, str], settings: Settings, s3: S3Service
) -> dict[str, str]:
    mine = {"FLOWSTONE_ASSETS": io_assets.__name__, "FLOWSTONE_IO": json.dumps(dict(settings.io))}
    return {**worker_environment, **mine, **s3.environment}


def test_each_value_is_where_its_asset_says_and_is_read_from_there(
    celery_setup: CeleryTestSetup, settings: Settings, view: LedgerView
) -> None:
    handle = flowstone.materialize_all("report", partition="2013-01")
    assert handle.result(timeout=60) == {"total": Decimal("6.30")}
    kept = view.rows(
        "SELECT s.asset, o.io, o.format, o.location FROM flowstone.outputs o"
        " JOIN flowstone.steps s ON s.id = o.step_id WHERE s.run_id = :r ORDER BY o.id",
        r=handle.id,
    )
    assert sorted((row.asset, row.io, row.format) for row in kept) == [
        ("price", "rows", "tagged.json"),
        ("price", "rows", "tagged.json"),
        ("price", "rows", "tagged.json"),
        ("prices", "lake", "polars.parquet"),
        ("report", "default", "tagged.json"),
    ]
    rows = {row.location for row in view.rows("SELECT location FROM flowstone.stored_values")}
    assert rows == {row.location for row in kept if row.io == "rows"}
    files = [p.name for p in Path(settings.outputs).rglob("*") if p.is_file()]
    assert files == [row.location.rpartition("/")[2] for row in kept if row.io == "default"]
    frame = flowstone.get("prices", "2013-01")
    assert isinstance(frame, pl.DataFrame)
    assert frame.height == 3
    assert flowstone.exists("prices", "2013-01")
    assert flowstone.get("price", "2013-01-02") == io_assets.Price(
        day=date(2013, 1, 2), amount=Decimal("2.10")
    )
    # Nothing has changed, so nothing is computed or stored again.
    again = flowstone.materialize_all("report", partition="2013-01")
    assert again.result(timeout=60) == {"total": Decimal("6.30")}
    assert set(view.states(again.id).values()) == {"skipped"}


def test_a_value_that_is_gone_is_computed_again(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView
) -> None:
    flowstone.materialize_all("prices", partition="2013-01").result(timeout=60)
    gone = flowstone.versions("prices", "2013-01")[0].output
    here.outputs.manager("lake").delete(gone.location)
    failed = flowstone.materialize("report", partition="2013-01")
    assert failed.wait(timeout=60).value == "failed"
    assert view.steps(failed.id)["report[2013-01]"].error["type"] == "missing_output"
    again = flowstone.materialize_all("report", partition="2013-01")
    assert again.result(timeout=60) == {"total": Decimal("6.30")}
    assert view.steps(again.id)["prices[2013-01]"].reason == "value is gone"
    assert view.states(again.id)["price[2013-01-02]"] == "skipped"


def test_a_run_may_choose_other_places_and_what_is_fresh_stays(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    flowstone.materialize_all("prices", partition="2013-01").result(timeout=60)
    handle = flowstone.materialize_all(
        "report", partition="2013-01", force=True, io={"price": "lake", "prices": "default"}
    )
    assert handle.result(timeout=60) == {"total": Decimal("6.30")}
    assert where(view, handle) == {"price": "lake", "prices": "default", "report": "default"}
    later = flowstone.materialize("report", partition="2013-01", io={"report": "rows"})
    assert later.result(timeout=60) == {"total": Decimal("6.30")}
    assert where(view, later) == {"report": "rows"}
    wrong = flowstone.materialize_all("report", partition="2013-01", io={"report": "row"})
    assert wrong.wait(timeout=60).value == "failed"
    assert "asset 'report': there is no IO manager 'row'; did you mean 'rows'?" in wrong.explain()


def where(view: LedgerView, handle: flowstone.RunHandle) -> dict[str, str]:
    """The IO manager that keeps each asset of a run."""
    kept = view.rows(
        "SELECT DISTINCT s.asset, o.io FROM flowstone.outputs o"
        " JOIN flowstone.steps s ON s.id = o.step_id WHERE s.run_id = :r",
        r=handle.id,
    )
    assert len({row.asset for row in kept}) == len(kept)
    return {row.asset: row.io for row in kept}
