"""What is fresh is not computed again, on a real ledger; what is optional may be missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from flowstone.asset import Asset, Dep, asset
from flowstone.client import materialize_sync, save_plan
from flowstone.errors import RunFailed
from flowstone.handle import RunHandle
from flowstone.mapping import SameKey
from flowstone.partition import DailyPartitions, MonthlyPartitions
from flowstone.registry import Registry, build_registry
from flowstone.retry import Retry
from flowstone.states import StepState
from tests.store.runs_by_hand import query

CALLS: Counter[str] = Counter()
VALUES: dict[str, int] = {}


class Scale(BaseModel):
    factor: int = 1


def source(version: str | None = None, **options: Any) -> Asset:
    @asset(name="source", version=version, **options)
    def function() -> int:
        CALLS["source"] += 1
        return VALUES["source"]

    return function


@asset
def even(source: int) -> bool:
    CALLS["even"] += 1
    return source % 2 == 0


@asset(config=Scale)
def scaled(source: int, context: Any) -> int:
    CALLS["scaled"] += 1
    return source * int(context.config.factor)


@asset
def report(even: bool, scaled: int) -> list[Any]:
    CALLS["report"] += 1
    return [even, scaled]


@pytest.fixture(autouse=True)
def _afresh() -> None:
    CALLS.clear()
    VALUES.clear()
    VALUES["source"] = 2


def registry(version: str = "1", **options: Any) -> Registry:
    return build_registry([source(version, **options), even, scaled, report])


def states(handle: RunHandle) -> dict[str, StepState]:
    return {name: next(iter(by_state)) for name, by_state in handle.progress().steps.items()}


def test_what_is_fresh_is_skipped_and_its_output_is_the_runs(make_runtime: Any) -> None:
    runtime = make_runtime(registry())
    first = materialize_sync(report, upstream=True)
    again = materialize_sync(report, upstream=True)
    assert set(CALLS.values()) == {1}
    assert set(states(again).values()) == {"skipped"}
    assert again.status() == "succeeded"
    assert again.result() == first.result() == [True, 2]
    assert again.result("scaled") == 2
    assert query(runtime.ledger, "SELECT count(*) FROM flowstone.outputs")[0][0] == 4
    assert query(
        runtime.ledger,
        "SELECT count(*) FROM flowstone.steps s JOIN flowstone.steps u ON u.id = s.reuses "
        "WHERE s.run_id = :again AND u.run_id = :first AND u.asset = s.asset",
        again=again.id,
        first=first.id,
    ) == [(4,)]


def test_force_computes_what_is_fresh(make_runtime: Any) -> None:
    make_runtime(registry())
    materialize_sync(report, upstream=True)
    materialize_sync(report, upstream=True, force=True)
    assert set(CALLS.values()) == {2}
    materialize_sync(report)
    assert CALLS == {"source": 2, "even": 2, "scaled": 2, "report": 3}
    materialize_sync(report, force=False)
    assert CALLS["report"] == 3


def test_new_code_runs_again_and_what_its_value_changes(make_runtime: Any) -> None:
    make_runtime(registry("1"))
    materialize_sync(report, upstream=True)
    VALUES["source"] = 4
    make_runtime(registry("2"))
    handle = materialize_sync(report, upstream=True)
    # `even` was asked with 4 instead of 2, but answered the same.
    assert CALLS == {"source": 2, "even": 2, "scaled": 2, "report": 2}
    assert handle.result() == [True, 4]


def test_the_run_is_cut_off_where_a_value_comes_out_the_same(make_runtime: Any) -> None:
    runtime = make_runtime(registry("1"))
    first = materialize_sync(report, upstream=True)
    make_runtime(registry("2"))
    again = materialize_sync(report, upstream=True)
    assert CALLS == {"source": 2, "even": 1, "scaled": 1, "report": 1}
    assert states(again) == {
        "source": "succeeded",
        "even": "skipped",
        "scaled": "skipped",
        "report": "skipped",
    }
    assert again.result() == first.result()
    reasons = query(
        runtime.ledger,
        "SELECT asset, reason FROM flowstone.steps WHERE run_id = :r ORDER BY id",
        r=again.id,
    )
    assert dict(map(tuple, reasons)) == {
        "source": "code changed",
        "even": "upstream runs: source",
        "scaled": "upstream runs: source",
        "report": "upstream runs: even and 1 more",
    }
    ended = query(
        runtime.ledger,
        "SELECT a.outcome, au.action FROM flowstone.steps s "
        "JOIN flowstone.attempts a ON a.step_id = s.id "
        "JOIN flowstone.audit au ON au.step_id = s.id "
        "WHERE s.run_id = :r AND s.asset = 'even'",
        r=again.id,
    )
    assert ended == [("skipped", "step.skipped")]


def test_a_reader_of_a_skipped_step_is_traced_to_the_output_that_it_read(
    make_runtime: Any,
) -> None:
    runtime = make_runtime(registry("1"))
    materialize_sync("source", upstream=True)
    handle = materialize_sync(even, upstream=True)
    assert states(handle) == {"source": "skipped", "even": "succeeded"}
    found = query(
        runtime.ledger,
        "SELECT maker.asset, maker.run_id <> reader.run_id AS earlier, up.run_id = reader.run_id "
        "FROM flowstone.lineage l "
        "JOIN flowstone.steps reader ON reader.id = l.step_id "
        "JOIN flowstone.steps up ON up.id = l.upstream_step_id "
        "JOIN flowstone.outputs o ON o.id = l.upstream_output_id "
        "JOIN flowstone.steps maker ON maker.id = o.step_id WHERE reader.run_id = :r",
        r=handle.id,
    )
    assert found == [("source", True, True)]


def test_other_config_computes_anew_and_the_defaults_count_as_values(make_runtime: Any) -> None:
    make_runtime(registry())
    materialize_sync(report, upstream=True)
    materialize_sync(report, upstream=True, config={"scaled": {"factor": 1}})
    assert CALLS["scaled"] == 1
    handle = materialize_sync(report, upstream=True, config={"scaled": {"factor": 3}})
    assert handle.result() == [True, 6]
    assert CALLS == {"source": 1, "even": 1, "scaled": 2, "report": 2}


def test_a_volatile_asset_is_asked_each_time(make_runtime: Any) -> None:
    make_runtime(registry(volatile=True))
    for _ in range(3):
        materialize_sync(report, upstream=True)
    assert CALLS == {"source": 3, "even": 1, "scaled": 1, "report": 1}


def test_partitions_are_fresh_each_by_itself(make_runtime: Any) -> None:
    days = DailyPartitions("2024-01-01", "2024-02-29")

    @asset(partitions=days)
    def day(context: Any) -> int:
        CALLS[str(context.partition)] += 1
        return int(context.partition.day)

    @asset(partitions=MonthlyPartitions("2024-01", "2024-02"))
    def month(day: dict[Any, int]) -> int:
        CALLS["month"] += 1
        return sum(day.values())

    make_runtime(build_registry([day, month]))
    materialize_sync(day, partition="2024-01-03")
    materialize_sync(month, partition="2024-01", upstream=True)
    assert len(CALLS) == 32
    assert set(CALLS.values()) == {1}
    materialize_sync(day, partition="2024-01-03")
    materialize_sync(month, partition="2024-01", upstream=True)
    assert CALLS["month"] == 1, "the day was computed anew, to the same value"


KEYS = ["A"]
"""A run takes no secret, so that the definitions have to hold it."""


class Login(BaseModel):
    key: SecretStr = Field(default_factory=lambda: SecretStr(KEYS[-1]))
    scopes: set[str] = set()
    retries: int = Field(default=1, exclude=True)


def test_secrets_sets_and_hidden_fields_count_by_what_they_hold(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asset(config=Login)
    def login(context: Any) -> str:
        CALLS["login"] += 1
        return str(context.config.key.get_secret_value())

    runtime = make_runtime(build_registry([login]))

    def asked(**config: Any) -> Any:
        return materialize_sync(login, upstream=True, config={"login": config}).result()

    assert asked() == "A"
    monkeypatch.setattr(f"{__name__}.KEYS", ["B"])
    assert asked() == "B"
    asked(scopes=["x", "y", "z"])
    asked(scopes=["z", "y", "x"])
    asked(scopes=["x", "y", "z"], retries=2)
    assert CALLS["login"] == 4
    kept = query(runtime.ledger, "SELECT string_agg(fingerprint, ' ') FROM flowstone.outputs")
    assert "key" not in kept[0][0]


def test_a_config_has_the_same_hash_in_every_process() -> None:
    script = (
        "from flowstone.config_values import config_values\n"
        "from pydantic import BaseModel\n"
        "class C(BaseModel):\n    names: set[str] = {'a', 'b', 'c', 'd'}\n"
        "print(config_values(C()))"
    )
    written = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert written == {"{'names': ['a', 'b', 'c', 'd']}\n"}


class Opaque(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    lock: Any = Field(default_factory=object)


class Falls(SameKey):
    is_loaded = False

    def upstream_keys(self, *given: Any) -> Any:
        return [1 // 0] if self.is_loaded else super().upstream_keys(*given)


def test_a_run_that_the_users_code_keeps_from_being_planned_fails_and_says_why(
    make_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asset(config=Opaque)
    def opaque() -> int:
        return 1

    @asset(deps={"opaque": Dep("opaque", Falls())})
    def falls(opaque: int) -> int:
        return opaque

    make_runtime(build_registry([opaque, falls]))
    monkeypatch.setattr(Falls, "is_loaded", True)
    with pytest.raises(RunFailed, match="a value of the type object, of which nobody can tell"):
        materialize_sync(opaque)
    with pytest.raises(RunFailed, match=r"which failed: ZeroDivisionError"):
        materialize_sync(falls)


# Optional inputs.


@asset(retry=Retry(max_attempts=1))
def weak() -> int:
    CALLS["weak"] += 1
    if VALUES.get("weak") is None:
        raise ValueError("not today")
    return VALUES["weak"]


@asset
def below_weak(weak: int) -> int:
    return weak + 1


@asset(deps={"weak": Dep("weak", optional=True), "below": Dep("below_weak", optional=True)})
def strong(even: bool, weak: int | None, below: int | None) -> list[Any]:
    CALLS["strong"] += 1
    return [even, weak, below]


@asset
def after_strong(strong: list[Any]) -> int:
    return len(strong)


OPTIONAL = [weak, below_weak, strong, after_strong]


def test_what_is_optional_and_fails_arrives_as_none(make_runtime: Any) -> None:
    runtime = make_runtime(build_registry([source(), even, *OPTIONAL]))
    with pytest.raises(RunFailed, match="weak: ValueError: not today"):
        materialize_sync(after_strong, upstream=True)
    found = query(runtime.ledger, "SELECT asset, state FROM flowstone.steps ORDER BY asset")
    assert dict(map(tuple, found)) == {
        "after_strong": "succeeded",
        "below_weak": "upstream_failed",
        "even": "succeeded",
        "source": "succeeded",
        "strong": "succeeded",
        "weak": "failed",
    }
    handle = materialize_sync(strong, force=False)
    assert states(handle)["strong"] == "skipped"
    assert handle.result("strong") == [True, None, None]
    lineage = query(
        runtime.ledger,
        "SELECT u.asset FROM flowstone.lineage l JOIN flowstone.steps s ON s.id = l.step_id "
        "JOIN flowstone.steps u ON u.id = l.upstream_step_id WHERE s.asset = 'strong'",
    )
    assert lineage == [("even",)], "what was not there has not been read"


def test_what_is_optional_and_there_is_read(make_runtime: Any) -> None:
    make_runtime(build_registry([source(), even, *OPTIONAL]))
    VALUES["weak"] = 5
    assert materialize_sync(strong, upstream=True).result() == [True, 5, 6]


def test_what_is_optional_and_missing_arrives_as_none_until_it_is_made(make_runtime: Any) -> None:
    make_runtime(build_registry([source(), even, *OPTIONAL]))
    materialize_sync(even, upstream=True)
    assert materialize_sync(strong).result() == [True, None, None]
    VALUES["weak"] = 5
    materialize_sync(below_weak, upstream=True)
    assert materialize_sync(strong, force=False).result() == [True, 5, 6]
    assert CALLS["strong"] == 2


def test_missing_keys_of_an_optional_fan_in_are_none(make_runtime: Any) -> None:
    days = DailyPartitions("2024-01-01", "2024-01-03")

    @asset(partitions=days)
    def day(context: Any) -> int:
        return int(context.partition.day)

    @asset(deps={"day": Dep("day", optional=True)})
    def all_days(day: dict[Any, int | None]) -> dict[str, int | None]:
        return {str(key): value for key, value in day.items()}

    make_runtime(build_registry([day, all_days]))
    materialize_sync(day, partition="2024-01-02")
    assert materialize_sync(all_days).result() == {
        "2024-01-01": None,
        "2024-01-02": 2,
        "2024-01-03": None,
    }


def test_a_saved_plan_of_which_all_is_fresh_can_be_cancelled(make_runtime: Any) -> None:
    make_runtime(build_registry([source()]))
    materialize_sync("source")
    saved = save_plan("source", force=False)
    assert saved.cancel().state == "cancelled"
    assert saved.status() == "cancelled"
