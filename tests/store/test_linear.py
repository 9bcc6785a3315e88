"""The cost of a run grows with its steps, not with their square: counted in rows, not seconds."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from flowstone.expand import members
from flowstone.store.ledger import Ledger
from flowstone.store.waiting import BEHIND_OTHERS, STARTABLE
from tests.store.runs_by_hand import HandRun, query
from tests.strategies import Dag

pytestmark = pytest.mark.slow

WIDTH = 10

# What one backend has read, told by PostgreSQL's own statistics; they are written out before.
_FLUSH = text("SELECT pg_stat_force_next_flush()")
_READ = text(
    "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables "
    "WHERE schemaname = 'flowstone'"
)


def layered(depth: int) -> Dag:
    """Layers of WIDTH in which each step reads two of the layer before."""
    dag: Dag = {}
    for layer in range(depth):
        for column in range(WIDTH):
            above = [(layer - 1) * WIDTH + (column + shift) % WIDTH for shift in (0, 1)]
            dag[layer * WIDTH + column] = tuple(sorted(above)) if layer else ()
    return dag


def rows_read(ledger: Ledger) -> int:
    # The statistics of a transaction count when it has ended.
    with ledger.begin() as conn:
        conn.execute(_FLUSH)
    with ledger.begin() as conn:
        return int(conn.scalar(_READ) or 0)


def rows_a_step(ledger: Ledger, depth: int, *, analyze: bool = False) -> float:
    """Run layers to their end, and return how many rows were read for each step.

    PostgreSQL may `analyze` the tables at any time, so that it plans with their statistics.
    """
    run = HandRun(ledger, layered(depth), max_in_flight=20)
    number_of = {step_id: number for number, step_id in run.ids.items()}
    before = rows_read(ledger)
    done = 0
    while canvases := run.dispatch():
        if analyze and done in (WIDTH * depth // 5, WIDTH * depth // 2):
            with ledger.autocommit() as conn:
                conn.execute(text("ANALYZE"))
        for canvas in canvases:
            for step_id in members(canvas):
                assert run.commit(run.claim(number_of[step_id]))
                run.needs_coordinator()
                done += 1
    assert done == WIDTH * depth
    return (rows_read(ledger) - before) / done


@pytest.mark.parametrize("analyze", [False, True])
def test_ten_times_the_steps_read_no_more_rows_each(ledger: Ledger, analyze: bool) -> None:
    small = rows_a_step(ledger, 10)
    large = rows_a_step(ledger, 100, analyze=analyze)
    assert large < 1.25 * small, (small, large)


# The many that cannot start yet: they read what has not been computed.
_FILL = text(
    "INSERT INTO flowstone.steps (run_id, asset, partition, reason, queue, open_deps) "
    "SELECT :run_id, 'later', n::text, 'requested', 'assets', 1 FROM generate_series(1, :n) n"
)
_TAKE = text("""UPDATE flowstone.steps SET takes = '{"pool:p": 1}' WHERE id = :id""")


@pytest.mark.parametrize("steps", [STARTABLE, BEHIND_OTHERS])
def test_who_looks_for_what_could_start_reads_nothing_else(ledger: Ledger, steps: str) -> None:
    run = HandRun(ledger, {1: (), 2: (), 3: ()}, max_in_flight=1)
    with ledger.begin() as conn:
        conn.execute(_FILL, {"run_id": run.id, "n": 20_000})
        conn.execute(_TAKE, {"id": run.ids[3]})
    run.dispatch()
    with ledger.autocommit() as conn:
        conn.execute(text("ANALYZE"))
    sql = f"SELECT s.id FROM flowstone.runs r CROSS JOIN LATERAL ({steps}) s WHERE r.id = :run_id"
    before = rows_read(ledger)
    found = {row.id for row in query(ledger, sql, run_id=run.id)}
    assert run.ids[1] in found
    assert run.ids[2] in found
    assert (run.ids[3] in found) == (steps == STARTABLE)
    assert rows_read(ledger) - before < 20
