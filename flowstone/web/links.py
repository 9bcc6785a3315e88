"""Links by which people decide an approval without a login: signed, for one of them, for a time."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final

from flowstone import runtime
from flowstone.errors import MAX_WAIT, AlreadyDecided, BadConfig, BadQuery, UnknownApproval
from flowstone.states import GateState
from flowstone.store import gates
from flowstone.tokens import approval_token, newest

WEEK: Final = timedelta(days=7)


def approval_link(approval_id: int | str, by: str, *, expires: float | timedelta = WEEK) -> str:
    """Return the address of a page on which `by` may decide an approval, once.

    Whoever has the address decides in that name, so give it to nobody else. It holds for
    `expires`, which is in seconds or a timedelta, by default a week. `flowstone serve` shows the
    page, at FLOWSTONE_WEB_URL.

    Raises UnknownApproval, AlreadyDecided for one that is not open, BadQuery for a time that makes
    no sense, BadToken for a name that is none, and BadConfig without FLOWSTONE_WEB_URL or
    FLOWSTONE_SECRET.
    """
    here = runtime.current()
    settings = here.settings
    secret = newest(settings.secrets)
    if settings.web_url is None:
        raise BadConfig(
            "FLOWSTONE_WEB_URL is not set; set it to where people reach `flowstone serve`, such as "
            "https://flowstone.example.com"
        )
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else float(expires)
    if not 0 < seconds <= MAX_WAIT:
        raise BadQuery(f"a link holds for some seconds, up to a year, and not for {seconds:g}")
    with here.ledger.begin() as conn:
        found = gates.get(conn, _number(approval_id))
    if found is None or found.gate.kind != "approval":
        raise UnknownApproval(f"there is no approval {approval_id}")
    if found.gate.state != GateState.OPEN:
        raise AlreadyDecided(
            f"approval {approval_id} waits for nobody: it is {found.gate.state} since "
            f"{found.gate.closed_at:%Y-%m-%d %H:%M:%S %Z}"
        )
    token = approval_token(secret, found.gate.id, by, int(time.time() + seconds))
    return f"{settings.web_url}/approvals/{token}"


def _number(approval_id: int | str) -> int:
    text = str(approval_id).strip()
    if not (text.isascii() and text.isdigit()):
        raise UnknownApproval(f"{text!r} is not the id of an approval, which is a number")
    return int(text)
