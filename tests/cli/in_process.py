"""The command line without a process of its own, which would take a second each time."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from flowstone.cli import app
from flowstone.errors import FlowStoneError


class InProcess:
    """The command line in the process of the test, on a terminal of 80 columns."""

    def __init__(self) -> None:
        self.runner = CliRunner(env={"COLUMNS": "80"})

    def __call__(self, *arguments: str) -> Any:
        done = self.runner.invoke(app, arguments)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def refused(self, *arguments: str) -> str:
        with pytest.raises(FlowStoneError) as caught:
            self(*arguments)
        assert "\n" not in caught.value.message
        return caught.value.message
