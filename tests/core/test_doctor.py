"""What the doctor decides, from facts alone: each fault is found by its check, with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone import __version__, doctor
from flowstone.doctor import CHECKS, Finding, Level, diagnose, is_healthy
from flowstone.facts import (
    CelerySettings,
    Definitions,
    Facts,
    LedgerFacts,
    LeftOver,
    Server,
    Unknown,
)
from flowstone.limits import KILL_LATER
from flowstone.queues import QUEUES
from flowstone.settings import Settings
from flowstone.store.notifications import Stuck
from flowstone.store.vitals import Vitals
from flowstone.store.workers import Unattended, Worker

SETTINGS = Settings.model_construct(home=Path("/nowhere"))
WORKER = Worker(
    name="celery@a",
    queues=tuple(QUEUES),
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    silent=5.0,
    version=__version__,
    processes=2,
    busy=0,
    idle=1000.0,
    clock_ahead=0.1,
)
LEDGER = LedgerFacts(
    vitals=Vitals(clock=WORKER.started_at.timestamp() + 1000, ticked=4.0, passed=4.0),
    workers=(WORKER,),
    unattended=(),
    waits={},
    clock_ahead=0.01,
    stuck=Stuck(),
)
REDIS = Server("redis://host:6379/0", is_redis=True, policy="noeviction", appends=True)
CELERY = CelerySettings(
    visibility=4260.0,
    expires=90060.0,
    content={
        "accept_content": ("json",),
        "result_accept_content": ("json",),
        "task_serializer": ("json",),
        "result_serializer": ("json",),
    },
    flags={"task_acks_late": True, "task_reject_on_worker_lost": False},
)
HEALTHY = Facts(
    settings=SETTINGS,
    version=__version__,
    address="host/flowstone",
    ledger=LEDGER,
    backlog={"step_stranded": 0},
    broker=REDIS,
    results=REDIS,
    held=dict.fromkeys(QUEUES, 0),
    celery=CELERY,
    definitions=Definitions(assets=3, longest=600.0, queues=frozenset({"assets"})),
)
AWAY = Unknown("it does not answer", "start it")

Change = Callable[[Facts], Facts]


def ledger(**changes: Any) -> Change:
    return lambda facts: replace(facts, ledger=replace(LEDGER, **changes))


def worker(**changes: Any) -> Change:
    return ledger(workers=(replace(WORKER, **changes),))


def celery(**changes: Any) -> Change:
    return lambda facts: replace(facts, celery=replace(CELERY, **changes))


def settings(**changes: Any) -> Change:
    return lambda facts: replace(facts, settings=SETTINGS.model_copy(update=changes))


def both(*changes: Change) -> Change:
    def change(facts: Facts) -> Facts:
        for one in changes:
            facts = one(facts)
        return facts

    return change


def held(**messages: int) -> Change:
    return lambda facts: replace(facts, held={**dict.fromkeys(QUEUES, 0), **messages})


def pickled(setting: str) -> Change:
    return celery(content={**CELERY.content, setting: ("json", "pickle")})


def ticked(seconds: float | None) -> Change:
    return ledger(vitals=replace(LEDGER.vitals, ticked=seconds))


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_where_nothing_is_wrong_all_checks_say_so() -> None:
    findings = diagnose(HEALTHY)
    assert [finding.check for finding in findings] == list(CHECKS)
    assert {finding.level for finding in findings} == {Level.OK}
    assert is_healthy(findings, strict=True)


FAULTS: list[tuple[str, Level, Change, str, str]] = [
    (
        "broker memory",
        Level.ERROR,
        lambda f: replace(f, broker=replace(REDIS, policy="allkeys-lru")),
        "allkeys-lru",
        "CONFIG SET maxmemory-policy noeviction",
    ),
    (
        "result memory",
        Level.WARNING,
        lambda f: replace(f, results=replace(REDIS, policy=None)),
        "does not tell",
        "noeviction",
    ),
    (
        "visibility timeout",
        Level.ERROR,
        celery(visibility=3660.0),
        "3661 s",
        '["visibility_timeout"] = 4261',
    ),
    (
        "visibility timeout",
        Level.ERROR,
        lambda f: replace(f, definitions=replace(f.definitions, longest=9000.0)),  # type: ignore[type-var]
        "9001 s",
        '["visibility_timeout"] = 9601',
    ),
    (
        "notifications",
        Level.WARNING,
        ledger(stuck=Stuck(2, "team: it answers HTTP 503")),
        "2 notifications of approvals tried in vain; team: it answers HTTP 503",
        "FLOWSTONE_NOTIFY",
    ),
    ("result expiry", Level.ERROR, celery(expires=60.0), "after 60 s", "result_expires = 90061"),
    (
        "serializers",
        Level.ERROR,
        pickled("accept_content"),
        "accept_content is json and pickle",
        'accept_content = ["json"]',
    ),
    (
        "serializers",
        Level.ERROR,
        pickled("task_serializer"),
        "pickle",
        'task_serializer = "json"',
    ),
    (
        "acknowledgement",
        Level.ERROR,
        celery(flags={"task_acks_late": False, "task_reject_on_worker_lost": True}),
        "task_acks_late is False, task_reject_on_worker_lost is True",
        "task_acks_late = True; task_reject_on_worker_lost = False",
    ),
    (
        "definitions",
        Level.ERROR,
        lambda f: replace(f, definitions=Unknown("no module 'x'", "mend it")),
        "no module 'x'",
        "mend it",
    ),
    (
        "leases",
        Level.WARNING,
        settings(lease_seconds=20.0),
        "only every 10 s",
        "below half of FLOWSTONE_LEASE_SECONDS (10)",
    ),
    (
        "queues",
        Level.ERROR,
        ledger(unattended=(Unattended("gpu", 2),)),
        "2 steps wait in the queue 'gpu'",
        "celery -A tasks worker -Q gpu",
    ),
    (
        "queues",
        Level.ERROR,
        worker(queues=("assets",)),
        "'control': nothing goes on",
        "-Q control",
    ),
    (
        "queues",
        Level.WARNING,
        worker(queues=("control",)),
        "no worker consumes: 'assets'",
        "-Q assets",
    ),
    (
        "consuming",
        Level.ERROR,
        both(ledger(waits={"assets": 100.0}), held(assets=1)),
        "celery@a takes nothing from assets",
        "restart celery@a",
    ),
    ("versions", Level.WARNING, worker(version="9.9"), "9.9 on celery@a", "flowstone db upgrade"),
    ("versions", Level.WARNING, worker(version=None), "on celery@a", "one version"),
    ("beat", Level.ERROR, ticked(46.0), "beat does not run", "celery -A tasks beat"),
    (
        "beat",
        Level.ERROR,
        ticked(None),
        "no tick of it has come so far, and its queue is empty: beat does not run",
        "celery -A tasks beat",
    ),
    (
        "beat",
        Level.ERROR,
        both(ticked(46.0), held(control=5)),
        "5 messages lie in the queue 'control': nobody takes them",
        "-Q control",
    ),
    (
        "reconciler",
        Level.ERROR,
        ledger(vitals=replace(LEDGER.vitals, passed=100.0)),
        "its passes fail",
        "logs of the workers",
    ),
    (
        "backlog",
        Level.WARNING,
        lambda f: replace(f, backlog={"step_stranded": 500}),
        "step_stranded 500",
        "logs of the workers",
    ),
    ("clock", Level.WARNING, ledger(clock_ahead=-6.0), "6 s behind", "NTP"),
    ("worker clocks", Level.WARNING, worker(clock_ahead=60.0), "celery@a is 60 s ahead of", "NTP"),
]


@pytest.mark.parametrize(("check", "level", "change", "seen", "remedy"), FAULTS)
def test_each_fault_is_found_by_its_check_alone_and_says_what_to_do(
    check: str, level: Level, change: Change, seen: str, remedy: str
) -> None:
    findings = diagnose(change(HEALTHY))
    assert [(one.check, one.level) for one in findings if one.level is not Level.OK] == [
        (check, level)
    ]
    found = by_name(findings)[check]
    assert seen in found.seen
    assert remedy in found.remedy
    assert is_healthy(findings) is (level is Level.WARNING)
    assert not is_healthy(findings, strict=True)


def skipped(facts: Facts) -> set[str]:
    return {one.check for one in diagnose(facts) if one.level is Level.SKIPPED}


def test_what_cannot_be_looked_at_is_skipped_and_says_so() -> None:
    of_ledger = {
        "workers", "queues", "consuming", "versions", "beat", "reconciler", "backlog",
        "notifications", "clock", "worker clocks",
    }  # fmt: skip
    assert skipped(replace(HEALTHY, ledger=AWAY)) == of_ledger
    assert skipped(replace(HEALTHY, ledger=AWAY, address=AWAY)) == {"schema", *of_ledger}
    assert skipped(replace(HEALTHY, broker=AWAY, held=AWAY)) == {
        "broker memory", "persistence", "consuming",
    }  # fmt: skip
    no_workers = ledger(workers=())(HEALTHY)
    assert skipped(no_workers) == {"queues", "consuming", "versions", "worker clocks"}
    assert by_name(diagnose(no_workers))["workers"].level is Level.ERROR


def test_what_one_pass_repairs_is_no_fault() -> None:
    for due in ({"step_stranded": 499}, {"retry_due": 9_999}):
        findings = diagnose(replace(HEALTHY, backlog=due))
        assert is_healthy(findings, strict=True)
        assert "due for the next pass" in by_name(findings)["backlog"].seen


@pytest.mark.parametrize("before", [None, 300.0])
def test_beat_and_the_reconciler_have_time_after_a_start(before: float | None) -> None:
    def after(seconds: float) -> dict[str, Finding]:
        clock = WORKER.started_at.timestamp() + seconds
        seen = ledger(vitals=Vitals(clock, ticked=before, passed=before))
        return by_name(diagnose(seen(HEALTHY)))

    found = after(1.0)
    bad = {one.check: one for one in found.values() if one.level is not Level.OK}
    assert {check: one.level for check, one in bad.items()} == {
        "beat": Level.WARNING, "reconciler": Level.WARNING,
    }  # fmt: skip
    for one in bad.values():
        assert "the workers have been up for 1 s only" in one.seen
        assert "never" not in one.seen
        assert one.remedy == "ask again in 45 s"
    late = after(46.0)
    assert [late[check].level for check in ("beat", "reconciler")] == [Level.ERROR] * 2


def test_a_rabbitmq_is_no_redis() -> None:
    rabbit = Server("amqp://host//", is_redis=False)
    findings = diagnose(replace(celery(visibility=1.0)(HEALTHY), broker=rabbit))
    assert is_healthy(findings, strict=True)
    assert "consumer_timeout" in by_name(findings)["visibility timeout"].seen


def test_a_result_backend_that_cannot_be_asked_is_not_said_to_answer() -> None:
    database = Server("db+postgresql://host/x", is_redis=False, is_asked=False)
    findings = by_name(diagnose(replace(HEALTHY, results=database)))
    assert findings["result backend"].seen.endswith("cannot be asked, and is believed to run")
    assert {finding.level for finding in findings.values()} == {Level.OK}


def test_a_check_that_breaks_is_an_error_and_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: Facts) -> tuple[Level, str, str]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "CHECKS", {**CHECKS, "clock": broken})
    findings = diagnose(HEALTHY)
    assert [finding.check for finding in findings] == list(CHECKS)
    (bad,) = [finding for finding in findings if finding.level is not Level.OK]
    assert (bad.check, bad.level) == ("clock", Level.ERROR)
    assert "ZeroDivisionError: by zero" in bad.seen


SECONDS = st.floats(0, 10_000)
SERVERS = st.one_of(
    st.just(AWAY),
    st.builds(
        Server,
        st.just("redis://host"),
        st.booleans(),
        st.sampled_from([None, "noeviction", "volatile-lru"]),
        st.sampled_from([None, True, False]),
    ),
)
WORKERS = st.builds(
    Worker,
    name=st.sampled_from(["celery@a", "celery@b"]),
    queues=st.lists(st.sampled_from([*QUEUES, "gpu"]), unique=True).map(tuple),
    started_at=st.just(WORKER.started_at),
    silent=st.floats(0, 60),
    version=st.sampled_from([None, __version__, "9.9"]),
    processes=st.one_of(st.none(), st.integers(0, 4)),
    busy=st.one_of(st.none(), st.integers(0, 4)),
    idle=SECONDS,
    clock_ahead=st.one_of(st.none(), st.floats(-100, 100)),
)
COUNTS = st.dictionaries(st.sampled_from([*QUEUES, "gpu"]), st.integers(0, 3))
LEDGERS = st.one_of(
    st.just(AWAY),
    st.builds(
        LedgerFacts,
        vitals=st.builds(
            Vitals, st.just(0.0), st.one_of(st.none(), SECONDS), st.one_of(st.none(), SECONDS)
        ),
        workers=st.lists(WORKERS, max_size=3).map(tuple),
        unattended=st.lists(st.builds(Unattended, st.just("gpu"), st.integers(1, 3))).map(tuple),
        waits=st.dictionaries(st.sampled_from([*QUEUES, "gpu"]), SECONDS),
        clock_ahead=st.floats(-100, 100),
        stuck=st.builds(Stuck, st.integers(0, 2), st.just("team: it answers HTTP 503")),
    ),
)
FACTS = st.builds(
    Facts,
    settings=st.just(SETTINGS),
    version=st.just(__version__),
    address=st.sampled_from(["host/flowstone", AWAY]),
    ledger=LEDGERS,
    backlog=st.one_of(
        st.just(AWAY), st.dictionaries(st.just("step_stranded"), st.integers(0, 999))
    ),
    broker=SERVERS,
    results=SERVERS,
    held=st.one_of(st.just(AWAY), COUNTS.map(lambda found: dict.fromkeys(QUEUES, 0) | found)),
    celery=st.one_of(
        st.just(AWAY), st.builds(replace, st.just(CELERY), visibility=SECONDS, expires=SECONDS)
    ),
    definitions=st.sampled_from([None, AWAY, HEALTHY.definitions]),
)


@given(FACTS)
def test_whatever_is_known_each_check_speaks_and_nothing_is_skipped_without_a_reason(
    facts: Facts,
) -> None:
    findings = diagnose(facts)
    assert [finding.check for finding in findings] == list(CHECKS)
    for one in findings:
        assert "the check itself" not in one.seen
        assert one.seen
        # What is wrong has a remedy, of one line; what is not, has none.
        assert bool(one.remedy) is (one.level in (Level.WARNING, Level.ERROR))
        assert "\n" not in one.remedy
    if any(one.level is Level.SKIPPED for one in findings):
        unknown = AWAY in (facts.ledger, facts.broker, facts.held, facts.celery, facts.backlog,
                           facts.address, facts.results)  # fmt: skip
        assert unknown or not is_healthy(findings)


@given(st.floats(1, 1_000_000), st.floats(1, 1_000_000), st.floats(0, 1_000_000))
def test_no_message_is_given_out_again_while_its_step_may_run(
    visibility: float, limit: float, longest: float
) -> None:
    change = both(
        celery(visibility=visibility),
        settings(time_limit=limit),
        lambda f: replace(f, definitions=Definitions(1, longest, frozenset())),
    )
    level = by_name(diagnose(change(HEALTHY)))["visibility timeout"].level
    runs = max(limit, longest, SETTINGS.park_after) + KILL_LATER
    assert (level is Level.OK) is (visibility > runs)


def test_what_changed_definitions_have_left_is_told_and_no_fault() -> None:
    left = [
        LeftOver("a", 5, ("a[x]", "a[y]", "a[z]"), is_part=True),
        LeftOver("b", 1, ("b",), is_part=False),
    ]
    facts = replace(HEALTHY, left_over=left)
    (found,) = (one for one in diagnose(facts) if one.check == "left over")
    assert (found.level, found.remedy) == (Level.OK, "")
    assert found.seen.startswith(
        "at least 5 outputs of 'a' (a[x], a[y], a[z], ...), 1 output of 'b' (b): of partitions that"
    )
    (found,) = (f for f in diagnose(replace(facts, left_over=AWAY)) if f.check == "left over")
    assert found.level == Level.SKIPPED
    (found,) = (f for f in diagnose(replace(facts, definitions=None)) if f.check == "left over")
    assert found.seen == "not looked at, as this needs definitions"
