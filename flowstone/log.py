"""Loggers: structlog on top of the standard library's, so that the host's configuration holds."""

from __future__ import annotations

import logging

import structlog


def get_logger(name: str, **values: object) -> structlog.stdlib.BoundLogger:
    """Return a logger that writes an event and its values as one logfmt line."""
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["event"], bool_as_flag=False),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger.bind(**values)
