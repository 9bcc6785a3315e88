"""What the README says of priorities and queues is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from flowstone.embedded import ValkeyServer
from flowstone.priority import FIRST, Priority
from flowstone.queues import ASSET_QUEUES
from flowstone.registry import build_registry
from flowstone.store.workers import BEAT_SECONDS, Unattended
from tests.conftest import RuntimeFactory
from tests.store.runs_by_hand import query

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SECTION = README.partition("### Priority and queues\n")[2].partition("\n### ")[0]


def test_the_example_declares_its_queue_and_submits_at_its_priority(
    make_runtime: RuntimeFactory, valkey: ValkeyServer
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    broker = {name: SecretStr(valkey.url) for name in ("broker_url", "result_url")}
    here = make_runtime(build_registry([]), queues=("gpu",), **broker)
    named: dict[str, Any] = {"__name__": "readme"}
    exec(block, named)  # noqa: S102 - the README is ours
    (run,) = query(here.ledger, "SELECT priority FROM flowstone.runs")
    assert run.priority == Priority.LOW.level
    # That the settings know the queue is what lets the asset name it.
    registry = make_runtime(build_registry([named["model"]]), queues=("gpu",)).registry
    assert registry.graph["model"].queue == "gpu"


def test_the_names_and_numbers_are_those_of_the_code() -> None:
    assert f"# {', '.join(ASSET_QUEUES)}, or one of FLOWSTONE_QUEUES" in SECTION
    assert f"# {', '.join(Priority)[: -len(', low')]} or low" in SECTION
    assert f"up to {FIRST} steps in flight" in SECTION
    assert f"every {BEAT_SECONDS:g} seconds" in SECTION
    assert f"\n{Unattended('gpu', 12)}\n" in SECTION
    assert "`queue_timeout`" in SECTION
