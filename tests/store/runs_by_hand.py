"""Runs on a real ledger, brought by hand into the state that a test is about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from flowstone.expand import Canvas, expand, members
from flowstone.freshness import Fingerprint
from flowstone.outcome import Failure, StoredOutput, Succeeded
from flowstone.plan import Plan, PlannedStep
from flowstone.priority import Priority
from flowstone.request import Request
from flowstone.states import RunState
from flowstone.store import dispatch, failing, flights, plans, runs, steps
from flowstone.store.ledger import Ledger
from flowstone.store.steps import Claim
from tests.strategies import Dag

MADE_OF = Fingerprint("c", "f", "i")
FAILURE = Failure("ValueError", "bad value", "the trace", retryable=False)


def output(sha: str | None = None) -> StoredOutput:
    """An output that lies nowhere; the ledger does not look."""
    location = uuid4().hex
    digest = sha or hashlib.sha256(location.encode()).hexdigest()
    return StoredOutput(location, "json", 2, digest, None)


class HandRun:
    """A planned run whose steps are named by the numbers of a graph."""

    def __init__(self, ledger: Ledger, dag: Dag, max_in_flight: int = 100, **options: Any) -> None:
        self.ledger = ledger
        self.id = uuid4()
        # Runs of the same assets are in each other's way; a test that is not about that names
        # those of its second run differently.
        name = options.pop("name", "a")
        queue, priority = options.pop("queue", "assets"), options.pop("priority", Priority.NORMAL)
        pinned = options.pop("pinned", {})
        steps_ = tuple(
            PlannedStep(
                f"{name}{s}",
                "-",
                queue,
                "requested",
                tuple((f"{name}{u}", "-") for u in ups),
                pinned={
                    up: id for up, id in pinned.items() if int(up[0].removeprefix(name)) in ups
                },
            )
            for s, ups in dag.items()
        )
        force = options.pop("force", False)
        self.expects = options.pop("expects", str(MADE_OF))
        """What the output of another run must be made of, to serve a step of this one."""
        with ledger.begin() as conn:
            runs.create(
                conn,
                self.id,
                Request(
                    tuple(s.asset for s in steps_),
                    "-",
                    upstream=True,
                    force=force,
                    priority=priority,
                ),
                config={},
                max_in_flight=max_in_flight,
                **{"driver": "celery", "actor": "test", **options},
            )
            assert plans.write(conn, self.id, Plan(steps_).draft(), actor="test")
            found = conn.execute(
                text("SELECT asset, id FROM flowstone.steps WHERE run_id = :r"), {"r": self.id}
            )
            self.ids = {int(row.asset.removeprefix(name)): row.id for row in found}
        self.canvas: dict[int, UUID] = {}

    def dispatch(self) -> list[Canvas]:
        """Do what the coordinator does, without Celery."""
        return self.ledger.in_turn(self._dispatch)

    def _dispatch(self, conn: Connection) -> list[Canvas]:
        run = runs.lock(conn, self.id)
        found = dispatch.ready(conn, self.id)
        while found.followers:
            flights.join(conn, dict.fromkeys(found.followers, self.expects), actor="test")
            found = dispatch.ready(conn, self.id)
        canvases = expand(found.steps, found.nodes, found.budget)
        if run.state == RunState.PLANNED:
            runs.mark_running(conn, self.id, actor="test")
        marked = dispatch.mark(conn, canvases)
        self.canvas |= {n: marked[i].canvas for n, i in self.ids.items() if i in marked}
        return canvases

    def settle(self) -> frozenset[UUID]:
        """Settle what was joined to steps of this run, as whoever ends them does."""
        return self.ledger.in_turn(lambda conn: flights.leave(conn, self.id, "test"))

    def claim(self, number: int, *, lease: float = 60) -> Claim:
        with self.ledger.begin() as conn:
            claim = steps.claim(
                conn, self.ids[number], self.canvas[number], worker="w", lease=lease
            )
        assert isinstance(claim, Claim), claim
        return claim

    def commit(self, claim: Claim, sha: str | None = None, made_of: Fingerprint = MADE_OF) -> bool:
        with self.ledger.begin() as conn:
            return steps.commit(conn, claim, Succeeded(output(sha), made_of))

    def needs_coordinator(self) -> bool:
        """What a worker asks after each commit."""
        with self.ledger.autocommit() as conn:
            return dispatch.due(conn, self.id, 0).coordinator

    def fail(self, claim: Claim) -> bool:
        with self.ledger.begin() as conn:
            return failing.fail(conn, claim, FAILURE)

    def retry(self, claim: Claim, delay: float = 0) -> bool:
        with self.ledger.begin() as conn:
            return steps.retry(conn, claim, FAILURE, delay)

    def do(self, *numbers: int) -> None:
        """Claim and commit steps, dispatching what is ready before each."""
        for number in numbers:
            self.dispatch()
            self.commit(self.claim(number))

    def states(self) -> dict[int, str]:
        return {n: row["state"] for n, row in self.rows().items()}

    def rows(self) -> dict[int, Mapping[str, Any]]:
        with self.ledger.begin() as conn:
            found = conn.execute(
                text("SELECT * FROM flowstone.steps WHERE run_id = :r"), {"r": self.id}
            )
            by_id = {row["id"]: dict(row) for row in found.mappings()}
        return {n: by_id[i] for n, i in self.ids.items()}

    def numbers(self, canvas: Canvas) -> tuple[int, ...]:
        number_of = {i: n for n, i in self.ids.items()}
        return tuple(number_of[i] for i in members(canvas))


def overtake(ledger: Ledger, queue: str = "assets") -> None:
    """Have a worker take a message of that queue that is sent only now."""
    run = HandRun(ledger, {1: ()}, name="overtaker", queue=queue)
    run.dispatch()
    run.claim(1)


def query(ledger: Ledger, sql: str, **values: Any) -> Sequence[Any]:
    with ledger.begin() as conn:
        return conn.execute(text(sql), values).all()


def count(ledger: Ledger, table: str) -> int:
    found: int = query(ledger, f"SELECT count(*) FROM flowstone.{table}")[0][0]
    return found


def run_sql(conn: Connection, sql: str, **values: Any) -> None:
    conn.execute(text(sql), values)
