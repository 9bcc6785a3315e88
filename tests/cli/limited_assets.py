"""An asset with every limit that there is."""

from __future__ import annotations

from flowstone import Rate, Retry, Timeout, asset


@asset(
    timeout=Timeout(30, 45),
    pool="warehouse",
    weight=2,
    max_running=3,
    rate=Rate(10, per="minute", key="api", burst=2),
    retry=Retry(max_attempts=4, base=2, jitter="full"),
)
def limited() -> int:
    return 1
