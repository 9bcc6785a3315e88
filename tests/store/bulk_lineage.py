"""Many committed steps at once, with what each has read: for questions about large histories."""

from __future__ import annotations

from uuid import UUID, uuid4

from sqlalchemy import text

from flowstone.store.ledger import Ledger
from tests.strategies import Dag

_STEPS = text(
    """
    INSERT INTO flowstone.steps (run_id, asset, partition, state, reason, queue, open_deps,
        finished_at, attempt)
    SELECT CAST(:run AS uuid), 'a' || n, '-', 'succeeded', 'bulk', 'assets', 0, now(), 1
    FROM unnest(CAST(:numbers AS int[])) AS n ORDER BY n
    RETURNING asset, id
    """
)
_ATTEMPTS = text(
    """
    INSERT INTO flowstone.attempts (step_id, number, token, worker, outcome, finished_at)
    SELECT id, 1, gen_random_uuid(), 'w', 'succeeded', now() FROM flowstone.steps
    WHERE run_id::text = :run
    """
)
_OUTPUTS = text(
    """
    INSERT INTO flowstone.outputs (step_id, location, format, size, sha256)
    SELECT id, 'at ' || id, 'json', 1, encode(sha256(id::text::bytea), 'hex') FROM flowstone.steps
    WHERE run_id::text = :run ORDER BY id
    """
)
_LINEAGE = text(
    """
    INSERT INTO flowstone.lineage (step_id, upstream_step_id, upstream_output_id, upstream_sha256)
    SELECT e.reader, o.step_id, o.id, o.sha256
    FROM unnest(CAST(:readers AS bigint[]), CAST(:reads AS bigint[])) AS e(reader, reads)
    JOIN flowstone.outputs o ON o.step_id = e.reads
    """
)
_LATEST = text(
    """
    INSERT INTO flowstone.latest (asset, partition, output_id)
    SELECT s.asset, s.partition, o.id FROM flowstone.steps s
    JOIN flowstone.outputs o ON o.step_id = s.id WHERE s.run_id::text = :run
    ON CONFLICT (asset, partition) DO UPDATE SET output_id = excluded.output_id, updated_at = now()
    """
)
_RUN = text(
    """
    INSERT INTO flowstone.runs (id, driver, request, config, max_in_flight, actor)
    VALUES (:run, 'celery', '{}', '{}', 1, 'bulk')
    """
)


def commit_all(ledger: Ledger, dag: Dag) -> UUID:
    """Have a run of which every step has succeeded; step n is of the asset `an`."""
    run = uuid4()
    with ledger.begin() as conn:
        conn.execute(_RUN, {"run": run})
        made = conn.execute(_STEPS, {"run": run, "numbers": list(dag)})
        ids = {row.asset: row.id for row in made}
        for statement in (_ATTEMPTS, _OUTPUTS, _LATEST):
            conn.execute(statement, {"run": str(run)})
        edges = [(ids[f"a{step}"], ids[f"a{up}"]) for step, ups in dag.items() for up in ups]
        readers, reads = [reader for reader, _ in edges], [read for _, read in edges]
        conn.execute(_LINEAGE, {"readers": readers, "reads": reads})
    return run


def ladder(depth: int) -> Dag:
    """Levels of two, each of which reads both of the level before: 2 ** depth ways to the top."""
    return {
        2 * level + side: tuple(2 * (level - 1) + other for other in (0, 1)) if level else ()
        for level in range(depth + 1)
        for side in (0, 1)
    }
