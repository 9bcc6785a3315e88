"""Random graphs under random faults: all runs come to their right end, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text

from flowstone.runtime import Runtime
from tests.chaos.cluster import Cluster
from tests.chaos.director import Director, Played
from tests.chaos.invariants import broken
from tests.chaos.report import Seen
from tests.chaos.world import scenario
from tests.worker.waiting import wait_until


def test_nothing_is_lost(cluster: Cluster, here: Runtime, seen: list[Seen], seed: int) -> None:
    played = Director(cluster, scenario(seed)).play()
    found = broken(here.settings.database, Path(here.settings.outputs), played)
    assert not found, f"seed {seed}: make test-chaos SEED={seed}\n" + "\n".join(found)
    wait_until(lambda: len(cluster.pool()) == 4, "all processes of both workers are there")
    seen.append(_seen(here, played))


def _seen(here: Runtime, played: Played) -> Seen:
    ids = [handle.id for handle in [*played.handles, *played.cancelled]]
    query = """
        SELECT count(DISTINCT s.id) AS steps, count(a.number) AS attempts,
            count(*) FILTER (WHERE a.outcome = 'lost') AS lost
        FROM flowstone.steps s LEFT JOIN flowstone.attempts a ON a.step_id = s.id
        WHERE s.run_id = ANY(:runs)"""
    with here.ledger.begin() as conn:
        row = conn.execute(text(query), {"runs": ids}).one()
    return Seen(
        played.scenario.seed,
        played.faults,
        len(ids),
        row.steps,
        row.attempts,
        row.lost,
        played.recovered,
    )
