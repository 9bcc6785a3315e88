"""What is wrong with an installation, decided from facts, and what to do: `flowstone doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from flowstone.facts import Definitions, Facts, LedgerFacts, Server, Unknown
from flowstone.limits import KILL_LATER
from flowstone.liveness import Beat, half_dead, heard_for, of_beat, patience_with_beat
from flowstone.queues import CONTROL_QUEUE
from flowstone.store.repairs import BATCH, DUE_BATCH
from flowstone.store.workers import Worker

CLOCK_SECONDS: Final = 5.0
"""How far a clock may be from that of the ledger."""

JSON: Final = frozenset({"json", "application/json"})

T = TypeVar("T")


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"
    """The check could not be made, as another one has failed."""


@dataclass(frozen=True)
class Finding:
    """What one check has found."""

    check: str
    level: Level
    seen: str
    remedy: str = ""
    """One line that says what to do; never empty for a warning or an error."""


Said = tuple[Level, str, str]
Decide = Callable[[Facts], Said]


class _NotKnown(Exception):
    """A check needs what another one has not found."""


def diagnose(facts: Facts) -> list[Finding]:
    """Return what each check has found, in the order of CHECKS.

    One that breaks is an error of its own, and keeps none of the others from being made.
    """
    return [_make(name, decide, facts) for name, decide in CHECKS.items()]


def is_healthy(findings: Iterable[Finding], *, strict: bool = False) -> bool:
    """Return whether nothing is wrong; warnings count where it is `strict`."""
    bad = {Level.ERROR, Level.WARNING} if strict else {Level.ERROR}
    return not any(finding.level in bad for finding in findings)


def _make(name: str, decide: Decide, facts: Facts) -> Finding:
    try:
        level, seen, remedy = decide(facts)
    except _NotKnown as error:
        return Finding(name, Level.SKIPPED, f"not looked at, as this needs {error}")
    except Exception as error:  # noqa: BLE001 - a broken check must not hide the others
        said = f"the check itself has failed: {type(error).__name__}: {error}"
        return Finding(name, Level.ERROR, said, "report this as a fault of FlowStone")
    return Finding(name, level, seen, remedy)


def _fine(seen: str) -> Said:
    return Level.OK, seen, ""


def _warning(seen: str, remedy: str) -> Said:
    return Level.WARNING, seen, remedy


def _wrong(seen: str, remedy: str) -> Said:
    return Level.ERROR, seen, remedy


def _known(part: T | Unknown, what: str) -> T:
    if isinstance(part, Unknown):
        raise _NotKnown(what)
    return part


def _ledger(facts: Facts) -> LedgerFacts:
    return _known(facts.ledger, "a ledger that is migrated")


def _answers(part: Server | Unknown) -> Said:
    if isinstance(part, Unknown):
        return _wrong(part.why, part.remedy)
    said = "answers" if part.is_asked else "cannot be asked, and is believed to run"
    return _fine(f"{part.address} {said}")


def _is_there(facts: Facts) -> Said:
    if isinstance(facts.address, Unknown):
        return _wrong(facts.address.why, facts.address.remedy)
    return _fine(f"PostgreSQL at {facts.address} answers")


def _is_migrated(facts: Facts) -> Said:
    _known(facts.address, "the ledger")
    if isinstance(facts.ledger, Unknown):
        return _wrong(facts.ledger.why, facts.ledger.remedy)
    return _fine("the schema is the one of this version")


def _keeps_all(part: Server | Unknown, what: str) -> Said:
    server = _known(part, what)
    if not server.is_redis:
        return _fine("no Redis, so that nothing is evicted")
    match server.policy:
        case None:
            return _warning(
                f"{what} does not tell its maxmemory-policy",
                "see to it that its provider has set maxmemory-policy to noeviction",
            )
        case "noeviction":
            return _fine("maxmemory-policy is noeviction")
    return _wrong(
        f"maxmemory-policy is {server.policy}: {what} may throw messages away",
        f"on {server.address}: CONFIG SET maxmemory-policy noeviction; and in its redis.conf",
    )


def _outlives_a_restart(facts: Facts) -> Said:
    server = _known(facts.broker, "the broker")
    if not server.is_redis:
        return _fine("no Redis; its queues are durable")
    if server.appends:
        return _fine("appendonly is yes: messages outlive a restart")
    is_known = "is not known" if server.appends is None else "is no"
    return _fine(f"appendonly {is_known}: after a restart, messages are sent again")


def _longest(facts: Facts) -> float:
    """Return how many seconds a message may be under way, and not acknowledged, at the most."""
    own = facts.definitions.longest if isinstance(facts.definitions, Definitions) else 0.0
    return max(facts.settings.time_limit, own, facts.settings.park_after) + KILL_LATER


def _visibility(facts: Facts) -> Said:
    celery, server = _known(facts.celery, "celeryconfig.py"), facts.broker
    longest = _longest(facts)
    if not isinstance(server, Unknown) and not server.is_redis:
        return _fine(
            "no Redis; RabbitMQ before 4.3 needs a consumer_timeout above "
            f"{longest:g} s, which cannot be asked for"
        )
    if celery.visibility > longest:
        return _fine(f"{celery.visibility:g} s, above the longest time limit ({longest:g} s)")
    return _wrong(
        f"{celery.visibility:g} s, but a step may take {longest:g} s: it would be given out twice",
        f'in celeryconfig.py: broker_transport_options["visibility_timeout"] = {longest + 600:.0f}',
    )


def _expiry(facts: Facts) -> Said:
    celery, longest = _known(facts.celery, "celeryconfig.py"), _longest(facts)
    if celery.expires is None or celery.expires > longest:
        told = "never" if celery.expires is None else f"after {celery.expires:g} s"
        return _fine(f"results expire {told}")
    return _wrong(
        f"results expire after {celery.expires:g} s, but a step may take {longest:g} s: a chord "
        "would forget its parts",
        f"in celeryconfig.py: result_expires = {longest + 24 * 3600:.0f}",
    )


def _serializers(facts: Facts) -> Said:
    celery = _known(facts.celery, "celeryconfig.py")
    other = {name: forms for name, forms in celery.content.items() if not JSON.issuperset(forms)}
    if not other:
        return _fine("nothing but JSON is written or read")
    said = ", ".join(f"{name} is {' and '.join(forms)}" for name, forms in other.items())
    wanted = (f"{name} = {_json_of(name)}" for name in other)
    return _wrong(said, f"in celeryconfig.py: {'; '.join(wanted)}")


def _json_of(setting: str) -> str:
    return '["json"]' if setting.endswith("accept_content") else '"json"'


_ACKNOWLEDGED: Final = {"task_acks_late": True, "task_reject_on_worker_lost": False}


def _acknowledged(facts: Facts) -> Said:
    celery = _known(facts.celery, "celeryconfig.py")
    bad = {name for name, wanted in _ACKNOWLEDGED.items() if celery.flags.get(name) is not wanted}
    if not bad:
        return _fine("messages are acknowledged when their step has ended")
    names = sorted(bad)
    said = ", ".join(f"{name} is {celery.flags.get(name)}" for name in names)
    wanted = "; ".join(f"{name} = {_ACKNOWLEDGED[name]}" for name in names)
    return _wrong(said, f"in celeryconfig.py: {wanted}")


def _definitions(facts: Facts) -> Said:
    match facts.definitions:
        case None:
            return _fine("FLOWSTONE_ASSETS is not set here; time limits are those of the settings")
        case Unknown(why, remedy):
            return _wrong(why, remedy)
        case Definitions(assets=number):
            return _fine(f"{_count(number, 'asset')} in {', '.join(facts.settings.assets)}")


def _left_over(facts: Facts) -> Said:
    if not isinstance(facts.definitions, Definitions):
        return _fine("not looked at, as this needs definitions")
    found = _known(facts.left_over, "a ledger that is migrated")
    if not found:
        return _fine("no output is of a partition that is gone")
    told = ", ".join(
        f"{'at least ' * one.is_part}{_count(one.count, 'output')} of {one.asset!r} "
        f"({', '.join(one.examples)}{', ...' * (one.count > len(one.examples))})"
        for one in found
    )
    # To keep them is nothing that has to be mended.
    return _fine(
        f"{told}: of partitions that are not in their sets any more; nothing computes them again, "
        "`flowstone get` reads them, and `flowstone partitions ASSET` names them"
    )


def _leases(facts: Facts) -> Said:
    lease, interval = facts.settings.lease_seconds, facts.settings.reconcile_seconds
    if interval < lease / 2:
        return _fine(f"leases of {lease:g} s, looked at every {interval:g} s")
    return _warning(
        f"leases of {lease:g} s are looked at only every {interval:g} s, so that a dead worker is "
        "found late",
        f"set FLOWSTONE_RECONCILE_SECONDS below half of FLOWSTONE_LEASE_SECONDS ({lease / 2:g})",
    )


def _workers(facts: Facts) -> Said:
    workers = _ledger(facts).workers
    if workers:
        return _fine(f"{_count(len(workers), 'worker')}: {_some(w.name for w in workers)}")
    return _wrong("no worker is there", "start one: celery -A tasks worker")


def _there(facts: Facts) -> tuple[Worker, ...]:
    workers = _ledger(facts).workers
    if not workers:
        raise _NotKnown("a worker")
    return workers


def _queues(facts: Facts) -> Said:
    consumed = {queue for worker in _there(facts) for queue in worker.queues}
    waiting = {one.queue: str(one).partition(";")[0] for one in _ledger(facts).unattended}
    if CONTROL_QUEUE not in consumed:
        waiting.setdefault(
            CONTROL_QUEUE, f"no worker consumes the queue {CONTROL_QUEUE!r}: nothing goes on"
        )
    if waiting:
        return _wrong("; ".join(waiting.values()), _start(waiting))
    own = facts.definitions.queues if isinstance(facts.definitions, Definitions) else frozenset()
    if unused := sorted(own - consumed):
        named = ", ".join(map(repr, unused))
        return _warning(f"assets name queues that no worker consumes: {named}", _start(unused))
    return _fine(f"each queue that is needed has a consumer: {', '.join(sorted(consumed))}")


def _start(queues: Iterable[str]) -> str:
    return f"start a worker: celery -A tasks worker -Q {','.join(sorted(queues))}"


def _consuming(facts: Facts) -> Said:
    workers = _there(facts)
    found = half_dead(workers, _ledger(facts).waits, _known(facts.held, "the broker"))
    if not found:
        return _fine("no worker leaves messages lying")
    said = (f"{name} takes nothing from {', '.join(queues)}" for name, queues in found.items())
    return _wrong(
        f"{'; '.join(said)}, though it has processes free and messages wait",
        f"restart {', '.join(found)}: its steps are handed back, and nothing is lost",
    )


def _versions(facts: Facts) -> Said:
    running: dict[str, list[str]] = {}
    for worker in _there(facts):
        running.setdefault(worker.version or "an earlier one", []).append(worker.name)
    if set(running) == {facts.version}:
        return _fine(f"all run {facts.version}")
    said = "; ".join(f"{version} on {_some(names)}" for version, names in sorted(running.items()))
    return _warning(
        f"different versions of FlowStone: {said}; {facts.version} here",
        "let all processes run one version: stop, `flowstone db upgrade`, start",
    )


def _beat(facts: Facts) -> Said:
    ledger, interval = _ledger(facts), facts.settings.reconcile_seconds
    ticked, heard = ledger.vitals.ticked, heard_for(ledger.workers, ledger.vitals.clock)
    known = facts.held if not isinstance(facts.held, Unknown) else {}
    state = of_beat(ticked, interval, known.get(CONTROL_QUEUE, 0), heard)
    said = (
        "no tick of it has come so far"
        if ticked is None
        else f"its last tick has come {_ago(ticked)}"
    )
    if state is Beat.TICKS:
        return _fine(said)
    if heard is not None and state is Beat.IS_AWAITED:
        return _warning(*_too_early(said, heard, interval))
    held = _known(facts.held, "the broker")[CONTROL_QUEUE]
    if state is Beat.IS_NOT_HEARD:
        return _wrong(
            f"{said}, and {_count(held, 'message')} "
            f"{'lies' if held == 1 else 'lie'} in the queue {CONTROL_QUEUE!r}: nobody takes "
            f"{'it' if held == 1 else 'them'}",
            f"see the workers that consume {CONTROL_QUEUE!r}, or start one: "
            f"celery -A tasks worker -Q {CONTROL_QUEUE}",
        )
    limit = "" if ticked is None else f" (more than {patience_with_beat(interval):g} s)"
    return _wrong(
        f"{said}{limit}, and its queue is empty: beat does not run",
        "start it: celery -A tasks beat",
    )


def _too_early(said: str, heard: float, interval: float) -> tuple[str, str]:
    """Return what is said where workers have been up for too short a time to say more."""
    left = patience_with_beat(interval) - heard
    return (
        f"{said}; but the workers have been up for {heard:.0f} s only",
        f"ask again in {max(left, 0) + 1:.0f} s",
    )


def _reconciler(facts: Facts) -> Said:
    ledger, interval = _ledger(facts), facts.settings.reconcile_seconds
    vitals, patience = ledger.vitals, patience_with_beat(interval)
    heard = heard_for(ledger.workers, vitals.clock)
    said = (
        "it has begun no pass so far"
        if vitals.passed is None
        else f"its last pass began {_ago(vitals.passed)}"
    )
    if vitals.passed is not None and vitals.passed <= patience:
        return _fine(said)
    if heard is not None and heard <= patience:
        return _warning(*_too_early(said, heard, interval))
    if vitals.ticked is None or vitals.ticked > patience:
        return _wrong(said, "see to beat first")
    return _wrong(
        f"{said}, though beat sends for it: its passes fail",
        "look for errors of flowstone.reconcile in the logs of the workers, or in Flower",
    )


def _backlog(facts: Facts) -> Said:
    ledger = _ledger(facts)
    due = _known(facts.backlog, "a ledger that is migrated")
    found = {rule: number for rule, number in due.items() if number}
    if not found:
        return _fine("nothing is left to be repaired")
    said = ", ".join(f"{rule} {number}" for rule, number in sorted(found.items()))
    passed, patience = ledger.vitals.passed, patience_with_beat(facts.settings.reconcile_seconds)
    if passed is None or passed > patience:
        return _warning(f"nobody repairs what is due: {said}", "see to beat and the reconciler")
    if any(
        number >= (DUE_BATCH if rule == "retry_due" else BATCH) for rule, number in found.items()
    ):
        return _warning(
            f"more is due than a pass repairs: {said}",
            "look again in a minute; if it grows, see the logs of the workers for why",
        )
    return _fine(f"due for the next pass: {said}")


def _notifications(facts: Facts) -> Said:
    stuck = _ledger(facts).stuck
    if not stuck.number:
        return _fine("nobody is tried in vain to be told of approvals")
    return _warning(
        f"{_count(stuck.number, 'notification')} of approvals tried in vain; {stuck.error}",
        "mend that service or its address in FLOWSTONE_NOTIFY, and restart the workers; "
        "`flowstone approvals list` shows what waits",
    )


def _clock(facts: Facts) -> Said:
    ahead = _ledger(facts).clock_ahead
    if abs(ahead) <= CLOCK_SECONDS:
        return _fine(f"this machine and the ledger are {abs(ahead):.1f} s apart")
    return _warning(f"the clock of this machine {_apart(ahead)} that of the ledger", NTP)


NTP: Final = "synchronize the clocks of all machines by NTP (timedatectl set-ntp true)"


def _worker_clocks(facts: Facts) -> Said:
    told = {w.name: w.clock_ahead for w in _there(facts) if w.clock_ahead is not None}
    apart = {name: ahead for name, ahead in told.items() if abs(ahead) > CLOCK_SECONDS}
    if not apart:
        return _fine(f"within {CLOCK_SECONDS:g} s of the ledger")
    said = "; ".join(f"that of {name} {_apart(ahead)}" for name, ahead in apart.items())
    return _warning(f"{said} the ledger's", NTP)


def _apart(ahead: float) -> str:
    return f"is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'}"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago"


def _count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _some(names: Iterable[str], most: int = 3) -> str:
    known = sorted(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


CHECKS: Final[Mapping[str, Decide]] = {
    "ledger": _is_there,
    "schema": _is_migrated,
    "broker": lambda facts: _answers(facts.broker),
    "result backend": lambda facts: _answers(facts.results),
    "broker memory": lambda facts: _keeps_all(facts.broker, "the broker"),
    "result memory": lambda facts: _keeps_all(facts.results, "the result backend"),
    "persistence": _outlives_a_restart,
    "definitions": _definitions,
    "left over": _left_over,
    "visibility timeout": _visibility,
    "result expiry": _expiry,
    "serializers": _serializers,
    "acknowledgement": _acknowledged,
    "leases": _leases,
    "workers": _workers,
    "queues": _queues,
    "consuming": _consuming,
    "versions": _versions,
    "beat": _beat,
    "reconciler": _reconciler,
    "backlog": _backlog,
    "notifications": _notifications,
    "clock": _clock,
    "worker clocks": _worker_clocks,
}
"""What is looked at, by name."""
