"""The config of assets in a run: checked when it is submitted, kept, shown, and without secrets."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel, SecretBytes, SecretStr
from sqlalchemy import text

from flowstone import (
    UNPARTITIONED,
    Context,
    RunHandle,
    backfills,
    materialize,
    materialize_all,
    planning,
    preview,
    resume,
    save_plan,
    submission,
)
from flowstone.asset import asset
from flowstone.client import materialize_sync
from flowstone.config_values import shown_values
from flowstone.embedded import ValkeyServer
from flowstone.errors import BadConfig, LedgerUnavailable, PlainSecret, RunFailed
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from flowstone.settings import load_settings
from flowstone.store.ledger import Ledger
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import query

SECRET = "hunter2-and-more"  # noqa: S105 - to be found, if it is anywhere
HIDDEN = "in-the-definitions"


class Inner(BaseModel):
    token: SecretStr = SecretStr(HIDDEN)
    depth: int = 1


class Model(BaseModel):
    limit: int = 5
    day: date = date(2026, 1, 2)
    inner: Inner = Inner()
    password: SecretStr | None = None


class Needy(BaseModel):
    url: str


@asset(config=Model)
def source(context: Context) -> int:
    return int(context.config.limit)


@asset(config=Needy)
def needy(context: Context) -> str:
    return str(context.config.url)


@asset
def plain(source: int) -> int:
    if source == 13:
        raise ValueError("unlucky")
    return source


@pytest.fixture
def here(make_runtime: RuntimeFactory, valkey: ValkeyServer) -> Runtime:
    urls = {"broker_url": SecretStr(valkey.url), "result_url": SecretStr(valkey.url)}
    return make_runtime(build_registry([source, needy, plain]), **urls)


SHOWN = {
    "limit": 5,
    "day": "2026-01-02",
    "inner": {"token": "***", "depth": 1},
    "password": None,
}


@pytest.mark.parametrize("submit", [materialize_all, materialize_sync, save_plan])
@pytest.mark.parametrize(
    ("assets", "config", "said"),
    [
        ("plain", {"source": {"limit": "many"}}, "config of asset 'source': limit: "),
        ("plain", {"surce": {"limit": 1}}, "given for 'surce', which this run does not compute; "),
        ("plain", {"needy": {"url": "u"}}, "given for 'needy', which this run does not compute"),
        ("plain", {"plain": {"limit": 1}}, "asset 'plain' takes no config"),
        ("needy", {}, "config of asset 'needy': url: Field required"),
        ("source", {"source": {"password": SECRET}}, "'source': password is a secret, and runs"),
        ("source", {"source": {"inner": {"token": SECRET}}}, "'source': inner.token is a secret"),
        # So it is where assets are selected.
        ("+plain", {"source": {"limit": "many"}}, "config of asset 'source': limit: "),
        ("+plain", {"surce": {"limit": 1}}, "given for 'surce', which this run does not compute; "),
        ("source+", {"needy": {"url": "u"}}, "given for 'needy', which this run does not compute"),
        ("need*", {}, "config of asset 'needy': url: Field required"),
        ("+plain", {"source": {"password": SECRET}}, "'source': password is a secret, and runs"),
        # Whatever else may be wrong.
        ("+plan", {"source": {"password": SECRET}}, "'source': password is a secret, and runs"),
        ("tag:x", {"source": {"password": SECRET}}, "'source': password is a secret, and runs"),
    ],
)
def test_a_config_that_does_not_fit_is_told_at_once_and_nothing_is_recorded(
    here: Runtime, submit: Any, assets: str, config: Any, said: str
) -> None:
    upstream = {} if submit is materialize_all else {"upstream": True}
    with pytest.raises(BadConfig, match=said) as caught:
        submit(assets, config=config, **upstream)
    assert SECRET not in caught.value.message
    assert query(here.ledger, "SELECT count(*) FROM flowstone.runs") == [(0,)]


def test_without_upstream_only_what_is_asked_for_takes_a_config(here: Runtime) -> None:
    with pytest.raises(BadConfig, match="'source', which this run does not compute"):
        materialize("plain", config={"source": {"limit": 3}})
    assert materialize("source", config={"source": {"limit": 3}}).status() == "requested"


def test_a_backfill_checks_the_config_of_what_it_selects(here: Runtime) -> None:
    def record(selection: str, config: dict[str, Any], **options: Any) -> None:
        request = backfills.request_of([selection], "all", force=False, **options)
        backfills.record(here, request, config)

    for selection in ("source", "+source", "source+", "sou*"):
        with pytest.raises(PlainSecret, match="password is a secret") as caught:
            record(selection, {"source": {"password": SECRET}})
        assert SECRET not in caught.value.message
        with pytest.raises(BadConfig, match="limit: "):
            record(selection, {"source": {"limit": "many"}})
    with pytest.raises(BadConfig, match="url: Field required"):
        record("needy", {})
    assert query(here.ledger, "SELECT count(*) FROM flowstone.runs") == [(0,)]
    # Perhaps nothing of it is missing, and then it needs no config.
    record("needy", {}, only="missing")


def test_what_is_not_known_here_may_be_selected_elsewhere(
    make_runtime: RuntimeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make_runtime(build_registry([source]))
    monkeypatch.setattr(Runtime, "has_all_definitions", False)
    request = submission.request("source+", UNPARTITIONED, upstream=False, force=True)
    submission.check_config(here, request, {"other": {"limit": 1}})
    with pytest.raises(BadConfig, match="limit: "):
        submission.check_config(here, request, {"source": {"limit": "many"}})


def refused_by_a_worker(
    make_runtime: RuntimeFactory, config: dict[str, Any]
) -> tuple[Runtime, RunHandle]:
    """Submit a run where nothing is defined; return it after a worker has planned it."""
    caller = make_runtime(build_registry([]))
    request = submission.request("source", UNPARTITIONED, upstream=False, force=True)
    run_id, _ = submission.record(caller, request, config, None, driver="celery", key=None)
    worker = make_runtime(build_registry([source, needy, plain]))
    planning.plan_run(worker, run_id)
    return worker, RunHandle(run_id, worker)


def test_where_nothing_is_defined_the_coordinator_refuses_it(make_runtime: RuntimeFactory) -> None:
    _, handle = refused_by_a_worker(make_runtime, {"source": {"limit": "many"}})
    with pytest.raises(RunFailed, match=r"failed: config of asset 'source': limit: .* integer"):
        handle.result()


def test_a_secret_that_nobody_could_refuse_is_not_kept(make_runtime: RuntimeFactory) -> None:
    config = {"source": {"password": SECRET, "limit": 3}}
    worker, handle = refused_by_a_worker(make_runtime, config)
    with pytest.raises(RunFailed, match="config of asset 'source': password is a secret"):
        handle.result()
    (row,) = query(worker.ledger, "SELECT config FROM flowstone.runs")
    assert row.config == {"source": {"password": "***", "limit": 3}}
    for table in ("runs", "audit", "steps"):
        assert SECRET not in str(query(worker.ledger, f"SELECT * FROM flowstone.{table}"))


def test_the_plan_shows_the_config_of_each_asset_with_defaults_and_without_secrets(
    here: Runtime,
) -> None:
    assert preview("plain", upstream=True).configs == {"source": SHOWN}
    config = {"source": {"limit": 7}}
    shown = {"source": {**SHOWN, "limit": 7}}
    planned = preview("plain", upstream=True, config=config)
    assert planned.configs == shown
    saved = save_plan("plain", upstream=True, config=config)
    assert saved.configs() == shown
    ran = materialize_sync("plain", upstream=True, config=config)
    assert (ran.configs(), ran.result()) == (shown, 7)
    assert materialize_sync("needy", config={"needy": {"url": "u"}}).configs() == {
        "needy": {"url": "u"}
    }
    for table in ("runs", "audit", "steps", "outputs"):
        assert HIDDEN not in str(query(here.ledger, f"SELECT * FROM flowstone.{table}"))


def test_a_run_that_is_not_planned_shows_no_config_and_one_that_resumes_that_of_its_assets(
    here: Runtime,
) -> None:
    assert materialize("source").configs() == {}
    with pytest.raises(RunFailed):
        materialize_sync("plain", upstream=True, config={"source": {"limit": 13}})
    (run_id,) = query(here.ledger, "SELECT id FROM flowstone.runs WHERE state = 'failed'")[0]
    again = resume(run_id)
    assert again.configs() == {}, "what takes a config is done"
    assert query(here.ledger, "SELECT config FROM flowstone.runs WHERE id = :r", r=again.id) == [
        ({"source": {"limit": 13}},)
    ]


class Colour(Enum):
    RED = "red"


class Names(RootModel[list[str]]):
    pass


class Everything(BaseModel):
    colour: Colour = Colour.RED
    amount: Decimal = Decimal("1.10")
    path: Path = Path("/tmp")  # noqa: S108 - nothing is written there
    names: Names = Names(["a"])
    some: set[str] = {"b", "a"}
    raw: SecretBytes = SecretBytes(b"hunter2")
    by_name: dict[str, SecretStr] = {"x": SecretStr("hunter2")}
    odd: float = float("inf")
    text: str = "nul \0"
    left_out: int = Field(default=1, exclude=True)
    grid: dict[tuple[int, str], float] = {(1, "é"): 0.5}
    by_number: dict[int, str] = {3: "c"}
    by_colour: dict[Colour, int] = {Colour.RED: 1}
    by_set: dict[frozenset[str], int] = {frozenset({"b", "a"}): 2}


def test_whatever_a_config_holds_is_shown_as_json() -> None:
    assert shown_values(Everything()) == {
        "colour": "red",
        "amount": "1.10",
        "path": "/tmp",  # noqa: S108 - the same
        "names": ["a"],
        "some": ["a", "b"],
        "raw": "***",
        "by_name": {"x": "***"},
        "odd": "inf",
        "text": "nul \\0",
        "left_out": 1,
        "grid": {'[1, "é"]': 0.5},
        "by_number": {"3": "c"},
        "by_colour": {"red": 1},
        "by_set": {'["a", "b"]': 2},
    }
    assert shown_values(None) is None


class Grid(BaseModel):
    grid: dict[tuple[int, int], float] = {(1, 2): 0.5}


def test_a_config_whose_keys_are_no_scalars_is_planned(make_runtime: RuntimeFactory) -> None:
    @asset(config=Grid)
    def cell(context: Context) -> float:
        return float(context.config.grid[1, 2])

    make_runtime(build_registry([cell]))
    ran = materialize_sync("cell")
    assert (ran.result(), ran.configs()) == (0.5, {"cell": {"grid": {"[1, 2]": 0.5}}})


class Torn(BaseModel):
    """A config that cannot be looked at."""

    def __iter__(self) -> Any:
        raise LookupError(f"nothing here for {SECRET} \0\nand more")


def requested(here: Runtime, name: str, on_conflict: str = "join") -> RunHandle:
    request = submission.request(
        name, UNPARTITIONED, upstream=False, force=False, on_conflict=on_conflict
    )
    run_id, _ = submission.record(here, request, {}, None, driver="celery", key=None)
    return RunHandle(run_id, here)


def test_an_error_that_nobody_has_foreseen_fails_the_run(
    make_runtime: RuntimeFactory, caplog: pytest.LogCaptureFixture
) -> None:
    torn = asset(name="torn", config=Torn)(lambda: 1)
    handle = requested(make_runtime(build_registry([])), "torn")
    worker = make_runtime(build_registry([torn]))
    worker.resources.secrets.add(SECRET)
    planning.plan_run(worker, handle.id)
    said = r"planning has raised LookupError: nothing here for \*\*\* \\0$"
    with pytest.raises(RunFailed, match=said):
        handle.result()
    (row,) = query(worker.ledger, "SELECT state, error FROM flowstone.runs")
    assert (row.state, row.error["type"]) == ("failed", "LookupError")
    assert "Traceback" in caplog.text
    assert "in __iter__" in caplog.text
    assert SECRET not in caplog.text


def test_a_run_whose_planning_the_database_has_broken_off_is_planned_again(
    make_runtime: RuntimeFactory, database: str
) -> None:
    def cut() -> None:
        own = Ledger(database)
        with own.begin() as conn:
            conn.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        own.close()

    breaks = [cut]

    class Breaks(BaseModel):
        def __iter__(self) -> Any:
            if breaks:
                breaks.pop()()
            return super().__iter__()

    here = make_runtime(build_registry([asset(name="one", config=Breaks)(lambda: 1)]))
    handle = requested(here, "one", on_conflict="refuse")
    # It is looked at when it is submitted, too.
    breaks[:] = [cut]
    with pytest.raises(LedgerUnavailable):
        planning.plan_run(here, handle.id)
    assert handle.status() == "requested"
    planning.plan_run(here, handle.id)
    assert handle.status() == "planned"


@given(st.text(min_size=4), st.text(min_size=4), st.lists(st.text(min_size=4), max_size=3))
def test_no_secret_is_ever_shown(one: str, other: str, more: list[str]) -> None:
    class Bag(BaseModel):
        one: SecretStr
        inner: Inner
        more: list[SecretStr | int]

    inner = Inner(token=SecretStr(other))
    shown = shown_values(Bag(one=SecretStr(one), inner=inner, more=[SecretStr(m) for m in more]))
    assert shown == {
        "one": "***",
        "inner": {"token": "***", "depth": 1},
        "more": ["***"] * len(more),
    }
    json.dumps(shown)


def test_a_process_imports_its_definitions_only_where_it_is_given_a_config(
    make_runtime: RuntimeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_module.py").write_text(
        "from flowstone import asset\n@asset\ndef late(): return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    here = Runtime(load_settings(assets=("late_module",)))
    assert here.definitions(importing=False) is None
    found = here.definitions(importing=True)
    assert found is not None
    assert list(found.graph.assets) == ["late"]
    assert here.definitions(importing=False) is found
    # What is not there is no reason to refuse: the workers may have it.
    assert Runtime(load_settings(assets=("no_such_module",))).definitions(importing=True) is None


def test_a_plain_secret_is_a_bad_config() -> None:
    assert issubclass(PlainSecret, BadConfig)
