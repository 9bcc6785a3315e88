"""Flaws that an earlier system had, by name: none of them can come back."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from flowstone.asset import asset
from flowstone.client import materialize_sync
from flowstone.context import Context
from flowstone.errors import BadMessage, FlowStoneError, LedgerRefused, RunFailed
from flowstone.io import Place
from flowstone.messages import STEP, CoordinateMessage, Message, StepMessage, parse
from flowstone.outcome import StoredOutput, Succeeded
from flowstone.registry import build_registry, load_registry
from flowstone.resource import resource
from flowstone.retry import Retry
from flowstone.settings import load_settings
from flowstone.states import StepState
from flowstone.store import outputs, runs
from flowstone.store.ledger import Ledger
from tests.store import backfill_assets
from tests.store.gates_by_hand import ask_for, row
from tests.store.local_worker import LocalWorker
from tests.store.runs_by_hand import MADE_OF, HandRun, query, run_sql


def test_a_step_that_asks_has_not_failed_and_is_asked_about_once(ledger: Ledger) -> None:
    gate = ask_for(ledger)
    asked = row(ledger, gate)
    (step,) = query(ledger, "SELECT id, state, error FROM flowstone.steps")
    assert (step.state, step.error) == ("waiting_approval", None)
    # Linked by a foreign key; without a limit of time that nobody has given.
    assert (asked.step_id, asked.expires_at) == (step.id, None)
    with pytest.raises(LedgerRefused, match="fk_gates_step_id"), ledger.begin() as conn:
        run_sql(conn, "UPDATE flowstone.gates SET step_id = step_id + 1")
    again = "INSERT INTO flowstone.gates (kind, step_id, attempt, message, context, options, "
    again += "approvers, escalation) SELECT kind, step_id, 2, '', context, options, approvers, "
    with pytest.raises(LedgerRefused, match="uq_gates_open"), ledger.begin() as conn:
        run_sql(conn, again + "escalation FROM flowstone.gates")


class Optional(Message):
    """A message with something that may be left out."""

    name: str
    limit: int | None = 5


def test_messages_are_json_and_come_back_as_what_they_were() -> None:
    for message in (StepMessage(step_id=2**60, canvas=uuid4()), CoordinateMessage(run_id=uuid4())):
        arguments = message.arguments()
        assert len(json.dumps(arguments)) < 1024
        assert parse(STEP, type(message), (), json.loads(json.dumps(arguments))) == message


def test_what_is_not_given_is_absent_and_does_not_override_a_default_with_none() -> None:
    assert Optional(name="a").arguments() == {"name": "a"}
    assert Optional(name="a", limit=None).arguments() == {"name": "a", "limit": None}
    assert parse("t", Optional, (), {"name": "a"}).limit == 5
    assert parse("t", Optional, (), {"name": "a", "limit": None}).limit is None


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"step_id": None, "canvas": str(uuid4())},
        {"step_id": "7", "canvas": str(uuid4())},
        {"step_id": True, "canvas": str(uuid4())},
        {"step_id": 7, "canvas": None},
        {"step_id": 7, "canvas": "here"},
        {"step_id": 7, "canvas": str(uuid4()), "registry": "Elixir.Some.Module"},
    ],
)
def test_a_message_is_not_guessed_at(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadMessage, match=r"flowstone\.step: argument"):
        parse(STEP, StepMessage, (), arguments)


def test_options_that_are_not_given_leave_retry_and_partitions_at_their_defaults() -> None:
    def made() -> None: ...

    plain, none = asset(made), asset(retry=None, partitions=None, config=None)(made)
    assert plain.retry == none.retry == Retry()
    assert plain.partitions == none.partitions
    assert asset(retry=Retry(max_attempts=1))(made).retry.max_attempts == 1


def test_resources_reach_the_asset_without_being_passed_along(make_runtime: Any) -> None:
    @resource
    def client() -> str:
        return "injected"

    @asset(requires=["client"])
    def uses(context: Context) -> str:
        return str(context.resources["client"])

    make_runtime(build_registry([uses], [client]))
    assert materialize_sync(uses).result() == "injected"


class Service(BaseModel):
    """A config of which no layer may lose the default."""

    url: str = "default"
    limits: dict[str, int] = {"rows": 5}


LAYERS = ("flowstone.toml", "environment", "run")
NOTHING: list[Any] = [None, {}, {"url": None}, {"url": None, "limits": None}]


def layered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_runtime: Any, given: dict[str, Any]
) -> Any:
    """Return what an asset gets of a resource, with one config for each layer that is given."""

    @resource(config=Service)
    def service(config: Service) -> Service:
        return config

    @asset(requires=["service"])
    def uses(service: Service) -> list[Any]:
        return [service.url, service.limits]

    monkeypatch.chdir(tmp_path)
    toml = given.get("flowstone.toml") or {}
    (tmp_path / "flowstone.toml").write_text(
        "[resources.service]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in toml.items() if v)
    )
    if "environment" in given:
        said = given["environment"]
        text = json.dumps({} if said is None else {"service": said})
        monkeypatch.setenv("FLOWSTONE_RESOURCES", text)
    make_runtime(build_registry([uses], [service]), resources=load_settings().resources)
    resources = {"service": given["run"]} if "run" in given else None
    return materialize_sync(uses, resources=resources).result()


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("layer", LAYERS)
def test_none_in_a_layer_of_a_resources_config_never_overrides_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_runtime: Any, layer: str, nothing: Any
) -> None:
    found = layered(tmp_path, monkeypatch, make_runtime, {layer: nothing})
    assert found == ["default", {"rows": 5}]


@pytest.mark.parametrize("layer", LAYERS[:2])
def test_none_in_a_layer_of_a_resources_config_never_overrides_an_earlier_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_runtime: Any, layer: str
) -> None:
    for later in LAYERS[LAYERS.index(layer) + 1 :]:
        for nothing in NOTHING:
            given = {layer: {"url": layer}, later: nothing}
            assert layered(tmp_path, monkeypatch, make_runtime, given)[0] == layer
        given = {layer: {"url": layer}, later: {"url": later}}
        assert layered(tmp_path, monkeypatch, make_runtime, given)[0] == later
        monkeypatch.delenv("FLOWSTONE_RESOURCES", raising=False)


def test_an_error_is_an_exception_that_can_be_raised() -> None:
    assert issubclass(FlowStoneError, Exception)


def test_a_record_cannot_be_there_twice(ledger: Ledger) -> None:
    HandRun(ledger, {1: ()})
    with (
        pytest.raises(LedgerRefused, match="uq_steps_run_id_asset_partition"),
        ledger.begin() as c,
    ):
        run_sql(
            c,
            "INSERT INTO flowstone.steps (run_id, asset, partition, reason, queue, open_deps) "
            "SELECT run_id, asset, partition, reason, queue, 0 FROM flowstone.steps",
        )


def test_latest_is_what_committed_last_not_what_comes_last_in_some_list(ledger: Ledger) -> None:
    made = [HandRun(ledger, {1: ()}) for _ in range(4)]
    for turn, place in enumerate((2, 0, 3, 1)):
        made[place].dispatch()
        made[place].commit(made[place].claim(1), str(turn) * 64)
        with ledger.begin() as conn:
            (latest,) = outputs.latest_of(conn, "a1")
        assert latest.output.sha256 == str(turn) * 64


def test_metadata_and_success_are_one_transaction(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.dispatch()
    claim = run.claim(1)
    bad = StoredOutput("somewhere", "json", 2, "not a hash", None)
    from flowstone.store import steps  # noqa: PLC0415 - the only test that needs it

    with pytest.raises(LedgerRefused), ledger.begin() as conn:
        steps.commit(conn, claim, Succeeded(bad, MADE_OF))
    assert run.states() == {1: "running", 2: "queued"}
    assert run.rows()[2]["open_deps"] == 1
    done = "SELECT count(*) FROM flowstone.audit WHERE action = 'step.succeeded'"
    assert query(ledger, done) == [(0,)]
    assert run.commit(claim) is True


def test_what_cannot_run_any_more_is_said_to_be_so_and_does_not_snooze(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (2,)})
    run.dispatch()
    run.fail(run.claim(1))
    assert run.states() == {1: "failed", 2: "upstream_failed", 3: "upstream_failed"}
    with ledger.begin() as conn:
        assert runs.close_if_done(conn, run.id, actor="test") == "failed"


def test_a_dependency_is_an_output_of_the_plan_not_a_file_that_exists(make_runtime: Any) -> None:
    values = iter([1, 2])

    @asset
    def source() -> int:
        return next(values)

    @asset
    def copy(source: int) -> int:
        return source

    here = make_runtime(build_registry([source, copy]))
    materialize_sync(source)
    # A newer file in the same folder, which no commit knows of, is nobody's input.
    here.outputs.store(99, Place("source", "-", 10**6, 1, uuid4()))
    assert materialize_sync(copy).result() == 1
    assert materialize_sync(copy, upstream=True, force=True).result() == 2


def test_a_failure_is_recorded_once_an_attempt(make_runtime: Any) -> None:
    @asset(retry=Retry(max_attempts=2, base=0))
    def bad() -> None:
        raise ConnectionError("away")

    here = make_runtime(build_registry([bad]))
    with pytest.raises(RunFailed):
        materialize_sync(bad)
    recorded = "SELECT action FROM flowstone.audit WHERE step_id IS NOT NULL ORDER BY id"
    assert query(here.ledger, recorded) == [("step.retrying",), ("step.failed",)]
    assert query(here.ledger, "SELECT count(*) FROM flowstone.attempts") == [(2,)]


def test_asset_names_stay_strings_all_the_way(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.do(1, 2)
    names = query(
        ledger,
        "SELECT u.asset, d.asset FROM flowstone.lineage l JOIN flowstone.steps u "
        "ON u.id = l.upstream_step_id JOIN flowstone.steps d ON d.id = l.step_id",
    )
    assert names == [("a1", "a2")]
    assert all(type(name) is str for row in names for name in row)


def test_lineage_names_the_exact_upstream_step_and_never_none(ledger: Ledger) -> None:
    nullable = query(
        ledger,
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'flowstone' "
        "AND table_name = 'lineage' AND is_nullable = 'YES'",
    )
    assert nullable == []


def test_a_diamond_computes_its_top_once(make_runtime: Any) -> None:
    calls: list[str] = []

    @asset
    def top() -> int:
        calls.append("top")
        return 1

    @asset
    def left(top: int) -> int:
        return top

    @asset
    def right(top: int) -> int:
        return top

    @asset
    def bottom(left: int, right: int) -> int:
        return left + right

    make_runtime(build_registry([top, left, right, bottom]))
    assert materialize_sync(bottom, upstream=True).result() == 2
    assert calls == ["top"]


def test_the_order_of_a_run_is_a_plan_and_not_hope(ledger: Ledger) -> None:
    run = HandRun(ledger, {1: (), 2: (1,), 3: (1, 2)})
    ids = list(run.ids.values())
    assert ids == sorted(ids)
    edges = query(ledger, "SELECT upstream, downstream FROM flowstone.edges")
    assert all(upstream < downstream for upstream, downstream in edges)
    assert [row["open_deps"] for row in run.rows().values()] == [0, 1, 2]


def test_a_backfill_runs_as_many_as_it_may_at_once_and_no_more(make_runtime: Any) -> None:
    """It was the other way round: batches of that size, one after the other, or one by one."""
    local = LocalWorker(make_runtime(load_registry([backfill_assets.__name__])))
    handle = local.backfill("raw", partitions="2013-01", max_parallel=4)
    in_flight = set()
    while local.messages:
        in_flight.add(handle.progress().count(StepState.QUEUED, StepState.RUNNING))
        local.work_on("raw")
    # Each one that ends makes room for the next; nobody waits for a batch.
    assert in_flight == {1, 2, 3, 4}
    assert handle.progress().count(StepState.SUCCEEDED) == 31


def test_what_a_backfill_skips_does_not_depend_on_the_order_of_a_list(make_runtime: Any) -> None:
    """The latest of a partition is what committed last: a failure since then changes nothing."""
    backfill_assets.BROKEN.clear()
    local = LocalWorker(make_runtime(load_registry([backfill_assets.__name__])))
    local.backfill("raw", partitions="2013-01-01")
    local.work()
    backfill_assets.BROKEN.add(date(2013, 1, 1))
    local.backfill("raw", partitions="2013-01-01", force=True)
    local.work()
    backfill_assets.BROKEN.clear()
    for _ in range(3):
        assert local.backfill("raw", partitions="2013-01-01").progress().fresh == 1
