"""What the guides say of errors, retries and config is so."""

from __future__ import annotations

import builtins
import re
from pathlib import Path
from typing import Any

import pytest

from flowstone.classification import MAX_RETRY_AFTER, RETRYABLE_STATUS, TABLE, is_retryable
from flowstone.errors import MAX_WAIT
from flowstone.retry import Retry
from tests.pages import block, section
from tests.scripts import run_script


def row(name: str) -> list[str]:
    (found,) = re.findall(
        rf"^\| {name}.*?\|(.*)\|(.*)\|$", section("Errors and retries"), re.MULTILINE
    )
    return list(found)


def test_the_classes_of_python_are_those_of_the_table() -> None:
    for cell, retryable in zip(row("Python"), (True, False), strict=True):
        for name in re.findall(r"`(\w+)`", cell):
            assert is_retryable(_made(getattr(builtins, name)), unknown=not retryable) == retryable


def _made(kind: type[Exception]) -> Exception:
    return kind()


def test_the_statuses_are_those_of_the_table() -> None:
    assert {int(status) for status in re.findall(r"[0-9]+", row("HTTP")[0])} == RETRYABLE_STATUS


@pytest.mark.parametrize("name", ["requests", "psycopg"])
def test_each_library_that_is_named_is_in_the_table(name: str) -> None:
    (libraries,) = re.findall(rf"^\| ({name}.*?) \|", section("Errors and retries"), re.MULTILINE)
    known = {row.partition(".")[0] for row in TABLE}
    assert {library.lower() for library in libraries.split(", ")} <= known


def test_the_example_is_a_policy_that_does_what_the_text_says() -> None:
    named: dict[str, Any] = {"__name__": "guide"}
    exec(block("python", "Errors and retries"), named)  # noqa: S102 - the page is ours
    policy = named["prices"].retry
    rules = {"on": policy.on, "never": policy.never}
    assert is_retryable(RuntimeError(), **rules)
    assert is_retryable(ConnectionResetError(), **rules)
    assert not is_retryable(ConnectionRefusedError(), **rules)
    assert [Retry().delay(n) for n in (1, 2)] == [30, 90]
    assert Retry().max_attempts == 3
    assert (MAX_RETRY_AFTER, MAX_WAIT) == (86_400, 365 * 86_400)


def test_the_example_of_config_prints_plan_and_value(tmp_path: Path) -> None:
    example = block("python", "Config")
    done = run_script(tmp_path, example)
    printed = "[0, 1, 2] {'sample': {'mode': 'fast', 'rows': 3}}"
    assert (done.stdout, done.stderr) == (f"{printed}\n", "")
    assert f"# {printed}\n" in example
