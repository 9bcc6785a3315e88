"""Arguments and options that several commands share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import typer

from flowstone.errors import BadConfig
from flowstone.partition import UNPARTITIONED, Key
from flowstone.priority import Priority
from flowstone.resource import Env

RunId = Annotated[str, typer.Argument(help="The id of a run, or the beginning of it.")]

Partition = Annotated[
    str | None, typer.Option("--partition", "-p", help="Its partition, such as 2013-01-15.")
]

Upstream = Annotated[
    bool, typer.Option("--upstream", "-u", help="Materialize everything upstream, too.")
]

Force = Annotated[
    bool | None,
    typer.Option(
        "--force/--no-force",
        help="Compute what is fresh, or skip it; by default it is skipped with --upstream only.",
        show_default=False,
    ),
]

Detach = Annotated[bool, typer.Option("--detach", "-d", help="Print the run's id and do not wait.")]

Timeout = Annotated[
    float | None,
    typer.Option(min=0, help="Stop waiting after so many seconds; the run goes on."),
]


Override = Annotated[
    list[str] | None,
    typer.Option(
        "--resource",
        help="A value for the config of a resource, for this run: NAME.FIELD=VALUE, where VALUE "
        "is JSON or text, or env:VARIABLE for a secret. May be given several times.",
        show_default=False,
    ),
]


AssetConfig = Annotated[
    list[str] | None,
    typer.Option(
        "--config",
        help="A value for the config of an asset, for this run: ASSET.FIELD=VALUE, where VALUE is "
        'JSON or text; an asset with dots in its name as "ASSET".FIELD=VALUE. May be given '
        "several times.",
        show_default=False,
    ),
]


def overrides_of(given: Sequence[str] | None) -> dict[str, Any]:
    """Return what the option --resource says, by resource; raise BadConfig."""
    shape = "--resource takes NAME.FIELD=VALUE, such as db.url=sqlite://"
    return _fields_of("--resource", shape, given, _value_or_reference)


def config_of(given: Sequence[str] | None) -> dict[str, Any]:
    """Return what the option --config says, by asset; raise BadConfig."""
    shape = "--config takes ASSET.FIELD=VALUE, such as report.limit=10"
    return _fields_of("--config", shape, given, _value)


def _fields_of(
    option: str, shape: str, given: Sequence[str] | None, read: Callable[[str], Any]
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for text in given or ():
        match = _PLACE.fullmatch(text)
        quoted, rest, value = match.groups() if match else (None, "", "")
        *outer, field = ([quoted] if quoted else []) + rest.split(".")
        if not outer or not all([*outer, field]):
            # Without quoting it, as it may hold a secret.
            raise BadConfig(shape)
        place = text.partition("=")[0]
        values = fields
        for name in outer:
            values = values.setdefault(name, {})
            if not isinstance(values, dict):
                raise BadConfig(f"{option} gives {place!r}, and a value for a part of that, too")
        if field in values:
            raise BadConfig(f"{option} gives {place!r} twice; give it once")
        values[field] = read(value)
    return fields


_PLACE: Final = re.compile(r'(?:"([^"=]+)"\.)?([^="]+)=(.*)', re.DOTALL)
"""NAME.FIELD=VALUE, where the name may stand in quotes, as it may have dots."""


def _value(text: str) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(text)
    except ValueError:
        return text


def _value_or_reference(text: str) -> Any:  # noqa: ANN401 - any JSON value
    return Env(text.removeprefix("env:")) if text.startswith("env:") else _value(text)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]


Managers = Annotated[
    list[str] | None,
    typer.Option(
        "--io",
        metavar="ASSET=NAME",
        help="The IO manager of an asset in this run; may be given several times.",
    ),
]


RunPriority = Annotated[
    Priority, typer.Option("--priority", help="How urgent the run is, compared to others.")
]

Window = Annotated[
    int | None,
    typer.Option(
        "--max-in-flight",
        min=1,
        help="The most steps of the run that are dispatched at once.",
    ),
]

Pool = Annotated[
    str | None,
    typer.Option(help="A pool of which each step takes a slot, beside those of its asset."),
]


def managers_of(given: list[str] | None) -> dict[str, str]:
    """Return what the option --io says, by asset; raise BadConfig."""
    chosen: dict[str, str] = {}
    for one in given or ():
        asset, _, name = one.partition("=")
        if not asset or not name:
            raise BadConfig(f"--io takes ASSET=NAME, such as raw_flights=lake; not {one!r}")
        if chosen.setdefault(asset, name) != name:
            raise BadConfig(f"--io names two IO managers for {asset!r}; name one")
    return chosen


def key_of(partition: str | None) -> Key:
    """Return the key that the option names."""
    return UNPARTITIONED if partition is None else partition
