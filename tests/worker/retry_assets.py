"""Assets that ask a server, or say themselves when they are to be tried again, or return oddly."""

from __future__ import annotations

import urllib.request
from typing import Any

from celery.result import AsyncResult
from pydantic import BaseModel

from flowstone import Context, Retry, RetryAfter, asset
from flowstone.outcome import Skipped


class Server(BaseModel):
    url: str = "http://127.0.0.1:9"


@asset
def before_asks() -> int:
    return 1


@asset(config=Server, retry=Retry(base=3600, max_attempts=2))
def asks(before_asks: int, context: Context) -> str:
    """Ask the server, whose first answer is 503 and a time; the policy alone would take hours."""
    with urllib.request.urlopen(context.config.url) as response:  # noqa: S310 - that of the test
        return str(response.read().decode())


@asset
def after_asks(asks: str) -> str:
    return f"{asks}!"


@asset
def beside_asks() -> int:
    return 2


@asset
def joins(after_asks: str, beside_asks: int) -> str:
    return f"{after_asks} {beside_asks}"


@asset(config=Server)
def is_refused(context: Context) -> None:
    with urllib.request.urlopen(f"{context.config.url}/missing"):  # noqa: S310 - that of the test
        pass


@asset(retry=Retry(base=3600))
def not_yet(context: Context) -> int:
    if context.attempt == 1:
        raise RetryAfter(1, "the report is not ready")
    return context.attempt


@asset
def after_not_yet(not_yet: int) -> int:
    return not_yet + 1


@asset
def returns_a_tuple() -> tuple[str, int]:
    return ("retry", 3)


@asset
def returns_an_outcome() -> Any:
    return Skipped(reuses=3)


@asset
def returns_an_error() -> Any:
    return ConnectionError("away")


@asset
def returns_a_result() -> Any:
    return AsyncResult("some-task")
