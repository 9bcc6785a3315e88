"""`flowstone prune` as an operator calls it."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from flowstone.cli import app
from flowstone.store import runs
from flowstone.store.ledger import Ledger
from tests.cli.conftest import Cli
from tests.store.runs_by_hand import HandRun, count, run_sql

DAYS = '{"tracebacks": 30, "runs": 90}'


@pytest.fixture
def prune(cli: Cli, database: str, ledger: Ledger) -> Any:
    run = HandRun(ledger, {1: (), 2: (1,)})
    run.dispatch()
    run.fail(run.claim(1))
    with ledger.begin() as conn:
        runs.close_if_done(conn, run.id, actor="test")
        for table in ("runs", "attempts"):
            past = f"UPDATE flowstone.{table} SET finished_at = now() - interval '91 days'"
            run_sql(conn, past)
    return lambda *options, **days: cli("prune", *options, database_url=database, **days)


def table(out: str) -> dict[str, str]:
    rows = [line.strip("│").split("│") for line in out.splitlines() if line.startswith("│")]
    return {name.strip(): number.strip() for name, number in rows}


def test_a_dry_run_shows_what_the_real_one_then_deletes(prune: Any, ledger: Ledger) -> None:
    gone = {"attempts": "1", "edges": "1", "messages of attempts": "1", "runs": "1", "steps": "2"}
    tried = prune("--dry-run", retention=DAYS)
    assert (tried.code, tried.err) == (0, "")
    assert table(tried.out) == gone
    assert "would be deleted" in tried.out
    assert count(ledger, "steps") == 2
    done = prune(retention=DAYS)
    assert table(done.out) == gone
    assert count(ledger, "steps") == 0
    again = prune(retention=DAYS)
    assert (again.code, again.out) == (0, "nothing is old enough, or all of it is needed\n")


def test_without_a_setting_it_says_how_to_set_it(prune: Any, ledger: Ledger) -> None:
    said = prune()
    assert said.code == 0
    assert said.out.startswith("everything is kept; set FLOWSTONE_RETENTION")
    assert count(ledger, "steps") == 2


def test_a_wrong_setting_is_refused_in_one_line(prune: Any) -> None:
    assert "FLOWSTONE_RETENTION, key 'run'" in prune(retention='{"run": 1}').refused(2)


def test_it_has_help_with_an_example() -> None:
    shown = CliRunner().invoke(app, ["prune", "--help"])
    assert shown.exit_code == 0
    assert "Example:" in shown.output
