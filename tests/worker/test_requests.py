"""What the main process of a worker knows of the end of another one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from billiard.common import human_status
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError

from tasks.memory import Kills
from tasks.requests import end_of


def exited(status: int) -> WorkerLostError:
    """What billiard 4.3 raises."""
    return WorkerLostError(f"Worker exited prematurely: {human_status(status)} Job: 12.")


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (exited(-signal.SIGKILL), "signal 9 (SIGKILL)"),
        (exited(-signal.SIGSEGV), "signal 11 (SIGSEGV)"),
        (exited(3), "exitcode 3"),
        (WorkerLostError("Worker exited prematurely: exitcode 0."), "exitcode 0"),
        (WorkerLostError("something else"), "something else"),
        (Terminated(signal.SIGKILL), "ended through Celery, signal 9 (SIGKILL)"),
        (TimeLimitExceeded(5), None),
        (ValueError("no death"), None),
    ],
)
def test_a_death_is_told_from_an_error(error: Exception, end: str | None) -> None:
    assert end_of(error) == end


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A control group of version 2, beside one of version 1."""
    (tmp_path / "cgroup").write_text("9:memory:/old\n0::/mine\n")
    (tmp_path / "mine").mkdir()
    return tmp_path


def kill(group: Path, times: int) -> None:
    events = f"low 0\nhigh 0\nmax 17\noom 9\noom_kill {times}\noom_group_kill 0\n"
    (group / "mine" / "memory.events").write_text(events)


def test_the_kernel_says_what_it_has_killed_for_memory(group: Path) -> None:
    kill(group, 4)
    kills = Kills(group, group / "cgroup")
    assert not kills.more()
    kill(group, 5)
    assert kills.more()
    assert not kills.more()


def test_where_nobody_counts_nothing_is_said(group: Path) -> None:
    kills = Kills(group, group / "cgroup")
    assert not kills.more()
    assert not Kills(group, group / "none").more()
    os.truncate(group / "cgroup", 0)
    assert not Kills(group, group / "cgroup").more()
