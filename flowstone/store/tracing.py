"""Lineage as it is written: which outputs a step has read, in the transaction that commits it."""

from __future__ import annotations

from flowstone.store.tables import SCHEMA


def trace(committed: str) -> str:
    """Return the INSERT of the lineage of the steps whose `id` a common table expression has.

    What an optional dependency does not have leaves no trace.
    """
    return f"""
        INSERT INTO {SCHEMA}.lineage
            (step_id, upstream_step_id, upstream_output_id, upstream_sha256)
        SELECT e.downstream, e.upstream, o.id, o.sha256
        FROM {committed}
        JOIN {SCHEMA}.edges e ON e.downstream = {committed}.id
        JOIN {SCHEMA}.steps s ON s.id = e.upstream
        JOIN {SCHEMA}.outputs o ON o.step_id = coalesce(s.reuses, s.id)
    """
