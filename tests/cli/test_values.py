"""`flowstone get`, `exists`, `versions`, `rollback`, `show -p` and `check`, from the ledger."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from flowstone import materialize_sync
from flowstone.errors import RunFailed
from flowstone.registry import load_registry
from flowstone.runtime import Runtime
from tests.cli import checked_assets, small_assets
from tests.cli.conftest import Cli
from tests.store.runs_by_hand import query

# Each of them starts the command line, as a process of its own, several times.
pytestmark = pytest.mark.slow


@pytest.fixture
def flowstone(cli: Cli, database: str, tmp_path: Path) -> Any:
    """Call the command line in a process that knows the ledger, and no assets by itself."""
    return lambda *arguments, **settings: cli.inside(tmp_path)(
        *arguments, database_url=database, **settings
    )


@pytest.fixture
def here(make_runtime: Any) -> Runtime:
    made: Runtime = make_runtime(load_registry([small_assets.__name__, checked_assets.__name__]))
    return made


def test_a_value_is_printed_by_a_process_that_has_no_assets(flowstone: Any, here: Runtime) -> None:
    materialize_sync("total", upstream=True)
    run = materialize_sync("daily", partition=date(2026, 1, 5))
    assert json.loads(flowstone("get", "numbers").out) == [1, 2, 3]
    assert flowstone("get", "daily", "-p", "2026-01-05").out == '"2026-01-05"\n'
    assert flowstone("get", "daily", "-p", "2026-01-05", "--run", str(run.id)[:8]).code == 0
    assert "'daily' for partition '2026-01-06'; there is one for 2026-01-05" in flowstone(
        "get", "daily", "-p", "2026-01-06"
    ).refused(2)
    assert "'totl' was never materialized; did you mean 'total'?" in flowstone(
        "get", "totl"
    ).refused(2)
    error = flowstone("get", "numbers", "--run", str(run.id)).refused(2)
    assert f"run {run.id} has no output of numbers, which is no step of it" in error


def test_exists_tells_by_its_exit_code(flowstone: Any, here: Runtime) -> None:
    materialize_sync("daily", partition=date(2026, 1, 5))
    found = flowstone("exists", "daily", "-p", "2026-01-05")
    missing = flowstone("exists", "daily", "-p", "2026-01-06")
    assert (found.code, found.out) == (0, "yes\n")
    assert (missing.code, missing.out, missing.err) == (1, "no\n", "")


def test_versions_are_listed_and_rolled_back(flowstone: Any, here: Runtime) -> None:
    runs = [str(materialize_sync("numbers").id) for _ in range(2)]
    new, old = json.loads(flowstone("versions", "numbers", "--json").out)
    assert [new["run"], old["run"]] == runs[::-1]
    assert (new["state"], old["state"]) == ("latest", "")
    done = flowstone("rollback", "numbers", "--to", str(old["version"]), "--reason", "wrong")
    assert f"the latest version of numbers is {old['version']} now, of run {runs[0]}" in done.out
    table = flowstone("versions", "numbers").out
    assert [("latest" in line) for line in table.splitlines() if "│" in line] == [False, True]
    assert "is the latest already" in flowstone(
        "rollback", "numbers", "--to", str(old["version"])
    ).refused(2)


def test_a_partition_is_shown_as_it_stands(flowstone: Any, here: Runtime) -> None:
    run = materialize_sync("daily", partition=date(2026, 1, 5))
    shown = flowstone("show", "daily", "-p", "2026-01-05").out
    assert "materialized" in shown
    assert str(run.id) in shown


def test_checks_are_run_on_what_there_is_and_their_history_is_shown(
    flowstone: Any, here: Runtime
) -> None:
    materialize_sync("number")
    settings = {"assets": checked_assets.__name__}
    passed = flowstone("check", "number", **settings)
    assert (passed.code, passed.out.count("passed")) == (0, 2)
    history = flowstone("check", "number", "--history").out
    assert history.count("passed") == 4
    assert "1 of at most 10" in history
    assert "asset 'total' has no checks" in flowstone(
        "check", "total", assets=f"{checked_assets.__name__},{small_assets.__name__}"
    ).refused(2)


def test_a_check_that_does_not_pass_on_what_there_is_is_an_exit_code(
    flowstone: Any, here: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBER", "11")
    materialize_sync("number")
    found = flowstone("check", "number", assets=checked_assets.__name__)
    assert (found.code, "did not pass" in found.out, found.err) == (1, True, "")
    # It is told, and nothing else: whoever wants so rolls back.
    assert flowstone("get", "number").out == "11\n"


@pytest.mark.slow
def test_what_will_be_stale_is_shown_first_and_nobody_is_asked_without_a_terminal(
    flowstone: Any, here: Runtime
) -> None:
    materialize_sync("total", upstream=True)
    shown = flowstone("invalidate", "numbers", "--dry-run")
    assert (shown.code, shown.out.count("latest")) == (0, 2)
    assert "2 outputs would be marked as stale" in shown.out
    assert "add --yes to mark these" in flowstone("invalidate", "numbers").refused(2)
    assert "stale" not in flowstone("versions", "numbers").out
    alone = flowstone("invalidate", "numbers", "--no-cascade", "--yes", "--reason", "late")
    assert "1 outputs are stale now" in alone.out
    assert "stale: invalidated" in flowstone("versions", "numbers").out
    assert "stale" not in flowstone("versions", "total").out
    assert "1 outputs are stale now" in flowstone("invalidate", "numbers", "--yes").out
    assert "all of it is stale already" in flowstone("invalidate", "numbers").out


def test_the_collector_deletes_what_is_too_much_and_says_which(
    flowstone: Any, here: Runtime
) -> None:
    for _ in range(3):
        materialize_sync("numbers")
    aged = "UPDATE flowstone.outputs SET created_at = created_at - interval '2 hours' RETURNING 1"
    query(here.ledger, aged)
    # By itself, the command sees another folder of outputs than the test.
    settings = {"output_url": here.settings.outputs}
    none = flowstone("gc", "--dry-run", **settings)
    assert "no definitions are loaded (FLOWSTONE_ASSETS)" in none.out
    assert "0 values would be deleted" in none.out
    would = flowstone("gc", "--dry-run", "--keep", "2", **settings)
    assert "1 values would be deleted" in would.out
    assert "1 values were deleted" in flowstone("gc", "--keep", "2", **settings).out
    assert flowstone("versions", "numbers").out.count("value deleted") == 1


def test_the_quarantine_is_emptied_when_the_command_line_says_so(
    flowstone: Any, here: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBER", "-1")
    with pytest.raises(RunFailed, match="check 'positive' refused"):
        materialize_sync("number")
    history = flowstone("check", "number", "--history").out
    assert history.count("in quarantine") == 2
    settings = {"output_url": here.settings.outputs}
    assert "0 values were deleted" in flowstone("gc", **settings).out
    assert "1 values were deleted" in flowstone("gc", "--quarantine-days", "0", **settings).out
