"""One step, end to end: claim, load inputs, call the function, stage the output, commit."""

from __future__ import annotations

import itertools
import math
import signal
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

from pydantic import ValidationError

from flowstone import hints
from flowstone.asset import Asset, Dependency
from flowstone.check import Checked, examine
from flowstone.config_values import config_values
from flowstone.context import Context, Resources
from flowstone.errors import (
    BadConfig,
    CheckFailed,
    LedgerRefused,
    LedgerUnavailable,
    MissingInput,
    MissingOutput,
)
from flowstone.freshness import Fingerprint, Input, fingerprint
from flowstone.io import Place
from flowstone.log import get_logger
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
from flowstone.states import StepState
from flowstone.store import cancellation, dispatch, failing, flights, steps, versions
from flowstone.store.ledger import Connection
from flowstone.store.steps import Claim, Refused

log = get_logger("flowstone.execution")


@dataclass(frozen=True)
class Ended:
    """An attempt whose outcome is in the ledger."""

    claim: Claim
    outcome: Outcome
    wake: frozenset[UUID]
    """The runs whose coordinator must be woken."""
    error: BaseException | None


@dataclass(frozen=True)
class Fenced:
    """An attempt that had lost its lease: another one has the step, and nothing was written."""

    claim: Claim


def execute(
    runtime: Runtime, step_id: int, canvas: UUID, *, worker: str, park_after: float = math.inf
) -> Ended | Fenced | Refused:
    """Run a step that has been dispatched in `canvas`, and record how it ended.

    A retry that is due in more than `park_after` seconds leaves the canvas. Returns
    Refused, and does nothing, where the step has gone elsewhere. Raises LedgerUnavailable;
    whatever the asset raises becomes an outcome.
    """
    with runtime.ledger.autocommit() as conn:
        claim = steps.claim(
            conn,
            step_id,
            canvas,
            worker=worker,
            lease=runtime.leases.seconds,
            release=runtime.settings.release,
        )
    if isinstance(claim, Refused):
        return claim
    with runtime.leases.held(claim.token):
        outcome, error = _attempt(runtime, claim, park_after)
        try:
            recorded = _record_patiently(runtime, claim, outcome)
        except LedgerRefused as refusal:
            # Nothing of a success without its lineage and its audit row: the attempt has failed.
            error = runtime.resources.secrets.without(refusal)
            outcome = _failure(runtime, claim, error, Retry(), park_after)
            recorded = _record_patiently(runtime, claim, outcome)
    if recorded is None:
        return Fenced(claim)
    return Ended(claim, recorded, _to_wake(runtime, claim, recorded), error)


def _to_wake(runtime: Runtime, claim: Claim, outcome: Outcome) -> frozenset[UUID]:
    """Settle what was joined to the step, and return the runs that can go on."""
    try:
        with runtime.ledger.autocommit() as conn:
            due = dispatch.due(conn, claim.run_id, claim.step_id)
        mine = frozenset([claim.run_id] if due.coordinator else [])
        return mine | _settle(runtime, claim, outcome, followers=due.followers)
    except LedgerUnavailable:
        # The step is committed, and the reconciler settles its followers. A wake-up too many
        # does no harm.
        return frozenset([claim.run_id])


def _settle(
    runtime: Runtime, claim: Claim, outcome: Outcome, *, followers: bool
) -> frozenset[UUID]:
    match outcome:
        case Retrying(parked=False):
            return frozenset()
        case Retrying() | Failed() | Stopped():
            # With the step, others of its run have ended, or have left its canvas.
            return runtime.ledger.in_turn(
                lambda conn: flights.leave(conn, claim.run_id, claim.worker)
            )
        case Succeeded() | Skipped():
            if not followers:
                return frozenset()
            settled = runtime.ledger.in_turn(
                lambda conn: flights.settle(conn, [claim.step_id], actor=claim.worker)
            )
            return flights.to_wake(settled)


def _record_patiently(runtime: Runtime, claim: Claim, outcome: Outcome) -> Outcome | None:
    """Record an outcome, for as long as a lease if the database is away: the work is done.

    A connection that breaks during a commit leaves open whether it was one. So where a
    second try finds the step gone, the attempt itself tells.
    """
    end = time.monotonic() + runtime.leases.seconds
    for pause in itertools.chain([0.1, 0.5, 1], itertools.repeat(2.0)):
        try:
            recorded = _record(runtime, claim, outcome)
            return outcome if not recorded and _is_recorded(runtime, claim, outcome) else recorded
        except LedgerUnavailable:
            if time.monotonic() > end:
                raise
            time.sleep(pause)
    raise AssertionError("itertools.repeat has no end")


def _record(runtime: Runtime, claim: Claim, outcome: Outcome) -> Outcome | None:
    """Write an outcome, in one transaction, and return it; None if the attempt is fenced off."""
    if isinstance(outcome, Succeeded):
        with runtime.ledger.autocommit() as conn:
            return outcome if steps.commit(conn, claim, outcome) else None
    with runtime.ledger.begin() as conn:
        if isinstance(outcome, Retrying) and cancellation.is_requested(conn, claim.run_id):
            outcome = Stopped(outcome.failure)
        return outcome if _write(conn, claim, outcome) else None


def _write(conn: Connection, claim: Claim, outcome: Skipped | Failed | Retrying | Stopped) -> bool:
    match outcome:
        case Skipped(reuses):
            return steps.skip(conn, claim, reuses)
        case Retrying(failure, delay, parked):
            return steps.retry(conn, claim, failure, delay, park=parked)
        case Failed(failure, refused):
            return failing.fail(conn, claim, failure, refused)
        case Stopped(failure):
            return cancellation.stop(conn, claim, failure)


def _is_recorded(runtime: Runtime, claim: Claim, outcome: Outcome) -> bool:
    states = {
        Succeeded: StepState.SUCCEEDED,
        Skipped: StepState.SKIPPED,
        Retrying: StepState.RETRYING,
        Failed: StepState.FAILED,
        Stopped: StepState.CANCELLED,
    }
    with runtime.ledger.autocommit() as conn:
        return steps.is_recorded(conn, claim, states[type(outcome)])


def _attempt(
    runtime: Runtime, claim: Claim, park_after: float
) -> tuple[Outcome, BaseException | None]:
    """Compute and stage the value; return what follows, and the error if there was one."""
    policy = Retry()
    try:
        asset = runtime.registry.graph[claim.asset]
        policy = asset.retry
        config = asset_config(asset, claim.config)
        expected = made_of(asset, config, _hashes(claim), claim.resources)
        if claim.earlier and claim.earlier.fingerprint == str(expected) and not asset.volatile:
            return Skipped(claim.earlier.step_id), None
        with runtime.resources.lent(asset.requires, claim.resources) as resources:
            value = asset.function(**_arguments(runtime, asset, claim, config, resources))
            output = _stage(runtime, asset, claim, value)
        checks = _check(runtime, claim, output)
        return Succeeded(output, expected, asset.version, checks), None
    # Whatever an asset raises is its failure, sys.exit() too: it must not take the worker with it.
    except BaseException as error:
        if _is_termination(error):
            raise
        told = runtime.resources.secrets.without(error)
        outcome = _failure(runtime, claim, told, policy, park_after)
        if isinstance(error, _Refusal) and isinstance(outcome, Failed):
            outcome = replace(outcome, refused=error.value)
        return outcome, told


def _failure(
    runtime: Runtime, claim: Claim, error: BaseException, policy: Retry, park_after: float
) -> Failed | Retrying | Stopped:
    trace = "".join(traceback.format_exception(error))
    cancelled = runtime.leases.is_cancelled(claim.token)
    return decide(error, trace, claim.attempt, policy, cancelled=cancelled, park_after=park_after)


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
    the code -(256 - signal). The step then stays with its lease, and is run again.
    """
    codes = {number - 256 for number in signal.valid_signals()}
    return isinstance(error, SystemExit) and error.code in codes


def _stage(runtime: Runtime, asset: Asset, claim: Claim, value: Any) -> StoredOutput:  # noqa: ANN401
    return runtime.outputs.store(
        value,
        Place(claim.asset, claim.partition, claim.step_id, claim.attempt, claim.token),
        io=claim.io.get(asset.name, asset.io),
        as_type=hints.of_result(asset.function),
        pickle=asset.pickle,
    )


def _hashes(claim: Claim) -> list[Input]:
    return [
        (name, partition, output.sha256 if output else None)
        for (name, partition), output in claim.inputs.items()
    ]


def made_of(
    asset: Asset,
    config: Any,  # noqa: ANN401 - the user's model
    inputs: Iterable[Input],
    overrides: Mapping[str, Mapping[str, Any]],
) -> Fingerprint:
    """Return the fingerprint of what a step makes.

    `config` is what `asset_config` returns, `overrides` what the run says of resources.
    """
    return fingerprint(asset.code_hash, chosen_values(asset, config, overrides), inputs)


def chosen_values(asset: Asset, config: Any, overrides: Mapping[str, Mapping[str, Any]]) -> Any:  # noqa: ANN401
    """Return what a run chooses for an asset, to be hashed: its config, and its resources'.

    The settings of resources do not count, for they are those of an environment.
    """
    values = config_values(config)
    given = {name: overrides[name] for name in asset.requires if overrides.get(name)}
    # Without an override it is the config alone, as in outputs of older versions.
    return [values, given] if given else values


def _arguments(
    runtime: Runtime,
    asset: Asset,
    claim: Claim,
    config: Any,  # noqa: ANN401 - the user's model
    resources: Resources,
) -> dict[str, Any]:
    # First the resources: what cannot be computed needs no inputs.
    arguments = {name: resources[name] for name in asset.injected}
    arguments |= {
        dependency.parameter: _input(runtime, asset, dependency, claim)
        for dependency in asset.dependencies
        if dependency.parameter is not None
    }
    if asset.context_parameter:
        arguments[asset.context_parameter] = _context(runtime, asset, claim, config, resources)
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
    config: Any,  # noqa: ANN401 - the user's model
    resources: Resources,
) -> Context:
    names = {"run_id": str(claim.run_id), "step": claim.name, "attempt": claim.attempt}
    return Context(
        run_id=str(claim.run_id),
        asset=asset.name,
        partition=decode_key(claim.partition),
        partitions=asset.partitions,
        attempt=claim.attempt,
        config=config,
        resources=resources,
        logger=get_logger("flowstone.asset", **names),
        is_cancelled=partial(runtime.leases.is_cancelled, claim.token),
    )


def asset_config(asset: Asset, config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the user's model
    """Return the config of an asset in a run, or None if it declares none; raise BadConfig."""
    given = config.get(asset.name)
    if asset.config is None:
        if given is not None:
            raise BadConfig(f"asset {asset.name!r} takes no config; remove it from the request")
        return None
    try:
        return asset.config(**(given or {}))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadConfig(f"config of asset {asset.name!r}: {where}: {first['msg']}") from None
    except Exception as error:
        # A validator may raise anything, a secret in its message too, and the run has to end.
        raise BadConfig(
            f"config of asset {asset.name!r}: a validator raised {type(error).__name__}"
        ) from error
