"""The assets of the scenarios whose seeds CHAOS_SEEDS names, and of the run of a hundred steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

from flowstone import Approval, Context, Dep, Retry, asset, wait_for_signal
from tests.chaos import injected
from tests.chaos.world import POOL, Node, scenario, token_of, value_of

SEEDS: Final = "CHAOS_SEEDS"
FOLDER: Final = "CHAOS_FOLDER"

MOST_ATTEMPTS: Final = 40
HUNDRED: Final = [f"unsteady_{number:03}" for number in range(100)]
FAILING_PART: Final = 0.3


def compute(node: Node, context: Context, inputs: tuple[int | None, ...]) -> int:
    """Return the value of a node, unless this attempt is to fail."""
    mark = injected.busy(Path(os.environ[FOLDER]), os.getpid())
    mark.touch()
    try:
        time.sleep(node.seconds)
    finally:
        mark.unlink(missing_ok=True)
    if node.breaks:
        raise ValueError(f"{node.name} fails for good")
    if context.attempt <= node.failures:
        raise ConnectionError(f"attempt {context.attempt} at {node.name} fails")
    value = value_of(node.name, inputs)
    if node.gate == "signal":
        # What comes with it is what the other side was told.
        raise wait_for_signal(
            name="chaos", token=token_of(context.run_id, node.name), message=str(value)
        )
    return value


def heard(payload: int) -> int:
    """Return what has come."""
    return payload


def _define(node: Node) -> None:
    names = [f"p{i}" for i in range(len(node.parents))]
    made: dict[str, Any] = {
        "__name__": __name__,
        "node": node,
        "compute": compute,
        "Context": Context,
    }
    # A function of its own for each number of parents, as a person would have written it.
    given = "".join(f"{name}, " for name in names)
    exec(f"def function(context: Context, {given}): return compute(node, context, ({given}))", made)  # noqa: S102 - our own text
    asset(
        name=node.name,
        version="1",
        deps={
            name: Dep(parent, optional=parent in node.optional)
            for name, parent in zip(names, node.parents, strict=True)
        },
        retry=Retry(max_attempts=10, base=node.base, factor=1, max_lost=1000),
        pool=POOL if node.weight else None,
        weight=node.weight or 1,
        approval=Approval(message=node.gate) if node.gate in ("approval", "rejection") else None,
        on_signal=heard if node.gate == "signal" else None,
    )(made["function"])


def _unsteady(number: int) -> Callable[[Context], int]:
    def function(context: Context) -> int:
        # Each attempt by itself, and yet the same in each run of the test.
        if Random(f"{number} {context.attempt}").random() < FAILING_PART:
            raise ConnectionError(f"attempt {context.attempt} fails")
        return number

    return function


for _seed in os.environ.get(SEEDS, "").split(","):
    for _of_scenario in scenario(int(_seed)).nodes if _seed else ():
        _define(_of_scenario)

for _number, _name in enumerate(HUNDRED):
    asset(
        name=_name,
        version="1",
        retry=Retry(max_attempts=MOST_ATTEMPTS, base=0.05, factor=1, max_lost=1000),
    )(_unsteady(_number))

if FOLDER in os.environ:
    injected.install(os.environ[FOLDER])
