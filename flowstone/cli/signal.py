"""`flowstone signal`: send the signal that a step waits for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flowstone import signals
from flowstone.errors import BadSignal


def signal(
    token: Annotated[str, typer.Argument(help="The token of the signal; - reads it from stdin.")],
    payload: Annotated[
        str, typer.Argument(help="What comes with it, as JSON; @FILE reads it from a file.")
    ] = "null",
) -> None:
    """Send a signal to the step that waits for it, with a payload perhaps; it counts once.

    Example: flowstone signal my-token-8d2f '{"rows": 120}'
    """
    given = sys.stdin.readline().strip() if token == "-" else token  # noqa: S105 - no token
    receipt = signals.signal(given, _payload(payload), channel="cli")
    if receipt.is_early:
        typer.echo(f"{receipt.step} of run {receipt.run_id} does not wait yet; it is kept for it")
    else:
        typer.echo(f"{receipt.step} of run {receipt.run_id} goes on")


def _payload(text: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        if text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        raise BadSignal(f"{text[1:]} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadSignal(
            f"the payload is no JSON: {error}; quote a text twice, such as '\"done\"'"
        ) from error
