"""What docs/limits.md says of rates."""

from __future__ import annotations

from typing import Any

from flowstone import materialize_sync
from flowstone.registry import build_registry
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.pages import block
from tests.rate_law import assert_kept
from tests.store.runs_by_hand import query

STARTS = """
    SELECT s.takes, extract(epoch FROM a.started_at)::float8 AS at
    FROM flowstone.attempts a JOIN flowstone.steps s ON s.id = a.step_id
"""


def test_the_example_of_rates_starts_as_often_as_it_says(
    make_runtime: RuntimeFactory, ledger: Ledger
) -> None:
    named: dict[str, Any] = {"__name__": "guide"}
    exec(block("python", "Rates"), named)  # noqa: S102 - the page is ours
    make_runtime(build_registry([named[name] for name in ("users", "teams", "report")]))
    assert materialize_sync("report", upstream=True).result() == "2 users"
    for _ in range(3):
        materialize_sync("teams", upstream=True, force=True)
    starts = [row.at for row in query(ledger, STARTS) if row.takes == {"rate:api": 1}]
    assert len(starts) == 8
    assert_kept(starts, 0.1, burst=2)
    rates = query(ledger, "SELECT key, seconds, burst FROM flowstone.rates ORDER BY key")
    assert rates == [("rate:api", 0.1, 2), ("rate:asset:report", 36, 1)]
