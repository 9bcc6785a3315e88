"""What docs/status.md says is so."""

from __future__ import annotations

import re
import shlex
from datetime import date
from typing import Any

from flowstone.asset import Asset, asset
from flowstone.cli.partition_picture import CELLS
from flowstone.left_over import LOOKED_AT
from flowstone.partition import DailyPartitions
from flowstone.partition_key import encode_key
from flowstone.registry import build_registry
from flowstone.states import PartitionState
from flowstone.store.partition_states import BATCH, CUT_OTHERWISE
from tests.cli.in_process import InProcess
from tests.conftest import RuntimeFactory
from tests.pages import TEXT, block, section
from tests.store.many_partitions import made, steps


def raw_flights(first: str, last: str) -> Asset:
    @asset(name="raw_flights", partitions=DailyPartitions(first, last), version="1")
    def raw() -> None: ...

    return raw


def day(month: int, number: int) -> str:
    return encode_key(date(2026, month, number))


def test_the_picture_of_the_guide_is_what_is_drawn(make_runtime: RuntimeFactory) -> None:
    one = raw_flights("2026-01-03", "2026-02-10")
    here = make_runtime(build_registry([one]))
    states = {3: "failed", 4: "running", 5: "queued", 6: "waiting_signal", 7: "skipped"}
    with here.ledger.begin() as conn:
        done = [day(1, n) for n in range(3, 32)] + [day(2, 1), day(2, 2)]
        made(conn, one.name, done, code=one.code_hash, cut=one.partitions.cut)
    with here.ledger.begin() as conn:
        made(conn, one.name, [day(1, 20)], code="old", cut=one.partitions.cut)
        steps(conn, one.name, [day(1, 9)], "failed")
        for number, state in states.items():
            steps(conn, one.name, [day(2, number)], state)
    shown = InProcess()("partitions", "raw_flights").stdout
    assert shown == block("text", "In one look")


def test_the_commands_and_calls_of_the_guide_work(make_runtime: RuntimeFactory) -> None:
    make_runtime(build_registry([raw_flights("2013-01-01", "2013-12-31")]))
    for command in block("console", "In one look").splitlines():
        _, program, *arguments = shlex.split(command, comments=True)
        assert program == ".venv/bin/flowstone"
        assert InProcess()(*arguments).exit_code == 0
    named: dict[str, Any] = {}
    exec(block("python", "In Python"), named)  # noqa: S102 - the page is ours
    found = named["found"]
    assert found.counts[PartitionState.MISSING] == len(found.keys_with("missing", "failed")) == 365
    assert (found.reasons, list(found.left_over)) == ({}, [])


def test_the_words_and_numbers_of_the_guide() -> None:
    rows = re.findall(r"^\| (\w+) \| `(.)` \|", section("The states"), re.MULTILINE)
    assert dict(rows) == {state.value: cell for state, (cell, _) in CELLS.items()}
    assert len({cell for _, cell in rows}) == len(PartitionState)
    assert f"{BATCH:,}" in section("In Python")
    assert f'"{CUT_OTHERWISE}"' in section("When a definition changes")
    assert f"the first {LOOKED_AT} and the last {LOOKED_AT} are looked at" in TEXT
