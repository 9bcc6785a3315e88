"""Checks look at the staged value, before the pointer moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from flowstone.asset import asset
from flowstone.check import CheckResult, check
from flowstone.client import materialize_sync
from flowstone.errors import RunFailed
from flowstone.registry import build_registry
from flowstone.resource import resource
from flowstone.retry import Retry
from tests.store.runs_by_hand import query

LATEST = "SELECT l.output_id FROM flowstone.latest l WHERE l.asset = 'numbers'"


class Source:
    """What the asset reads; a test changes it from run to run."""

    def __init__(self) -> None:
        self.value: Any = [1, 2]
        self.calls = 0


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def checked(make_runtime: Any, source: Source) -> Any:
    @asset(volatile=True)
    def numbers() -> Any:
        source.calls += 1
        return source.value

    @asset
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @check(asset=numbers, blocking=True)
    def positive(value: list[int]) -> CheckResult:
        bad = [n for n in value if n < 0]
        return CheckResult(not bad, f"{len(bad)} below zero", {"bad": bad})

    @check(asset=numbers, severity="warn")
    def short(value: list[int]) -> bool:
        return len(value) < 3

    return make_runtime(build_registry([numbers, total], checks=[positive, short]))


def test_what_checks_say_is_stored_with_the_version_that_they_saw(
    checked: Any, source: Source
) -> None:
    materialize_sync("numbers")
    source.value = [1, 2, 3]
    materialize_sync("numbers")
    found = query(
        checked.ledger,
        "SELECT r.name, r.passed, r.blocking, r.severity, r.metadata, o.rows, s.run_id "
        "FROM flowstone.check_results r JOIN flowstone.outputs o ON o.id = r.output_id "
        "JOIN flowstone.steps s ON s.id = o.step_id ORDER BY r.id",
    )
    assert [tuple(row)[:5] for row in found] == [
        ("positive", True, True, "error", {"bad": []}),
        ("short", True, False, "warn", {}),
        ("positive", True, True, "error", {"bad": []}),
        ("short", False, False, "warn", {}),
    ]
    assert len({row.run_id for row in found}) == 2


def test_a_blocking_check_that_does_not_pass_keeps_the_value_from_all_readers(
    checked: Any, source: Source
) -> None:
    good = materialize_sync("total", upstream=True)
    before = query(checked.ledger, LATEST)
    source.value = [1, -2, -3]
    with pytest.raises(RunFailed, match=r"check 'positive' refused the value of numbers: 2 below"):
        materialize_sync("total", upstream=True)
    assert query(checked.ledger, LATEST) == before
    assert good.result("numbers") == [1, 2]
    states = "SELECT asset, state FROM flowstone.steps ORDER BY id DESC LIMIT 2"
    assert set(query(checked.ledger, states)) == {
        ("numbers", "failed"),
        ("total", "upstream_failed"),
    }
    # Its own record, and not a try too many: the same value would be refused again.
    (kept,) = query(checked.ledger, "SELECT * FROM flowstone.quarantine")
    path = Path(checked.settings.outputs) / kept.location
    assert json.loads(path.read_text()) == [1, -2, -3]
    assert kept.attempt == 1
    results = "SELECT name, passed FROM flowstone.check_results WHERE quarantine_id = :id"
    assert set(query(checked.ledger, results, id=kept.id)) == {
        ("positive", False),
        ("short", False),
    }
    (attempt,) = query(
        checked.ledger, "SELECT error_type FROM flowstone.attempts WHERE outcome = 'failed'"
    )
    assert attempt.error_type == "check_failed"


def test_a_blocking_check_that_cannot_be_run_is_tried_again_as_any_fault(
    make_runtime: Any, source: Source
) -> None:
    @asset(retry=Retry(base=0))
    def numbers() -> Any:
        source.calls += 1
        return source.value

    @check(asset=numbers, blocking=True)
    def asks(_value: list[int]) -> bool:
        if source.calls == 1:
            raise ConnectionError("the reference is away")
        return True

    here = make_runtime(build_registry([numbers], checks=[asks]))
    materialize_sync("numbers")
    assert source.calls == 2
    assert query(here.ledger, "SELECT count(*) FROM flowstone.check_results") == [(1,)]


def test_a_check_sees_the_value_as_readers_will_and_cannot_change_it(
    make_runtime: Any, source: Source
) -> None:
    @asset
    def numbers() -> Any:
        return source.value

    @check(asset=numbers)
    def spoils(value: list[int]) -> bool:
        value.clear()
        return value is not source.value

    make_runtime(build_registry([numbers], checks=[spoils]))
    assert materialize_sync("numbers").result() == [1, 2]


def test_what_is_fresh_is_not_checked_again(checked: Any, source: Source) -> None:
    materialize_sync("total", upstream=True)
    before = query(checked.ledger, "SELECT count(*) FROM flowstone.check_results")
    materialize_sync("total")
    assert query(checked.ledger, "SELECT count(*) FROM flowstone.check_results") == before


def test_what_a_check_says_holds_no_secret(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PASSWORD", "hunter2hunter2")

    class Config(BaseModel):
        password: SecretStr

    @resource(config=Config)
    def db(config: Config) -> str:
        return config.password.get_secret_value()

    @asset(requires=["db"])
    def number(db: str) -> str:
        return db

    @check(asset=number, blocking=True)
    def tells(value: str) -> CheckResult:
        return CheckResult(passed=False, message=f"it is {value}", metadata={"seen": [value]})

    registry = build_registry([number], [db], [tells])
    here = make_runtime(registry, resources={"db": {"password": {"env": "PASSWORD"}}})
    with pytest.raises(RunFailed, match=r"check 'tells' refused the value of number: it is \*\*\*"):
        materialize_sync("number")
    (said,) = query(here.ledger, "SELECT message, metadata FROM flowstone.check_results")
    assert said == ("it is ***", {"seen": ["***"]})
    assert query(here.ledger, "SELECT count(*) FROM flowstone.quarantine") == [(1,)]
