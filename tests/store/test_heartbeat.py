"""The heartbeat: it outlives a ledger that is away, and takes the worker off the list."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from flowstone.errors import LedgerUnavailable
from flowstone.heartbeat import Heartbeat
from flowstone.store import workers
from flowstone.store.ledger import Ledger
from tests.store.runs_by_hand import query
from tests.worker.waiting import wait_until


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BEAT_SECONDS", 0.01)


@contextmanager
def beating(ledger: Callable[[], Ledger], queues: Callable[[], list[str]]) -> Iterator[Heartbeat]:
    beat = Heartbeat(ledger, "w@host", queues)
    beat.start()
    try:
        yield beat
    finally:
        beat.stop()


def listed(ledger: Ledger) -> list[list[str]]:
    return [row.queues for row in query(ledger, "SELECT queues FROM flowstone.workers")]


def test_a_worker_is_listed_with_what_it_consumes_now_until_it_stops(ledger: Ledger) -> None:
    consumed = ["assets"]
    with beating(lambda: ledger, lambda: list(consumed)):
        wait_until(lambda: listed(ledger) == [["assets"]], "the worker is listed")
        consumed.append("gpu")
        wait_until(lambda: listed(ledger) == [["assets", "gpu"]], "its new queue, too")
    assert listed(ledger) == []


@pytest.mark.parametrize("error", [LedgerUnavailable("the ledger is away"), ValueError("a bug")])
def test_it_goes_on_when_the_ledger_is_back(ledger: Ledger, error: Exception) -> None:
    failures = [error] * 3

    def sometimes() -> Ledger:
        if failures:
            raise failures.pop()
        return ledger

    with beating(sometimes, lambda: ["assets"]):
        wait_until(lambda: listed(ledger), "the worker is listed in the end")


def test_a_worker_that_leaves_is_off_the_list_before_it_stops(ledger: Ledger) -> None:
    with beating(lambda: ledger, lambda: ["assets"]) as beat:
        wait_until(lambda: listed(ledger), "the worker is listed")
        beat.leave()
        wait_until(lambda: not listed(ledger), "it is not listed any more")
