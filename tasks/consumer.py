"""What takes messages for a worker, and outlives a broker that goes away."""

from __future__ import annotations

import contextlib

from celery.worker import consumer
from kombu.transport import virtual


class Consumer(consumer.Consumer):  # type: ignore[misc] # Celery has no types
    """Celery's own, which on Redis does not end where its connection breaks while tasks run.

    kombu 5.7 gives back what is not acknowledged when it closes a channel for the second time,
    by a connection that it has forgotten by then: the worker ends by an AttributeError.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Close the channel before the connection is forgotten, and then connect anew."""
        channel = self.connection._default_channel  # noqa: SLF001
        if isinstance(channel, virtual.Channel):
            # The first time reads what was asked for, from the connection that is broken. The
            # second gives back what is not acknowledged, if the server is there; else nothing
            # does, and the ledger finds whom it was for.
            for _ in range(2):
                with contextlib.suppress(Exception):
                    channel.close()
        super().on_connection_error_after_connected(exc)
