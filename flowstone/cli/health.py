"""`flowstone health`: is one part alive? One line, and an exit code, for orchestrators."""

from __future__ import annotations

from typing import Annotated

import typer

from flowstone import health as parts
from flowstone.checkup import check_settings
from flowstone.health import Health
from flowstone.settings import Settings, load_settings

app = typer.Typer(
    help="Whether one part is alive, for orchestrators: exit code 0, or 1.", no_args_is_help=True
)


@app.callback()
def health() -> None:
    """Tell whether one part is alive, for orchestrators: exit code 0, or 1."""


@app.command()
def worker(
    name: Annotated[
        str | None,
        typer.Argument(
            help="As in `celery worker -n NAME`; by default celery@HOSTNAME, or the only worker of "
            "this host.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Tell whether a worker has been seen lately, and takes messages.

    Where the ledger or the broker is away, that is no fault of the worker's: the exit code is 0.

    Example: flowstone health worker w1@%h
    """
    _tell(parts.of_worker(_settings(), name))


@app.command()
def beat() -> None:
    """Tell whether beat has sent for the reconciler lately.

    Where the ledger is away, or nobody takes what beat sends, the exit code is 0.

    Example: flowstone health beat
    """
    _tell(parts.of_beat_service(_settings()))


@app.command()
def ledger() -> None:
    """Tell whether the ledger answers, and has the schema of this version.

    Example: flowstone health ledger
    """
    _tell(parts.of_ledger(_settings()))


def _settings() -> Settings:
    """Return the settings; raise BadConfig also for what would look like a server that is away."""
    settings = load_settings()
    check_settings(settings)
    return settings


def _tell(health: Health) -> None:
    typer.echo(health.said)
    raise typer.Exit(0 if health.is_alive else 1)
