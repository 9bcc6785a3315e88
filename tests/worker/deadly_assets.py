"""Assets whose process is killed, once, at a marked point of their way.

The marks are set from outside, by wrapping the functions of the worker between which they lie:
FlowStone itself knows nothing of them. Only a worker with MARKS_FOLDER in its environment dies.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from sqlalchemy import text

import flowstone.canvas
from flowstone import asset, coordinator, execution
from flowstone.asset import Asset
from flowstone.store import dispatch, steps
from flowstone.work import Work

MARKS_FOLDER = "MARKS_FOLDER"

BEFORE_COMMIT = ("arrival", "claim", "inputs", "value", "write", "stage", "check")
"""The message has come, and the step is claimed; inputs are loaded, the value is computed, half
of it is written, all of it is; checks have been run."""
COMMITTING = "commit_sent"
"""The statement that commits is with PostgreSQL, and its answer has not come."""
AFTER_COMMIT = ("commit", "commit_in_chain", "question", "settling", "dispatch", "publishing")
"""It has come; the ledger has told what follows; whoever was joined is settled; the readers are
marked as dispatched; they are sent."""
POINTS = (*BEFORE_COMMIT, COMMITTING, *AFTER_COMMIT)


@asset
def before_all() -> int:
    return 20


def _victim(point: str) -> list[Asset]:
    name = f"dies_at_{point}"

    @asset(name=name, deps={"value": "before_all"}, version="1")
    def victim(value: int) -> dict[str, int]:
        _die_at("value", name)
        # Long enough that half of it can be written.
        return {f"key {n}": value for n in range(1000)}

    readers = ("a",) if point == "commit_in_chain" else ("a", "b")

    def reader(letter: str) -> Asset:
        @asset(name=f"{letter}_after_{point}", deps={"victim": name}, version="1")
        def read(victim: dict[str, int]) -> int:
            return sum(victim.values())

        return read

    return [victim, *map(reader, readers)]


DEADLY = [made for point in POINTS for made in _victim(point)]


def _die_at(point: str, name: str) -> None:
    """End this process at once, if it is the first that comes to this point of its asset."""
    folder = os.environ.get(MARKS_FOLDER)
    if folder is None or name != f"dies_at_{point}":
        return
    mark = Path(folder, point)
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _wrap(module: Any, name: str, around: Callable[..., Any]) -> None:
    inner = getattr(module, name)
    setattr(module, name, wraps(inner)(lambda *args, **kwargs: around(inner, *args, **kwargs)))


def _claim(claim: Callable[..., Any], conn: Any, step_id: int, *args: Any, **kwargs: Any) -> Any:
    query = text("SELECT asset FROM flowstone.steps WHERE id = :id")
    _die_at("arrival", conn.scalar(query, {"id": step_id}))
    claimed = claim(conn, step_id, *args, **kwargs)
    if not isinstance(claimed, steps.Refused):
        _die_at("claim", claimed.asset)
    return claimed


def _arguments(load: Callable[..., Any], work: Work, *args: Any) -> Any:
    loaded = load(work, *args)
    _die_at("inputs", work.asset.name)
    return loaded


def _replace(replace: Callable[..., Any], source: str, target: str) -> None:
    # What was written is cut in half, as by a disk that is full; nobody must ever see it.
    name = Path(target).parent.name
    if name == "dies_at_write" and not Path(os.environ[MARKS_FOLDER], "write").exists():
        os.truncate(source, Path(source).stat().st_size // 2)
        _die_at("write", name)
    replace(source, target)


def _store(store: Callable[..., Any], work: Work, *args: Any) -> Any:
    output = store(work, *args)
    _die_at("stage", work.asset.name)
    return output


def _check(check: Callable[..., Any], work: Work, *args: Any) -> Any:
    said = check(work, *args)
    _die_at("check", work.asset.name)
    return said


def _commit(commit: Callable[..., Any], conn: Any, claim: steps.Claim, *args: Any) -> Any:
    if claim.asset == f"dies_at_{COMMITTING}":
        # A trigger holds the statement up meanwhile.
        threading.Timer(0.3, _die_at, [COMMITTING, claim.asset]).start()
    committed = commit(conn, claim, *args)
    _die_at("commit", claim.asset)
    _die_at("commit_in_chain", claim.asset)
    return committed


def _due(due: Callable[..., Any], conn: Any, run_id: Any, step_id: int) -> Any:
    answer = due(conn, run_id, step_id)
    query = text("SELECT asset FROM flowstone.steps WHERE id = :id")
    _die_at("question", conn.scalar(query, {"id": step_id}))
    return answer


def _to_wake(to_wake: Callable[..., Any], *args: Any) -> Any:
    waiting = to_wake(*args)
    _die_at("settling", _claimed(args).asset)
    return waiting


def _take_ready(take_ready: Callable[..., Any], here: Any, run_id: Any) -> Any:
    taken = take_ready(here, run_id)
    _die_with_readers("dispatch", taken.steps)
    return taken


def _publish(publish: Callable[..., Any], self: Any, canvas: Any, dispatched: Any) -> None:
    publish(self, canvas, dispatched)
    _die_with_readers("publishing", dispatched)


def _die_with_readers(point: str, dispatched: Any) -> None:
    if any(step.asset == f"a_after_{point}" for step in dispatched.values()):
        _die_at(point, f"dies_at_{point}")


def _claimed(args: tuple[Any, ...]) -> steps.Claim:
    return next(a for a in args if isinstance(a, steps.Claim))


if MARKS_FOLDER in os.environ:
    _wrap(steps, "claim", _claim)
    _wrap(Work, "_arguments", _arguments)
    _wrap(Work, "_store", _store)
    _wrap(Work, "_check", _check)
    _wrap(steps, "commit", _commit)
    _wrap(dispatch, "due", _due)
    _wrap(execution, "_to_wake", _to_wake)
    _wrap(coordinator, "take_ready", _take_ready)
    _wrap(flowstone.canvas.Publisher, "publish", _publish)
    _wrap(os, "replace", _replace)
