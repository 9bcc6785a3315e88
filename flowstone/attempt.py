"""One attempt at a step: load inputs, call the function, stage the output, check it."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from flowstone import hints
from flowstone.alarm import Alarm
from flowstone.asset import Asset, Dependency
from flowstone.check import Checked, examine
from flowstone.context import Context, Resources
from flowstone.errors import (
    CheckFailed,
    FlowStoneError,
    MissingInput,
    MissingOutput,
    OutputError,
    StepTimeout,
)
from flowstone.freshness import Input
from flowstone.io import Place
from flowstone.limits import TimeLimit, Timeout
from flowstone.log import get_logger
from flowstone.made_of import asset_config, made_of
from flowstone.outcome import (
    Failed,
    Outcome,
    RefusedValue,
    Retrying,
    Skipped,
    Stopped,
    StoredOutput,
    Succeeded,
    decide,
)
from flowstone.partition_key import decode_key
from flowstone.retry import Retry
from flowstone.runtime import Runtime
from flowstone.store import versions
from flowstone.store.steps import Claim
from flowstone.tokens import newest, signal_token

log = get_logger("flowstone.attempt")

Overtime = Callable[[], StepTimeout | None]
"""Tells whether the time of an attempt is over."""


@dataclass(frozen=True)
class _Given:
    """What an attempt works with besides its inputs."""

    config: Any
    resources: Resources
    overtime: Overtime


def compute(
    runtime: Runtime, claim: Claim, park_after: float, alarm: Alarm
) -> tuple[Outcome, BaseException | None]:
    """Compute and stage the value; return what follows, and the error if there was one.

    The alarm interrupts this at the soft timeout, and nothing that comes after it.
    """
    policy = Retry()
    limit = time_limit(runtime, claim)
    try:
        # To load the definitions takes no time of the asset; half of a module would stay loaded.
        asset = runtime.registry.graph[claim.asset]
        policy = asset.retry
        with alarm.ringing(limit.timeout.soft, lambda: limit.interrupted):
            overtime = partial(_overtime, alarm, limit)
            return _value(runtime, asset, claim, overtime), None
    # Whatever an asset raises is its failure, sys.exit() too: it must not take the worker with it.
    except BaseException as error:
        if _is_termination(error):
            raise
        error = _cause(error)
        outcome = failure_of(runtime, claim, error, policy, park_after)
        if isinstance(error, _Refusal) and isinstance(outcome, Failed):
            outcome = replace(outcome, refused=error.value)
        return outcome, runtime.resources.secrets.without(error)


def _value(runtime: Runtime, asset: Asset, claim: Claim, overtime: Overtime) -> Skipped | Succeeded:
    config = asset_config(asset, claim.config)
    expected = made_of(asset, config, _hashes(claim), claim.resources)
    if claim.earlier and claim.earlier.fingerprint == str(expected) and not asset.volatile:
        return Skipped(claim.earlier.step_id)
    with runtime.resources.lent(asset.requires, claim.resources) as resources:
        given = _Given(config, resources, overtime)
        value = asset.function(**_arguments(runtime, asset, claim, given))
        output = _stage(runtime, asset, claim, value)
    checks = _check(runtime, claim, output)
    return Succeeded(output, expected, asset.version, checks)


def time_limit(runtime: Runtime, claim: Claim) -> TimeLimit:
    """Return the timeout that holds for an attempt: that of its plan, or of the settings."""
    settings = runtime.settings
    of_settings = Timeout(settings.soft_time_limit, settings.time_limit)
    return TimeLimit(claim.name, claim.timeout or of_settings, claim.timeout is not None)


def _overtime(alarm: Alarm, limit: TimeLimit) -> StepTimeout | None:
    return limit.interrupted if alarm.is_over else None


def _cause(error: BaseException) -> BaseException:
    """Return the error itself, or the end of its time if that is what FlowStone stumbled over.

    A library in between may turn what interrupts it into an error of its own.
    """
    cause: BaseException | None = error if isinstance(error, FlowStoneError) else None
    while cause is not None:
        if isinstance(cause, StepTimeout):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def failure_of(
    runtime: Runtime, claim: Claim, error: BaseException, policy: Retry, park_after: float
) -> Failed | Retrying | Stopped:
    """Return what follows from an error of the attempt; its texts are without secrets."""
    mask = runtime.resources.secrets.mask
    return decide(
        error,
        mask("".join(traceback.format_exception(error))),
        claim.failures + 1,
        policy,
        cancelled=runtime.leases.is_cancelled(claim.token),
        park_after=park_after,
        unknown=runtime.settings.retry_unknown,
        now=datetime.now(UTC),
        mask=mask,
    )


class _Refusal(CheckFailed):
    """Carries what was refused to where the failure is recorded."""

    def __init__(self, message: str, value: RefusedValue) -> None:
        super().__init__(message)
        self.value = value


def _check(runtime: Runtime, claim: Claim, output: StoredOutput) -> tuple[Checked, ...]:
    """Run the checks of the asset on the staged value, as its readers would get it."""
    checks = runtime.registry.checks.get(claim.asset, ())
    if not checks:
        return ()
    said = tuple(
        examine(
            checks,
            lambda kind: runtime.read(claim.asset, output, kind),
            decode_key(claim.partition),
            runtime.resources.secrets.mask,
        )
    )
    for one in said:
        if not one.passed:
            log.warning(
                "a check did not pass", step=claim.name, check=one.name, message=one.message
            )
    refusing = [one for one in said if one.refuses]
    if refusing:
        first, more = refusing[0], len(refusing) - 1
        raise _Refusal(
            f"check {first.name!r} refused the value of {claim.name}"
            + (f": {first.message}" if first.message else "")
            + (f" (and {more} more checks)" if more else ""),
            RefusedValue(output, said),
        )
    return said


def _is_termination(error: BaseException) -> bool:
    """Return whether this process is being ended, rather than the asset at fault.

    Celery's pool turns the signal that ends one of its processes into SystemExit with
    the code -(256 - signal). The worker has handed the step back by then, or tells of its loss.
    """
    codes = {number - 256 for number in signal.valid_signals()}
    return isinstance(error, SystemExit) and error.code in codes


def _stage(runtime: Runtime, asset: Asset, claim: Claim, value: Any) -> StoredOutput:  # noqa: ANN401
    """Store what the asset returned. Whatever that is, it is the value, and no outcome."""
    try:
        return runtime.outputs.store(
            value,
            Place(claim.asset, claim.partition, claim.step_id, claim.attempt, claim.token),
            io=claim.io.get(asset.name, asset.io),
            as_type=hints.of_result(asset.function),
            pickle=asset.pickle,
        )
    except OutputError as error:
        kind = type(value)
        raise OutputError(
            f"asset {asset.name!r} returned a {kind.__module__}.{kind.__qualname__}: "
            f"{error.message}",
            original=error,
        ) from error


def _hashes(claim: Claim) -> list[Input]:
    return [
        (name, partition, output.sha256 if output else None)
        for (name, partition), output in claim.inputs.items()
    ]


def _arguments(
    runtime: Runtime,
    asset: Asset,
    claim: Claim,
    given: _Given,
) -> dict[str, Any]:
    # First the resources: what cannot be computed needs no inputs.
    arguments = {name: given.resources[name] for name in asset.injected}
    arguments |= {
        dependency.parameter: _input(runtime, asset, dependency, claim)
        for dependency in asset.dependencies
        if dependency.parameter is not None
    }
    if asset.context_parameter:
        arguments[asset.context_parameter] = _context(runtime, asset, claim, given)
    return arguments


def _input(
    runtime: Runtime,
    asset: Asset,
    dependency: Dependency,
    claim: Claim,
) -> Any:  # noqa: ANN401 - any value of a user
    """Return the value of a dependency, or for a fan-in a dict of key -> value, in order.

    Where an optional dependency has no value, None stands for it.
    """
    fan_in = runtime.registry.graph.mappings[asset.name, dependency.asset].fan_in
    kind = hints.of_parameter(asset.function, dependency.parameter or "", fan_in=fan_in)
    found = {
        decode_key(partition): None if output is None else _read(runtime, claim, name, output, kind)
        for (name, partition), output in claim.inputs.items()
        if name == dependency.asset
    }
    if fan_in:
        return found
    if not found and dependency.optional:
        return None
    if len(found) != 1:
        raise MissingInput(
            f"{asset.name!r} expects one value of {dependency.asset!r}, the plan has "
            f"{len(found)}; the definitions changed after the run was planned: start a new run"
        )
    return next(iter(found.values()))


def _read(
    runtime: Runtime,
    claim: Claim,
    asset: str,
    output: StoredOutput,
    as_type: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    try:
        return runtime.read(asset, output, as_type)
    except MissingOutput:
        # The next run that asks for it computes it again, though nothing else has changed.
        with runtime.ledger.begin() as conn:
            versions.mark_missing(conn, output, actor=claim.worker)
        raise


def _context(
    runtime: Runtime,
    asset: Asset,
    claim: Claim,
    given: _Given,
) -> Context:
    names = {"run_id": str(claim.run_id), "step": claim.name, "attempt": claim.attempt}
    return Context(
        run_id=str(claim.run_id),
        asset=asset.name,
        partition=decode_key(claim.partition),
        partitions=asset.partitions,
        attempt=claim.attempt,
        config=given.config,
        resources=given.resources,
        logger=get_logger("flowstone.asset", **names),
        is_cancelled=partial(runtime.leases.is_cancelled, claim.token),
        overtime=given.overtime,
        token_of=lambda name: signal_token(newest(runtime.settings.secrets), claim.step_id, name),
    )
