"""An asset with many partitions, each made of one of another, written without running anything."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

from sqlalchemy import Connection, text

from flowstone.states import FINAL_STEP_STATES, sql_list

_RUN = text(
    """
    INSERT INTO flowstone.runs (id, driver, request, config, max_in_flight, actor, state,
        finished_at)
    VALUES (:run, 'celery', '{}', '{}', 1, 'bulk', :state,
        CASE WHEN :state = 'succeeded' THEN now() END)
    """
)
_STEPS = text(
    f"""
    INSERT INTO flowstone.steps (run_id, asset, partition, state, reason, queue, open_deps,
        finished_at, token, lease_until, retry_at, gate)
    SELECT CAST(:run AS uuid), :asset, k, :state, 'bulk', 'assets', 0,
        CASE WHEN :state IN ({sql_list(FINAL_STEP_STATES)}) THEN now() END,
        CASE WHEN :state = 'running' THEN gen_random_uuid() END,
        CASE WHEN :state = 'running' THEN now() END, CASE WHEN :state = 'retrying' THEN now() END,
        CASE WHEN :state LIKE 'waiting%' THEN 0 END
    FROM unnest(CAST(:keys AS text[])) WITH ORDINALITY AS k(k, n) ORDER BY n
    """
)
_OUTPUTS = text(
    """
    INSERT INTO flowstone.outputs (step_id, location, format, size, sha256, fingerprint, cut)
    SELECT id, 'at ' || id, 'json', 1, encode(sha256(id::text::bytea), 'hex'), :code || '.f.i',
        CAST(:cut AS text)
    FROM flowstone.steps WHERE run_id = CAST(:run AS uuid) ORDER BY id
    """
)
_LATEST = text(
    """
    INSERT INTO flowstone.latest (asset, partition, output_id)
    SELECT s.asset, s.partition, o.id FROM flowstone.steps s
    JOIN flowstone.outputs o ON o.step_id = s.id WHERE s.run_id = CAST(:run AS uuid)
    ON CONFLICT (asset, partition) DO UPDATE SET output_id = excluded.output_id, updated_at = now()
    """
)
_LINEAGE = text(
    """
    INSERT INTO flowstone.lineage (step_id, upstream_step_id, upstream_output_id, upstream_sha256)
    SELECT s.id, o.step_id, o.id, o.sha256
    FROM flowstone.steps s
    JOIN flowstone.latest l ON l.asset = :reads AND l.partition = s.partition
    JOIN flowstone.outputs o ON o.id = l.output_id
    WHERE s.run_id = CAST(:run AS uuid)
    """
)
_EDGES = text(
    """
    INSERT INTO flowstone.edges (downstream, upstream, position, pinned, optional)
    SELECT l.step_id, l.upstream_step_id, 0, true, true
    FROM flowstone.lineage l JOIN flowstone.steps s ON s.id = l.step_id
    WHERE s.run_id = CAST(:run AS uuid)
    """
)


def made(
    conn: Connection,
    asset: str,
    keys: Sequence[str],
    *,
    code: str | None = "c",
    cut: str | None = None,
    reads: str | None = None,
) -> None:
    """Have an output of each of these partitions, made of the latest ones of `reads`."""
    run = steps(conn, asset, keys, "succeeded")
    values = {"run": run, "code": code, "cut": cut}
    conn.execute(_OUTPUTS, values)
    conn.execute(_LATEST, {"run": run})
    if reads is not None:
        conn.execute(_LINEAGE, {"run": run, "reads": reads})
        conn.execute(_EDGES, {"run": run})


def steps(conn: Connection, asset: str, keys: Sequence[str], state: str) -> str:
    """Have a step of each of these partitions in one state, of a run of their own."""
    run = str(uuid4())
    is_over = state in FINAL_STEP_STATES
    conn.execute(_RUN, {"run": run, "state": "succeeded" if is_over else "running"})
    conn.execute(_STEPS, {"run": run, "asset": asset, "keys": list(keys), "state": state})
    return run
