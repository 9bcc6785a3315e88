"""Signals: what an asset waits for that happens outside, such as the end of a job elsewhere."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from flowstone.errors import MAX_WAIT, DefinitionError, FlowStoneError
from flowstone.names import NAME
from flowstone.tokens import identity

OnSignalTimeout = Literal["fail", "continue"]

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~-]{8,200}")
"""What is the same in an address, so that a token can stand in one."""


@dataclass(frozen=True, kw_only=True)
class SignalAsk:
    """What is waited for. `timeout` is in seconds; without one there is no end.

    On a timeout the step fails, or with "continue" its `on_signal` is called without a payload.
    """

    name: str
    token: str
    timeout: float | None = None
    on_timeout: OnSignalTimeout | None = None
    message: str = ""


class WaitForSignal(FlowStoneError):
    """What the function of an asset returns or raises to wait; see `wait_for_signal`."""

    type = "wait_for_signal"

    def __init__(self, ask: SignalAsk) -> None:
        super().__init__(f"waits for the signal {ask.name}")
        self.ask = ask


def wait_for_signal(
    *,
    name: str,
    token: str,
    timeout: float | None = None,
    on_timeout: OnSignalTimeout | None = None,
    message: str = "",
) -> WaitForSignal:
    """Return what the function of an asset returns, or raises, to wait for a signal from outside.

    Whoever knows the `token` sends it: that of `Context.signal_token`, or one of your own that no
    other step waits for, 8 to 200 letters, digits and `._~-`, and hard to guess. The step then
    goes on with the asset's `on_signal`; without that, the payload is the value. `name` is for
    people. After `timeout` seconds the step fails, or with `on_timeout="continue"` goes on without
    a payload. Raises DefinitionError.
    """
    given: Any = timeout  # as the caller may not check types
    if not NAME.fullmatch(name):
        raise DefinitionError(
            f"wait_for_signal: {name!r} is not a name; use letters, digits, '_', '.' and '-'"
        )
    given_token: Any = token
    if not isinstance(given_token, str) or not _TOKEN.fullmatch(token):
        raise DefinitionError(
            f"wait_for_signal({name!r}): a token is 8 to 200 letters, digits and ._~-; take that "
            f"of context.signal_token({name!r})"
        )
    if given is not None and (type(given) not in (int, float) or not 0 < given <= MAX_WAIT):
        raise DefinitionError(
            f"wait_for_signal({name!r}): timeout={timeout!r}; it takes a number of seconds, up to "
            "a year, or None"
        )
    return WaitForSignal(
        SignalAsk(
            name=name,
            token=token,
            timeout=timeout,
            on_timeout=_checked(name, timeout, on_timeout),
            message=message,
        )
    )


def _checked(name: str, timeout: float | None, on_timeout: Any) -> OnSignalTimeout | None:  # noqa: ANN401
    if on_timeout not in (None, "fail", "continue"):
        raise DefinitionError(
            f"wait_for_signal({name!r}): on_timeout={on_timeout!r}; it is 'fail' or 'continue'"
        )
    if timeout is None and on_timeout is not None:
        raise DefinitionError(
            f"wait_for_signal({name!r}): on_timeout={on_timeout!r} without a timeout= never holds"
        )
    if timeout is None:
        return None
    kept: OnSignalTimeout = on_timeout or "fail"
    return kept


@dataclass(frozen=True)
class Signal:
    """What `on_signal` is told, beside the payload. `by` is who has sent it.

    Where it has `timed_out`, there was none.
    """

    name: str
    payload: Any
    by: str
    at: datetime
    timed_out: bool = False


def token_hash(token: str) -> str:
    """Return what the ledger keeps of a token, and knows it by: whoever takes one verifies it."""
    return hashlib.sha256(identity(token).encode()).hexdigest()


def is_token(text: str) -> bool:
    """Return whether a text may be a token."""
    return _TOKEN.fullmatch(text) is not None
