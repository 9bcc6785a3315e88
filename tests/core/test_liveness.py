"""Who counts as half-dead: it could take what has waited for long, and does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.liveness import (
    PATIENCE_SECONDS,
    Beat,
    half_dead,
    heard_for,
    left_waiting,
    of_beat,
    patience_with_beat,
)
from flowstone.store.workers import Worker

WORKER = Worker(
    name="celery@a",
    queues=("assets", "control"),
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    silent=10.0,
    processes=4,
    busy=1,
    idle=PATIENCE_SECONDS,
)
WAITS = {"assets": PATIENCE_SECONDS + WORKER.silent}
HELD = {"assets": 1}


def test_who_has_room_and_leaves_lying_what_waits_takes_nothing() -> None:
    assert left_waiting(WORKER, WAITS, HELD) == ["assets"]
    other = replace(WORKER, name="celery@b", queues=("control",))
    assert half_dead([WORKER, other], WAITS, HELD) == {"celery@a": ["assets"]}


@pytest.mark.parametrize(
    ("worker", "waits", "held"),
    [
        (replace(WORKER, busy=4), WAITS, HELD),  # it has no process free
        (replace(WORKER, idle=PATIENCE_SECONDS - 1), WAITS, HELD),  # it took one lately
        (replace(WORKER, queues=("control",)), WAITS, HELD),  # the queue is not its own
        (replace(WORKER, busy=None), WAITS, HELD),  # it says nothing of that
        (WORKER, WAITS, {"assets": 0}),  # the message was lost
        (WORKER, WAITS, {}),
        (WORKER, {}, HELD),  # what lies there has just come
        (WORKER, {"assets": PATIENCE_SECONDS + 5}, HELD),  # it came after the last report, nearly
    ],
)
def test_nobody_is_blamed_otherwise(
    worker: Worker, waits: dict[str, float], held: dict[str, int]
) -> None:
    assert left_waiting(worker, waits, held) == []


@given(
    idle=st.floats(0, 100), silent=st.floats(0, 60), wait=st.floats(0, 200), held=st.integers(0, 3)
)
def test_it_takes_both_a_long_idleness_and_a_long_wait_before_its_last_report(
    idle: float, silent: float, wait: float, held: int
) -> None:
    worker = replace(WORKER, idle=idle, silent=silent)
    blamed = bool(left_waiting(worker, {"assets": wait}, {"assets": held}))
    had_waited = wait - silent
    assert blamed is (min(idle, had_waited) >= PATIENCE_SECONDS and held > 0)


SECONDS = st.one_of(st.none(), st.floats(0, 1000))


@given(SECONDS, st.floats(0.1, 60), st.integers(0, 10), SECONDS)
def test_beat_is_called_silent_only_where_nothing_of_it_lies_about_and_it_was_waited_for(
    ticked: float | None, interval: float, held: int, heard: float | None
) -> None:
    state = of_beat(ticked, interval, held, heard)
    late = ticked is None or ticked > patience_with_beat(interval)
    fresh = heard is not None and heard <= patience_with_beat(interval)
    assert (state is Beat.TICKS) is not late
    assert (state is Beat.IS_AWAITED) is (late and fresh)
    assert (state is Beat.IS_SILENT) is (late and not fresh and held == 0)


def test_beat_is_heard_by_who_consumes_its_queue_and_the_oldest_counts() -> None:
    start = WORKER.started_at.timestamp()
    other = replace(WORKER, queues=("assets",), started_at=WORKER.started_at - timedelta(hours=1))
    young = replace(WORKER, queues=("control",))
    old = replace(young, started_at=WORKER.started_at - timedelta(seconds=5))
    assert heard_for([], start) is None
    assert heard_for([other], start) is None
    assert heard_for([young, other], start + 1) == 1
    assert heard_for([young, old, other], start + 1) == 6
