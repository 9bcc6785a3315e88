"""Every error FlowStone raises: an exception that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

MAX_WAIT: Final = 365 * 86_400
"""Seconds; the longest time that RetryAfter takes."""


class FlowStoneError(Exception):
    """The base of all FlowStone errors.

    `type` is a stable snake_case name that is stored in the ledger, `context`
    holds JSON values that locate the fault, `retryable` says whether trying
    again can help, and `original` is the exception that caused this one.
    """

    type = "flowstone_error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        context: Mapping[str, Any] | None = None,
        retryable: bool | None = None,
        original: BaseException | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.context = dict(context or {})
        self.original = original
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        return self.message

    def unwrap(self) -> NoReturn:
        """Raise the exception that caused this one, as it was raised; else this one itself."""
        error = self.original or self
        context = error.__context__
        try:
            raise error
        finally:
            # Where an error is being handled, Python makes that the context.
            error.__context__ = context


class DefinitionError(FlowStoneError):
    """The asset definitions do not make sense."""

    type = "definition_error"


class UnknownAsset(DefinitionError):
    """A name that no asset has."""

    type = "unknown_asset"


class UnknownResource(DefinitionError):
    """A name that no resource has."""

    type = "unknown_resource"


class UnknownPool(FlowStoneError):
    """A name that no pool has."""

    type = "unknown_pool"


class DuplicateAsset(DefinitionError):
    """Two assets, or two resources, have the same name."""

    type = "duplicate_asset"


class BadSignature(DefinitionError):
    """The function of an asset takes parameters that FlowStone cannot fill."""

    type = "bad_signature"


class CyclicGraph(DefinitionError):
    """Assets read each other in a circle."""

    type = "cyclic_graph"


class BadMapping(DefinitionError):
    """The partitions of an asset cannot be mapped to those of an asset that it reads."""

    type = "bad_mapping"


class BadPartition(FlowStoneError):
    """A partition key that is malformed, or lies outside the asset's partition set."""

    type = "bad_partition"


class BadSelection(FlowStoneError):
    """A selection of assets that makes no sense, or that selects none."""

    type = "bad_selection"


class BadConfig(FlowStoneError):
    """A setting, or the config given for an asset, that is not valid."""

    type = "bad_config"


class PlainSecret(BadConfig):
    """A secret in a config that would be stored with the run."""

    type = "plain_secret"


class BadMessage(FlowStoneError):
    """A Celery message whose arguments are not the ones that the task declares."""

    type = "bad_message"


class MissingInput(FlowStoneError):
    """A step reads an asset that has never been materialized."""

    type = "missing_input"


class UnknownVersion(FlowStoneError):
    """A version of an asset x partition that there is not, or whose value is gone."""

    type = "unknown_version"


class NeverMaterialized(FlowStoneError):
    """An output that there is not, in the run or at the time that is asked about."""

    type = "never_materialized"


class UnknownColumn(DefinitionError):
    """A column that no asset declares, or is declared to be made of."""

    type = "unknown_column"


class BadQuery(FlowStoneError):
    """A question to the ledger that makes no sense, such as one about a time without a zone."""

    type = "bad_query"


class OutputError(FlowStoneError):
    """An output that cannot be stored, or does not match its record."""

    type = "output_error"


class MissingOutput(OutputError):
    """An output that is in the ledger, and whose value is not in storage."""

    type = "missing_output"


class ChangedOutput(MissingOutput):
    """What lies where an output was stored is not what was stored there."""

    type = "changed_output"


class StorageUnavailable(FlowStoneError):
    """A storage of outputs cannot be used now; whether a value is there, nobody knows."""

    type = "storage_unavailable"
    retryable = True


class CheckFailed(FlowStoneError):
    """A blocking check has refused a value, which goes to quarantine."""

    type = "check_failed"


class ResourceUnavailable(FlowStoneError):
    """A resource that an asset needs could not be started."""

    type = "resource_unavailable"
    retryable = True


class LedgerUnavailable(FlowStoneError):
    """PostgreSQL cannot be reached, or has given another transaction precedence."""

    type = "ledger_unavailable"
    retryable = True
    is_overtaken = False
    """Whether another transaction came first, so that the same may succeed at once."""
    is_locked = False
    """Whether another transaction holds what this one would not wait for any longer."""


class LedgerRefused(FlowStoneError):
    """PostgreSQL was reached, and has refused what was to be written."""

    type = "ledger_refused"


class BrokerUnavailable(FlowStoneError):
    """The Celery broker cannot be reached."""

    type = "broker_unavailable"
    retryable = True


class WrongMigration(FlowStoneError):
    """The schema of the ledger is older or newer than this version of FlowStone."""

    type = "wrong_migration"


class ServerError(FlowStoneError):
    """An embedded server did not start, or did not stop."""

    type = "server_error"


class UnknownRun(FlowStoneError):
    """A run id that the ledger does not know."""

    type = "unknown_run"


class RunFailed(FlowStoneError):
    """A run ended as failed or cancelled, where its result was asked for."""

    type = "run_failed"


class RunRefused(RunFailed):
    """A run that could not be planned, as its request or the definitions do not make sense."""

    type = "run_refused"


class Conflict(FlowStoneError):
    """Another run computes the same asset x partition, and the request was not to wait."""

    type = "conflict"


class KeyReused(FlowStoneError):
    """An idempotency key that has been given to a different request before."""

    type = "key_reused"


class CannotStart(FlowStoneError):
    """A run that was to be started is not one that waits for that."""

    type = "cannot_start"


class CannotPause(FlowStoneError):
    """A run that was to be paused is not going on."""

    type = "cannot_pause"


class UnknownBackfill(FlowStoneError):
    """The id of a backfill that the ledger does not know."""

    type = "unknown_backfill"


class RunEnded(FlowStoneError):
    """A run that was to be cancelled has succeeded or failed already."""

    type = "run_ended"


class CannotResume(FlowStoneError):
    """A run that is still open, has succeeded, or has been resumed already."""

    type = "cannot_resume"


class Cancelled(FlowStoneError):
    """The run of a step is cancelled; raised by `Context.raise_if_cancelled`."""

    type = "cancelled"


class UnknownApproval(FlowStoneError):
    """An approval that there is not."""

    type = "unknown_approval"


class AlreadyDecided(FlowStoneError):
    """An approval that has been decided already, or is not asked for any more."""

    type = "already_decided"


class ApprovalVoid(FlowStoneError):
    """What was to be approved has changed meanwhile; it is asked again."""

    type = "approval_void"


class NotAllowed(FlowStoneError):
    """Somebody who may not decide, or not once more."""

    type = "not_allowed"


class BadDecision(FlowStoneError):
    """A decision that does not fit what was asked: an option that there is not, for one."""

    type = "bad_decision"


class ApprovalRejected(FlowStoneError):
    """A step whose approval was rejected."""

    type = "approval_rejected"


class ApprovalExpired(FlowStoneError):
    """A step whose approval nobody has decided in time."""

    type = "approval_expired"


class UnknownSignal(FlowStoneError):
    """A signal that no step waits for, or that has come already."""

    type = "unknown_signal"


class BadSignal(FlowStoneError):
    """A signal whose payload or signature is not what was asked for."""

    type = "bad_signal"


class SignalReplayed(UnknownSignal):
    """A signal that has come already; each is taken once."""

    type = "signal_replayed"


class BadToken(FlowStoneError):
    """A link, a token or a signature that FlowStone has not made, or that is too old."""

    type = "bad_token"


class SignalExpired(FlowStoneError):
    """A step whose signal has not come in time."""

    type = "signal_expired"


class RetryAfter(FlowStoneError):
    """Raised by an asset that is to be tried again after so many seconds.

    That is an attempt like others, but for the delay: it is neither that of the policy, nor
    limited by it. Raises DefinitionError for what is no number from 0 to a year.
    """

    type = "retry_after"
    retryable = True

    def __init__(
        self,
        seconds: float,
        message: str = "",
        *,
        context: Mapping[str, Any] | None = None,
        original: BaseException | None = None,
    ) -> None:
        given: Any = seconds  # as the caller may not check types
        if type(given) not in (int, float) or not 0 <= given <= MAX_WAIT:
            raise DefinitionError(f"RetryAfter({seconds!r}): needs a number of seconds, 0 or more")
        said = message or f"asks to be tried again after {seconds:g} s"
        super().__init__(said, context=context, original=original)
        self.seconds = float(seconds)
        # By which it is made again in another process.
        self.args = (seconds, said)


class RunTimeout(FlowStoneError):
    """A run did not end within the time that the caller was ready to wait."""

    type = "run_timeout"
    retryable = True


class StepTimeout(FlowStoneError):
    """An attempt took longer than its timeout; raised within the asset, which may clean up."""

    type = "timeout"
    retryable = True


def is_time_limit(error: BaseException) -> bool:
    """Return whether the time of what ran is over, so that the error is none of its own."""
    return isinstance(error, StepTimeout) or is_celerys_limit(error)


def is_celerys_limit(error: BaseException) -> bool:
    """Return whether it is Celery's own limit, which a worker has if it is started with one."""
    return type(error).__module__.partition(".")[0] == "billiard"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `known`, or "" if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
