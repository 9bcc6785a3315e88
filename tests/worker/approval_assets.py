"""Assets that ask people: in a chain, in the header of a chord, at the end of a run, in time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pydantic import BaseModel

from flowstone import Approval, Context, Decision, asset, wait_for_approval, wait_for_signal
from flowstone.signals import signal as signal_

TOKEN = "the-token-of-a-job"  # noqa: S105 - of a test
ALWAYS = Approval(message="May it?")


class Report(BaseModel):
    """What is edited."""

    total: int


class Folder(BaseModel):
    """Where an asset leaves a mark."""

    folder: Path


@asset
def first() -> int:
    """The beginning of a chain."""
    return 1


@asset(approval=ALWAYS, pool="desk")
def in_chain(first: int) -> int:
    """Asks in the middle of a chain, and would hold the only slot of a pool."""
    return first + 1


@asset
def after_chain(in_chain: int) -> int:
    """The end of that chain."""
    return in_chain + 1


@asset(approval=ALWAYS)
def in_header() -> Report:
    """Asks in the header of a chord."""
    return Report(total=10)


@asset
def beside() -> int:
    """The other part of the header."""
    return 5


@asset
def join(in_header: Report, beside: int) -> int:
    """The body of the chord."""
    return in_header.total + beside


@asset(approval=ALWAYS)
def last(first: int) -> int:
    """Asks at the end of a run."""
    return first


@asset(pool="desk")
def at_the_desk() -> str:
    """Needs the slot of the pool."""
    return "served"


def publish(decision: Decision, context: Context) -> str:
    """Die at the first try, as if the machine had been switched off."""
    mark = context.config.folder / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{decision.by}: {decision.option}"


@asset(on_approved=publish, config=Folder)
def dies_once() -> str:
    """Is made by a continuation whose process is killed."""
    raise wait_for_approval(message="Publish it?", options=["now", "later"])


@asset(approval=Approval(timeout=0.1, on_timeout="approve"))
def approved_in_time() -> int:
    """Counts when nobody says no."""
    return 1


@asset(approval=Approval(timeout=0.1))
def rejected_in_time() -> int:
    """Does not count when nobody says yes."""
    return 1


@asset(approval=Approval(timeout=0.1, on_timeout="fail"))
def failed_in_time() -> int:
    """Is an error when nobody says anything."""
    return 1


def heard(payload: dict[str, int]) -> int:
    """Take what the job has counted."""
    return payload["rows"]


@asset(on_signal=heard)
def job() -> int:
    """Waits for a job elsewhere."""
    raise wait_for_signal(name="job", token=TOKEN)


@asset
def after_job(job: int) -> int:
    """Reads what the job has made."""
    return job * 2


@asset
def impatient(context: Context) -> int:
    """Waits for a job that has ended before it could begin to wait."""
    token = context.signal_token("job")
    signal_(token, 7)
    raise wait_for_signal(name="job", token=token)
