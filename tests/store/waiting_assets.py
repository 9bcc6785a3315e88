"""Assets that wait for people or signals, and what tests of them ask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, SecretStr
from sqlalchemy import text

from flowstone import (
    Approval,
    Context,
    Decision,
    Retry,
    RunState,
    Signal,
    asset,
    check,
    wait_for_approval,
    wait_for_signal,
)
from flowstone.handle import RunHandle
from flowstone.reconcile import make_pass
from flowstone.registry import build_registry
from flowstone.store import resumption
from tests.conftest import RuntimeFactory
from tests.store.local_worker import LocalWorker

TOKENS = ["a-token-of-ours", "another-token", "a-third-token"]
CANCEL: list[Callable[[], object]] = []
FACTS: dict[str, Any] = {"delay": 20.0, "calls": 0}


class Report(BaseModel):
    """What people approve."""

    delay: float


@asset(volatile=True)
def source() -> float:
    """Read by the others."""
    return float(FACTS["delay"])


@asset(approval=Approval(when=lambda made: made.delay > 15, message="So late?", options=()))
def report(source: float) -> Report:
    """Asks if it is above 15."""
    FACTS.pop("beside", lambda: None)()
    return Report(delay=source)


@check(asset=report, blocking=True)
def is_no_nonsense(report: Report) -> bool:
    return report.delay < 1000


@asset
def published(report: Report) -> float:
    """Reads what was approved."""
    return report.delay


@asset
def aside(source: float) -> float:
    """Reads nothing that waits."""
    return source


def from_decision(decision: Decision, source: float) -> list[Any]:
    FACTS["calls"] += 1
    if FACTS["calls"] == 1:
        raise ConnectionError("try again")
    return [decision.option, decision.by, decision.reason, decision.context, source]


@asset(on_approved=from_decision, retry=Retry(base=0.1))
def chosen(source: float) -> list[Any]:
    """Raises to ask, and is made by what follows."""
    raise wait_for_approval(message="How?", options=["half", "full"], context={"from": source})


def consoled(decision: Decision) -> Report:
    assert decision.value == Report(delay=1)
    return Report(delay=-1)


@asset(on_rejected=consoled)
def routed() -> Report:
    """Goes another way when it is rejected."""
    return wait_for_approval(value=Report(delay=1))  # type: ignore[return-value]


def heard(payload: dict[str, int] | None, signal: Signal, context: Context) -> list[Any]:
    return [payload, signal.by, signal.timed_out, context.attempt]


@asset(on_signal=heard)
def awaited() -> list[Any]:
    """Waits for a job elsewhere."""
    return wait_for_signal(  # type: ignore[return-value]
        name="job", token=TOKENS[0], timeout=60, on_timeout="continue"
    )


@asset
def bare() -> int:
    """Is what comes."""
    raise wait_for_signal(name="job", token=TOKENS[1], timeout=60)


@asset(approval=Approval(approvers=["boss"]))
def doubly() -> int:
    """Would let ann do what boss has to."""
    return wait_for_approval(value=7, approvers=["ann"])  # type: ignore[return-value]


def asks_ann(payload: int) -> int:
    return wait_for_approval(value=payload, approvers=["ann"])  # type: ignore[return-value]


@asset(approval=Approval(approvers=["boss"]), on_signal=asks_ann)
def doubly_later() -> int:
    """The same, after a signal."""
    raise wait_for_signal(name="job", token=TOKENS[2])


def asks_eve(decision: Decision) -> int:
    return wait_for_approval(value=8, approvers=["eve"])  # type: ignore[return-value]


@asset(approval=Approval(approvers=["boss"]), on_rejected=asks_eve)
def appealed() -> int:
    """Asks once more where it is rejected."""
    return 7


@asset(approval=Approval(approvers=["role:finanse", "role:finance"]))
def by_role() -> int:
    """Asks somebody whom the settings do not know."""
    return 7


def added(payload: float, source: float) -> float:
    return payload + source


@asset(approval=Approval(message="So much?"), on_signal=added)
def signalled(source: float, context: Context) -> float:
    """Waits for a signal, and then for people."""
    raise wait_for_signal(name="job", token=context.signal_token("job"))


def goes_in_circles(payload: int, context: Context) -> int:
    raise wait_for_signal(name="job", token=context.signal_token("job"))


@asset(on_signal=goes_in_circles)
def circling(context: Context) -> int:
    raise wait_for_signal(name="job", token=context.signal_token("job"))


@asset
def cancelled_meanwhile() -> int:
    """Asks, and has no one left to ask for."""
    CANCEL.pop()()
    return wait_for_approval(value=1)  # type: ignore[return-value]


@asset
def valueless() -> int:
    """Could never be anything."""
    raise wait_for_approval(message="?")


ASSETS = [source, report, published, aside, chosen, routed, awaited, bare, valueless]
ASSETS += [by_role, doubly, doubly_later, appealed, signalled, circling, cancelled_meanwhile]


def worker(make_runtime: RuntimeFactory) -> LocalWorker:
    """Return a worker of these assets, for which all is as at the beginning."""
    FACTS.clear()
    FACTS.update(delay=20.0, calls=0)
    registry = build_registry(ASSETS, checks=[is_no_nonsense])
    return LocalWorker(
        make_runtime(registry, secret=SecretStr("s" * 32), roles={"finance": ["ann"]})
    )


def waits(local: LocalWorker, asset: Any) -> tuple[Any, int]:
    """Return a run that waits at its only gate."""
    handle = local.submit(asset)
    assert handle.status() == RunState.WAITING
    return handle, local.open_gate()


def audited(local: LocalWorker, handle: Any) -> list[str]:
    with local.runtime.ledger.begin() as conn:
        query = text("SELECT action FROM flowstone.audit WHERE run_id = :run ORDER BY id")
        return [str(action) for action in conn.scalars(query, {"run": handle.id})]


def attempts(local: LocalWorker, handle: Any, asset: Any) -> list[tuple[int, str]]:
    with local.runtime.ledger.begin() as conn:
        query = text("SELECT number, outcome FROM flowstone.attempts WHERE step_id = :s ORDER BY 1")
        found = conn.execute(query, {"s": local.step(handle, asset).id})
        return [(row.number, row.outcome) for row in found]


def retry_now(local: LocalWorker, handle: Any) -> None:
    """Let the retry be due that is parked, and the reconciler find it."""
    with local.runtime.ledger.begin() as conn:
        conn.execute(text("UPDATE flowstone.steps SET retry_at = now() WHERE state = 'retrying'"))
    woken: list[Any] = []
    make_pass(local.runtime, lambda run_id, _: woken.append(run_id)).check()
    assert handle.id in woken
    local.coordinate(handle.id)
    local.work()


def resumed(local: LocalWorker, handle: Any) -> Any:
    """Return the run that resumes another, which has gone as far as it can."""
    with local.runtime.ledger.begin() as conn:
        made = resumption.create(conn, uuid4(), handle.id, actor="test")
    local.coordinate(made)
    local.work()
    return RunHandle(made, local.runtime)
