"""/approvals/TOKEN: the page behind a link to an approval. Opening it decides nothing."""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from tornado.template import Loader
from tornado.web import HTTPError

from flowstone import approvals
from flowstone.errors import (
    AlreadyDecided,
    ApprovalVoid,
    BadDecision,
    BadToken,
    FlowStoneError,
    NotAllowed,
    UnknownApproval,
)
from flowstone.gate import Gate
from flowstone.quorum import check_voter
from flowstone.runtime import Runtime
from flowstone.store import approvals as store
from flowstone.store import decisions
from flowstone.store.approvals import ApprovalRequest, Listed
from flowstone.tokens import Invitation, read_approval_token
from flowstone.web.handler import Handler
from flowstone.web.preview import Preview, of_context, of_json, preview

CHANNEL: Final = "link"

MAX_REASON: Final = 2_000
"""Characters of a reason."""

_FOLDER: Final = Path(__file__).parent
_PAGES: Final = Loader(str(_FOLDER))
_STYLE: Final = (_FOLDER / "style.css").read_text()
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class _View:
    """All that the page tells."""

    request: ApprovalRequest
    gate: Gate
    launcher: str
    invitation: Invitation
    value: Preview | None
    edited: Preview | None
    ended: str | None
    """How it has ended, if it is not open."""
    refusal: str | None
    """Why the one with the link may not decide, or not any more."""

    @property
    def context(self) -> list[tuple[str, str]]:
        return of_context(self.gate.context)

    @property
    def link_ends(self) -> datetime:
        return datetime.fromtimestamp(self.invitation.expires, UTC)


class ApprovalHandler(Handler):
    """Shows what is asked; takes the decision of the one whom the link is for, once."""

    what: ClassVar[str] = "approval"

    def set_default_headers(self) -> None:
        """Let nothing but the page itself be shown, sent to, or shown around it."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Frame-Options", "DENY")

    async def get(self, token: str) -> None:
        """Show how the approval stands."""
        invitation = self._invitation(token)
        self._show(200, await self.served.do(partial(_look, self.served.here, invitation)))

    head = get

    async def post(self, token: str) -> None:
        """Decide, and lead back to the page."""
        invitation = self._invitation(token)
        if self.request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            raise HTTPError(403, "another site has sent this decision; open the link yourself")
        wanted = self.get_body_argument("decision", "")
        reason = self.get_body_argument("reason", "").replace("\r\n", "\n") or None
        option = self.get_body_argument("option", None, strip=False)
        if wanted not in ("approve", "reject"):
            raise HTTPError(422, "a decision is to approve, or to reject")
        if len(reason or "") > MAX_REASON:
            raise HTTPError(422, f"a reason has at most {MAX_REASON:,} characters")
        said: dict[str, Any] = {"by": invitation.by, "reason": reason, "channel": CHANNEL}
        try:
            if wanted == "approve":
                await self.served.do(
                    partial(approvals.approve, invitation.gate_id, option=option, **said)
                )
            else:
                await self.served.do(partial(approvals.reject, invitation.gate_id, **said))
        except (AlreadyDecided, ApprovalVoid, BadDecision, NotAllowed) as error:
            view = await self.served.do(partial(_look, self.served.here, invitation))
            self._show(self.status_of(error), view, problem=error.message)
            return
        # To load the page again must not send the decision again.
        self.redirect(token, status=303)

    def _invitation(self, token: str) -> Invitation:
        return read_approval_token(self.served.here.settings.secrets, token, time.time())

    def _show(self, status: int, view: _View, *, problem: str = "") -> None:
        # What has ended says so by itself.
        problem = "" if view.ended else problem
        self._page(status, "approval.html", view=view, problem=problem)

    def tell_error(self, status: int, type: str, message: str) -> None:  # noqa: ARG002
        """Show a page with what went wrong."""
        self._page(status, "sorry.html", message=message)

    def _page(self, status: int, name: str, **values: Any) -> None:  # noqa: ANN401
        self.set_status(status)
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        self.finish(_PAGES.load(name).generate(style=_STYLE, **values))

    def status_of(self, error: FlowStoneError) -> int:
        """Return the status that stands for an error."""
        match error:
            case BadToken() | NotAllowed():
                return 403
            case UnknownApproval():
                return 404
            case AlreadyDecided() | ApprovalVoid():
                return 409
            case BadDecision():
                return 422
        return super().status_of(error)


def _look(here: Runtime, invitation: Invitation) -> _View:
    """Return how the approval stands, and whether the one with the link may decide."""
    with here.ledger.begin() as conn:
        found = store.one(conn, invitation.gate_id)
        ended = refusal = None
        try:
            decisions.still_open(conn, found.gate.id)
            launchers = decisions.launchers(conn, found.request.run_id)
        except (AlreadyDecided, ApprovalVoid) as error:
            ended, launchers = error.message, []
    if ended is None:
        refusal = _refusal(here, found, invitation, launchers)
    gate = found.gate
    return _View(
        request=found.request,
        gate=gate,
        launcher=found.launcher,
        invitation=invitation,
        value=None if gate.value is None else preview(here, found.request.asset, gate.value),
        edited=None if gate.edited is None else of_json(gate.edited["value"]),
        ended=ended,
        refusal=refusal,
    )


def _refusal(
    here: Runtime, found: Listed, invitation: Invitation, launchers: list[str]
) -> str | None:
    try:
        check_voter(
            found.gate,
            found.request.votes,
            invitation.by,
            launchers=launchers,
            roles=here.settings.roles,
        )
    except FlowStoneError as error:
        return error.message
    return None
