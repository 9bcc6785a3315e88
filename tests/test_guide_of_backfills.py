"""What docs/backfills.md says is so: its examples run, and its options are there."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
from typer.main import get_command

from flowstone import RunState, StepState, backfill, get_backfill, runtime
from flowstone.cli import app
from flowstone.registry import load_registry
from tests.conftest import RuntimeFactory
from tests.pages import block, section
from tests.store import backfill_assets
from tests.store.local_worker import LocalWorker, stand_in


@pytest.fixture
def local(make_runtime: RuntimeFactory, monkeypatch: pytest.MonkeyPatch) -> LocalWorker:
    here = make_runtime(load_registry([backfill_assets.__name__]))
    runtime.use(here)
    made = LocalWorker(here)
    stand_in(monkeypatch, made)
    return made


def test_the_first_example_runs_and_tells_how_far_it_is(
    local: LocalWorker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, local, busy=True)
    exec(block("python", "Start one"), {})  # noqa: S102 - the page is ours
    assert capsys.readouterr().out == "187 of 187 steps, None left\n"


def test_each_way_to_act_does_what_the_page_says(local: LocalWorker) -> None:
    backfill("raw", "2013-01")
    states = {
        "handle.pause": RunState.PAUSED,
        "handle.resume": RunState.RUNNING,
        "handle.cancel": RunState.CANCELLED,
        "handle.retry": RunState.RUNNING,
    }
    names: dict[str, object] = {}
    for line in block("python", "Follow it, and act on it").splitlines():
        exec(line, names)  # noqa: S102 - the page is ours
        expected = states.pop(line.split("(")[0], None)
        assert expected is None or get_backfill(1).progress().state == expected, line
    assert not states
    local.work()
    progress = get_backfill(1).progress()
    assert (progress.state, progress.count(StepState.SUCCEEDED)) == (RunState.SUCCEEDED, 31)


def command(*names: str) -> Any:
    found: Any = get_command(app)
    for name in names:
        found = found.commands[name]
    return found


def options(found: Any) -> set[str]:
    return {option for parameter in found.params for option in parameter.opts}


def test_the_table_names_arguments_and_options_that_there_are() -> None:
    rows = re.findall(r"^\| (`[^|]+) \| (`[^|]+) \| ", section("Start one"), re.MULTILINE)
    arguments = {name for row, _ in rows for name in re.findall(r"`(\w+)=", row)}
    named = {name for _, row in rows for name in re.findall(r"(--[\w-]+)", row)}
    known = set(inspect.signature(backfill).parameters)
    assert len(rows) == 9
    assert arguments <= known
    assert named <= options(command("backfill"))
    # What it does not name is what `materialize` takes, too.
    assert known - arguments == {"selection", "partitions", "config", "resources", "io"} | {
        "on_conflict"
    }


def test_the_commands_of_the_page_are_there() -> None:
    page = block("console", "Follow it, and act on it") + block("console", "Start one")
    for line in page.splitlines():
        words = line.removeprefix("$ flowstone ").split("#")[0].split()
        group = words[:2] if words[0] == "backfills" else words[:1]
        found = command(*group)
        assert {word for word in words if word.startswith("--")} <= options(found)
