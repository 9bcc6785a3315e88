"""`flowstone audit`: the log on a terminal, as lines of JSON, and its verification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from flowstone.cli import app
from flowstone.store.ledger import Ledger
from tests.cli.conftest import Cli
from tests.store.runs_by_hand import HandRun

pytestmark = pytest.mark.slow


@pytest.fixture
def flowstone(cli: Cli, database: str) -> Any:
    return lambda *arguments: cli(*arguments, database_url=database)


@pytest.fixture
def run(ledger: Ledger) -> HandRun:
    made = HandRun(ledger, {1: (), 2: (1,)})
    made.dispatch()
    made.fail(made.claim(1))
    return made


def test_verify_prints_a_head_that_holds_until_somebody_tampers(
    flowstone: Any, ledger: Ledger, run: HandRun
) -> None:
    done = flowstone("audit", "verify")
    assert (done.code, done.err) == (0, "")
    count, head = done.out.strip().split(" rows, head ")
    assert (count, len(head)) == ("5", 64)
    assert flowstone("audit", "verify", "--expect", head).code == 0
    with ledger.engine.begin() as conn:
        conn.execute(text("SET LOCAL session_replication_role = replica"))
        conn.execute(text("UPDATE flowstone.audit SET actor = 'x' WHERE id = 2"))
    found = flowstone("audit", "verify")
    assert (found.code, found.err) == (1, "")
    assert found.out == "row 2 was changed after it was sealed\n"
    assert flowstone("audit", "verify", "--expect", "f" * 64).out.count("\n") == 2
    assert "is no head" in flowstone("audit", "verify", "--expect", "abc").refused(2)


def test_the_export_is_lines_of_json_on_the_terminal_or_in_a_file(
    flowstone: Any, run: HandRun, tmp_path: Path
) -> None:
    printed = flowstone("audit", "export")
    assert (printed.code, printed.err) == (0, "")
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert [row["position"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["reason"] for row in rows][3:] == [
        "ValueError: bad value", "a1 failed: ValueError: bad value",
    ]  # fmt: skip
    file = tmp_path / "audit.jsonl"
    assert flowstone("audit", "export", "--output", str(file)).out == ""
    assert file.read_text() == printed.out
    of_asset = flowstone("audit", "export", "--asset", "a2", "--run", str(run.id)[:8])
    assert of_asset.out == printed.out.splitlines(keepends=True)[-1]
    assert flowstone("audit", "export", "--since", "2999-01-01").out == ""


def test_what_is_asked_for_wrongly_is_refused_in_one_line(
    flowstone: Any, run: HandRun, tmp_path: Path
) -> None:
    for said, arguments in {
        "'soon' is no time; write 2026-01-31": ("--since", "soon"),
        "'run' is not the beginning of a run's id": ("--run", "run"),
        "knows no run that begins with '00000000'": ("--run", "0" * 8),
        "cannot be written: No such file": ("--output", str(tmp_path / "none" / "file")),
    }.items():
        assert said in flowstone("audit", "export", *arguments).refused(2)
    assert "is not the beginning" in flowstone("audit", "log", "--run", "x-").refused(2)


def test_the_log_shows_the_latest_rows_first(flowstone: Any, run: HandRun) -> None:
    shown = flowstone("audit", "log", "--limit", "2")
    assert shown.code == 0
    assert shown.out.index("upstream") < shown.out.index("running")
    assert "planned" not in shown.out


@pytest.mark.parametrize("command", ["log", "verify", "export"])
def test_each_command_has_help_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, ["audit", command, "--help"])
    assert shown.exit_code == 0
    assert "Example:" in shown.output
