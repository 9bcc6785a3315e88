"""What docs/operations.md says is so: checks, levels, commands, numbers, texts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from flowstone import checkup
from flowstone.cli import app
from flowstone.doctor import CHECKS, CLOCK_SECONDS, Level
from flowstone.liveness import PATIENCE_SECONDS, SLACK_SECONDS, patience_with_beat
from flowstone.settings import Settings
from flowstone.store.repairs import BATCH, DUE_BATCH
from flowstone.store.workers import BEAT_SECONDS, GONE_SECONDS

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "operations.md").read_text()
DOCTOR, _, REST = TEXT.partition("\n## Health commands\n")


def cells(line: str, column: int, bar: str) -> str:
    return line.split(bar)[column].strip()


def test_the_table_and_the_sample_name_each_check_in_the_order_of_the_doctor() -> None:
    rows = [line for line in DOCTOR.splitlines() if line.startswith("| ")]
    assert [cells(row, 1, "|") for row in rows[1:]] == list(CHECKS)
    (sample,) = re.findall(r"```text\n(.*?)```", DOCTOR, re.DOTALL)
    lines = [line for line in sample.splitlines() if line.startswith("│")]
    named = {cells(line, 1, "│"): cells(line, 2, "│") for line in lines if cells(line, 1, "│")}
    assert list(named) == list(CHECKS)
    assert set(named.values()) <= set(Level)
    assert max(len(line) for line in sample.splitlines() if line[0] in "┏┃┡│└") == 80
    # Each that is no "ok" has its remedy under the table.
    bad = [(level, check) for check, level in named.items() if level != "ok"]
    said = re.findall(r"^(error|warning): ([a-z ]+): \S", sample, re.MULTILINE)
    assert said == bad


def test_a_sample_of_the_json_has_its_keys() -> None:
    keys = re.findall(r'"(\w+)"', DOCTOR.partition("--json")[2].partition("\n")[0])
    assert keys == ["healthy", "findings", "check", "level", "seen", "remedy"]
    assert json.loads(json.dumps(dict.fromkeys(keys)))


def test_the_numbers_are_those_of_the_code() -> None:
    assert f"in the last {GONE_SECONDS:g} seconds" in DOCTOR
    assert f"every {BEAT_SECONDS:g} seconds" in DOCTOR
    assert f"taken nothing for {PATIENCE_SECONDS:g} seconds" in DOCTOR
    assert f"more than {CLOCK_SECONDS:g} seconds apart" in DOCTOR
    assert f"({BATCH} of a kind, {DUE_BATCH:,} retries)" in DOCTOR
    assert patience_with_beat(10) == 3 * 10 + SLACK_SECONDS
    assert TEXT.count(f"three of its intervals and {SLACK_SECONDS:g} seconds") == 1
    assert TEXT.count(f"three intervals and {SLACK_SECONDS:g} seconds") == 1
    # All servers are asked at once; then what is due, while the queues are counted.
    assert "ends within 15 seconds" in DOCTOR
    assert 2 * checkup.ANSWER_SECONDS < 15


def test_the_settings_that_it_names_exist() -> None:
    named = set(re.findall(r"FLOWSTONE_([A-Z_]+[A-Z])", TEXT))
    assert named <= {name.upper() for name in Settings.model_fields}


def test_the_commands_of_health_are_those_that_there_are() -> None:
    commands = typer.main.get_command(app).commands["health"].commands  # type: ignore[attr-defined]
    table = re.findall(r"^\| `flowstone health (\w+)", REST, re.MULTILINE)
    assert table == list(commands)


@pytest.mark.parametrize("part", ["worker", "beat", "ledger"])
def test_each_has_help_with_an_example(part: str) -> None:
    shown = CliRunner().invoke(app, ["health", part, "--help"])
    assert "Example: flowstone health" in shown.output
