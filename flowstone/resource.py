"""Resources: what assets need besides data, such as a client of a database. Made by `@resource`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, overload

from flowstone.asset import DEFINED, checked_name
from flowstone.errors import BadSignature, DefinitionError
from flowstone.signature import location_of


@dataclass(frozen=True)
class Resource:
    """A named thing that assets need. Made by `@resource`."""

    name: str
    function: Callable[..., Any]
    location: str
    config: type[Any] | None = None
    """The pydantic model of what the function receives as `config`; None if it takes nothing."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the user's own types
        """Call the function itself, as a test of the resource would."""
        return self.function(*args, **kwargs)


class Env(dict[str, str]):
    """A reference to an environment variable, in the place of a value in a resource's config.

    It is looked up in the process that makes the resource, and never before. As JSON it is
    `{"env": "NAME"}`, which means the same wherever a config is written.
    """

    def __init__(self, name: str) -> None:
        given: Any = name  # as the caller may not check types
        if not isinstance(given, str) or not re.fullmatch(r"[^\s=\0]+", given):
            raise DefinitionError(f"{name!r} is not the name of an environment variable")
        super().__init__(env=name)


def is_reference(value: object) -> bool:
    """Return whether a value of a config stands for an environment variable."""
    return isinstance(value, Mapping) and value.keys() == {"env"} and type(value["env"]) is str


@overload
def resource(function: Callable[[], Any], /) -> Resource: ...
@overload
def resource(*, config: type[Any] | None = ...) -> Callable[[Callable[..., Any]], Resource]: ...
def resource(
    function: Callable[[], Any] | None = None, /, *, config: type[Any] | None = None
) -> Resource | Callable[[Callable[..., Any]], Resource]:
    """Declare that a function makes a resource, named like the function.

    It returns the thing; or it is a generator function that yields the thing once, and closes
    it after that. It is called when a step first needs the resource, once in each process
    and for each config. With `config`, a pydantic model, it has the parameter `config`, and
    receives an instance of that; without, it has no parameters.
    Raises BadSignature or DefinitionError.
    """

    def declare(function: Callable[..., Any]) -> Resource:
        _check(function, config)
        made = Resource(_name(function), function, location_of(function), config)
        DEFINED.add(made)
        return made

    return declare if function is None else declare(function)


def _name(function: Callable[..., Any]) -> str:
    if function.__name__ == "context":
        raise DefinitionError(
            f"resource 'context' ({location_of(function)}) has the name of the parameter that "
            "receives the Context; choose another one"
        )
    return checked_name(function.__name__)


def _check(function: Callable[..., Any], config: type[Any] | None) -> None:
    where = f"resource {function.__name__!r} ({location_of(function)})"
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise BadSignature(f"{where} must be a plain function or a generator function, not async")
    if config is not None and not hasattr(config, "model_fields"):
        raise DefinitionError(f"{where}: config= takes a pydantic model, not {config!r}")
    parameters = list(inspect.signature(function).parameters)
    if config is None and parameters:
        raise BadSignature(
            f"{where} must take no parameters; what it should be told goes into a config model: "
            "@resource(config=...), with the one parameter 'config'"
        )
    if config is not None and parameters != ["config"]:
        raise BadSignature(f"{where} has a config model, and must take one parameter, 'config'")
