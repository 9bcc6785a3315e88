"""Retention: what the settings let go is deleted, in short transactions, until time is up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from flowstone.errors import LedgerRefused
from flowstone.log import get_logger
from flowstone.runtime import Runtime
from flowstone.settings import Retention
from flowstone.store import pruning
from flowstone.store.ledger import Connection

log = get_logger("flowstone.prune")

PRUNE_SECONDS: Final = 600.0
"""How long a pass that beat sends goes on; what is left then is left to the next one."""

Begin = Callable[[], AbstractContextManager[Connection]]


@dataclass(frozen=True)
class Pruned:
    """What a pass has deleted, or would delete."""

    rows: Mapping[str, int]
    """How many rows of each table; of attempts, also of how many messages were emptied."""
    is_complete: bool
    """Whether there was time for all of it."""


def prune(
    here: Runtime, *, actor: str, dry_run: bool = False, seconds: float | None = None
) -> Pruned:
    """Delete what the setting `retention` lets go, and what nothing kept needs; return how much.

    A `dry_run` does the same in one transaction, and takes it back. After `seconds` no further
    batch is begun. Raises LedgerUnavailable; what was deleted until then is.
    """
    pass_ = _Pass(here.settings.retention, actor, seconds)
    with _one_transaction(here) if dry_run else nullcontext(here.ledger.begin) as begin:
        pass_.run(begin)
    return Pruned(
        {table: rows for table, rows in sorted(pass_.rows.items()) if rows}, not pass_.is_over
    )


@contextmanager
def _one_transaction(here: Runtime) -> Iterator[Begin]:
    """Yield what opens the same transaction again and again; it is rolled back at the end."""
    with here.ledger.begin() as conn:
        yield lambda: nullcontext(conn)
        conn.rollback()


class _Pass:
    def __init__(self, keep: Retention, actor: str, seconds: float | None) -> None:
        self.rows: Counter[str] = Counter()
        self._keep = keep
        self._actor = actor
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether time is up."""
        return self._end is not None and time.monotonic() >= self._end

    def run(self, begin: Begin) -> None:
        if self._keep.tracebacks is not None:
            self._messages(begin, self._keep.tracebacks)
        if self._keep.checks is not None:
            self._checks(begin, self._keep.checks)
        if self._keep.runs is not None:
            # What was deleted may have been the last to need something of a run before.
            while not self.is_over and self._runs(begin, self._keep.runs):
                pass

    def _messages(self, begin: Begin, days: int) -> None:
        emptied = pruning.BATCH
        while emptied == pruning.BATCH and not self.is_over:
            with begin() as conn:
                emptied = pruning.forget_messages(conn, days, actor=self._actor)
            self.rows["messages of attempts"] += emptied

    def _checks(self, begin: Begin, days: int) -> None:
        after: int | None = 0
        while after is not None and not self.is_over:
            with begin() as conn:
                window = pruning.forget_checks(conn, days, after, actor=self._actor)
            after = window.last
            self.rows["check_results"] += window.gone

    def _runs(self, begin: Begin, days: int) -> bool:
        """Go once through all runs that are old; return whether anything was deleted."""
        with begin() as conn:
            old = pruning.ended_runs(conn, days)
        before = self.rows.total()
        for run_id in old:
            if self.is_over:
                break
            try:
                self._run(begin, run_id)
            except LedgerRefused as error:
                # Somebody has just begun to need it.
                log.warning("run not pruned", run_id=str(run_id), error=error.message)
        return self.rows.total() > before

    def _run(self, begin: Begin, run_id: UUID) -> None:
        with begin() as conn:
            free = pruning.free_steps(conn, run_id)
        for start in range(0, max(1, len(free)), pruning.BATCH):
            if self.is_over:
                break
            with begin() as conn:
                batch = free[start : start + pruning.BATCH]
                self.rows.update(pruning.delete_steps(conn, run_id, batch, actor=self._actor))
