"""What the README and its guides say is so: commands, modules, settings, diagrams, examples."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

import flowstone
from flowstone import DailyPartitions, MonthlyPartitions, asset
from flowstone.cli import app
from flowstone.registry import build_registry
from flowstone.settings import Settings
from flowstone.states import GATE_MOVES, RUN_MOVES, STEP_MOVES, mermaid
from flowstone.store.cancellation import GRACE_SECONDS
from tests.conftest import RuntimeFactory
from tests.pages import ROOT, block, blocks, section
from tests.scripts import run_script


def test_the_diagrams_are_those_of_the_tables_of_moves() -> None:
    tables = [mermaid(STEP_MOVES), mermaid(RUN_MOVES), mermaid(GATE_MOVES)]
    assert blocks("mermaid") == [f"{table}\n" for table in tables]


def test_the_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    example = block("python", "An example")
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    done = run_script(tmp_path, example)
    assert (done.stdout, done.stderr) == ("20.0\n", "")


def test_every_python_block_parses_and_imports_only_public_names() -> None:
    for code in blocks("python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "flowstone":
                assert {alias.name for alias in node.names} <= set(flowstone.__all__)


def test_public_names_exist_and_others_do_not() -> None:
    assert all(getattr(flowstone, name) is not None for name in flowstone.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = flowstone.nothing


def test_importing_flowstone_is_cheap() -> None:
    script = (
        "import sys, flowstone; print([m for m in ('celery', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_section_on_lineage_holds(make_runtime: RuntimeFactory) -> None:
    """Its calls are run on assets of the same names; its asset has the columns that it says."""
    asks, declares = blocks("python", section("Lineage"))
    days = DailyPartitions("2013-02-01", "2013-02-28")
    planes = asset(name="planes")(lambda: 1)
    raw = asset(name="raw_flights", partitions=days)(lambda: 2)
    months = MonthlyPartitions("2013-02", "2013-02")
    report = asset(name="monthly_report", partitions=months, deps=["raw_flights", "planes"])
    make_runtime(build_registry([planes, raw, report(lambda: 3)]))
    flowstone.materialize_sync("monthly_report", partition="2013-02", upstream=True)
    made_of, gone_into, affected, produced = (
        eval(line, {"lineage": flowstone.lineage})  # noqa: S307 - the page is ours
        for line in asks.splitlines()
        if line.startswith("lineage.")
    )
    assert len(made_of) == 29
    assert [one.asset for one in (*gone_into, *affected)] == ["monthly_report"] * 2
    assert len(produced.inputs) == 29
    named: dict[str, Any] = {"__name__": "readme"}
    exec(declares, named)  # noqa: S102
    flights = asset(name="flights")(lambda: [1])
    make_runtime(build_registry([flights, named["delays"]]))
    (column,) = flowstone.lineage.columns_upstream("delays", "minutes")
    assert f"`{column.asset}.{column.column}`, one step away" in section("Lineage")
    assert column.depth == 1
    assert all(f"`{standing}`" in section("Lineage") for standing in flowstone.lineage.Standing)


def test_every_command_of_the_pages_exists() -> None:
    command = typer.main.get_command(app)
    known = set(command.commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"(?:^|\s|`|/)flowstone ([a-z]+)\b", "\n".join(blocks("console"))))
    assert {"run", "runs", "status", "show", "db"} <= used <= known
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(blocks("console")))) <= targets


@pytest.mark.parametrize(
    "command",
    [
        "dev",
        "run",
        "cancel",
        "resume",
        "runs",
        "status",
        "workers",
        "show",
        "lineage",
        "produced",
        "doctor",
    ],
)
def test_every_command_has_help_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Example:" in shown.output


def test_the_table_of_settings_is_complete() -> None:
    table = section("Real servers").partition("| setting |")[2]
    named = set(re.findall(r"FLOWSTONE_([A-Z_]+)", table))
    assert named == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, int | float):
            assert f"{field.default:g}" in table, name


def test_every_module_is_in_the_map() -> None:
    table = section("Where to find what")
    for path in (ROOT / "flowstone").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert re.search(rf"[`/]{re.escape(path.name)}`", table), path.name
        elif (path / "__init__.py").exists():
            assert f"flowstone/{path.name}/" in table or f"`{path.name}/`" in table, path.name


def test_the_words_of_the_glossary_are_there() -> None:
    words = re.findall(r"^\| ([a-z]+) \|", section("Glossary"), re.MULTILINE)
    assert words == [
        "word", "asset", "partition", "run", "plan", "step", "attempt", "output", "canvas",
        "continuation", "ledger",
    ]  # fmt: skip


def test_the_example_of_resources_gets_the_config_of_its_run(tmp_path: Path) -> None:
    example = block("python", "Resources")
    done = run_script(tmp_path, example, TEST_PASSWORD="hunter2")  # noqa: S106 - not a real one
    assert (done.stdout, done.stderr) == ("connected to localhost\nconnected to test\n", "")


def test_the_example_of_timeouts_is_interrupted_and_does_with_less(tmp_path: Path) -> None:
    done = run_script(tmp_path, block("python", "Time limits"))
    assert (done.stdout, done.stderr) == ("[]\n", "")
    text = section("Time limits")
    assert f"interrupted after 60 s, killed after {flowstone.Timeout(60).hard:g} s" in text
    assert f"what runs has {GRACE_SECONDS:g} seconds" in text
