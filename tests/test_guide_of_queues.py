"""What docs/limits.md says of priorities and queues is so."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from flowstone.embedded import ValkeyServer
from flowstone.priority import FIRST, Priority
from flowstone.queues import ASSET_QUEUES
from flowstone.registry import build_registry
from flowstone.store.workers import BEAT_SECONDS, Unattended
from tests.conftest import RuntimeFactory
from tests.pages import block, section
from tests.store.runs_by_hand import query

TITLE = "Priority and queues"


def test_the_example_declares_its_queue_and_submits_at_its_priority(
    make_runtime: RuntimeFactory, valkey: ValkeyServer
) -> None:
    broker = {name: SecretStr(valkey.url) for name in ("broker_url", "result_url")}
    here = make_runtime(build_registry([]), queues=("gpu",), **broker)
    named: dict[str, Any] = {"__name__": "guide"}
    exec(block("python", TITLE), named)  # noqa: S102 - the page is ours
    (run,) = query(here.ledger, "SELECT priority FROM flowstone.runs")
    assert run.priority == Priority.LOW.level
    # That the settings know the queue is what lets the asset name it.
    registry = make_runtime(build_registry([named["model"]]), queues=("gpu",)).registry
    assert registry.graph["model"].queue == "gpu"


def test_the_names_and_numbers_are_those_of_the_code() -> None:
    text = section(TITLE)
    assert f"# {', '.join(ASSET_QUEUES)}, or one of FLOWSTONE_QUEUES" in text
    assert f"# {', '.join(Priority)[: -len(', low')]} or low" in text
    assert f"up to {FIRST} steps in flight" in text
    assert f"every {BEAT_SECONDS:g} seconds" in text
    assert f"\n{Unattended('gpu', 12)}\n" in text
    assert "`queue_timeout`" in text
