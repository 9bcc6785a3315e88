"""What cannot be recorded has not happened: lineage and audit fail the commit, never silently."""

from __future__ import annotations

from typing import Any

import pytest

from flowstone.asset import asset
from flowstone.client import materialize_sync
from flowstone.errors import LedgerRefused, RunFailed
from flowstone.registry import build_registry
from tests.store.runs_by_hand import query

DONE = "SELECT asset FROM flowstone.steps WHERE state = 'succeeded'"


@pytest.fixture
def here(make_runtime: Any) -> Any:
    @asset
    def source() -> int:
        return 1

    @asset
    def reader(source: int) -> int:
        return source

    return make_runtime(build_registry([source, reader]))


def break_table(ledger: Any, table: str, condition: str = "true") -> None:
    with ledger.engine.begin() as conn:
        conn.exec_driver_sql(
            f"""
            CREATE FUNCTION flowstone.broken() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF {condition} THEN RAISE EXCEPTION 'the table is broken'; END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER broken BEFORE INSERT ON flowstone.{table}
            FOR EACH ROW EXECUTE FUNCTION flowstone.broken()
            """
        )


@pytest.mark.parametrize(
    ("table", "condition"),
    [
        ("lineage", "true"),
        ("outputs", "(SELECT asset FROM flowstone.steps WHERE id = NEW.step_id) = 'reader'"),
        ("latest", "NEW.asset = 'reader'"),
        ("audit", "NEW.action = 'step.succeeded' AND NEW.details->>'asset' = 'reader'"),
    ],
)
def test_a_success_that_cannot_be_recorded_is_a_failure(
    here: Any, table: str, condition: str
) -> None:
    break_table(here.ledger, table, condition)
    with pytest.raises(RunFailed, match=r"reader: ledger_refused: .*the table is broken"):
        materialize_sync("reader", upstream=True)
    assert query(here.ledger, DONE) == [("source",)]
    assert query(here.ledger, "SELECT asset FROM flowstone.latest") == [("source",)]
    assert query(here.ledger, "SELECT count(*) FROM flowstone.outputs") == [(1,)]
    assert query(here.ledger, "SELECT count(*) FROM flowstone.lineage") == [(0,)]
    (attempt,) = query(here.ledger, "SELECT * FROM flowstone.attempts WHERE outcome = 'failed'")
    assert (attempt.error_type, attempt.number) == ("ledger_refused", 1)
    assert "RaiseException" in attempt.traceback


def test_where_not_even_the_failure_can_be_recorded_the_attempt_keeps_its_lease(
    here: Any,
) -> None:
    break_table(here.ledger, "audit", "starts_with(NEW.action, 'step.')")
    with pytest.raises(LedgerRefused, match="the table is broken"):
        materialize_sync("source")
    assert query(here.ledger, DONE) == []
    # Interrupted by this, the run was cancelled, and that needs an audit row, too.
    assert query(here.ledger, "SELECT state FROM flowstone.steps") == [("running",)]
