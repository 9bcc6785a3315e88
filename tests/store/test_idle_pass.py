"""A pass of the reconciler over a ledger in which all is well is cheap: counted, not timed."""

from __future__ import annotations

import pytest
from sqlalchemy import event, text

from flowstone.reconcile import backlog, reconcile
from flowstone.registry import build_registry
from flowstone.store import workers
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import HandRun
from tests.store.test_linear import rows_read
from tests.store.test_lost_messages import Told
from tests.store.test_repairs import age
from tests.worker.ledger_view import LedgerView

_PAST = text(
    """
    WITH ended AS (
        INSERT INTO flowstone.runs (id, state, driver, request, config, max_in_flight, actor,
            finished_at, created_at)
        SELECT gen_random_uuid(), 'succeeded', 'celery', '{}', '{}', 100, 'test', now(),
            now() - interval '1 day'
        FROM generate_series(1, 2000) RETURNING id
    ), done AS (
        INSERT INTO flowstone.steps (run_id, asset, partition, state, reason, queue, open_deps,
            attempt, canvas, queued_at, started_at, finished_at)
        SELECT id, 'old', n::text, 'succeeded', 'requested', 'assets', 0, 1, gen_random_uuid(),
            now() - interval '1 day', now() - interval '1 day', now()
        FROM ended CROSS JOIN generate_series(1, 5) n RETURNING id
    )
    INSERT INTO flowstone.attempts (step_id, number, token, worker, outcome, finished_at)
    SELECT id, 1, gen_random_uuid(), 'w', 'succeeded', now() FROM done
    """
)

_SCANNED = text(
    "SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'flowstone' AND seq_scan > 0"
)


@pytest.mark.parametrize("analyze", [False, True])
def test_an_idle_pass_reads_next_to_nothing(
    make_runtime: RuntimeFactory, ledger: Ledger, analyze: bool
) -> None:
    here = make_runtime(build_registry([]))
    told = Told()
    run = HandRun(ledger, {1: (), 2: (1,), 3: ()})
    run.dispatch()
    with ledger.begin() as conn:
        workers.report(conn, "w", ["assets"], up=0)
        conn.execute(_PAST)
    if analyze:
        with ledger.autocommit() as conn:
            conn.execute(text("ANALYZE"))
    run.claim(1)
    reconcile(here, lambda *_: None, broker=told)

    statements: list[str] = []
    event.listen(
        here.ledger.engine, "before_cursor_execute", lambda *args: statements.append(args[2])
    )
    before = rows_read(ledger)
    counts = reconcile(here, lambda *_: None, broker=told)
    read = rows_read(here.ledger) - before
    assert set(counts.values()) == {0}
    assert len(statements) <= 37
    assert read < 100
    with ledger.begin() as conn:
        scanned = conn.scalars(_SCANNED).all()
    # Of the small ones it may read all.
    assert not {"runs", "steps", "edges", "attempts", "audit"}.intersection(scanned)


def test_a_look_changes_nothing(make_runtime: RuntimeFactory, ledger: Ledger) -> None:
    here = make_runtime(build_registry([]))
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    run.claim(1)
    age(ledger, 1000)
    before = LedgerView(ledger).snapshot()
    assert backlog(here)["lease_expired"] == 1
    assert LedgerView(ledger).snapshot() == before
