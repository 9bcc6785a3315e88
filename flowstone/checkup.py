"""Gathers what the doctor and the health commands decide upon; changes nothing, and is quick.

Each server is asked in a thread of its own, as no timeout of a library holds everywhere: for one
that does not answer in time, that is what is found.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from flowstone import __version__, probe, reconcile
from flowstone.errors import FlowStoneError, WrongMigration
from flowstone.facts import Definitions, Facts, LedgerFacts, LeftOver, Unknown
from flowstone.left_over import left_over
from flowstone.liveness import half_dead
from flowstone.queues import all_queues
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from flowstone.store import notifications, vitals, workers
from flowstone.store.ledger import Ledger

ANSWER_SECONDS: Final = 6.0
"""How long all that is asked at once may take."""

PATIENCE_SECONDS: Final = 3.0
"""How long the ledger may take to be connected, and for each statement."""

LOOK_AGAIN_SECONDS: Final = 1.0
"""After how long the queues are looked at again that hold messages which nobody seems to take."""

T = TypeVar("T")


class Asked(Generic[T]):
    """A question that a thread waits for the answer to."""

    def __init__(self, what: str, remedy: str, question: Callable[[], T]) -> None:
        self._what = what
        self._remedy = remedy
        self._question = question
        self._answer: T | Exception | None = None
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def answer(self, until: float) -> T | Unknown:
        """Return the answer, or why there was none until that time of the monotonic clock."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            return Unknown(f"{self._what} does not answer in time", self._remedy)
        if isinstance(self._answer, Exception):
            return _why(self._answer, self._remedy)
        assert self._answer is not None
        return self._answer

    def _ask(self) -> None:
        try:
            self._answer = self._question()
        except Exception as error:  # noqa: BLE001 - it is told
            self._answer = error


LEDGER: Final = (
    "the ledger",
    "start `flowstone dev`, or set FLOWSTONE_DATABASE_URL to one that runs",
)
BROKER: Final = "the broker", "start `flowstone dev`, or set FLOWSTONE_BROKER_URL to one that runs"
RESULTS: Final = (
    "the result backend",
    "start `flowstone dev`, or set FLOWSTONE_RESULT_URL to one that runs",
)
CELERY: Final = "celeryconfig.py", "mend celeryconfig.py, which is the first on the path"


def examine(here: Runtime) -> Facts:
    """Return all that the doctor looks at."""
    settings = here.settings
    until = soon()
    asked = ask_ledger(settings)
    broker = Asked(*BROKER, lambda: probe.broker(settings))
    results = Asked(*RESULTS, lambda: probe.results(settings))
    celery = Asked(*CELERY, lambda: probe.celery_settings(settings))
    definitions = _definitions(here)
    address, ledger = apart(asked.answer(until))
    server = broker.answer(until)
    backlog = Asked(*LEDGER, lambda: {} if isinstance(ledger, Unknown) else reconcile.backlog(here))
    left = Asked(*LEDGER, lambda: _left_over(here, definitions, ledger))
    until = soon()
    held = server if isinstance(server, Unknown) else ask_held(settings, ledger)
    return Facts(
        settings=settings,
        version=__version__,
        address=address,
        ledger=ledger,
        backlog=ledger if isinstance(ledger, Unknown) else backlog.answer(until),
        broker=server,
        results=results.answer(until),
        held=held,
        celery=celery.answer(until),
        definitions=definitions,
        left_over=left.answer(until),
    )


def check_settings(settings: Settings) -> None:
    """Raise BadConfig where the address of a server is none; nothing is connected."""
    _ = settings.database, settings.results
    probe.check_address(settings)


def soon() -> float:
    """Return the time of the monotonic clock until which all that is asked now is waited for."""
    return time.monotonic() + ANSWER_SECONDS


Ledgers = tuple[str, LedgerFacts | Unknown]
"""The address of a ledger that answers, and what it holds if its schema is the right one."""


def ask_ledger(settings: Settings) -> Asked[Ledgers]:
    """Ask the ledger for its address, and for what it holds."""
    return Asked(*LEDGER, lambda: _ledger(settings))


def apart(answer: Ledgers | Unknown) -> tuple[str | Unknown, LedgerFacts | Unknown]:
    """Return the address of the ledger, and what it holds, as far as they are known."""
    return (answer, answer) if isinstance(answer, Unknown) else answer


def half_dead_workers(settings: Settings) -> Mapping[str, list[str]] | Unknown:
    """Return the workers that take nothing though something waits, each with its queues."""
    _, ledger = apart(ask_ledger(settings).answer(soon()))
    if isinstance(ledger, Unknown):
        return ledger
    held = ask_held(settings, ledger)
    return held if isinstance(held, Unknown) else half_dead(ledger.workers, ledger.waits, held)


def ask_held(settings: Settings, ledger: LedgerFacts | Unknown) -> Mapping[str, int] | Unknown:
    """Return how many messages each queue holds, those of all workers included.

    Where that would mean that a worker takes nothing, it is looked at twice, and the smaller
    number counts: what has just arrived is gone then.
    """
    there, waits = ((), {}) if isinstance(ledger, Unknown) else (ledger.workers, ledger.waits)
    queues = sorted({*all_queues(settings.queues), *(q for w in there for q in w.queues)})

    def count() -> Mapping[str, int]:
        first = probe.held(settings, queues)
        if not half_dead(there, waits, first):
            return first
        time.sleep(LOOK_AGAIN_SECONDS)
        again = probe.held(settings, queues)
        return {queue: min(first[queue], again[queue]) for queue in queues}

    return Asked(*BROKER, count).answer(soon())


def _ledger(settings: Settings) -> Ledgers:
    ledger = Ledger(settings.database, patience=PATIENCE_SECONDS)
    try:
        with ledger.begin() as conn:
            before = time.time()
            seen = vitals.vitals(conn)
            here = (before + time.time()) / 2
            return ledger.address, LedgerFacts(
                vitals=seen,
                workers=tuple(workers.listed(conn)),
                unattended=tuple(workers.unattended(conn)),
                waits=vitals.waits(conn),
                clock_ahead=here - seen.clock,
                stuck=notifications.stuck(conn),
            )
    except WrongMigration as error:
        return ledger.address, _why(error, "flowstone db upgrade")
    finally:
        ledger.close()


def _left_over(
    here: Runtime, definitions: Definitions | Unknown | None, ledger: LedgerFacts | Unknown
) -> Sequence[LeftOver] | Unknown:
    if isinstance(ledger, Unknown):
        return ledger
    return left_over(here) if isinstance(definitions, Definitions) else ()


def _definitions(here: Runtime) -> Definitions | Unknown | None:
    if not here.settings.assets:
        return None
    try:
        assets = here.registry.graph.assets.values()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with them is a finding
        return _why(error, "mend the modules that FLOWSTONE_ASSETS names")
    return Definitions(
        assets=len(assets),
        longest=max((a.timeout.hard for a in assets if a.timeout is not None), default=0.0),
        queues=frozenset(asset.queue for asset in assets),
    )


def _why(error: Exception, remedy: str) -> Unknown:
    """Return what an error says, apart from what it says is to be done, and without passwords."""
    if not isinstance(error, FlowStoneError):
        return Unknown(_PASSWORD.sub("://**@", f"{type(error).__name__}: {error}"), remedy)
    seen, found, own = error.message.rpartition("; ")
    # The remedy may say how an address is written.
    seen, remedy = (seen, own) if found else (own, remedy)
    return Unknown(_PASSWORD.sub("://**@", seen), remedy)


_PASSWORD: Final = re.compile(r"://\S*@")
"""What stands before the host in an address."""
