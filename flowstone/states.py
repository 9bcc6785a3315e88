"""The states of steps and runs, and every legal move between them.

The guarded UPDATEs of the ledger, its CHECK constraints and the diagrams in
docs/states.md are made from the two tables below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, TypeVar


class StepState(StrEnum):
    """Where a step stands."""

    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    WAITING_APPROVAL = "waiting_approval"
    WAITING_SIGNAL = "waiting_signal"
    JOINED = "joined"
    SUCCEEDED = "succeeded"
    SKIPPED = "skipped"
    FAILED = "failed"
    UPSTREAM_FAILED = "upstream_failed"
    CANCELLED = "cancelled"


class GateState(StrEnum):
    """Where that stands which a step waits for: an approval, or a signal."""

    OPEN = "open"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    RECEIVED = "received"
    VOID = "void"
    WITHDRAWN = "withdrawn"


class RunState(StrEnum):
    """Where a run stands."""

    REQUESTED = "requested"
    PLANNED = "planned"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PartitionState(StrEnum):
    """Where a partition of an asset stands, over all runs."""

    MISSING = "missing"
    """There is no output."""
    QUEUED = "queued"
    """A run is to compute it."""
    RUNNING = "running"
    WAITING = "waiting"
    """It waits for an approval, or for a signal."""
    OK = "ok"
    FAILED = "failed"
    """The last attempt after the latest output has failed, or what it reads had."""
    SKIPPED = "skipped"
    """There is no output, and a run has gone on without it."""
    STALE = "stale"
    """The latest output is not what would be made now."""


_S = StepState
_R = RunState
_G = GateState

STEP_MOVES: Final[Mapping[StepState, frozenset[StepState]]] = {
    _S.PENDING: frozenset(
        {_S.QUEUED, _S.JOINED, _S.SKIPPED, _S.FAILED, _S.UPSTREAM_FAILED, _S.CANCELLED}
    ),
    _S.QUEUED: frozenset({_S.RUNNING, _S.PENDING, _S.SKIPPED, _S.UPSTREAM_FAILED, _S.CANCELLED}),
    _S.RUNNING: frozenset(
        {
            _S.SUCCEEDED,
            _S.FAILED,
            _S.RETRYING,
            _S.SKIPPED,
            _S.WAITING_APPROVAL,
            _S.WAITING_SIGNAL,
            _S.PENDING,
            _S.CANCELLED,
        }
    ),
    _S.RETRYING: frozenset({_S.RUNNING, _S.PENDING, _S.CANCELLED}),
    _S.WAITING_APPROVAL: frozenset({_S.QUEUED, _S.PENDING, _S.CANCELLED}),
    _S.WAITING_SIGNAL: frozenset({_S.QUEUED, _S.PENDING, _S.CANCELLED}),
    _S.JOINED: frozenset({_S.PENDING, _S.SUCCEEDED, _S.CANCELLED}),
    _S.SUCCEEDED: frozenset(),
    _S.SKIPPED: frozenset(),
    _S.FAILED: frozenset(),
    _S.UPSTREAM_FAILED: frozenset(),
    _S.CANCELLED: frozenset(),
}

RUN_MOVES: Final[Mapping[RunState, frozenset[RunState]]] = {
    _R.REQUESTED: frozenset({_R.PLANNED, _R.FAILED, _R.CANCELLED}),
    _R.PLANNED: frozenset(
        {_R.RUNNING, _R.WAITING, _R.SUCCEEDED, _R.PAUSED, _R.FAILED, _R.CANCELLED}
    ),
    _R.RUNNING: frozenset({_R.SUCCEEDED, _R.FAILED, _R.CANCELLED, _R.WAITING, _R.PAUSED}),
    _R.WAITING: frozenset({_R.RUNNING, _R.SUCCEEDED, _R.FAILED, _R.CANCELLED, _R.PAUSED}),
    _R.PAUSED: frozenset({_R.RUNNING, _R.WAITING, _R.SUCCEEDED, _R.FAILED, _R.CANCELLED}),
    _R.SUCCEEDED: frozenset(),
    _R.FAILED: frozenset(),
    _R.CANCELLED: frozenset(),
}

GATE_MOVES: Final[Mapping[GateState, frozenset[GateState]]] = {
    _G.OPEN: frozenset({_G.APPROVED, _G.REJECTED, _G.EXPIRED, _G.RECEIVED, _G.VOID, _G.WITHDRAWN}),
    # Until the step has gone on, what was decided about may change, and its run may be cancelled.
    _G.APPROVED: frozenset({_G.VOID, _G.WITHDRAWN}),
    _G.REJECTED: frozenset({_G.VOID, _G.WITHDRAWN}),
    _G.EXPIRED: frozenset({_G.VOID, _G.WITHDRAWN}),
    _G.RECEIVED: frozenset({_G.VOID, _G.WITHDRAWN}),
    _G.VOID: frozenset(),
    _G.WITHDRAWN: frozenset(),
}

DECIDED_GATE_STATES: Final = frozenset({_G.APPROVED, _G.REJECTED, _G.EXPIRED, _G.RECEIVED})
"""The states of a gate after which its step goes on."""

FINAL_STEP_STATES: Final = frozenset(s for s, moves in STEP_MOVES.items() if not moves)
FINAL_RUN_STATES: Final = frozenset(s for s, moves in RUN_MOVES.items() if not moves)

WORKING_RUN_STATES: Final = frozenset({_R.PLANNED, _R.RUNNING, _R.WAITING})
"""The states of a run that the coordinator goes on with."""

WAITING_STEP_STATES: Final = frozenset({_S.WAITING_APPROVAL, _S.WAITING_SIGNAL})
"""The states of a step that waits for a person, or for a signal from outside."""

DONE_STEP_STATES: Final = frozenset({_S.SUCCEEDED, _S.SKIPPED})
"""The final states after which the steps that depend on this one may start."""

ACTIVE_STEP_STATES: Final = frozenset(
    {_S.QUEUED, _S.RUNNING, _S.RETRYING, _S.WAITING_APPROVAL, _S.WAITING_SIGNAL}
)
"""The states of which at most one step of an asset x partition is at any time, over all runs."""

State = TypeVar("State", StepState, RunState, GateState)


def sources(target: State, moves: Mapping[State, frozenset[State]]) -> list[State]:
    """Return the states from which `target` may be reached, in the order of the table."""
    return [state for state, targets in moves.items() if target in targets]


def sql_list(states: Iterable[StrEnum]) -> str:
    """Return the states as a sorted list of SQL literals, for constraints and guards."""
    return ", ".join(f"'{state}'" for state in sorted(states))


def in_state(column: str, *states: StepState) -> str:
    """Return an SQL condition on the state of a row that is found by its id.

    It is an expression, so that no partial index on the state answers it: without
    statistics PostgreSQL takes such an index for tiny, and would read all of it for one row.
    """
    return f"({column} || '') IN ({sql_list(states)})"


def is_open(column: str) -> str:
    """Return an SQL condition that a step has not ended, as the index of open steps has it.

    It is an expression, and another one than that of `in_state`, so that this index answers
    this question and no other: with the statistics of a moment in which little was open,
    PostgreSQL would look there, too, for what is ready, and read all that is open.
    """
    return f"upper({column}) NOT IN ({sql_list(FINAL_STEP_STATES).upper()})"


def is_put_off(column: str, *states: StepState) -> str:
    """Return an SQL condition that a step is joined, or to be tried again, or the one of these.

    It is an expression, as that of `is_open`, and another one: what a run has put off is answered
    by the index of that, and not by one of what is so in all runs, or of all that is open.
    """
    return f"lower({column}) IN ({sql_list(states or (StepState.JOINED, StepState.RETRYING))})"


def mermaid(moves: Mapping[State, frozenset[State]]) -> str:
    """Return the table of moves as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {next(iter(moves))}"]
    for state, targets in moves.items():
        lines += [f"    {state} --> {target}" for target in sorted(targets)]
        if not targets:
            lines.append(f"    {state} --> [*]")
    return "\n".join(lines)
