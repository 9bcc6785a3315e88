"""Tells people of approvals, and tries again those that cannot be reached.

No decision waits for that: what is to be told are rows, which are committed with what they tell
of, and nothing is locked while somebody is told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flowstone import notifiers
from flowstone.announcement import announce
from flowstone.gate import Gate
from flowstone.log import get_logger
from flowstone.notifiers import NotTold
from flowstone.quorum import is_approver
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from flowstone.states import GateState
from flowstone.store import gates, notifications
from flowstone.store.gates import Asked
from flowstone.store.notifications import Notification
from flowstone.tokens import approval_url

log = get_logger("flowstone.notify")

LEASE_SECONDS: Final = 60.0
"""How long whoever has taken a notification may take to tell all; a try that dies costs that."""

PASS_SECONDS: Final = 30.0
"""After how long a pass tells nobody more; it ends before the lease of what it took last."""

FIRST_DELAY: Final = 30.0
MAX_DELAY: Final = 3600.0
MAX_TRIES: Final = 12
"""How often it is tried: for some five hours."""

LINK_SECONDS: Final = 7 * 86400
"""How long a link holds by which somebody decides who is told."""

ASKING: Final = frozenset({"reminder", "escalated"})
"""The events that are nothing to be told of any more when the approval has ended."""


def delay_after(tries: int) -> float | None:
    """Return the seconds after which it is tried again that has failed so often; None is never."""
    if tries >= MAX_TRIES:
        return None
    return min(FIRST_DELAY * 2.0 ** (tries - 1), MAX_DELAY)


def deliver(runtime: Runtime, seconds: float = PASS_SECONDS) -> int:
    """Tell what is due, for about `seconds`; return how many notifications were tried.

    Of all processes one does so at a time, so that who answers slowly holds up no more than one;
    the others return at once. Raises LedgerUnavailable.
    """
    with runtime.ledger.begin() as conn:
        # For as long as this transaction, which locks nothing else and reads nothing.
        if not notifications.is_alone(conn):
            return 0
        return _pass(runtime, time.monotonic() + seconds)


def _pass(runtime: Runtime, until: float) -> int:
    silent, count = set[str](), 0
    while time.monotonic() < until and (taken := _take(runtime)) is not None:
        _deliver(runtime, taken, silent, until)
        count += 1
    return count


def _take(runtime: Runtime) -> Notification | None:
    with runtime.ledger.begin() as conn:
        return notifications.take(conn, LEASE_SECONDS)


def _deliver(runtime: Runtime, taken: Notification, silent: set[str], until: float) -> None:
    with runtime.ledger.begin() as conn:
        asked = gates.get(conn, taken.gate_id)
    assert asked is not None
    failed: Mapping[str, _Failure]
    if taken.tries > MAX_TRIES:
        # Its last try has not even come to an end.
        failed = {"all": _Failure("whoever tries it dies")}
    elif taken.event in ASKING and asked.gate.state != GateState.OPEN:
        failed = {}
    else:
        failed = _tell_all(runtime, taken, asked, silent, until)
    error = "; ".join(f"{name}: {failure.why}" for name, failure in failed.items()) or None
    # Where those who do not know it were not even asked, it was no try.
    is_try = not failed or any(failure.was_tried for failure in failed.values())
    tries = taken.tries if is_try else taken.tries - 1
    delay = delay_after(max(tries, 1)) if failed else None
    with runtime.ledger.begin() as conn:
        notifications.settle(conn, taken, error=error, delay=delay, tries=tries)
    if failed:
        said = "not told, and given up" if delay is None else "not told, and tried again later"
        log.warning(said, approval=taken.gate_id, told_of=taken.event, tries=tries, why=error)


@dataclass(frozen=True)
class _Failure:
    """Why somebody does not know it yet."""

    why: str
    was_tried: bool = True


def _tell_all(
    runtime: Runtime, taken: Notification, asked: Asked, silent: set[str], until: float
) -> Mapping[str, _Failure]:
    """Tell all that do not know it yet; return why some could not be told, by their names."""
    failed = dict[str, _Failure]()
    for name in _names(runtime, asked):
        if name in taken.told:
            continue
        if name in silent:
            failed[name] = _Failure("it has just not answered for another one", was_tried=False)
        elif time.monotonic() > until:
            failed[name] = _Failure("the others have taken too long", was_tried=False)
        elif (why := _tell(runtime, taken, asked, name, silent)) is not None:
            failed[name] = _Failure(why)
    return failed


def _names(runtime: Runtime, asked: Asked) -> Iterator[str]:
    """Yield who is told: all that the settings name, or those of them that the asset names."""
    known, wanted = runtime.settings.notify, asked.gate.notify
    for name in known if wanted is None else wanted:
        if name in known:
            yield name
        else:
            log.warning(
                "FLOWSTONE_NOTIFY does not name who is to be told",
                name=name,
                approval=asked.gate.id,
            )


def _tell(
    runtime: Runtime, taken: Notification, asked: Asked, name: str, silent: set[str]
) -> str | None:
    """Tell one, and note that; return why they could not be told, or None."""
    settings = runtime.settings
    secret = next(iter(settings.shared_secrets), None)
    try:
        notifiers.tell(
            settings.notify[name].get_secret_value(),
            announce(taken.id, taken.event, asked, _link(settings, asked.gate, name)),
            secret,
        )
    except NotTold as error:
        if error.is_silent:
            silent.add(name)
        return str(error)
    with runtime.ledger.begin() as conn:
        notifications.told(conn, taken.id, name)
    return None


def _link(settings: Settings, gate: Gate, name: str) -> str | None:
    """Return where the one who is told may decide; None for others than those who are asked.

    Whoever has it decides in that name, so no group is given one.
    """
    is_asked = gate.state == GateState.OPEN and gate.approvers
    if settings.web_url is None or not settings.secrets or not is_asked:
        return None
    if not is_approver(gate, name, settings.roles):
        return None
    return approval_url(settings.web_url, settings.secrets[0], gate.id, name, LINK_SECONDS)
