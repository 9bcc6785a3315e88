"""Asset-first data orchestration for Python, as a Celery application."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from flowstone.approval import Approval, Decision, Escalation, wait_for_approval
from flowstone.asset import Asset, Dep, asset
from flowstone.check import Check, CheckResult, check
from flowstone.context import Context
from flowstone.errors import Cancelled, FlowStoneError, RetryAfter, StepTimeout
from flowstone.key_map import KeyMap
from flowstone.lazy_inputs import LazyInputs
from flowstone.limits import Rate, Timeout
from flowstone.mapping import (
    AllKeys,
    Keys,
    LastKeys,
    Mapped,
    PartitionMapping,
    PerDimension,
    SameKey,
    TimeWindow,
)
from flowstone.partition import (
    UNPARTITIONED,
    CronPartitions,
    DailyPartitions,
    DynamicPartitions,
    HourlyPartitions,
    Month,
    MonthlyPartitions,
    ProductPartitions,
    StaticPartitions,
    WeeklyPartitions,
    Window,
)
from flowstone.resource import Env, resource
from flowstone.retry import Retry
from flowstone.rollup import AtLeast, Ratio
from flowstone.signalling import Signal, wait_for_signal
from flowstone.states import PartitionState, RunState, StepState

if TYPE_CHECKING:
    from flowstone import lineage
    from flowstone.approvals import (
        ApprovalDetails,
        ApprovalRequest,
        approvals_list,
        approve,
        get_approval,
        reject,
    )
    from flowstone.backfills import (
        BackfillHandle,
        BackfillProgress,
        backfill,
        backfills_list,
        get_backfill,
        preview_backfill,
    )
    from flowstone.client import (
        cancel,
        materialize,
        materialize_all,
        materialize_sync,
        preview,
        resume,
        save_plan,
    )
    from flowstone.collector import Collected, collect
    from flowstone.dynamic import add_partitions, dynamic_partitions, remove_partitions
    from flowstone.handle import Cancellation, Progress, RunHandle
    from flowstone.history import Version, check_results, invalidate, rollback, versions
    from flowstone.partition_status import PartitionStates, partition_states
    from flowstone.pools import PoolStatus, list_pools, reset_pool, set_pool
    from flowstone.reading import AssetStatus, exists, get, status
    from flowstone.rechecking import run_checks
    from flowstone.signals import SignalReceipt, signal
    from flowstone.web.links import approval_link

__version__ = "0.1.0"

__all__ = [
    "UNPARTITIONED",
    "AllKeys",
    "Approval",
    "ApprovalDetails",
    "ApprovalRequest",
    "Asset",
    "AssetStatus",
    "AtLeast",
    "BackfillHandle",
    "BackfillProgress",
    "Cancellation",
    "Cancelled",
    "Check",
    "CheckResult",
    "Collected",
    "Context",
    "CronPartitions",
    "DailyPartitions",
    "Decision",
    "Dep",
    "DynamicPartitions",
    "Env",
    "Escalation",
    "FlowStoneError",
    "HourlyPartitions",
    "KeyMap",
    "Keys",
    "LastKeys",
    "LazyInputs",
    "Mapped",
    "Month",
    "MonthlyPartitions",
    "PartitionMapping",
    "PartitionState",
    "PartitionStates",
    "Paused",
    "PerDimension",
    "PoolStatus",
    "ProductPartitions",
    "Progress",
    "Rate",
    "Ratio",
    "Retry",
    "RetryAfter",
    "RunHandle",
    "RunState",
    "SameKey",
    "Signal",
    "SignalReceipt",
    "StaticPartitions",
    "StepState",
    "StepTimeout",
    "TimeWindow",
    "Timeout",
    "Version",
    "WeeklyPartitions",
    "Window",
    "add_partitions",
    "approval_link",
    "approvals_list",
    "approve",
    "asset",
    "backfill",
    "backfills_list",
    "cancel",
    "check",
    "check_results",
    "collect",
    "dynamic_partitions",
    "exists",
    "get",
    "get_approval",
    "get_backfill",
    "invalidate",
    "lineage",
    "list_pools",
    "materialize",
    "materialize_all",
    "materialize_sync",
    "partition_states",
    "pause",
    "preview",
    "preview_backfill",
    "reject",
    "remove_partitions",
    "reset_pool",
    "resource",
    "resume",
    "rollback",
    "run_checks",
    "save_plan",
    "set_pool",
    "signal",
    "status",
    "versions",
    "wait_for_approval",
    "wait_for_signal",
]

# A module of assets needs none of Celery and SQLAlchemy, so they wait until a run is submitted.
_LAZY: Final = {
    "ApprovalDetails": "flowstone.approvals",
    "ApprovalRequest": "flowstone.approvals",
    "approvals_list": "flowstone.approvals",
    "approve": "flowstone.approvals",
    "get_approval": "flowstone.approvals",
    "reject": "flowstone.approvals",
    "BackfillHandle": "flowstone.backfills",
    "BackfillProgress": "flowstone.backfills",
    "backfill": "flowstone.backfills",
    "backfills_list": "flowstone.backfills",
    "get_backfill": "flowstone.backfills",
    "preview_backfill": "flowstone.backfills",
    "Cancellation": "flowstone.handle",
    "Paused": "flowstone.handle",
    "Progress": "flowstone.handle",
    "RunHandle": "flowstone.handle",
    "cancel": "flowstone.client",
    "materialize": "flowstone.client",
    "materialize_all": "flowstone.client",
    "materialize_sync": "flowstone.client",
    "pause": "flowstone.client",
    "preview": "flowstone.client",
    "resume": "flowstone.client",
    "save_plan": "flowstone.client",
    "PartitionStates": "flowstone.partition_status",
    "add_partitions": "flowstone.dynamic",
    "dynamic_partitions": "flowstone.dynamic",
    "partition_states": "flowstone.partition_status",
    "remove_partitions": "flowstone.dynamic",
    "PoolStatus": "flowstone.pools",
    "list_pools": "flowstone.pools",
    "reset_pool": "flowstone.pools",
    "set_pool": "flowstone.pools",
    "AssetStatus": "flowstone.reading",
    "exists": "flowstone.reading",
    "get": "flowstone.reading",
    "status": "flowstone.reading",
    "Version": "flowstone.history",
    "Collected": "flowstone.collector",
    "collect": "flowstone.collector",
    "check_results": "flowstone.history",
    "invalidate": "flowstone.history",
    "rollback": "flowstone.history",
    "run_checks": "flowstone.rechecking",
    "SignalReceipt": "flowstone.signals",
    "signal": "flowstone.signals",
    "approval_link": "flowstone.web.links",
    "versions": "flowstone.history",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - the signature of PEP 562
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "lineage":
        return importlib.import_module("flowstone.lineage")
    raise AttributeError(f"module 'flowstone' has no attribute {name!r}")
