"""Links by which people decide an approval without a login: signed, for one of them, for a time."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from flowstone import runtime
from flowstone.approvals import id_of
from flowstone.errors import MAX_WAIT, BadConfig, BadQuery
from flowstone.quorum import check_approver
from flowstone.store import decisions
from flowstone.tokens import approval_url, newest

WEEK: Final = timedelta(days=7)


def approval_link(approval_id: int | str, by: str, *, expires: float | timedelta = WEEK) -> str:
    """Return the address of a page on which `by` may decide an approval, once.

    Whoever has the address decides in that name, so give it to nobody else. It holds for
    `expires`, which is in seconds or a timedelta, by default a week. `flowstone serve` shows the
    page, at FLOWSTONE_WEB_URL.

    Raises UnknownApproval; AlreadyDecided or ApprovalVoid for one that is not open; NotAllowed for
    somebody who is not asked; BadQuery for a time that makes no sense; BadToken for a name that is
    too long; and BadConfig without FLOWSTONE_WEB_URL or FLOWSTONE_SECRET, or for a role that the
    settings do not have.
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
        gate = decisions.still_open(conn, id_of(approval_id)).gate
    check_approver(gate, by, settings.roles)
    return approval_url(settings.web_url, secret, gate.id, by, seconds)
