"""The work of an attempt: load inputs, call a function of the asset, stage the value, check it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from flowstone import arrival, hints
from flowstone.approval import NO_VALUE, Ask, WaitForApproval
from flowstone.asset import Asset, Dependency
from flowstone.check import Checked, examine
from flowstone.context import Context, Resources
from flowstone.errors import (
    CheckFailed,
    DefinitionError,
    MissingInput,
    MissingOutput,
    OutputError,
    StepTimeout,
)
from flowstone.freshness import Fingerprint
from flowstone.io import Place
from flowstone.log import get_logger
from flowstone.mapping import PartitionMapping, may_read_nothing
from flowstone.outcome import RefusedValue, StoredOutput, Succeeded, Waiting
from flowstone.partition_key import decode_key
from flowstone.quorum import unknown_roles
from flowstone.runtime import Runtime
from flowstone.signalling import WaitForSignal
from flowstone.store import versions
from flowstone.store.steps import Claim
from flowstone.texts import MAX_MESSAGE, storable, storable_json
from flowstone.tokens import newest, signal_token

log = get_logger("flowstone.attempt")

MAX_CONTEXT: Final = 64 * 1024
"""Bytes of what an approval tells those who decide; more belongs into the value."""

Overtime = Callable[[], StepTimeout | None]
"""Tells whether the time of an attempt is over."""


class Refusal(CheckFailed):
    """Carries what was refused to where the failure is recorded."""

    def __init__(self, message: str, value: RefusedValue) -> None:
        super().__init__(message)
        self.value = value


@dataclass(frozen=True)
class Work:
    """What an attempt works with. `expected` is the fingerprint of what it is to make."""

    runtime: Runtime
    asset: Asset
    claim: Claim
    config: Any
    resources: Resources
    overtime: Overtime
    expected: Fingerprint

    def begin(self) -> Succeeded | Waiting:
        """Call the function of the asset; what it makes may have to be approved."""
        return self.end(self.call(self.asset.function), is_asked=True)

    def call(self, function: Callable[..., Any], **told: Any) -> Any:  # noqa: ANN401
        """Call a function of the asset with what it takes, and with what it is `told`.

        What it raises to wait is returned, as if it had returned it.
        """
        try:
            return function(**self._arguments(function, told))
        except (WaitForApproval, WaitForSignal) as asked:
            return asked

    def end(self, made: Any, *, is_asked: bool) -> Succeeded | Waiting:  # noqa: ANN401
        """Stage what a function has made, or return what it waits for.

        `is_asked` says whether an approval that the asset has declared is still to be asked for.
        """
        if isinstance(made, WaitForSignal):
            return self._wait_for_signal(made)
        if isinstance(made, WaitForApproval):
            return self._wait_for_approval(made, is_asked=is_asked)
        declared = self.asset.approval if is_asked else None
        ask = None if declared is None else declared.ask(made)
        value = self.stage(made)
        return value if ask is None else Waiting(self._storable(ask), self.expected, value)

    def stage(self, value: Any) -> Succeeded:  # noqa: ANN401
        """Store a value, and run the checks on it; raise what says that it cannot be."""
        output = self._store(value)
        checks = self._check(output)
        return Succeeded(
            output, self.expected, self.asset.version, checks, self.asset.partitions.cut
        )

    def _wait_for_signal(self, made: WaitForSignal) -> Waiting:
        if made.ask.on_timeout == "continue" and self.asset.on_signal is None:
            raise DefinitionError(
                f"asset {self.asset.name!r} waits for a signal with on_timeout='continue', which "
                "needs on_signal=: a function that makes the value without a payload, too"
            )
        said = storable(self.runtime.resources.secrets.mask(made.ask.message))[:MAX_MESSAGE]
        return Waiting(replace(made.ask, message=said), self.expected)

    def _wait_for_approval(self, made: WaitForApproval, *, is_asked: bool) -> Waiting:
        if is_asked and self.asset.approval is not None:
            # Whoever the declaration names would never be asked.
            raise DefinitionError(
                f"asset {self.asset.name!r} declares approval=, and asks by wait_for_approval(), "
                "too; only one of the two can ask: return the value itself, which is then asked "
                "about as declared, or remove approval= from the asset"
            )
        if made.value is NO_VALUE and self.asset.on_approved is None:
            raise DefinitionError(
                f"asset {self.asset.name!r} waits for an approval without a value; give "
                "wait_for_approval(value=...), or the asset on_approved=: a function that makes "
                "the value then"
            )
        value = None if made.value is NO_VALUE else self.stage(made.value)
        return Waiting(self._storable(made.ask), self.expected, value)

    def _storable(self, ask: Ask) -> Ask:
        mask = self.runtime.resources.secrets.mask
        context = storable_json(ask.context, lambda text: storable(mask(text)))
        if (size := len(json.dumps(context).encode())) > MAX_CONTEXT:
            raise DefinitionError(
                f"asset {self.asset.name!r} asks with a context of {size} bytes; it may have "
                f"{MAX_CONTEXT}: let people look at the value instead"
            )
        self._warn_of_roles(ask)
        message = storable(mask(str(ask.message)))[:MAX_MESSAGE]
        return replace(ask, message=message, context=context)

    def _warn_of_roles(self, ask: Ask) -> None:
        """Tell of roles by which nobody could decide; those who ask may know fewer than others."""
        asked = [*ask.approvers, *(name for level in ask.escalation for name in level.approvers)]
        for approver, remedy in unknown_roles(asked, self.runtime.settings.roles).items():
            log.warning(
                "an approval names a role that there is not",
                step=self.claim.name,
                approver=approver,
                remedy=remedy,
            )

    def _store(self, value: Any) -> StoredOutput:  # noqa: ANN401
        """Store what the asset returned. Whatever that is, it is the value, and no outcome."""
        asset, claim = self.asset, self.claim
        try:
            return self.runtime.outputs.store(
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

    def _check(self, output: StoredOutput) -> tuple[Checked, ...]:
        """Run the checks of the asset on the staged value, as its readers would get it."""
        name = self.claim.name
        checks = self.runtime.registry.checks.get(self.asset.name, ())
        if not checks:
            return ()
        said = tuple(
            examine(
                checks,
                lambda kind: self.runtime.read(self.asset.name, output, kind),
                decode_key(self.claim.partition),
                self.runtime.resources.secrets.mask,
            )
        )
        for one in said:
            if not one.passed:
                log.warning("a check did not pass", step=name, check=one.name, message=one.message)
        refusing = [one for one in said if one.refuses]
        if refusing:
            first, more = refusing[0], len(refusing) - 1
            raise Refusal(
                f"check {first.name!r} refused the value of {name}"
                + (f": {first.message}" if first.message else "")
                + (f" (and {more} more checks)" if more else ""),
                RefusedValue(output, said),
            )
        return said

    def _arguments(self, function: Callable[..., Any], told: dict[str, Any]) -> dict[str, Any]:
        """Return what a function takes: resources, inputs, the context, and what it is `told`."""
        asset = self.asset
        taken = inspect.signature(function).parameters
        # First the resources: what cannot be computed needs no inputs.
        arguments = {name: self.resources[name] for name in asset.requires if name in taken}
        arguments |= {
            dependency.parameter: self._input(function, dependency)
            for dependency in asset.dependencies
            if dependency.parameter is not None and dependency.parameter in taken
        }
        if "context" in taken:
            arguments["context"] = self._context()
        return arguments | {name: value for name, value in told.items() if name in taken}

    def _input(self, function: Callable[..., Any], dependency: Dependency) -> Any:  # noqa: ANN401
        """Return the value of a dependency, or those of a fan-in, see `arrival`.

        Where an optional dependency has no value, or the mapping leads nowhere, None stands for it.
        """
        name = dependency.parameter or ""
        outputs = {
            decode_key(partition): output
            for (asset, partition), output in self.claim.inputs.items()
            if asset == dependency.asset
        }

        def read(output: StoredOutput, kind: Any) -> Any:  # noqa: ANN401
            return self._read(dependency.asset, output, kind)

        mapping = self._mapping(dependency)
        if mapping.fan_in:
            said = f"{self.asset.name!r} reads {dependency.asset!r} as one frame"
            return arrival.fan_in(said, hints.of_whole(function, name), outputs, read)
        # What it leads to was told when the run was planned: the edges are what that has found.
        if not outputs and (dependency.optional or may_read_nothing(mapping)):
            return None
        if len(outputs) != 1:
            raise MissingInput(
                f"{self.asset.name!r} expects one value of {dependency.asset!r}, the plan has "
                f"{len(outputs)}; the definitions changed after the run was planned: start a new "
                "run"
            )
        output = next(iter(outputs.values()))
        return None if output is None else read(output, hints.of_parameter(function, name))

    def _mapping(self, dependency: Dependency) -> PartitionMapping:
        return self.runtime.registry.graph.mappings[self.asset.name, dependency.asset]

    def _read(self, asset: str, output: StoredOutput, as_type: Any) -> Any:  # noqa: ANN401
        try:
            return self.runtime.read(asset, output, as_type)
        except MissingOutput:
            # The next run that asks for it computes it again, though nothing else has changed.
            with self.runtime.ledger.begin() as conn:
                versions.mark_missing(conn, output, actor=self.claim.worker)
            raise

    def _context(self) -> Context:
        claim = self.claim
        names = {"run_id": str(claim.run_id), "step": claim.name, "attempt": claim.attempt}
        return Context(
            run_id=str(claim.run_id),
            asset=self.asset.name,
            partition=decode_key(claim.partition),
            partitions=self.asset.partitions,
            attempt=claim.attempt,
            config=self.config,
            resources=self.resources,
            logger=get_logger("flowstone.asset", **names),
            is_cancelled=partial(self.runtime.leases.is_cancelled, claim.token),
            overtime=self.overtime,
            token_of=self._token,
        )

    def _token(self, name: str) -> str:
        return signal_token(newest(self.runtime.settings.secrets), self.claim.step_id, name)
