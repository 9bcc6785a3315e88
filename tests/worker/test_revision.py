"""Where the schema is not that of its version, no worker and no beat starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowstone.store.ledger import HEAD, Ledger
from tasks import revision
from tests.store.runs_by_hand import query, run_sql
from tests.worker.nodes import ROOT

BEHIND = f"at revision 0001, this version needs {HEAD}; run `flowstone db upgrade`"
AHEAD = f"at revision 9999, newer than {HEAD} of this version; upgrade the package flowstone"


@pytest.mark.parametrize(
    ("version", "command", "said"),
    [("0001", ("worker", "-c", "1"), BEHIND), ("9999", ("beat", "--pidfile="), AHEAD)],
)
def test_it_ends_with_one_line_that_says_what_to_do(
    ledger: Ledger, database: str, tmp_path: Path, version: str, command: tuple[str, ...], said: str
) -> None:
    with ledger.begin() as conn:
        run_sql(conn, f"UPDATE flowstone.alembic_version SET version_num = '{version}'")
    environment = os.environ | {
        "FLOWSTONE_DATABASE_URL": database,
        "FLOWSTONE_BROKER_URL": "memory://",
        "FLOWSTONE_RESULT_URL": "cache+memory://",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "tasks", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if "revision" in line]
    assert line.endswith(f"error: the ledger is {said}")
    assert "Traceback" not in done.stderr
    assert query(ledger, "SELECT name FROM flowstone.workers") == []


def test_a_ledger_that_is_away_keeps_nobody_from_starting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FLOWSTONE_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/x")
    revision.check()
    assert "started without the ledger" in caplog.text
    assert "hunter2" not in caplog.text


def test_an_address_that_is_none_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLOWSTONE_DATABASE_URL", "mysql://me:hunter2@127.0.0.1/x")
    with pytest.raises(SystemExit) as caught:
        revision.check()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: FLOWSTONE_DATABASE_URL starts with mysql://")
    assert "hunter2" not in said
