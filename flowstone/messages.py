"""What Celery messages may hold: strict models, small, JSON only."""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, ValidationError

from flowstone.errors import BadMessage

COORDINATE: Final = "flowstone.coordinate"
STEP: Final = "flowstone.step"
RECONCILE: Final = "flowstone.reconcile"
PRUNE: Final = "flowstone.prune"
SWEEP: Final = "flowstone.sweep"
NOTIFY: Final = "flowstone.notify"
CONTINUE_AFTER_APPROVAL: Final = "flowstone.continue_after_approval"
CONTINUE_AFTER_SIGNAL: Final = "flowstone.continue_after_signal"


class Message(BaseModel):
    """The arguments of a task. An unknown or missing one is refused, never guessed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as JSON values; what was not given stays absent."""
        return self.model_dump(mode="json", exclude_unset=True)


class CoordinateMessage(Message):
    """Wake the coordinator of a run."""

    run_id: UUID


class StepMessage(Message):
    """Run a step, as a member of the canvas that carries it."""

    step_id: int
    canvas: UUID


class ApprovalMessage(Message):
    """Carry the step of an approval on that was decided.

    `step_id` tells the worker's main process what to give back where it stops.
    """

    approval_id: int
    step_id: int | None = None


class SignalMessage(Message):
    """Carry the step of a signal on that has come, or has not come in time."""

    signal_id: int
    step_id: int | None = None


M = TypeVar("M", bound=Message)


def parse(task: str, model: type[M], args: tuple[Any, ...], kwargs: dict[str, Any]) -> M:
    """Return the arguments of a task as its model; raise BadMessage that names the fault."""
    if args:
        raise BadMessage(f"{task} takes no positional arguments, but got {len(args)}")
    try:
        return model.model_validate_json(json.dumps(kwargs))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadMessage(
            f"{task}: argument {where!r}: {first['msg']}; it was sent by hand, or by another "
            "version of FlowStone: let all processes run one version (`flowstone workers` shows "
            "them), and nothing is lost, as the reconciler sends for it again"
        ) from None
