"""After all scenarios: what the dead have left is found and goes, and the audit log is whole."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text

import flowstone
from flowstone import audit
from flowstone.runtime import Runtime
from tests.chaos.cluster import Cluster


def test_the_collector_leaves_what_was_committed_and_nothing_else(
    cluster: Cluster, here: Runtime
) -> None:
    assert cluster.pool()
    flowstone.collect()
    with here.ledger.begin() as conn:
        committed = set(conn.scalars(text("SELECT location FROM flowstone.outputs")))
    outputs = Path(here.settings.outputs)
    stored = {str(file.relative_to(outputs)) for file in outputs.rglob("*") if file.is_file()}
    assert stored == committed


def test_the_audit_log_is_whole(cluster: Cluster, here: Runtime) -> None:
    assert cluster.pool()
    assert audit.verify().findings == ()
