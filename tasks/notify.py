"""`flowstone.notify`: tell people of approvals; sent by beat, and after what they are told of."""

from __future__ import annotations

from typing import Any

from flowstone import notify as notifications
from flowstone import runtime
from flowstone.messages import NOTIFY, Message, parse
from tasks.app import app


@app.task(name=NOTIFY)
def notify(*args: Any, **kwargs: Any) -> int:  # noqa: ANN401 - parsed below
    """Tell for a while what is due; what is left is left to the next one."""
    parse(NOTIFY, Message, args, kwargs)
    here = runtime.current()
    # The task must end by itself before it is asked to: who is told last has time, too.
    seconds = min(notifications.PASS_SECONDS, here.settings.soft_time_limit / 4)
    return notifications.deliver(here, seconds)
