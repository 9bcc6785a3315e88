"""What docs/selection.md says is so."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from flowstone.asset import asset
from flowstone.client import materialize_sync
from flowstone.errors import BadSelection, DefinitionError
from flowstone.registry import Registry, build_registry
from flowstone.selection import resolve
from tests.cli.in_process import InProcess
from tests.conftest import RuntimeFactory
from tests.pages import block, section

MEANS = {
    "monthly_report": "m",
    "raw_*": "r",
    "*": "rcm",
    "tag:daily": "rc",
    "tag:source=api": "r",
    "group:raw": "r",
    "kind:table": "r",
    "owner:ann": "m",
    "+monthly_report": "rcm",
    "raw_flights+": "rcm",
    "1+monthly_report": "cm",
    "raw_flights+2": "rcm",
    "raw_flights,monthly_report": "rm",
    "raw_* or tag:daily": "rc",
    "group:raw and tag:daily": "r",
    "not tag:slow": "rm",
    "+(clean_flights or tag:daily)": "rc",
}
"""What each text of the table selects, by the first letters."""


def guide() -> Registry:
    named: dict[str, Any] = {"__name__": "guide"}
    exec(block("python", "Tags, groups, kinds, owners"), named)  # noqa: S102 - the page is ours
    return build_registry([named[n] for n in ("raw_flights", "clean_flights", "monthly_report")])


def test_each_text_of_the_table_selects_what_it_says() -> None:
    graph = guide().graph
    rows = re.findall(r"^\| (`.*?) \|", section("The language"), re.MULTILINE)
    texts = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert texts == list(MEANS)
    for text, letters in MEANS.items():
        assert {name[0] for name in resolve(graph, [text]).assets} == set(letters), text


def test_what_the_guide_says_of_the_language() -> None:
    text = section("The language")
    graph = guide().graph
    with pytest.raises(BadSelection) as error:
        resolve(graph, ["+(a or"])
    assert f"(`{error.value.message}`)" in text
    assert "`owner:team/*`" in text
    assert resolve(graph, ["owner:team/*"]).anchors == ("monthly_report",)
    for typed in ("+monthly_report", "raw_flights,tag:daily", "2+tag:source=api"):
        assert f"`{typed}`" in text
        assert resolve(graph, [typed]).assets
        assert shlex.quote(typed).strip("'") == typed
    words = section("Tags, groups, kinds, owners")
    characters = re.search(r"letters, digits and `([^`]+)`", words)
    assert characters

    def named() -> None: ...

    assert asset(group="x" + characters[1].replace(" ", ""))(named).group
    with pytest.raises(DefinitionError):
        asset(group="a b")(named)


def test_the_commands_of_the_guide_show_what_it_says(make_runtime: RuntimeFactory) -> None:
    make_runtime(guide())
    materialize_sync("monthly_report", upstream=True)
    flowstone = InProcess()
    commands = block("console", "Looking at the graph").splitlines()
    shown = []
    for command in commands:
        _, program, *arguments = shlex.split(command, comments=True)
        assert program == ".venv/bin/flowstone"
        done = flowstone(*arguments)
        assert done.exit_code == 0
        shown.append(done.stdout)
    assert shown[0] == block("text", "Looking at the graph")
    assert "clean_flights  " not in shown[1]
    assert shown[3].startswith("flowchart LR\n    subgraph")
    assert "outputs: 1, assets: 1" in shown[4]
