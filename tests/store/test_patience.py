"""A value that has been computed is not thrown away because the database is away for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, text

from flowstone import asset
from flowstone.coordinator import take_ready
from flowstone.errors import LedgerUnavailable
from flowstone.execution import Ended, execute
from flowstone.outcome import Succeeded
from flowstone.planning import plan_run
from flowstone.registry import build_registry
from flowstone.request import Request
from flowstone.runtime import Runtime
from flowstone.store import runs
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory


@asset
def number() -> int:
    return 7


class Unsteady(Ledger):
    """A ledger whose transactions, after the first, break before or after their commit."""

    def __init__(self, url: str, *, before: int = 0, after: int = 0) -> None:
        super().__init__(url)
        self.faults = ["none"] + ["before"] * before + ["after"] * after

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        fault = self.faults.pop(0) if self.faults else None
        if fault == "before":
            raise LedgerUnavailable("away")
        with super().begin() as conn:
            yield conn
        if fault == "after":
            raise LedgerUnavailable("the answer to the commit was lost")


@pytest.mark.parametrize("faults", [{"before": 2}, {"after": 1}, {"before": 1, "after": 2}])
def test_an_outcome_is_recorded_once_when_the_database_is_back(
    make_runtime: RuntimeFactory, database: str, faults: dict[str, int]
) -> None:
    here = make_runtime(build_registry([number]))
    step, canvas = ready_step(here)
    unsteady = Unsteady(database, **faults)
    here.leases  # noqa: B018 - the heartbeat keeps the steady ledger
    here.__dict__["ledger"], steady = unsteady, here.ledger
    ended = execute(here, step, canvas, worker="test")
    assert isinstance(ended, Ended)
    assert isinstance(ended.outcome, Succeeded)
    assert ended.wake
    with steady.begin() as conn:
        for table in ("outputs", "attempts"):
            assert conn.scalar(text(f"SELECT count(*) FROM flowstone.{table}")) == 1
        action = text("SELECT count(*) FROM flowstone.audit WHERE action = 'step.succeeded'")
        assert conn.scalar(action) == 1
    steady.close()


def ready_step(here: Runtime) -> tuple[int, UUID]:
    run_id = uuid4()
    with here.ledger.begin() as conn:
        runs.create(
            conn, run_id, Request(("number",), "-", upstream=False),
            config={}, driver="inline", max_in_flight=1, actor="test",
        )  # fmt: skip
    plan_run(here, run_id)
    dispatched = take_ready(here, run_id).steps
    (step,) = dispatched.values()
    return step.id, step.canvas
