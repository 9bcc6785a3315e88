"""Approvals for people: what waits for them, what it is about, and their decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from flowstone import hints, outbox, runtime
from flowstone.asset import Asset
from flowstone.difference import difference
from flowstone.errors import (
    ApprovalVoid,
    BadConfig,
    BadDecision,
    BadQuery,
    FlowStoneError,
    UnknownApproval,
    did_you_mean,
)
from flowstone.io.edits import FORMATS, as_edited, checked, readable
from flowstone.io.json_values import is_same
from flowstone.outcome import StoredOutput
from flowstone.quorum import Vote, is_among, may_vote
from flowstone.runtime import Runtime
from flowstone.states import GateState
from flowstone.store import approvals as store
from flowstone.store import decisions, gates, runs
from flowstone.store.approvals import ApprovalRequest, Listed
from flowstone.store.decisions import Edit
from flowstone.store.gates import Asked
from flowstone.store.ledger import Connection
from flowstone.texts import storable

__all__ = [
    "NOT_EDITED",
    "ApprovalDetails",
    "ApprovalRequest",
    "Vote",
    "approvals_list",
    "approve",
    "get_approval",
    "reject",
]

NOT_EDITED: Final = object()
"""Stands for the value where nobody puts another one in place of the proposed."""

_MAX_DIGITS: Final = 100
"""More than any id has; of some thousands, Python makes no number."""

PYTHON: Final = "python"
"""By which way a decision comes that a program makes."""


@dataclass(frozen=True, kw_only=True)
class ApprovalDetails(ApprovalRequest):
    """All that is known of an approval."""

    launcher: str
    """Who has started the run."""
    context: Mapping[str, Any]
    """What the asset tells those who decide."""
    subject: str | None
    """The hash of what was reviewed: the value, what it was made of, message and context."""
    on_timeout: str | None
    proposed: StoredOutput | None
    """Where the proposed value lies; None if nothing was proposed."""
    value: Any
    """The proposed value; where it cannot be read, a text that says so; None if there is none.

    A pickle, which can run any code, is not read for this.
    """
    edited: Any
    """What was put in its place, as JSON; see `is_edited`."""
    difference: Sequence[Mapping[str, Any]]
    """What has changed by that: the path, and what was there `before` and is `after`."""
    replaces: int | None
    """The void approval that had asked for the same before."""
    replaced_by: int | None
    """The approval that asks for the same, as this one is void."""


def approve(
    approval_id: int | str,
    *,
    by: str | None = None,
    reason: str | None = None,
    option: str | None = None,
    edit: Any = NOT_EDITED,  # noqa: ANN401 - any value of a user
    channel: str = PYTHON,
) -> ApprovalRequest:
    """Approve what an approval asks, and return how it stands: open where more have to.

    `by` is who decides, by default the user of this process; nobody checks that it is them.
    `option` is one of the approval's, if it has any. `edit` is the whole value that is to count
    in the place of the proposed one: such a value, or its JSON; this process then needs the
    definition of the asset. `channel` is kept with the decision.

    Raises UnknownApproval; AlreadyDecided, which tells who has decided first, or that it is not
    asked for any more; ApprovalVoid where an input has changed since, and it is asked again;
    NotAllowed for somebody who may not decide, or not twice; BadDecision for an option that there
    is not, or a value that does not fit; and BadConfig for a role that the settings do not have,
    or where an edit needs a definition that is not here.
    """
    here = runtime.current()
    gate_id = id_of(approval_id)
    changed = None if edit is NOT_EDITED else _edit(here, gate_id, edit)
    return _decide(here, gate_id, _vote(by, True, reason, option, channel), changed)


def reject(
    approval_id: int | str,
    *,
    by: str | None = None,
    reason: str | None = None,
    channel: str = PYTHON,
) -> ApprovalRequest:
    """Reject what an approval asks, and return how it stands; one who rejects is enough.

    Arguments and errors are those of `approve`.
    """
    here = runtime.current()
    return _decide(here, id_of(approval_id), _vote(by, False, reason, None, channel), None)


def id_of(approval_id: int | str) -> int:
    """Return the id that a person has given; raise UnknownApproval for what can be none."""
    text = str(approval_id).strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise UnknownApproval(
            f"{text!r} is not the id of an approval, which is a number; `flowstone approvals list` "
            "shows those that are open"
        )
    return int(text)


def _vote(
    by: str | None, approves: bool, reason: str | None, option: str | None, channel: str
) -> Vote:
    actor = runtime.whoami() if by is None else storable(by).strip()
    said = storable(reason).strip() if reason is not None else ""
    return Vote(actor, approves, channel, said or None, option)


def _decide(here: Runtime, gate_id: int, vote: Vote, edit: Edit | None) -> ApprovalRequest:
    roles = here.settings.roles
    asked = here.ledger.in_turn(
        lambda conn: decisions.decide(conn, gate_id, vote, roles=roles, edit=edit)
    )
    if asked.gate.state == GateState.VOID:
        outbox.wake_others(here, [asked.run_id])
        raise ApprovalVoid(
            f"{asked.gate.label} is void, as {gates.OUTDATED}: {asked.asset} is computed "
            "anew, and it is asked again"
        )
    if asked.gate.state != GateState.OPEN:
        outbox.carry_on(here, asked)
    with here.ledger.begin() as conn:
        return store.one(conn, gate_id).request


def _edit(here: Runtime, gate_id: int, edit: Any) -> Edit | None:  # noqa: ANN401
    """Return what an edit changes, if anything; the proposed value never does."""
    with here.ledger.begin() as conn:
        asked = decisions.still_open(conn, gate_id)
    proposed = asked.gate.value
    if proposed is None or proposed.format not in FORMATS:
        what = "proposes no value" if proposed is None else f"proposes {proposed.format}"
        raise BadDecision(f"{asked.gate.label} {what}; what is JSON can be edited")
    as_type = hints.of_result(_definition(here, asked).function)
    try:
        value = checked(edit, as_type)
        before = here.read(asked.asset, proposed)
        if is_same(value, before):
            return None
        edited = as_edited(value, as_type)
    except BadDecision as error:
        raise BadDecision(
            f"{asked.gate.label}: the edit is no value of {asked.asset}: {error.message}"
        ) from None
    return Edit(edited, difference(readable(before), edited["value"]))


def _definition(here: Runtime, asked: Asked) -> Asset:
    registry = here.registry if here.settings.assets else here.definitions(importing=True)
    found = None if registry is None else registry.graph.assets.get(asked.asset)
    if found is None:
        raise BadConfig(
            f"{asked.gate.label}: an edit is checked by the definition of {asked.asset}, which "
            "this process does not have; set FLOWSTONE_ASSETS to the module that defines it"
        )
    return found


def approvals_list(
    *,
    state: str = GateState.OPEN,
    asset: str | Asset | None = None,
    approver: str | None = None,
    older_than: float = 0,
    run: str | UUID | None = None,
    limit: int = 100,
) -> list[ApprovalRequest]:
    """Return the approvals that wait for a decision, the oldest first.

    `approver` is a name: those that this person may decide, or vote on, by the roles of the
    settings. `older_than` is in seconds, `run` the id of a run or how that begins. Another `state`
    or "all" returns those that were decided, too: of these the latest. `limit` is how many.

    Raises UnknownRun, or BadQuery for a state that there is not, or a number below 0.
    """
    here = runtime.current()
    wanted = _state(state)
    if older_than < 0 or limit < 0:
        raise BadQuery("older_than and limit are numbers, 0 or more")
    found: list[ApprovalRequest] = []
    with here.ledger.begin() as conn:
        every = store.listed(
            conn,
            state=wanted,
            asset=None if asset is None else str(asset),
            run_id=None if run is None else runs.find(conn, str(run)),
            older_than=older_than,
            approvers=None if approver is None else partial(_asks, here, approver),
        )
        with closing(every):
            for one in every:
                if len(found) == limit:
                    break
                if approver is None or _may_still(conn, here, one, approver):
                    found.append(one.request)
    return sorted(found, key=lambda one: (one.asked_at, one.id))


def _state(state: str) -> GateState | None:
    known = [one.value for one in GateState if one != GateState.RECEIVED]
    if state != "all" and state not in known:
        raise BadQuery(
            f"no approval is {state!r}{did_you_mean(state, known)}; it is one of "
            f"{', '.join(known)}, or 'all'"
        )
    return None if state == "all" else GateState(state)


def _asks(here: Runtime, approver: str, approvers: Sequence[str]) -> bool:
    return is_among(approvers, approver, here.settings.roles)


def _may_still(conn: Connection, here: Runtime, one: Listed, approver: str) -> bool:
    """Return whether one who is asked may decide now, or might have once it is decided."""
    if not one.request.is_open:
        return True
    roles = here.settings.roles
    launchers = decisions.launchers(conn, one.request.run_id) if one.gate.four_eyes else ()
    return may_vote(one.gate, one.request.votes, approver, launchers=launchers, roles=roles)


def get_approval(approval_id: int | str) -> ApprovalDetails:
    """Return all that is known of an approval, with its proposed value; raise UnknownApproval."""
    here = runtime.current()
    with here.ledger.begin() as conn:
        one = store.one(conn, id_of(approval_id))
        again = decisions.replaced_by(conn, one.request.id)
    gate = one.gate
    return ApprovalDetails(
        **vars(one.request),
        launcher=one.launcher,
        context=gate.context,
        subject=gate.subject,
        on_timeout=gate.on_timeout,
        proposed=gate.value,
        value=_value(here, one),
        edited=gate.edited["value"] if gate.edited is not None else None,
        difference=gate.difference or (),
        replaces=gate.replaces,
        replaced_by=again,
    )


def _value(here: Runtime, one: Listed) -> Any:  # noqa: ANN401
    stored = one.gate.value
    if stored is None:
        return None
    try:
        return here.read(one.request.asset, stored, pickle=False)
    except FlowStoneError as error:
        rows = "" if stored.rows is None else f", {stored.rows:,} rows"
        where = f"{stored.format} of {stored.size:,} bytes{rows} at {stored.location}"
        return f"{where}; it cannot be read: {error.message}"
