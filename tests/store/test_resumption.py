"""Resuming a run: only what is missing is computed, from exactly the same inputs."""

from __future__ import annotations

from functools import partial
from uuid import UUID, uuid4

import pytest

import flowstone
from flowstone import RunState, asset, coordinator
from flowstone.errors import CannotResume, RunFailed, UnknownRun
from flowstone.execution import Ended, execute
from flowstone.expand import members
from flowstone.partition import StaticPartitions
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.store import cancellation, resumption, runs
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import HandRun, count, query
from tests.store.test_concurrency import at_once

DIAMOND = {1: (), 2: (1,), 3: (1,), 4: (2, 3)}


def close(ledger: Ledger, run_id: UUID) -> RunState | None:
    with ledger.begin() as conn:
        return runs.close_if_done(conn, run_id, actor="test")


def resume(ledger: Ledger, run_id: UUID) -> UUID:
    with ledger.begin() as conn:
        return resumption.create(conn, uuid4(), run_id, actor="me@here")


def resumed_by_hand(run: HandRun) -> HandRun:
    """Resume a run, and return the new one with the numbers of the old one's steps."""
    made = object.__new__(HandRun)
    made.ledger, made.id, made.canvas = run.ledger, resume(run.ledger, run.id), {}
    found = query(run.ledger, "SELECT asset, id FROM flowstone.steps WHERE run_id = :r", r=made.id)
    made.ids = {int(row.asset[1:]): row.id for row in found}
    return made


def failed_diamond(ledger: Ledger) -> HandRun:
    """1 and 3 succeeded, 2 failed, and with it 4."""
    run = HandRun(ledger, DIAMOND, max_in_flight=7, pinned={})
    run.do(1)
    run.dispatch()
    run.fail(run.claim(2))
    run.do(3)
    assert close(ledger, run.id) == RunState.FAILED
    return run


def edges(run: HandRun) -> list[tuple[int, int, int, bool]]:
    found = query(
        run.ledger,
        "SELECT e.downstream, e.upstream, e.position, e.pinned FROM flowstone.edges e "
        "JOIN flowstone.steps s ON s.id = e.downstream WHERE s.run_id = :r ORDER BY 1, 3",
        r=run.id,
    )
    return [tuple(row) for row in found]


def test_the_new_run_holds_what_is_missing_and_pins_what_is_there(ledger: Ledger) -> None:
    old = failed_diamond(ledger)
    before = old.rows()
    new = resumed_by_hand(old)
    assert new.states() == {2: "pending", 4: "pending"}
    assert [row["reason"] for row in new.rows().values()] == [
        f"failed in run {str(old.id)[:8]}",
        f"upstream_failed in run {str(old.id)[:8]}",
    ]
    assert edges(new) == [
        (new.ids[2], old.ids[1], 0, True),
        (new.ids[4], new.ids[2], 0, False),
        (new.ids[4], old.ids[3], 1, True),
    ]
    assert new.rows()[2]["open_deps"] == 0
    assert new.rows()[2]["feeds"] == new.ids[4]
    with ledger.begin() as conn:
        was, now = runs.get(conn, old.id), runs.get(conn, new.id)
    assert (now.state, now.resumed_from, now.driver) == (RunState.PLANNED, old.id, "celery")
    assert (now.request, now.config, now.max_in_flight) == (was.request, was.config, 7)
    # What is final stays final.
    assert was.state == RunState.FAILED
    assert old.rows() == before
    assert query(
        ledger, "SELECT actor, details FROM flowstone.audit WHERE action = 'run.resumed'"
    ) == [("me@here", {"resumed_from": str(old.id), "reused": 2})]


def test_the_new_run_reads_the_old_outputs_even_if_there_are_newer_ones(ledger: Ledger) -> None:
    old = failed_diamond(ledger)
    newer = HandRun(ledger, {1: (), 3: (1,)})
    newer.do(1, 3)
    new = resumed_by_hand(old)
    new.do(2, 4)
    lineage = query(
        ledger,
        "SELECT upstream_step_id FROM flowstone.lineage WHERE step_id = ANY(:i) ORDER BY 1",
        i=list(new.ids.values()),
    )
    assert [row[0] for row in lineage] == [old.ids[1], old.ids[3], new.ids[2]]
    assert close(ledger, new.id) == RunState.SUCCEEDED


def test_a_chain_of_resumed_runs_reuses_whatever_succeeded_in_any_of_them(
    ledger: Ledger, make_runtime: RuntimeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = failed_diamond(ledger)
    second = resumed_by_hand(first)
    second.do(2)
    with ledger.begin() as conn:
        done = cancellation.request(conn, second.id, grace=0, reason=None, actor="test")
    assert done.state == RunState.CANCELLED
    third = resumed_by_hand(second)
    assert third.states() == {4: "pending"}
    assert edges(third) == [
        (third.ids[4], second.ids[2], 0, True),
        (third.ids[4], first.ids[3], 1, True),
    ]
    third.do(4)
    assert close(ledger, third.id) == RunState.SUCCEEDED
    here = make_runtime(build_registry([]))
    loaded: list[str] = []
    monkeypatch.setattr(
        here.outputs, "load", lambda output, *_, **__: loaded.append(output.location)
    )
    for name in ("a1", "a2", "a3", "a4"):
        flowstone.RunHandle(third.id, here).result(name)
    made = query(ledger, "SELECT location FROM flowstone.outputs o ORDER BY step_id")
    assert sorted(loaded) == sorted(row.location for row in made)


def test_a_run_that_never_was_planned_is_requested_anew(make_runtime: RuntimeFactory) -> None:
    here = make_runtime(build_registry([]))
    with pytest.raises(RunFailed):
        flowstone.materialize_sync("missing")
    (old,) = flowstone.client.runs_list()
    new = resume(here.ledger, old.id)
    with here.ledger.begin() as conn:
        run = runs.get(conn, new)
    assert (run.state, run.resumed_from) == (RunState.REQUESTED, old.id)


def test_only_what_was_left_undone_can_be_resumed(ledger: Ledger) -> None:
    open_run = HandRun(ledger, DIAMOND)
    with pytest.raises(CannotResume, match="is still planned; wait for its end, or cancel it"):
        resume(ledger, open_run.id)
    done = HandRun(ledger, {1: ()})
    done.do(1)
    close(ledger, done.id)
    with pytest.raises(CannotResume, match="has succeeded; there is nothing left"):
        resume(ledger, done.id)
    with pytest.raises(UnknownRun):
        resume(ledger, uuid4())
    assert count(ledger, "runs") == 2


def test_a_run_is_resumed_once_and_the_second_is_told_by_which(ledger: Ledger) -> None:
    old = failed_diamond(ledger)
    new = resumed_by_hand(old)
    with pytest.raises(CannotResume, match=f"already by run {new.id}, which is planned$"):
        resume(ledger, old.id)
    new.dispatch()
    new.fail(new.claim(2))
    assert close(ledger, new.id) == RunState.FAILED
    with pytest.raises(CannotResume, match=f"which is failed; resume {str(new.id)[:8]} instead"):
        resume(ledger, old.id)


def test_of_two_that_resume_at_once_one_does(ledger: Ledger) -> None:
    for _ in range(5):
        old = failed_diamond(ledger)

        def attempt(old: HandRun = old) -> UUID | str:
            try:
                return resume(ledger, old.id)
            except CannotResume as error:
                return error.message

        made = at_once(*[partial(attempt)] * 3)
        (winner,) = [m for m in made if isinstance(m, UUID)]
        losers = [m for m in made if isinstance(m, str)]
        assert all(f"resumed already by run {winner}" in loser for loser in losers)
        assert len(losers) == 2


def test_without_a_broker_it_is_recorded_and_waits(
    ledger: Ledger, make_runtime: RuntimeFactory, caplog: pytest.LogCaptureFixture
) -> None:
    old = failed_diamond(ledger)
    away = make_runtime(build_registry([]))
    new = flowstone.RunHandle(old.id, away).resume()
    assert new.status() == RunState.PLANNED
    (told,) = caplog.records
    assert "the run is recorded, and starts as soon as the broker is back" in told.getMessage()


def drive(here: Runtime, run_id: UUID) -> None:
    """Be the coordinator and the workers of a run."""
    with here.ledger.begin() as conn:
        assert runs.get(conn, run_id).state == RunState.PLANNED
    while True:
        taken = coordinator.take_ready(here, run_id)
        if not taken.canvases:
            return
        for member in (m for canvas in taken.canvases for m in members(canvas)):
            assert isinstance(execute(here, member, taken.steps[member].canvas, worker="t"), Ended)


def test_values_of_the_whole_chain_are_the_results_of_the_last_run(
    make_runtime: RuntimeFactory,
) -> None:
    calls: list[str] = []
    bad = {"eu"}
    regions = StaticPartitions(["asia", "eu", "us"])

    @asset(partitions=regions)
    def source(context: flowstone.Context) -> str:
        calls.append(context.partition)
        if context.partition in bad:
            raise ValueError("dry")
        return str(context.partition).upper()

    @asset
    def total(source: dict[str, str]) -> str:
        calls.append("total")
        return " ".join(source.values())

    here = make_runtime(build_registry([source, total]))
    with pytest.raises(RunFailed, match="dry"):
        flowstone.materialize_sync("total", upstream=True)
    (old,) = flowstone.client.runs_list()
    bad.clear()
    calls.clear()
    new = resume(here.ledger, old.id)
    drive(here, new)
    handle = flowstone.RunHandle(new, here)
    assert calls == ["eu", "total"]
    assert handle.result() == "ASIA EU US"
    assert handle.result("source") == {"asia": "ASIA", "eu": "EU", "us": "US"}
