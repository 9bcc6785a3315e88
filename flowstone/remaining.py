"""What a run has left undone, as the plan of the run that resumes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from flowstone.limits import Policy
from flowstone.plan import NO_LIMITS, Node, Plan, PlannedStep
from flowstone.states import DONE_STEP_STATES, StepState

NO_CONFIGS: Final[Mapping[str, Any]] = MappingProxyType({})
"""Those of a plan of which no asset takes a config."""


@dataclass(frozen=True)
class StoredStep:
    """A step as the ledger has it; `reads` holds each input and the step that makes it."""

    id: int
    asset: str
    partition: str
    queue: str
    state: StepState
    reads: tuple[tuple[Node, int], ...]
    optional: frozenset[Node] = frozenset()
    reason: str = ""
    policy: Policy = NO_LIMITS
    place: int = 0
    awaits_until: datetime | None = None
    reuses: int | None = None

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do for it; what was waited for in vain may come yet."""
        in_vain = self.awaits_until is not None and self.reuses is None
        return self.state in DONE_STEP_STATES and not in_vain


def remaining(
    steps: Sequence[StoredStep], run: str, configs: Mapping[str, Any] = NO_CONFIGS
) -> Plan:
    """Return the plan that does what a run has left undone, and nothing else of it.

    `steps` are all those of `run`, each after what it reads. What is done is not done
    again: the others read exactly the outputs that the first plan gave them, be they of
    this run or of an earlier one, and not the latest. `configs` are those of its assets.
    """
    undone = [step for step in steps if not step.is_done]
    again = {step.id for step in undone}
    return Plan(
        steps=tuple(
            PlannedStep(
                asset=step.asset,
                partition=step.partition,
                queue=step.queue,
                reason=f"{step.state} in run {run}",
                upstream=tuple(node for node, _ in step.reads),
                optional=step.optional,
                policy=step.policy,
                pinned={node: id for node, id in step.reads if id not in again},
                place=step.place,
                # What was waited for, is waited for; it is not for this run to compute it.
                awaits_until=step.awaits_until,
            )
            for step in undone
        ),
        configs={name: configs[name] for name in {step.asset for step in undone} & configs.keys()},
    )
