"""Backfills: many partitions of many assets as one run, which people can follow, pause and mend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from flowstone import outbox, planning, runtime, submission
from flowstone.choice import Choice, parse_choice
from flowstone.errors import BadConfig
from flowstone.handle import Cancellation, Deadline, Paused, Progress, RunHandle, progress_of
from flowstone.hours import Hours, check_zone
from flowstone.partition import UNPARTITIONED, Key
from flowstone.plan import Plan
from flowstone.queues import BACKFILL_QUEUE
from flowstone.request import Request
from flowstone.runtime import Runtime, whoami
from flowstone.states import FINAL_STEP_STATES, RunState, StepState
from flowstone.store import awaited, backfills, progress, runs
from flowstone.store.awaited import Awaited
from flowstone.store.ledger import Connection
from flowstone.submission import Assets, Config, Conflicts, Priorities

Only = Literal["missing", "failed", "stale"]
Order = Literal["oldest", "newest"]
Partitions = Choice | Key | Iterable[Key]

ALL: Final = "all"

FOLLOW_SECONDS: Final = 1.0
"""How often to look how far it is; its steps may be many."""


@dataclass(frozen=True)
class BackfillProgress:
    """How far a backfill is; steps are those of the run that it does now, or did last."""

    id: int
    run: Progress
    fresh: int
    """Steps that had succeeded already, by the latest output of their partition."""
    per_minute: float | None
    """How many steps end in a minute, by the last five; None before any has."""
    left: timedelta | None
    """How long those take that are left, at that pace; None where nobody can tell."""
    pause_reason: str | None
    """Why it is paused, if it is."""
    opens_at: datetime | None
    """When its hours begin next, if it waits for these."""
    awaits: Awaited | None = None
    """How many partitions that others make it waits for, and until when at the latest."""

    @property
    def state(self) -> RunState:
        """The state of the run."""
        return self.run.state

    @property
    def steps(self) -> Mapping[str, Mapping[StepState, int]]:
        """The number of steps by asset, in the order of the plan, and state."""
        return self.run.steps

    @property
    def total(self) -> int:
        """The number of all steps."""
        return self.run.count()

    @property
    def ended(self) -> int:
        """The number of steps that have ended, be it well or not."""
        return self.run.count(*FINAL_STEP_STATES)

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.run.is_final

    def count(self, *states: StepState) -> int:
        """Return the number of steps in the given states, or of all without any."""
        return self.run.count(*states)


class BackfillHandle:
    """A backfill. Iterating over it yields BackfillProgress once a second."""

    def __init__(self, backfill_id: int, runtime: Runtime) -> None:
        self.id = backfill_id
        self._runtime = runtime

    def __repr__(self) -> str:
        return f"BackfillHandle({self.id})"

    @property
    def run(self) -> RunHandle:
        """The run that the backfill does now, or did last."""
        with self._runtime.ledger.begin() as conn:
            return RunHandle(backfills.get(conn, self.id).run_id, self._runtime)

    def progress(self) -> BackfillProgress:
        """Return how far it is; raise LedgerUnavailable."""
        with self._runtime.ledger.begin() as conn:
            run = runs.get(conn, backfills.get(conn, self.id).run_id)
            tally = progress.tally(conn, run.id)
            now = progress_of(conn, run, tally.steps)
            awaits = None if run.is_final else awaited.of_run(conn, run.id)
        # What waits for people, or for its hours, takes as long as they like.
        left = 0
        if run.state == RunState.RUNNING and run.opens_at is None:
            left = now.count() - now.count(*FINAL_STEP_STATES)
        pace = tally.per_minute
        return BackfillProgress(
            id=self.id,
            run=now,
            fresh=tally.fresh,
            per_minute=pace,
            left=timedelta(minutes=left / pace) if pace and left else None,
            pause_reason=run.pause_reason if run.state == RunState.PAUSED else None,
            opens_at=None if run.is_final else run.opens_at,
            awaits=awaits,
        )

    def title(self) -> str:
        """Return what it is to compute, as people write it: "+monthly_report, 2013-01..2013-06"."""
        with self._runtime.ledger.begin() as conn:
            asked = runs.get(conn, backfills.get(conn, self.id).run_id).request
        parts = [*asked.assets, str(Choice.from_json(asked.choice or ()))]
        return ", ".join(parts) + (f", only what is {asked.only}" if asked.only else "")

    def pause(self, reason: str | None = None) -> Paused:
        """Let nothing more start; what runs ends by itself, and counts. Raises CannotPause."""
        return self.run.pause(reason)

    def resume(self) -> BackfillHandle:
        """Let a paused backfill go on; raise CannotStart for one that is not paused."""
        self.run.start()
        return self

    def cancel(self, *, reason: str | None = None, drain: bool = True) -> Cancellation:
        """Cancel it: what has not started never will.

        With `drain` what runs comes to its end, else it is asked to stop; see `RunHandle.cancel`.
        """
        return self.run.cancel(reason=reason, drain=drain)

    def retry(self) -> BackfillHandle:
        """Do what has failed, or was cancelled, in a new run of the same backfill.

        What has succeeded is not done again. Raises CannotResume for one that goes on, or of
        which nothing is left.
        """
        self.run.resume()
        return self

    def wait(self, timeout: float | None = None) -> RunState:
        """Wait for the end of the run that it does now, and return its state.

        Raises RunTimeout after `timeout` seconds.
        """
        return self.run.wait(timeout)

    def follow(self, timeout: float | None = None) -> Iterator[BackfillProgress]:
        """Yield the progress once a second, last when the backfill has ended, or is paused.

        Raises RunTimeout after `timeout` seconds; the backfill itself goes on.
        """
        deadline = Deadline(timeout)
        while True:
            now = self.progress()
            yield now
            if now.is_final or now.state == RunState.PAUSED:
                return
            deadline.sleep(f"backfill {self.id} is still {now.state}", FOLLOW_SECONDS)

    def __iter__(self) -> Iterator[BackfillProgress]:
        """Yield the progress once a second, last when the backfill has ended, or is paused."""
        return self.follow()


def backfill(
    selection: Assets,
    partitions: Partitions = ALL,
    *,
    only: Only | None = None,
    force: bool = False,
    max_parallel: int | None = None,
    order: Order = "oldest",
    config: Config | None = None,
    resources: Config | None = None,
    io: Mapping[str, str] | None = None,
    priority: Priorities = "low",
    pool: str | None = None,
    on_conflict: Conflicts = "join",
    stop_ratio: float | None = None,
    hours: str | None = None,
    zone: str | None = None,
    idempotency_key: str | None = None,
) -> BackfillHandle:
    """Queue many partitions of the selected assets as one run, and return at once.

    `selection` is a selection such as "+monthly_report", or several; `partitions` are those of the
    assets that it names: "all", a key or a list of keys, or a range such as "2013-01..2013-06".
    Those of the assets that a + brings in follow by the mappings. `only` takes of these what is
    "missing", has "failed" or is "stale". What has succeeded is skipped, unless `force`.

    At most `max_parallel` steps are dispatched at once; the `order` is that of the partitions,
    "oldest" or "newest" first. Steps go to the queue `backfill`, unless their asset has a queue of
    its own. Once a part of `stop_ratio` of the steps that have ended have failed, it is paused.
    Steps may start within `hours` such as "22:00-06:00" of the `zone`, UTC by default. The other
    arguments are those of `materialize`.

    Raises BadSelection, BadPartition, BadConfig, UnknownResource, KeyReused or LedgerUnavailable,
    and then nothing has been recorded.
    """
    if zone is not None:
        check_zone(zone)
        if hours is None:
            raise BadConfig(f"zone={zone!r} is that of hours=; give both, or neither")
    here = runtime.current()
    sender = outbox.sender(here)
    request = request_of(
        selection,
        partitions,
        only=only,
        force=force,
        order=order,
        resources=resources,
        io=io,
        priority=priority,
        pool=pool,
        on_conflict=on_conflict,
    )
    handle = record(
        here,
        request,
        config,
        max_parallel=max_parallel,
        stop_ratio=stop_ratio,
        hours=None if hours is None else Hours.parse(hours, zone or "UTC"),
        key=idempotency_key,
    )
    outbox.wake(sender, handle.run.id)
    return handle


def record(
    here: Runtime,
    request: Request,
    config: Config | None = None,
    *,
    max_parallel: int | None = None,
    stop_ratio: float | None = None,
    hours: Hours | None = None,
    key: str | None = None,
) -> BackfillHandle:
    """Record a backfill with its run, unless there is one with that key; raises as `backfill`."""
    submission.check_window("max_parallel", max_parallel)
    _check_ratio(stop_ratio)

    def attach(conn: Connection, run_id: UUID) -> None:
        backfills.create(
            conn,
            run_id,
            max_parallel=max_parallel,
            stop_ratio=stop_ratio,
            hours=hours,
            actor=whoami(),
        )

    run_id, _ = submission.record(
        here, request, config, max_parallel, driver="celery", key=key, attach=attach
    )
    with here.ledger.begin() as conn:
        made = runs.get(conn, run_id).backfill
        # Only backfills have a choice of partitions in their request, which is that of the key.
        assert made is not None
        found = backfills.get(conn, made)
    if (found.max_parallel, found.stop_ratio, found.hours) != (max_parallel, stop_ratio, hours):
        raise submission.key_reused(key, run_id)
    return BackfillHandle(made, here)


def _check_ratio(given: object) -> None:
    """Raise BadConfig for what can be no part of all steps; the caller may not check types."""
    if given is None:
        return
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given <= 1:
        raise BadConfig(f"stop_ratio is {given!r}; it is above 0 and at most 1, 0.2 for a fifth")


def preview_backfill(
    selection: Assets,
    partitions: Partitions = ALL,
    *,
    only: Only | None = None,
    force: bool = False,
    config: Config | None = None,
    resources: Config | None = None,
    io: Mapping[str, str] | None = None,
    pool: str | None = None,
) -> Plan:
    """Return the plan that a backfill would have now; nothing is recorded, nothing runs.

    It needs the assets' code. The arguments are those of `backfill`.
    """
    here = runtime.current()
    request = request_of(
        selection, partitions, only=only, force=force, resources=resources, io=io, pool=pool
    )
    with here.ledger.begin() as conn:
        return planning.preview(conn, here, request, submission.json_config(config or {}))


def request_of(selection: Assets, partitions: Partitions, **options: Any) -> Request:  # noqa: ANN401
    """Return what the arguments of `backfill` ask for; raises as that."""
    return submission.request(
        selection,
        UNPARTITIONED,
        upstream=False,
        choice=parse_choice(partitions),
        queue=BACKFILL_QUEUE,
        **options,
    )


def get_backfill(backfill_id: int) -> BackfillHandle:
    """Return the handle of a backfill by its id; raise UnknownBackfill."""
    here = runtime.current()
    with here.ledger.begin() as conn:
        backfills.get(conn, backfill_id)
    return BackfillHandle(backfill_id, here)


def backfills_list(limit: int = 20) -> list[BackfillHandle]:
    """Return the latest backfills, the newest first."""
    here = runtime.current()
    with here.ledger.begin() as conn:
        return [BackfillHandle(found.id, here) for found in backfills.recent(conn, limit)]
