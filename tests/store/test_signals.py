"""Signals: one counts, whoever comes first; one that is too early is not lost."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import pytest
from pydantic import BaseModel, SecretStr

from flowstone import Context, Retry, asset, materialize_sync, signal
from flowstone.errors import BadConfig, BadSignal, RunFailed, SignalReplayed, UnknownSignal
from flowstone.outcome import Waiting
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.signalling import SignalAsk, WaitForSignal, token_hash
from flowstone.states import GateState
from flowstone.store import asking, early_signals, gates
from flowstone.store.ledger import Ledger
from flowstone.tokens import signal_token
from tests.conftest import RuntimeFactory
from tests.store.gates_by_hand import ask_for, row
from tests.store.runs_by_hand import MADE_OF, HandRun, count, query
from tests.store.test_concurrency import at_once, until_somebody_waits_for_a_lock

SECRET: Final = "s" * 32
TOKEN: Final = "token-of-mine"  # noqa: S105 - of no use to anybody
ASK: Final = SignalAsk(name="done", token=TOKEN)


class Report(BaseModel):
    rows: int
    place: str = ""


@pytest.fixture
def here(make_runtime: RuntimeFactory) -> Runtime:
    return make_runtime(build_registry([]), secret=SecretStr(SECRET))


def test_each_attempt_has_the_same_token_and_none_without_a_secret(
    make_runtime: RuntimeFactory,
) -> None:
    tokens: list[str] = []

    @asset(retry=Retry(base=0, jitter="full"))
    def job(context: Context) -> str:
        tokens.append(context.signal_token("done"))
        if context.attempt == 1:
            raise ConnectionError
        return tokens[-1]

    make_runtime(build_registry([job]))
    with pytest.raises(RunFailed, match=r"bad_config: FLOWSTONE_SECRET is not set.*make one"):
        materialize_sync(job)
    here = make_runtime(build_registry([job]), secret=SecretStr(f"{SECRET},{'o' * 32}"))
    materialize_sync(job)
    (step,) = query(here.ledger, "SELECT id FROM flowstone.steps WHERE state = 'succeeded'")
    assert tokens == [signal_token(SECRET.encode(), step.id, "done")] * 2


def test_a_signal_closes_its_gate_with_what_it_brings_and_counts_once(
    ledger: Ledger, here: Runtime
) -> None:
    gate = ask_for(ledger, ASK, driver="inline")
    receipt = signal(TOKEN, {"rows": [1, None, "é"]}, by="ann", channel="test")
    found = row(ledger, gate)
    assert (found.state, found.closed_by, found.channel) == ("received", "ann", "test")
    assert found.payload == {"value": {"rows": [1, None, "é"]}}
    (step,) = query(ledger, "SELECT run_id, asset, state FROM flowstone.steps")
    # The step itself is carried on by its continuation.
    assert step.state == "waiting_signal"
    assert receipt.step == step.asset
    assert receipt.run_id == str(step.run_id)
    assert not receipt.is_early
    with pytest.raises(SignalReplayed, match=r"signal done of asset.*come already, at 20\d\d-"):
        signal(TOKEN, 2)
    assert row(ledger, gate).payload == {"value": {"rows": [1, None, "é"]}}
    audit = query(ledger, "SELECT actor, details FROM flowstone.audit WHERE action = :a",
                  a="signal.received")  # fmt: skip
    assert [(one.actor, one.details["channel"]) for one in audit] == [("ann", "test")]


@pytest.mark.parametrize(
    ("state", "said", "retryable"),
    [
        (GateState.EXPIRED, "come too late", False),
        (GateState.WITHDRAWN, "not waited for any more", False),
        (GateState.VOID, "computed anew", True),
    ],
)
def test_a_signal_that_nobody_waits_for_any_more_is_told_so(
    ledger: Ledger, here: Runtime, state: GateState, said: str, retryable: bool
) -> None:
    gate = ask_for(ledger, ASK, driver="inline")
    with ledger.begin() as conn:
        asked = gates.lock(conn, gate)
        assert asked is not None
        gates.close(conn, asked, state, by="test")
    with pytest.raises(UnknownSignal, match=said) as raised:
        signal(TOKEN)
    assert not isinstance(raised.value, SignalReplayed)
    assert raised.value.retryable == retryable
    assert row(ledger, gate).state == state


def test_what_is_no_token_or_nobodys_is_refused(
    ledger: Ledger, here: Runtime, make_runtime: RuntimeFactory
) -> None:
    own = signal_token(SECRET.encode(), 2**62, "x")
    for token, said in (
        ("short", "no token"),
        ("with spaces in it", "no token"),
        (TOKEN, "no step waits"),
        (own, "no step waits"),
        (own[:-1] + ("a" if own[-1] != "a" else "b"), "no secret of FLOWSTONE_SECRET"),
    ):
        with pytest.raises(UnknownSignal, match=said) as raised:
            signal(token)
        assert token not in raised.value.message
    make_runtime(build_registry([]))
    with pytest.raises(BadConfig, match="cannot be verified: FLOWSTONE_SECRET is not set"):
        signal(own)


def test_what_the_ledger_cannot_keep_is_refused_and_the_step_waits_on(
    ledger: Ledger, here: Runtime
) -> None:
    gate = ask_for(ledger, ASK, driver="inline")
    for payload in (
        float("nan"), {1: "a"}, (1, 2), {"a": {1}}, "a\0b", {"\0": 1}, "\ud800", object(),
        "x" * 65_535, [{"a": (1,)}], nested(100_000),
    ):  # fmt: skip
        with pytest.raises(BadSignal):
            signal(TOKEN, payload)
        assert row(ledger, gate).state == "open"
    # The most that there may be.
    signal(TOKEN, ["x" * 60_000, nested(300)])


def nested(depth: int) -> Any:
    made: Any = 1
    for _ in range(depth):
        made = [made]
    return made


def handler(payload: Report) -> int:
    return payload.rows


def returns_model() -> Report | WaitForSignal:
    return Report(rows=0)


def returns_waiting() -> WaitForSignal: ...  # type: ignore[empty-body]


def unannotated():  # type: ignore[no-untyped-def] # noqa: ANN201
    return 1


@pytest.mark.parametrize(
    ("function", "on_signal", "good", "bad", "said"),
    [
        (unannotated, handler, {"rows": 1}, {"rows": "many"}, r"rows: Input should be a valid int"),
        (returns_model, None, {"rows": 1, "place": "x"}, [], "waits for: Input should be"),
        (returns_waiting, None, [1], None, None),
        (unannotated, None, {"any": 1}, None, None),
    ],
)
def test_a_payload_is_what_the_asset_says(
    ledger: Ledger,
    make_runtime: RuntimeFactory,
    function: Callable[..., Any],
    on_signal: Callable[..., Any] | None,
    good: Any,
    bad: Any,
    said: str | None,
) -> None:
    gate = ask_for(ledger, ASK, driver="inline", name="job")
    make_runtime(build_registry([asset(name="job0", on_signal=on_signal)(function)]))
    if said is not None:
        with pytest.raises(BadSignal, match=said):
            signal(TOKEN, bad)
        assert row(ledger, gate).state == "open"
    signal(TOKEN, good)
    assert row(ledger, gate).payload == {"value": good}


def early(ledger: Ledger, number: int = 0) -> tuple[HandRun, str]:
    """Return a run whose only step has not begun to wait, and the token of its signal."""
    run = HandRun(ledger, {0: ()}, name=f"early{number}_", driver="inline")
    return run, signal_token(SECRET.encode(), run.ids[0], "done")


def wait(run: HandRun, token: str) -> int:
    """Have the dispatched step of a run ask for its signal; return the gate."""
    claim = run.claim(0)
    with run.ledger.begin() as conn:
        assert asking.ask(conn, claim, Waiting(SignalAsk(name="done", token=token), MADE_OF))
    (found,) = query(run.ledger, "SELECT max(id) AS id FROM flowstone.gates WHERE step_id = :s",
                     s=run.ids[0])  # fmt: skip
    return int(found.id)


def test_an_early_signal_is_kept_until_its_step_waits(ledger: Ledger, here: Runtime) -> None:
    run, token = early(ledger)
    assert signal(token, 5, by="ann", channel="test").is_early
    with pytest.raises(SignalReplayed, match=r"come already, at .* kept until early0_0 waits"):
        signal(token, 6)
    # By then the secrets have been replaced.
    run.dispatch()
    gate = wait(run, signal_token(b"n" * 32, run.ids[0], "done"))
    found = row(ledger, gate)
    assert (found.state, found.payload, found.closed_by) == ("received", {"value": 5}, "ann")
    assert count(ledger, "early_signals") == 0
    with pytest.raises(SignalReplayed, match="signal done of early0_0 has come already"):
        signal(token, 7)
    actions = query(ledger, "SELECT action, actor FROM flowstone.audit WHERE action LIKE 'signal%'"
                            " ORDER BY id")  # fmt: skip
    assert [tuple(one) for one in actions] == [
        ("signal.kept", "ann"), ("signal.requested", "w"), ("signal.received", "ann"),
    ]  # fmt: skip


def test_a_step_that_ended_waits_for_nothing_and_what_was_kept_for_it_is_forgotten(
    ledger: Ledger, here: Runtime
) -> None:
    run, token = early(ledger)
    signal(token)
    run.do(0)
    with pytest.raises(UnknownSignal, match=r"early0_0 of the run .* has ended \(succeeded\)"):
        signal(token)
    _, other = early(ledger, 1)
    signal(other)
    (kept,) = query(ledger, "SELECT token_hash FROM flowstone.early_signals")
    assert kept.token_hash == token_hash(other)


def test_a_signal_at_the_moment_of_asking_is_not_lost(ledger: Ledger, here: Runtime) -> None:
    for number in range(20):
        run, token = early(ledger, number)
        run.dispatch()
        at_once(partial(wait, run, token), partial(signal, token, 1))
    states = query(ledger, "SELECT state, count(*) FROM flowstone.gates GROUP BY state")
    assert [tuple(one) for one in states] == [("received", 20)]
    assert count(ledger, "early_signals") == 0


def test_a_signal_waits_for_an_asking_that_is_not_committed(ledger: Ledger, here: Runtime) -> None:
    run, token = early(ledger)
    run.dispatch()
    claim = run.claim(0)
    with ThreadPoolExecutor(1) as pool:
        with ledger.begin() as conn:
            ask = SignalAsk(name="done", token=token)
            assert asking.ask(conn, claim, Waiting(ask, MADE_OF))
            sending = pool.submit(signal, token, 1)
            until_somebody_waits_for_a_lock(ledger)
        assert not sending.result(timeout=30).is_early
    assert [one.state for one in query(ledger, "SELECT state FROM flowstone.gates")] == ["received"]


def test_an_asking_waits_for_a_signal_that_is_not_committed(ledger: Ledger, here: Runtime) -> None:
    run, token = early(ledger)
    run.dispatch()
    with ThreadPoolExecutor(1) as pool:
        with ledger.begin() as conn:
            early_signals.lock(conn, token_hash(token))
            early_signals.keep(
                conn, run.ids[0], token_hash(token), {"value": 1}, by="ann", channel="test"
            )
            asking = pool.submit(wait, run, token)
            until_somebody_waits_for_a_lock(ledger)
        gate = asking.result(timeout=30)
    assert row(ledger, gate).state == "received"


def test_of_signals_and_a_timeout_at_once_one_wins(ledger: Ledger, here: Runtime) -> None:
    def sends(token: str, payload: int) -> str:
        try:
            signal(token, payload)
        except UnknownSignal:
            return "refused"
        return "received"

    def expires(gate: int) -> str:
        with ledger.begin() as conn:
            asked = gates.lock(conn, gate)
            assert asked is not None
            closed = gates.close(conn, asked, GateState.EXPIRED, by="timeout")
        return "expired" if closed else "refused"

    for number in range(5):
        token = f"{TOKEN}-{number}"
        gate = ask_for(ledger, SignalAsk(name="done", token=token), driver="inline")
        send = [partial(sends, token, payload) for payload in range(3)]
        ended = at_once(*send, partial(expires, gate))
        assert sorted(map(str, ended)) == sorted([row(ledger, gate).state, *["refused"] * 3])
