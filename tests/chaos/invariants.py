"""What must hold in the ledger and in the storage after each scenario, whatever has happened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row

from flowstone import RunHandle
from tests.chaos.director import Played
from tests.chaos.world import POOL, POOL_SLOTS, End, ends

DONE: Final = {"succeeded", "skipped"}

_STEPS: Final = """
    SELECT s.*, o.id AS output_id, o.location, o.sha256, o.size
    FROM flowstone.steps s
    LEFT JOIN flowstone.outputs o ON o.step_id = coalesce(s.reuses, s.id)
    WHERE s.run_id = ANY(%(runs)s) ORDER BY s.id
"""

# Each finds what must not be; the columns say what it is.
_NEVER: Final = {
    "a step was committed twice": """
        SELECT step_id, count(*) FROM flowstone.audit
        WHERE run_id = ANY(%(runs)s) AND action = 'step.succeeded'
        GROUP BY step_id HAVING count(*) > 1""",
    "two attempts at a step succeeded": """
        SELECT a.step_id FROM flowstone.attempts a JOIN flowstone.steps s ON s.id = a.step_id
        WHERE s.run_id = ANY(%(runs)s) AND a.outcome = 'succeeded'
        GROUP BY a.step_id HAVING count(*) > 1""",
    "an attempt has no end": """
        SELECT a.step_id, a.number FROM flowstone.attempts a
        JOIN flowstone.steps s ON s.id = a.step_id
        WHERE s.run_id = ANY(%(runs)s) AND a.outcome IS NULL""",
    "an attempt began before a dependency had ended": """
        SELECT d.asset, u.asset, a.started_at, u.finished_at FROM flowstone.steps d
        JOIN flowstone.attempts a ON a.step_id = d.id
        JOIN flowstone.edges e ON e.downstream = d.id
        JOIN flowstone.steps u ON u.id = e.upstream
        WHERE d.run_id = ANY(%(runs)s)
          AND (u.finished_at IS NULL OR a.started_at < u.finished_at)""",
    "the lineage of a computed step lacks an input that was there": """
        SELECT d.asset, u.asset FROM flowstone.steps d
        JOIN flowstone.edges e ON e.downstream = d.id
        JOIN flowstone.steps u ON u.id = e.upstream
        JOIN flowstone.outputs made ON made.step_id = coalesce(u.reuses, u.id)
        LEFT JOIN flowstone.lineage l ON l.step_id = d.id
          AND l.upstream_output_id = made.id AND l.upstream_sha256 = made.sha256
        WHERE d.run_id = ANY(%(runs)s) AND d.state = 'succeeded' AND l.step_id IS NULL
          AND u.state IN ('succeeded', 'skipped')""",
    "a step is open or holds a lease, a token or slots": """
        SELECT asset, state, lease_until, token, takes FROM flowstone.steps
        WHERE run_id = ANY(%(runs)s)
          AND (state NOT IN ('succeeded', 'skipped', 'failed', 'upstream_failed', 'cancelled')
            OR lease_until IS NOT NULL OR token IS NOT NULL)""",
    "a dependency counts as open": """
        SELECT asset, open_deps FROM flowstone.steps
        WHERE run_id = ANY(%(runs)s) AND state IN ('succeeded', 'skipped') AND open_deps <> 0""",
    "the lineage of a step names what it has not read": """
        SELECT d.asset, l.upstream_output_id FROM flowstone.steps d
        JOIN flowstone.lineage l ON l.step_id = d.id
        WHERE d.run_id = ANY(%(runs)s) AND NOT EXISTS (
            SELECT FROM flowstone.edges e JOIN flowstone.steps u ON u.id = e.upstream
            JOIN flowstone.outputs made ON made.step_id = coalesce(u.reuses, u.id)
            WHERE e.downstream = d.id AND made.id = l.upstream_output_id)""",
    "more slots of the pool were taken than there are": f"""
        SELECT a.step_id, a.started_at, sum((t.takes->>'{POOL}')::int) FROM flowstone.steps s
        JOIN flowstone.attempts a ON a.step_id = s.id
        JOIN flowstone.attempts b ON b.started_at <= a.started_at AND b.finished_at > a.started_at
        JOIN flowstone.steps t ON t.id = b.step_id AND t.takes ? '{POOL}'
        WHERE s.run_id = ANY(%(runs)s) AND s.takes ? '{POOL}'
        GROUP BY a.step_id, a.number, a.started_at
        HAVING sum((t.takes->>'{POOL}')::int) > {POOL_SLOTS}""",
    "two runs have computed the same at once": """
        SELECT s.asset, a.step_id, b.step_id FROM flowstone.steps s
        JOIN flowstone.attempts a ON a.step_id = s.id
        JOIN flowstone.steps t ON t.asset = s.asset AND t.id <> s.id
        JOIN flowstone.attempts b ON b.step_id = t.id
          AND b.started_at <= a.started_at AND b.finished_at > a.started_at
        WHERE s.run_id = ANY(%(runs)s)""",
    "an approval was decided twice": """
        SELECT details->>'gate', count(*) FROM flowstone.audit
        WHERE run_id = ANY(%(runs)s)
          AND action IN ('approval.approved', 'approval.rejected', 'approval.expired')
        GROUP BY details->>'gate' HAVING count(*) > 1""",
    "something is asked for a step that has ended": """
        SELECT g.id, s.asset, s.state FROM flowstone.gates g
        JOIN flowstone.steps s ON s.id = g.step_id
        WHERE s.run_id = ANY(%(runs)s) AND g.state = 'open'""",
    "the value of a step is not the one that was approved": """
        SELECT g.id, s.asset FROM flowstone.gates g
        JOIN flowstone.steps s ON s.gate = g.id
        JOIN flowstone.outputs o ON o.step_id = s.id
        WHERE s.run_id = ANY(%(runs)s) AND g.kind = 'approval'
          AND (g.state <> 'approved' OR g.sha256 <> o.sha256)""",
    "a run was closed twice": """
        SELECT run_id, count(*) FROM flowstone.audit
        WHERE run_id = ANY(%(runs)s)
          AND action IN ('run.succeeded', 'run.failed', 'run.cancelled')
        GROUP BY run_id HAVING count(*) > 1""",
}


def broken(url: str, outputs: Path, played: Played) -> list[str]:
    """Return what does not hold of the runs of a scenario; nothing, if all is well."""
    ids = [handle.id for handle in [*played.handles, *played.cancelled]]
    found = seen_though_never(url, ids)
    with _connect(url) as conn:
        steps = conn.cursor(row_factory=namedtuple_row)
        rows: list[Any] = steps.execute(_STEPS, {"runs": ids}).fetchall()
        query = "SELECT id, state, error FROM flowstone.runs WHERE id = ANY(%(runs)s)"
        ended = {id: (state, error) for id, state, error in conn.execute(query, {"runs": ids})}
    expected = ends(played.scenario.nodes)
    fails = any(end.state == "failed" for end in expected.values())
    found += _wrong_values(outputs, rows, expected)
    found += _wrong_runs(played, ended, fails=fails)
    for handle in played.handles:
        # A run that resumes another has none of what that has done.
        of_runs = (handle.id, played.resumed.get(handle.id))
        mine = [row for row in rows if row.run_id in of_runs]
        mine.sort(key=lambda row: row.run_id == handle.id)
        found += _wrong_ends(handle, mine, expected)
    found += _wrong_before_the_end(rows, {handle.id for handle in played.cancelled}, expected)
    return found


def seen_though_never(url: str, runs: Sequence[UUID]) -> list[str]:
    """Return what there is in the ledger of these runs, which have ended, and must never be."""
    with _connect(url) as conn:
        return [
            f"{what}: {row}"
            for what, query in _NEVER.items()
            for row in conn.execute(query, {"runs": runs}).fetchall()
        ]


def _connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url.replace("+psycopg", ""))


def _wrong_runs(
    played: Played, ended: Mapping[UUID, tuple[str, Any]], *, fails: bool
) -> Iterator[str]:
    states = dict.fromkeys((handle.id for handle in played.cancelled), "cancelled")
    states |= dict.fromkeys(
        (handle.id for handle in played.handles), "failed" if fails else "succeeded"
    )
    for run_id, state in states.items():
        if ended[run_id][0] != state:
            yield f"run {run_id} should be {state} and is {ended[run_id]}"


def _wrong_ends(handle: RunHandle, rows: list[Any], expected: Mapping[str, End]) -> Iterator[str]:
    state_of = {row.asset: row.state for row in rows}
    for name, end in expected.items():
        state = state_of.get(name)
        if state != end.state and not (end.state == "succeeded" and state in DONE):
            yield f"run {handle.id}: {name} should be {end.state} and is {state}"


def _wrong_before_the_end(
    rows: list[Any], cancelled: set[UUID], expected: Mapping[str, End]
) -> Iterator[str]:
    """Yield what a run that was cancelled has come to, and could not have."""
    for row in rows:
        end = "succeeded" if row.state in DONE else row.state
        if row.run_id in cancelled and end not in ("cancelled", expected[row.asset].state):
            yield f"run {row.run_id}, cancelled: {row.asset} is {row.state}"


def _wrong_values(outputs: Path, rows: list[Any], expected: Mapping[str, End]) -> Iterator[str]:
    for row in rows:
        if row.location is not None:
            stored = (outputs / row.location).read_bytes()
            if len(stored) != row.size or hashlib.sha256(stored).hexdigest() != row.sha256:
                yield f"the file of {row.asset} is not what was recorded"
            elif json.loads(stored) != expected[row.asset].value:
                yield f"{row.asset} should be {expected[row.asset].value} and is {stored!r}"
        elif row.state in DONE:
            yield f"{row.asset} is {row.state} and has no output"
