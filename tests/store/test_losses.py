"""Processes that die and workers that stop: counted once, told whole, and never for others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from flowstone import losses as worker_losses
from flowstone.settings import Settings, load_settings
from flowstone.states import StepState
from flowstone.store import cancellation, losses, repairs, steps
from flowstone.store.ledger import Ledger
from flowstone.store.losses import Freed, Message
from flowstone.store.steps import Refused
from tests.store.runs_by_hand import FAILURE, HandRun, query, run_sql

CHORD = {1: (), 2: (1,), 3: (), 4: (2, 3)}
END = "signal 9 (SIGKILL)"


def message(run: HandRun, number: int) -> Message:
    return Message(run.ids[number], run.canvas[number])


def lose(run: HandRun, number: int, *, worker: str = "w", end: str = END) -> list[Freed]:
    with run.ledger.begin() as conn:
        return losses.lose(conn, message(run, number), worker=worker, end=end)


def hand_back(run: HandRun, *numbers: int, worker: str = "w") -> list[int]:
    with run.ledger.begin() as conn:
        messages = [message(run, number) for number in numbers]
        freed = losses.hand_back(conn, messages, worker=worker, reason="it stops")
    number_of = {id: number for number, id in run.ids.items()}
    return [number_of[step.step_id] for step in freed]


def attempts(run: HandRun, number: int) -> list[tuple[int, str | None, str | None]]:
    found = query(
        run.ledger,
        "SELECT number, outcome, error_message FROM flowstone.attempts WHERE step_id = :s"
        " ORDER BY number",
        s=run.ids[number],
    )
    return [(row.number, row.outcome, row.error_message) for row in found]


def test_a_death_is_counted_once_whoever_tells_of_it(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    claim = run.claim(1, lease=-1)

    def expire() -> list[Freed]:
        with ledger.begin() as conn:
            return repairs.expired_leases(conn)

    tell: list[Callable[[], list[Freed]]] = [lambda: lose(run, 1), expire]
    with ThreadPoolExecutor(4) as pool:
        told = [pool.submit(one) for one in tell * 4]
        assert sum(len(future.result(20)) for future in told) == 1
    assert run.rows()[1]["lost"] == 1
    assert len(attempts(run, 1)) == 1
    assert query(ledger, "SELECT count(*) FROM flowstone.audit WHERE action = 'step.lost'") == [
        (1,)
    ]
    # And its canvas with it.
    assert run.states() == {1: "pending", 2: "pending", 3: "queued", 4: "pending"}
    assert run.commit(claim) is False


def test_a_death_takes_nothing_from_whoever_has_the_step_by_now(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: ()})
    run.dispatch()
    stale = message(run, 1)
    run.claim(1)
    assert lose(run, 1, worker="another") == []
    assert len(lose(run, 1)) == 1
    run.dispatch()
    claim = run.claim(1)
    with ledger.begin() as conn:
        assert losses.lose(conn, stale, worker="w", end=END) == []
        assert losses.hand_back(conn, [stale], worker="w", reason="it stops") == []
    assert run.commit(claim)
    assert lose(run, 1, worker="another") == []
    assert hand_back(run, 1) == []
    # A worker hands back what it runs, and not what it has yet to begin.
    assert hand_back(run, 2) == []
    assert run.states() == {1: "succeeded", 2: "queued"}


def test_a_death_before_the_claim_is_counted_too(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    for _ in range(3):
        run.dispatch()
        # Not that of a step which cannot have begun.
        assert lose(run, 2) == []
        assert len(lose(run, 1)) == 1
    assert run.states() == {1: "failed", 2: "upstream_failed"}
    assert attempts(run, 1) == [(n, "lost", f"{END}, before it began") for n in (1, 2, 3)]


def test_a_death_before_the_claim_is_counted_whatever_the_rate_of_the_step(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    for number in (1, 2, 3):
        run.dispatch()
        with ledger.begin() as conn:
            # As it is while it is dispatched; how it comes to that is not what this is about.
            run_sql(conn, "UPDATE flowstone.steps SET takes = '{\"rate:a1\": 1}'")
            refused = steps.claim(conn, run.ids[1], run.canvas[1], worker="w", lease=60)
            assert refused == Refused(StepState.QUEUED, "rate:a1")
        assert len(lose(run, 1)) == 1
        with ledger.begin() as conn:
            run_sql(conn, "UPDATE flowstone.steps SET takes = NULL")
        assert run.rows()[1]["lost"] == number
    assert run.states() == {1: "failed"}


CHAIN = {1: (), 2: (1,), 3: (2,)}


def test_a_death_after_the_commit_frees_what_was_to_follow(
    ledger: Ledger, settings: Settings
) -> None:
    run = HandRun(ledger, CHAIN)
    run.dispatch()
    assert run.commit(run.claim(1))
    stale = message(run, 2)
    woken: list[UUID] = []
    worker_losses.lose(settings, message(run, 1), worker="w", end=END, wake=woken.append)
    assert woken == [run.id]
    assert run.states() == {1: "succeeded", 2: "pending", 3: "pending"}
    assert run.rows()[1]["lost"] == 0
    run.dispatch()
    # It had been sent after all, and comes late.
    with ledger.begin() as conn:
        late = steps.claim(conn, stale.step_id, stale.canvas, worker="w", lease=60)
    assert late == Refused(None)
    run.do(2, 3)
    assert set(run.states().values()) == {"succeeded"}


def test_a_death_after_the_commit_takes_nothing_that_has_its_own_message(ledger: Ledger) -> None:
    chord = HandRun(ledger, {1: (), 2: (), 3: (1, 2)})
    (canvas,) = chord.dispatch()
    assert len(chord.numbers(canvas)) == 3
    assert chord.commit(chord.claim(1))
    assert lose(chord, 1)
    # The other of the header lies in a queue. The body waits for it, and nobody sends that.
    assert chord.states() == {1: "succeeded", 2: "queued", 3: "pending"}
    begun = HandRun(ledger, CHAIN, name="b")
    begun.dispatch()
    assert begun.commit(begun.claim(1))
    claim = begun.claim(2)
    assert lose(begun, 1)
    assert begun.states() == {1: "succeeded", 2: "running", 3: "pending"}
    assert begun.commit(claim)


def test_what_is_handed_back_is_neither_lost_nor_failed(ledger: Ledger) -> None:
    run = HandRun(ledger, CHORD)
    run.dispatch()
    claim = run.claim(1)
    run.claim(3)
    assert hand_back(run, 1, 2, worker="another") == []
    assert hand_back(run, 3, 1, 2) == [1, 3]
    assert set(run.states().values()) == {"pending"}
    assert attempts(run, 1) == [(1, "handed_back", "it stops")]
    row = run.rows()[1]
    assert (row["lost"], row["failures"], row["token"], row["canvas"]) == (0, 0, None, None)
    found = query(
        ledger,
        "SELECT actor, reason, before, after, details->'attempt' FROM flowstone.audit"
        " WHERE action = 'step.handed_back'",
    )
    assert found == [("w", "it stops", {"state": "running"}, {"state": "pending"}, 1)] * 2
    assert run.commit(claim) is False
    with ledger.begin() as conn:
        # Nor is it cancelled by an asset that has found out.
        assert not cancellation.stop(conn, claim, FAILURE)
    run.dispatch()
    assert run.commit(run.claim(1))
    # However often.
    for _ in range(5):
        run.dispatch()
        run.claim(3)
        assert hand_back(run, 3) == [3]
    assert run.states()[3] == "pending"


def test_each_step_has_its_own_number_of_deaths(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: ()})
    with ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.steps SET max_lost = 2 WHERE id = :s", s=run.ids[1])
    ends = ("signal 11 (SIGSEGV)", END)
    for end in ends:
        assert run.states()[1] != "failed"
        run.dispatch()
        run.claim(1)
        lose(run, 1, end=end)
    assert run.states() == {1: "failed", 2: "upstream_failed", 3: "queued"}
    assert [(outcome, said) for _, outcome, said in attempts(run, 1)] == [
        ("lost", end) for end in ends
    ]
    error = run.rows()[1]["error"]
    assert error["type"] == "poison"
    first, *each = error["message"].splitlines()
    assert first.startswith(f"the process that ran a1 has died 2 times ({ends[0]}, {ends[1]}; ")
    assert [line.partition(" s: ")[2] for line in each] == list(ends)


def test_the_reconciler_says_what_it_knows(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    run.claim(1, lease=-1)
    with ledger.begin() as conn:
        repairs.expired_leases(conn)
    assert attempts(run, 1) == [(1, "lost", "its lease ended without a word from it")]


@pytest.fixture
def settings(database: str) -> Settings:
    return load_settings(database_url=database)


def test_the_run_and_those_who_had_joined_the_step_are_woken(
    ledger: Ledger, settings: Settings
) -> None:
    run, follower = HandRun(ledger, {1: ()}), HandRun(ledger, {1: ()})
    run.dispatch()
    follower.dispatch()
    assert follower.states() == {1: "joined"}
    run.claim(1)
    woken: list[UUID] = []
    worker_losses.lose(settings, message(run, 1), worker="w", end=END, wake=woken.append)
    assert set(woken) == {run.id, follower.id}
    assert (run.states(), follower.states()) == ({1: "pending"}, {1: "pending"})
    worker_losses.lose(settings, message(run, 1), worker="w", end=END, wake=woken.append)
    assert len(woken) == 2


def test_a_worker_waits_neither_for_a_lock_nor_for_a_ledger_that_is_away(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_losses, "LAST_PATIENCE", 0.2)
    run = HandRun(ledger, {1: ()})
    run.dispatch()
    run.claim(1)
    taken, woken = [message(run, 1)], list[UUID]()

    def give(settings: Settings) -> frozenset[int]:
        return worker_losses.hand_back(settings, taken, worker="w", reason="-", wake=woken.append)

    with ledger.begin() as conn:
        conn.execute(text("SELECT FROM flowstone.steps FOR UPDATE"))
        assert give(settings) == frozenset()
        # Whoever holds the lock still does; nobody has waited until it let go.
        assert run.states() == {1: "running"}
    away = load_settings(database_url="postgresql://nobody@127.0.0.1:1/none")
    assert give(away) == frozenset()
    assert woken == []
    assert give(settings) == {run.ids[1]}
    assert woken == [run.id]


def test_messages_that_never_were_are_no_error(ledger: Ledger) -> None:
    with ledger.begin() as conn:
        assert losses.lose(conn, Message(1, uuid4()), worker="w", end=END) == []
        assert losses.hand_back(conn, [], worker="w", reason="-") == []
