"""Asset-first data orchestration for Python, as a Celery application."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from flowstone.asset import Asset, Dep, asset, resource
from flowstone.context import Context
from flowstone.errors import FlowStoneError
from flowstone.partition import (
    UNPARTITIONED,
    DailyPartitions,
    Month,
    MonthlyPartitions,
    StaticPartitions,
    Window,
)
from flowstone.retry import Retry
from flowstone.states import RunState, StepState

if TYPE_CHECKING:
    from flowstone.client import (
        Progress,
        RunHandle,
        materialize,
        materialize_all,
        materialize_sync,
    )

__version__ = "0.1.0"

__all__ = [
    "UNPARTITIONED",
    "Asset",
    "Context",
    "DailyPartitions",
    "Dep",
    "FlowStoneError",
    "Month",
    "MonthlyPartitions",
    "Progress",
    "Retry",
    "RunHandle",
    "RunState",
    "StaticPartitions",
    "StepState",
    "Window",
    "asset",
    "materialize",
    "materialize_all",
    "materialize_sync",
    "resource",
]

# A module of assets needs none of Celery and SQLAlchemy, so they wait until a run is submitted.
_FROM_CLIENT: Final = {
    "Progress",
    "RunHandle",
    "materialize",
    "materialize_all",
    "materialize_sync",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the signature of PEP 562
    if name in _FROM_CLIENT:
        return getattr(importlib.import_module("flowstone.client"), name)
    raise AttributeError(f"module 'flowstone' has no attribute {name!r}")
