"""Signals from outside: whoever knows the token of one sends it, once, and its step goes on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from flowstone import outbox, payload, runtime
from flowstone.errors import BadConfig, SignalReplayed, UnknownSignal
from flowstone.runtime import Runtime, whoami
from flowstone.signalling import is_token, token_hash
from flowstone.states import FINAL_STEP_STATES, GateState
from flowstone.store import audit, early_signals, gates
from flowstone.store import signals as store
from flowstone.store.gates import Asked
from flowstone.store.ledger import Connection
from flowstone.store.signals import Waiter
from flowstone.texts import storable
from flowstone.tokens import UNSIGNED, is_own, step_of


@dataclass(frozen=True)
class SignalReceipt:
    """What has become of a signal: which step of which run goes on with it.

    One that has come early is kept until the step waits for it.
    """

    step: str
    run_id: str
    is_early: bool


def signal(
    token: str,
    payload: Any = None,  # noqa: ANN401 - any JSON value
    *,
    by: str | None = None,
    channel: str = "python",
) -> SignalReceipt:
    """Send a signal to the step that waits for one with this token, and return what it does.

    The `payload` holds JSON values, of at most 64 KB. `by` is who sends it, and by default who
    runs this process. A signal counts once, whoever comes first. One with a token of
    `Context.signal_token` may come before its step waits, and is kept until then.

    Raises UnknownSignal where nobody waits, SignalReplayed, which is one, where it has come
    already, and BadSignal for a payload that the asset does not take: the step waits on.
    """
    return _Sending(runtime.current(), token, payload, by or whoami(), channel).send()


class _Sending:
    """One signal, from its token to what has become of it."""

    def __init__(self, here: Runtime, token: str, given: Any, by: str, channel: str) -> None:  # noqa: ANN401
        if not is_token(token):
            raise UnknownSignal("this is no token of a signal: 8 to 200 letters, digits and ._~-")
        self._here = here
        self._step_id = _own_step(here, token)
        self._hash = token_hash(token)
        self._payload = payload.checked(given)
        self._by, self._channel = storable(by), channel

    def send(self) -> SignalReceipt:
        with self._here.ledger.begin() as conn:
            asset = self._waiter(conn).asset
        # Not in a transaction: to load the definitions may take a while.
        self._check_fit(asset)
        waiter, asked = self._here.ledger.in_turn(self._arrive)
        if asked is not None:
            outbox.carry_on(self._here, asked)
        return SignalReceipt(waiter.step, waiter.run_id, asked is None)

    def _waiter(self, conn: Connection) -> Waiter:
        """Return who waits, or will wait; raise UnknownSignal where nobody does."""
        found = store.find(conn, self._hash)
        if found is None or (found.state == GateState.VOID and self._step_id is not None):
            found = self._before_it_waits(conn)
        elif found.state != GateState.OPEN:
            raise _refusal(found)
        return found

    def _before_it_waits(self, conn: Connection) -> Waiter:
        found = None if self._step_id is None else store.step(conn, self._step_id)
        if found is None:
            raise UnknownSignal(
                "no step waits for a signal with this token; one of your own counts only once its "
                "step waits",
                # Of a step that was deleted nobody will hear again.
                retryable=self._step_id is None,
            )
        if found.step_state in FINAL_STEP_STATES:
            raise UnknownSignal(
                f"{found.step} of the run {found.run_id} has ended ({found.step_state}), and waits "
                "for no signal"
            )
        return found

    def _check_fit(self, asset: str) -> None:
        known = self._here.definitions(importing=True)
        made = None if known is None else known.graph.assets.get(asset)
        if made is not None:
            payload.fit(made, self._payload)

    def _arrive(self, conn: Connection) -> tuple[Waiter, Asked | None]:
        """Record the signal; return who waits, with the gate that it has closed, or None."""
        waiter = self._waiter(conn)
        if waiter.gate_id is None:
            early_signals.lock(conn, self._hash)
            # The step may have begun to wait just now.
            waiter = self._waiter(conn)
        if waiter.gate_id is None:
            self._keep(conn, waiter)
            return waiter, None
        asked = gates.lock(conn, waiter.gate_id)
        assert asked is not None
        if not gates.close(
            conn,
            asked,
            GateState.RECEIVED,
            by=self._by,
            channel=self._channel,
            payload={"value": self._payload},
        ):
            gate = asked.gate
            raise _refusal(replace(waiter, state=gate.state, closed_at=gate.closed_at))
        return waiter, asked

    def _keep(self, conn: Connection, waiter: Waiter) -> None:
        since = early_signals.keep(
            conn,
            waiter.step_id,
            self._hash,
            {"value": self._payload},
            by=self._by,
            channel=self._channel,
        )
        if since is not None:
            raise SignalReplayed(
                f"this signal has come already, at {since.isoformat(timespec='seconds')}, and is "
                f"kept until {waiter.step} waits for it",
                context={"came_at": since.isoformat()},
            )
        audit.record(
            conn,
            actor=self._by,
            action="signal.kept",
            run_id=UUID(waiter.run_id),
            step_id=waiter.step_id,
            details=audit.of_step(waiter.asset, waiter.partition, channel=self._channel),
        )


def _own_step(here: Runtime, token: str) -> int | None:
    """Return the step of one of FlowStone's own tokens, or None for one of the user's."""
    if not is_own(token):
        return None
    secrets = here.settings.secrets
    if not secrets:
        raise BadConfig(f"the token cannot be verified: {UNSIGNED}")
    step_id = step_of(secrets, token)
    if step_id is None:
        raise UnknownSignal(
            "no secret of FLOWSTONE_SECRET has made this token; a character of it is wrong, or its "
            "secret was taken away"
        )
    return step_id


def _refusal(found: Waiter) -> UnknownSignal:
    """Return the error for a signal to a gate that is closed."""
    assert found.closed_at is not None
    at = found.closed_at.isoformat(timespec="seconds")
    what = f"the signal {found.name} of {found.step}"
    match found.state:
        case GateState.RECEIVED:
            return SignalReplayed(
                f"{what} has come already, at {at}; it counts once",
                context={"came_at": found.closed_at.isoformat()},
            )
        case GateState.EXPIRED:
            return UnknownSignal(f"{what} was waited for until {at}; it has come too late")
        case GateState.VOID:
            return UnknownSignal(
                f"{what} is not waited for at the moment, as its step is computed anew",
                retryable=True,
            )
    return UnknownSignal(f"{what} is not waited for any more, since {at}")
