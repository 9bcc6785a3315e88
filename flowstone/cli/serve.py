"""`flowstone serve`: signals over HTTP, and the pages of approvals."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from flowstone import runtime
from flowstone.errors import BadConfig


def serve(
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is all.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8080,
) -> None:
    """Take signals over HTTP, and show the pages behind links to approvals, until Ctrl-C.

    It has no TLS: put it behind a proxy that has.

    Example: flowstone serve --port 8080
    """
    try:
        from flowstone.web import server  # noqa: PLC0415 - tornado is an extra
    except ImportError as error:
        raise BadConfig(
            f"`flowstone serve` needs tornado ({error}): pip install 'flowstone[web]'"
        ) from error
    _log_to_stderr()

    def ready(port: int) -> None:
        typer.echo(f"ready at http://{host}:{port}; Ctrl-C stops it")
        sys.stdout.flush()

    all_ended = server.run(runtime.current(), host, port, ready)
    typer.echo("stopped")
    if not all_ended:
        _end()


def _end() -> None:
    """End this process though a thread hangs, for which Python would wait without end."""
    sys.stdout.flush()
    logging.shutdown()
    os._exit(0)


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
