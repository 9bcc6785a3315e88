"""`flowstone.sweep`: delete what attempts have left in storage; sent by beat once a day."""

from __future__ import annotations

from typing import Any

from flowstone import collector, runtime
from flowstone.messages import SWEEP, Message, parse
from tasks.app import app


@app.task(name=SWEEP)
def sweep(*args: Any, **kwargs: Any) -> int:  # noqa: ANN401 - parsed below
    """Sweep for a while; the next day goes on from there."""
    parse(SWEEP, Message, args, kwargs)
    here = runtime.current()
    # The task must end by itself before it is asked to.
    seconds = min(collector.SWEEP_SECONDS, here.settings.soft_time_limit / 2)
    return collector.sweep(here, seconds=seconds)
