"""One attempt at a step: load inputs, call the function, stage the output, check it."""

from __future__ import annotations

import signal
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from flowstone import behind
from flowstone.alarm import Alarm
from flowstone.asset import Asset
from flowstone.errors import FlowStoneError, MissingInput, StepTimeout
from flowstone.freshness import Fingerprint, Input
from flowstone.limits import TimeLimit, Timeout
from flowstone.made_of import asset_config, made_of
from flowstone.outcome import Failed, Outcome, Retrying, Skipped, Stopped, Void, decide
from flowstone.retry import Retry
from flowstone.rollup import too_few
from flowstone.runtime import Runtime
from flowstone.store.steps import Claim
from flowstone.work import Overtime, Refusal, Work


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
            return _work(runtime, asset, claim, overtime), None
    # Whatever an asset raises is its failure, sys.exit() too: it must not take the worker with it.
    except BaseException as error:
        if _is_termination(error):
            raise
        error = _cause(error)
        outcome = failure_of(runtime, claim, error, policy, park_after)
        if isinstance(error, Refusal) and isinstance(outcome, Failed):
            outcome = replace(outcome, refused=error.value)
        return outcome, runtime.resources.secrets.without(error)


def _work(runtime: Runtime, asset: Asset, claim: Claim, overtime: Overtime) -> Outcome:
    _refuse_too_few(asset, claim)
    config = asset_config(asset, claim.config)
    expected = made_of(asset, config, _hashes(claim), claim.resources)
    gate = claim.gate
    if gate is not None and (why := behind.why_void(runtime, gate)) is not None:
        return Void(why)
    if gate is None and _is_fresh(asset, claim, expected):
        assert claim.earlier is not None
        return Skipped(claim.earlier.step_id)
    with runtime.resources.lent(asset.requires, claim.resources) as resources:
        work = Work(runtime, asset, claim, config, resources, overtime, expected)
        return work.begin() if gate is None else behind.go_on(work, gate)


def _refuse_too_few(asset: Asset, claim: Claim) -> None:
    """Raise MissingInput where too few of the inputs of a roll-up are there."""
    for dependency in asset.dependencies:
        if dependency.optional or (dependency.needs is None and dependency.grace is None):
            continue
        found = {node: one for node, one in claim.inputs.items() if node[0] == dependency.asset}
        missing = [node for node, output in found.items() if output is None]
        reader = claim.asset, claim.partition
        said = too_few(reader, dependency.asset, dependency.needs, len(found), missing)
        if said is not None:
            raise MissingInput(said)


def _is_fresh(asset: Asset, claim: Claim, expected: Fingerprint) -> bool:
    earlier = claim.earlier
    return earlier is not None and earlier.fingerprint == str(expected) and not asset.volatile


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


def _is_termination(error: BaseException) -> bool:
    """Return whether this process is being ended, rather than the asset at fault.

    Celery's pool turns the signal that ends one of its processes into SystemExit with
    the code -(256 - signal). The worker has handed the step back by then, or tells of its loss.
    """
    codes = {number - 256 for number in signal.valid_signals()}
    return isinstance(error, SystemExit) and error.code in codes


def _hashes(claim: Claim) -> list[Input]:
    return [
        (name, partition, output.sha256 if output else None)
        for (name, partition), output in claim.inputs.items()
    ]
