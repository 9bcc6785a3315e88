"""Checks: functions that look at each value of an asset before any reader can."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flowstone import hints
from flowstone.asset import DEFINED, Asset, checked_name
from flowstone.errors import BadSignature, Cancelled, is_time_limit
from flowstone.signature import location_of
from flowstone.texts import MAX_MESSAGE, storable, storable_json

Severity = Literal["warn", "error"]


@dataclass(frozen=True)
class CheckResult:
    """What a check may return where True or False says too little.

    `metadata` holds JSON values, such as the numbers that were compared; what is none becomes
    text.
    """

    passed: bool
    message: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A function that tells whether a value of an asset is good. Made by `@check`."""

    name: str
    asset: str
    function: Callable[..., Any]
    blocking: bool
    severity: Severity
    location: str

    @property
    def wants_partition(self) -> bool:
        """Whether the function takes the partition key, too."""
        return len(inspect.signature(self.function).parameters) > 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the user's own types
        """Call the function itself, as a test of the check would."""
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class Checked:
    """What a check has said of one exact value."""

    name: str
    passed: bool
    blocking: bool
    severity: Severity
    message: str
    metadata: Mapping[str, Any]

    @property
    def refuses(self) -> bool:
        """Whether the value must not become an output."""
        return self.blocking and not self.passed


def check(
    *,
    asset: str | Asset,
    blocking: bool = False,
    severity: Severity = "error",
    name: str | None = None,
) -> Callable[[Callable[..., Any]], Check]:
    """Declare that a function checks each value of an asset, after it is stored.

    The function takes the value, and if it has a second parameter, named `partition`, the
    key. It returns a bool or a CheckResult; a failed `assert` counts as False. Where a
    `blocking` check does not pass, the value goes to quarantine and its step fails, so that
    no reader sees it; where another one does not, that is recorded with its `severity`, and
    nothing else happens. Raises BadSignature.
    """
    if severity not in ("warn", "error"):
        raise BadSignature(f"a check has the severity 'warn' or 'error', not {severity!r}")
    if blocking and severity == "warn":
        raise BadSignature(
            "a check of severity 'warn' cannot be blocking: what stops the asset is an error"
        )

    def declare(function: Callable[..., Any]) -> Check:
        _check_signature(function)
        made = Check(
            name=checked_name(function.__name__ if name is None else name),
            asset=str(asset),
            function=function,
            blocking=blocking,
            severity=severity,
            location=location_of(function),
        )
        DEFINED.add(made)
        return made

    return declare


def _check_signature(function: Callable[..., Any]) -> None:
    names = list(inspect.signature(function).parameters)
    if len(names) not in (1, 2) or names[1:] not in ([], ["partition"]):
        raise BadSignature(
            f"check {function.__name__!r} ({location_of(function)}) must take the value, and may "
            "take `partition` after it, and nothing else"
        )
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise BadSignature(f"check {function.__name__!r} must be a plain function")


def examine(
    checks: Iterable[Check],
    load: Callable[[Any], Any],
    partition: Any,  # noqa: ANN401 - any key
    mask: Callable[[str], str] = str,
) -> list[Checked]:
    """Run checks on a value, which `load` reads as what each wants, and return what they say.

    An exception of a check that is not blocking, or of reading the value for it, is one that
    did not pass; of a blocking one, nobody knows what it would have said, so that is raised.
    `mask` takes out of what they say what must not be stored.
    """
    return [_examine(check, load, partition, mask) for check in checks]


def _examine(
    check: Check,
    load: Callable[[Any], Any],
    partition: Any,  # noqa: ANN401
    mask: Callable[[str], str],
) -> Checked:
    try:
        result = _as_result(check, _call(check, load, partition))
    except AssertionError as error:
        result = CheckResult(passed=False, message=str(error) or "an assertion failed")
    except Exception as error:
        # Neither the end of the time nor that of the run is anything about the value.
        if check.blocking or is_time_limit(error) or isinstance(error, Cancelled):
            raise
        result = CheckResult(passed=False, message=f"raised {type(error).__name__}: {error}")
    return Checked(
        name=check.name,
        passed=result.passed,
        blocking=check.blocking,
        severity=check.severity,
        message=storable(mask(result.message))[:MAX_MESSAGE],
        metadata=storable_json(result.metadata, lambda text: storable(mask(text))),
    )


def _call(check: Check, load: Callable[[Any], Any], partition: Any) -> Any:  # noqa: ANN401
    first = next(iter(inspect.signature(check.function).parameters))
    # Each reads the value for itself: what one does to it, another does not see.
    value = load(hints.of_parameter(check.function, first))
    return check.function(*((value, partition) if check.wants_partition else (value,)))


def _as_result(check: Check, said: Any) -> CheckResult:  # noqa: ANN401 - whatever was returned
    result = said if isinstance(said, CheckResult) else CheckResult(said)
    passed: Any = result.passed
    if type(passed).__module__ == "numpy" and hasattr(passed, "item"):
        # numpy has a bool of its own.
        passed = passed.item()
    if type(passed) is not bool or not isinstance(result.metadata, Mapping):
        raise TypeError(
            f"check {check.name!r} ({check.location}) must return True, False or a CheckResult "
            f"of one, not a {type(passed).__name__}"
        )
    return replace(result, passed=passed, message=str(result.message))
