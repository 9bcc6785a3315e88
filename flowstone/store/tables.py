"""The tables of the ledger. The migrations end exactly here; a test compares the two."""

from __future__ import annotations

from flowstone.store.backfill_tables import backfills, dynamic_keys
from flowstone.store.gate_tables import early_signals, gates, notifications, votes
from flowstone.store.limit_tables import pools, rates, repairs, unattended, watch, workers
from flowstone.store.record_tables import (
    FUNCTIONS_AND_TRIGGERS,
    audit,
    audit_seals,
    audit_unsealed,
    check_results,
    latest,
    lineage,
    outputs,
    quarantine,
    rollbacks,
    stored_values,
)
from flowstone.store.run_tables import SINGLE_FLIGHT, attempts, edges, runs, steps
from flowstone.store.schema import SCHEMA, metadata

__all__ = [
    "FUNCTIONS_AND_TRIGGERS",
    "SCHEMA",
    "SINGLE_FLIGHT",
    "attempts",
    "audit",
    "audit_seals",
    "audit_unsealed",
    "backfills",
    "check_results",
    "dynamic_keys",
    "early_signals",
    "edges",
    "gates",
    "latest",
    "lineage",
    "metadata",
    "notifications",
    "outputs",
    "pools",
    "quarantine",
    "rates",
    "repairs",
    "rollbacks",
    "runs",
    "steps",
    "stored_values",
    "unattended",
    "votes",
    "watch",
    "workers",
]
