"""The tables of states and moves."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest

from flowstone.states import (
    DONE_STEP_STATES,
    FINAL_RUN_STATES,
    FINAL_STEP_STATES,
    RUN_MOVES,
    STEP_MOVES,
    RunState,
    StepState,
    mermaid,
    sources,
    sql_list,
)

TABLES = [(StepState, STEP_MOVES, "pending"), (RunState, RUN_MOVES, "requested")]
Moves = Mapping[Any, frozenset[Any]]


@pytest.mark.parametrize(("states", "moves", "first"), TABLES)
def test_every_state_has_a_row_and_every_target_is_a_state(
    states: type[StrEnum], moves: Moves, first: str
) -> None:
    assert set(moves) == set(states)
    assert all(isinstance(target, states) for targets in moves.values() for target in targets)
    assert all(state not in targets for state, targets in moves.items())
    assert next(iter(moves)) == first


@pytest.mark.parametrize(("states", "moves", "first"), TABLES)
def test_every_state_can_be_reached_and_every_one_can_end(
    states: type[StrEnum], moves: Moves, first: str
) -> None:
    def reach(start: Any) -> set[Any]:
        found, todo = {start}, [start]
        while todo:
            new = moves[todo.pop()] - found
            found |= new
            todo += new
        return found

    assert reach(states(first)) == set(states)
    final = {state for state, targets in moves.items() if not targets}
    assert all(reach(state) & final for state in states)


def test_final_states_have_no_moves() -> None:
    assert {"succeeded", "skipped", "failed", "upstream_failed", "cancelled"} == FINAL_STEP_STATES
    assert {"succeeded", "failed", "cancelled"} == FINAL_RUN_STATES
    assert DONE_STEP_STATES < FINAL_STEP_STATES


def test_only_a_running_step_can_succeed_by_itself_or_fail() -> None:
    assert StepState.RUNNING in sources(StepState.SUCCEEDED, STEP_MOVES)
    assert StepState.QUEUED not in sources(StepState.SUCCEEDED, STEP_MOVES)
    assert sources(StepState.RUNNING, STEP_MOVES) == [StepState.QUEUED, StepState.RETRYING]
    assert sources(RunState.REQUESTED, RUN_MOVES) == []


@pytest.mark.parametrize(("states", "moves", "first"), TABLES)
def test_the_diagram_holds_each_move_and_no_other(
    states: type[StrEnum], moves: Moves, first: str
) -> None:
    lines = {line.strip() for line in mermaid(moves).splitlines()}
    assert lines == (
        {"stateDiagram-v2", f"[*] --> {first}"}
        | {f"{state} --> {target}" for state, targets in moves.items() for target in targets}
        | {f"{state} --> [*]" for state, targets in moves.items() if not targets}
    )


def test_states_become_sorted_sql_literals() -> None:
    assert sql_list(FINAL_RUN_STATES) == "'cancelled', 'failed', 'succeeded'"
