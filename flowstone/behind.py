"""What an attempt does behind a gate: an approval that was decided, a signal that has come."""

from __future__ import annotations

from typing import Any

from flowstone import hints
from flowstone.approval import Decision
from flowstone.check import Checked
from flowstone.errors import BadSignal, LedgerRefused, MissingOutput
from flowstone.freshness import Fingerprint
from flowstone.gate import TIMEOUT, Gate
from flowstone.io.edits import edited_value
from flowstone.log import get_logger
from flowstone.outcome import Failed, Failure, Succeeded, Waiting
from flowstone.payload import fit
from flowstone.runtime import Runtime
from flowstone.signalling import Signal
from flowstone.states import GateState
from flowstone.store import gates
from flowstone.work import Work

log = get_logger("flowstone.attempt")


def why_void(runtime: Runtime, gate: Gate) -> str | None:
    """Return why what was decided counts no longer, or None where it does.

    What was approved is what lies in storage, to the byte, made of what is the latest still.
    """
    if gate.kind != "approval":
        return None
    with runtime.ledger.autocommit() as conn:
        if gates.is_outdated(conn, gate):
            return gates.OUTDATED
    if gate.value is not None and gate.state is GateState.APPROVED:
        try:
            runtime.outputs.verify(gate.value)
        except MissingOutput as error:
            return f"the value that was approved is no longer what was stored: {error.message}"
    return None


def go_on(work: Work, gate: Gate) -> Succeeded | Waiting | Failed:
    """Return what becomes of the step, as it was decided; raise what a handler raises."""
    match gate.kind, gate.state:
        case "approval", GateState.APPROVED:
            return _approved(work, gate)
        case "approval", GateState.REJECTED:
            return _rejected(work, gate)
        case "signal", GateState.RECEIVED:
            return _received(work, gate)
        case "signal", GateState.EXPIRED if gate.on_timeout == "continue":
            return _signalled(work, gate, None)
    what = "nobody has decided" if gate.kind == "approval" else "it has not come"
    return _failed(f"{gate.kind}_expired", f"{gate.label}: {what} in time" + _asked(gate))


def _approved(work: Work, gate: Gate) -> Succeeded | Waiting | Failed:
    if work.asset.on_approved is not None:
        made = work.call(work.asset.on_approved, decision=_decision(work, gate))
        return work.end(made, is_asked=False)
    if gate.edited is not None:
        return work.stage(_edited(work, gate))
    if gate.value is None:
        raise LedgerRefused(
            f"{gate.label} of {work.claim.name} has no value, and the asset has no on_approved= "
            "any more; give it one, and resume the run"
        )
    fingerprint = Fingerprint.parse(gate.fingerprint or "")
    checks = tuple(Checked(**check) for check in gate.checks or ())
    return Succeeded(gate.value, fingerprint, gate.version, checks, work.asset.partitions.cut)


def _rejected(work: Work, gate: Gate) -> Succeeded | Waiting | Failed:
    if work.asset.on_rejected is not None:
        made = work.call(work.asset.on_rejected, decision=_decision(work, gate))
        return work.end(made, is_asked=False)
    said = f": {gate.reason}" if gate.reason else ""
    message = f"{gate.label} was rejected by {gate.closed_by}{said}"
    if gate.closed_by == TIMEOUT:
        message = f"{gate.label} was not decided in time, which rejects it"
    return _failed("approval_rejected", message + _asked(gate))


def _received(work: Work, gate: Gate) -> Succeeded | Waiting | Failed:
    assert gate.payload is not None
    try:
        payload = fit(work.asset, gate.payload["value"])
    except BadSignal as error:
        # The definition has changed since, or who has sent it did not know it.
        raise BadSignal(f"{gate.label}: {error.message}", original=error.original) from error
    return _signalled(work, gate, payload)


def _signalled(work: Work, gate: Gate, payload: Any) -> Succeeded | Waiting | Failed:  # noqa: ANN401
    if work.asset.on_signal is None:
        return work.end(payload, is_asked=True)
    assert gate.closed_at is not None
    signal = Signal(
        name=gate.name or "",
        payload=payload,
        by=gate.closed_by or "",
        at=gate.closed_at,
        timed_out=gate.state is GateState.EXPIRED,
    )
    made = work.call(work.asset.on_signal, payload=payload, signal=signal)
    return work.end(made, is_asked=True)


def _decision(work: Work, gate: Gate) -> Decision:
    assert gate.closed_at is not None
    value = None
    if gate.edited is not None:
        value = _edited(work, gate)
    elif gate.value is not None:
        value = work.runtime.read(work.asset.name, gate.value)
    return Decision(
        approval_id=gate.id,
        approved=gate.state is GateState.APPROVED,
        by=gate.closed_by or "",
        at=gate.closed_at,
        reason=gate.reason,
        option=gate.chosen,
        value=value,
        is_edited=gate.edited is not None,
        context=gate.context,
    )


def _edited(work: Work, gate: Gate) -> Any:  # noqa: ANN401 - any value of a user
    assert gate.edited is not None
    kind = hints.of_result(work.asset.function)
    return edited_value(gate.edited, kind)


def _asked(gate: Gate) -> str:
    return f" (asked was: {gate.message})" if gate.message else ""


def _failed(type: str, message: str) -> Failed:
    """Return a failure that is final, whatever the asset says of errors: it was decided."""
    return Failed(Failure(type, message, traceback="", retryable=False))
