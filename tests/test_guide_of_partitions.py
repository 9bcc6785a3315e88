"""What docs/partitions.md says of partition sets, of what people write for keys, and of changes."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, date, datetime
from typing import Any

import pytest

import flowstone
from flowstone import DailyPartitions, KeyMap, asset, materialize_sync, preview
from flowstone.choice import chosen, parse_choice
from flowstone.partition import UNPARTITIONED, Moment, Month, PartitionSet
from flowstone.partition_key import MAX_KEY_LENGTH, decode_key, encode_key, label
from flowstone.registry import build_registry
from flowstone.store.ledger import Ledger
from tests.cli.in_process import InProcess
from tests.conftest import RuntimeFactory
from tests.pages import block, section
from tests.store.runs_by_hand import query

AT = Moment(datetime(2014, 6, 15, tzinfo=UTC), lambda _: {"s:acme": "acme", "s:globex": "globex"})


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table in a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")][2:]
    return [
        [cell.strip().strip("`").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines
    ]


@pytest.fixture(scope="module")
def named() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "guide"}
    exec(block("python", "Kinds of sets"), names)  # noqa: S102 - the page is ours
    return names


def test_the_example_runs_and_its_keys_are_as_the_table_says(
    named: dict[str, Any], make_runtime: RuntimeFactory
) -> None:
    make_runtime(build_registry([named["clicks"], named["sales"]]))
    flowstone.add_partitions("customers", ["acme"])
    assert materialize_sync("clicks", partition="2013-01-15T07").result() == (
        "from 2013-01-15 07:00:00+01:00 to 2013-01-15 08:00:00+01:00"
    )
    for key in ("2013-01-15|acme", {"day": "2013-01-15", "customer": "acme"}):
        assert materialize_sync("sales", partition=key).result() == "acme on 2013-01-15"
    kinds = {type(found).__name__ for found in named.values() if isinstance(found, PartitionSet)}
    assert {kind for kind, _ in rows("Kinds of sets")} == kinds
    first = {name: next(iter(named[name].keys(AT))) for name in ("weeks", "months", "sales_keys")}
    assert first == {
        "weeks": date(2012, 12, 31),
        "months": Month(2013, 1),
        "sales_keys": (date(2013, 1, 1), "acme"),
    }
    assert named["weeks"].coerce("2013-W03", AT) == date(2013, 1, 14)
    machine = named["machines"].coerce({"env": "prod", "region": "eu"}, AT)
    assert isinstance(machine, KeyMap)
    assert {machine: 1}[machine] == 1


def test_windows_follow_the_clocks_as_it_says(named: dict[str, Any]) -> None:
    said = section("Windows and clocks")
    hours = named["hours"]
    found = chosen(hours, parse_choice("2013-10-27T02"), AT)
    twice = [label(encode_key(key)) for key in found]
    assert all(f"`{text}`" in said for text in twice)
    assert len(twice) == 2
    window = named["trading_days"].window(date(2013, 1, 15))
    assert (window.start.hour, window.end.hour) == (6, 6)
    samoa = DailyPartitions("2011-12-30", "2011-12-30", tz="Pacific/Apia")
    window = samoa.window(date(2011, 12, 30))
    assert window.start == window.end


@pytest.mark.parametrize(("name", "text", "count"), rows("Choose partitions"))
def test_each_text_of_the_table_stands_for_as_many_keys(
    named: dict[str, Any], name: str, text: str, count: str
) -> None:
    assert len(list(chosen(named[name], parse_choice(text), AT))) == int(count)


def test_dynamic_keys_are_added_as_in_the_examples(
    make_runtime: RuntimeFactory, ledger: Ledger
) -> None:
    make_runtime(build_registry([]))
    exec(block("python", "Dynamic keys"), {"__name__": "guide"})  # noqa: S102 - the page is ours
    assert flowstone.dynamic_partitions("customers") == ["globex"]
    commands = [line.removeprefix("$ ") for line in block("console", "Dynamic keys").splitlines()]
    said = [InProcess()(*shlex.split(command)[1:]).stdout for command in commands]
    assert said[-1] == "globex\n"
    actions = query(ledger, "SELECT action FROM flowstone.audit ORDER BY id")
    assert [row[0].removeprefix("partitions.") for row in actions] == ["added", "removed"] * 2


def test_what_was_cut_otherwise_is_not_fresh(make_runtime: RuntimeFactory) -> None:
    def registry(tz: str) -> Any:
        @asset(partitions=DailyPartitions("2013-01-01", tz=tz), version="1")
        def daily() -> int:
            return 1

        return build_registry([daily])

    made = make_runtime(registry("UTC"))
    materialize_sync("daily", partition="2013-01-15")
    assert preview("daily", partition="2013-01-15", force=False).steps[0].reason == "fresh"
    del made
    make_runtime(registry("Europe/Berlin"))
    (step,) = preview("daily", partition="2013-01-15", force=False).steps
    assert f"`{step.reason}`" in section("When a set is changed")
    assert flowstone.get("daily", "2013-01-15") == 1


def test_keys_are_written_as_the_table_says() -> None:
    names = {"date": date, "datetime": datetime, "Month": Month, "UTC": UTC, "none": UNPARTITIONED}
    for python, text in rows("Keys in the ledger"):
        key = eval(python, names)  # noqa: S307 - the page is ours
        assert encode_key(key) == text
        assert decode_key(text) == key
    assert f"at most {MAX_KEY_LENGTH} characters" in section("Keys in the ledger")
