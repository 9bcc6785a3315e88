"""What the main process of a worker does where a process of its pool cannot."""

from __future__ import annotations

import contextlib
import json
import re
import signal as signals
import threading
from typing import Any, Final

from billiard.common import human_status
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import Terminated, WorkerLostError
from celery import Task
from celery.worker import state
from celery.worker.request import Request
from pydantic import ValidationError

from flowstone import losses, runtime
from flowstone.canvas import Publisher
from flowstone.log import get_logger
from flowstone.losses import Message
from flowstone.messages import RECONCILE, StepMessage
from flowstone.queues import CONTROL_QUEUE
from flowstone.store.continuing import canvas_of
from tasks.app import app
from tasks.memory import Kills

log = get_logger("flowstone.worker")

_EXITED: Final = re.compile(r"Worker exited prematurely: (.+?)\.?(?: Job: \d+\.?)?$")
_ASKED: Final = {f"exitcode {signals.SIGTERM:d}", human_status(-signals.SIGTERM)}
"""How a process ends that was asked to, by a signal."""

RECONCILE_SECONDS: Final = 60
"""How long the reconciler may be asked to come at once; by then it has come by itself."""

STOPS: Final = "its worker stops"
HANDED_BACK: Final = f"handed back, as {STOPS}"


class StepRequest(Request):  # type: ignore[misc] # Celery has no types
    """The message of a step, as the main process sees it."""

    is_handed_back = False
    """Whether the ledger dispatches the step anew, whatever becomes of this message."""
    is_cut_off = False
    """Whether its process was ended without further ado."""

    def on_failure(
        self,
        exc_info: ExceptionInfo,
        send_failed_event: bool = True,
        return_ok: bool = False,
    ) -> None:
        """Tell the ledger of a process that has died, which else finds out by its lease."""
        end = None if self.is_cut_off else end_of(exc_info.exception)
        if end is not None and not self.is_handed_back:
            self._tell(end)
        if self.is_handed_back:
            self._leave_as_retried()
        else:
            super().on_failure(exc_info, send_failed_event, return_ok)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Let the reconciler record that a process is killed, which it else finds out later."""
        super().on_timeout(soft, timeout)
        if not soft:
            self._reconcile()

    def _reconcile(self) -> None:
        try:
            app.send_task(
                RECONCILE, queue=CONTROL_QUEUE, expires=RECONCILE_SECONDS, ignore_result=True
            )
        except Exception as error:  # noqa: BLE001 - the worker goes on, and beat sends it, too
            log.warning("the reconciler comes a little later", task=self.name, error=str(error))

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:  # noqa: ANN401
        """End the process, as Celery's cold shutdown asks; `tasks.stop` tells the ledger."""
        self.is_cut_off = True
        cut_off.append(self)
        cold.set()
        asked.set()
        # Threads cannot be ended.
        with contextlib.suppress(NotImplementedError):
            super().cancel(pool, signal, emit_retry)

    @property
    def step(self) -> Message | None:
        """Which step it is; None for a message that no task would accept."""
        try:
            read = StepMessage.model_validate_json(json.dumps(self.kwargs))
        except (ValidationError, TypeError):
            return None
        return Message(read.step_id, read.canvas)

    def _tell(self, end: str) -> None:
        try:
            # The exit code, which may be 0.
            is_stopping = state.should_stop is not None and state.should_stop is not False
            if is_stopping and end in _ASKED:
                # Whoever stops the worker may ask all its processes at once.
                hand_back([self], self.hostname)
            elif (step := self.step) is not None:
                settings = runtime.current().settings
                end += _for_memory(end)
                losses.lose(settings, step, worker=self.hostname, end=end, wake=_wake)
        except Exception as error:  # noqa: BLE001 - the worker goes on, and the reconciler finds it
            log.warning("a death is left to the reconciler", task=self.name, error=str(error))

    def _leave_as_retried(self) -> None:
        # What a retry looks like that the ledger keeps: this message has ended, the step has not.
        state.task_ready(self)
        self.acknowledge()
        self.say_handed_back()

    def say_handed_back(self) -> None:
        """Tell Flower that this message has ended, and was no success."""
        self.send_event("task-retried", exception=HANDED_BACK, traceback="")


class StepTask(Task):  # type: ignore[misc] # Celery has no types
    """A task of which each message is a StepRequest."""

    Request = f"{StepRequest.__module__}:{StepRequest.__name__}"


class ContinuationRequest(StepRequest):
    """The message of a continuation, whose step is alone in its canvas."""

    @property
    def step(self) -> Message | None:
        """Which step it is; None for a message that does not say, whose lease ends instead."""
        gate_id = self.kwargs.get("approval_id", self.kwargs.get("signal_id"))
        step_id = self.kwargs.get("step_id")
        if not (isinstance(gate_id, int) and isinstance(step_id, int)):
            return None
        return Message(step_id, canvas_of(gate_id))


class ContinuationTask(Task):  # type: ignore[misc] # Celery has no types
    """A task of which each message is a ContinuationRequest."""

    Request = f"{ContinuationRequest.__module__}:{ContinuationRequest.__name__}"


_kills: Final = Kills()

cut_off: Final[list[StepRequest]] = []
"""The requests whose process was ended without further ado, as in a cold shutdown."""

asked: Final = threading.Event()
"""Set when this worker was asked to stop."""

cold: Final = threading.Event()
"""Set when there are any."""


def end_of(error: BaseException) -> str | None:
    """Return what is known of the end of a process, or None where none has died."""
    if isinstance(error, ExceptionWithTraceback):
        error = error.exc
    if isinstance(error, Terminated):
        number = error.args[0] if error.args else 0
        return f"ended through Celery, {human_status(-abs(int(number)))}"
    if isinstance(error, WorkerLostError):
        said = str(error)
        found = _EXITED.search(said)
        return found[1] if found else said
    return None


def _for_memory(end: str) -> str:
    more = _kills.more()
    killed = end == human_status(-signals.SIGKILL)
    return "; the kernel has killed for want of memory in its group" if killed and more else ""


def hand_back(requests: list[StepRequest], worker: str) -> None:
    """Give the steps back that these requests still run, and mark those that were."""
    steps = {request: request.step for request in requests if not request.is_handed_back}
    freed = losses.hand_back(
        runtime.current().settings,
        [step for step in steps.values() if step is not None],
        worker=worker,
        reason=STOPS,
        wake=_wake,
    )
    for request, step in steps.items():
        request.is_handed_back = step is not None and step.step_id in freed


def _wake(run_id: Any) -> None:  # noqa: ANN401
    Publisher(app).wake(run_id)
