"""Approvals: what an asset asks people before its value counts, and what they have decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final, Literal

from flowstone.errors import MAX_WAIT, DefinitionError, FlowStoneError
from flowstone.texts import storable

OnTimeout = Literal["approve", "reject", "escalate", "fail"]

ON_TIMEOUT: Final = ("approve", "reject", "escalate", "fail")
ROLE: Final = "role:"
"""How an approver is written that is a role of FLOWSTONE_ROLES, and no name."""

NO_VALUE: Final = object()
"""Stands for the value where nothing is proposed."""


@dataclass(frozen=True, kw_only=True)
class Escalation:
    """Who is asked next where nobody has decided in time, and what if they do not either.

    `timeout` is in seconds; without one, they are waited for without end. `on_timeout` is
    "reject" where nothing else is said, as in `Approval`. Raises DefinitionError.
    """

    approvers: Sequence[str]
    timeout: float | None = None
    on_timeout: OnTimeout | None = None

    def __post_init__(self) -> None:
        _check_names("approvers", self.approvers)
        if not self.approvers:
            raise DefinitionError("Escalation: approvers=[] asks nobody; name who is to decide")
        object.__setattr__(self, "approvers", tuple(self.approvers))
        object.__setattr__(self, "on_timeout", _on_timeout(self.timeout, self.on_timeout))


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What holds for a question, whatever it is about; all of it is explained at `Ask`."""

    options: Sequence[str] = ()
    approvers: Sequence[str] = ()
    quorum: int = 1
    four_eyes: bool = False
    timeout: float | None = None
    on_timeout: OnTimeout | None = None
    escalation: Sequence[Escalation] = ()
    remind_every: float | None = None
    notify: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Ask(Terms):
    """What is asked of people, with all that holds for it. Times are in seconds.

    `options` are what an approval chooses one of. `approvers` are names, and roles of
    FLOWSTONE_ROLES as "role:finance"; without any, everybody may decide. `quorum` is how many
    have to approve; one who rejects is enough. With `four_eyes`, whoever has started the run may
    not decide. After `timeout` nobody is waited for any more, and `on_timeout` holds: "approve"
    (with the first of the options), "reject", "fail", or "escalate" to the first of `escalation`.
    `remind_every` is the time from one reminder to the next, `notify` names those of
    FLOWSTONE_NOTIFY that are told, by default all.

    Raises DefinitionError for what makes no sense.
    """

    message: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_kinds(self)
        _check_names("options", self.options)
        _check_names("approvers", self.approvers)
        _check_names("notify", self.notify or ())
        if len(set(self.options)) != len(self.options):
            raise DefinitionError(f"approval: options={list(self.options)} names one twice")
        people = None if has_role(self.approvers) else len(set(map(person, self.approvers)))
        asked: Any = self.quorum
        if type(asked) is not int or asked < 1:
            raise DefinitionError(f"approval: quorum={self.quorum!r}; it is 1 or more approvers")
        if people and people < self.quorum:
            raise DefinitionError(
                f"approval: quorum={self.quorum}, but only {people} may approve; name more "
                "approvers, or lower the quorum"
            )
        _check_seconds("remind_every", self.remind_every)
        on_timeout = _on_timeout(self.timeout, self.on_timeout)
        chain = [on_timeout, *(level.on_timeout for level in self.escalation)]
        for place, what in enumerate(chain):
            is_last = place == len(chain) - 1
            if (what == "escalate") == is_last:
                raise DefinitionError(
                    "approval: on_timeout='escalate' needs an Escalation to go to"
                    if is_last
                    else "approval: an Escalation is never reached; what comes before it needs a "
                    "timeout= and on_timeout='escalate'"
                )
        for name in ("options", "approvers", "escalation"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "on_timeout", on_timeout)


@dataclass(frozen=True, kw_only=True)
class Approval(Terms):
    """Given to an asset whose value counts only when people have approved it.

    `when` takes the value, and tells whether to ask; without it, that is always so. `message` and
    `context`, which holds JSON values for those who decide, may be functions of the value, too.
    All else is explained at `Ask`. Raises DefinitionError.
    """

    when: Callable[[Any], bool] | None = None
    message: str | Callable[[Any], str] = ""
    context: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        when: Any = self.when
        if when is not None and not callable(when):
            raise DefinitionError(f"approval: when={when!r}; it takes a function of the value")
        self._ask(
            "" if callable(self.message) else self.message,
            {} if callable(self.context) else self.context,
        )

    def ask(self, value: Any) -> Ask | None:  # noqa: ANN401 - any value of a user
        """Return what to ask about a value, or None where it counts without."""
        if self.when is not None and not self.when(value):
            return None
        return self._ask(
            self.message(value) if callable(self.message) else self.message,
            self.context(value) if callable(self.context) else self.context,
        )

    def _ask(self, message: str, context: Mapping[str, Any]) -> Ask:
        terms = {term.name: getattr(self, term.name) for term in fields(Terms)}
        return Ask(message=message, context=context, **terms)


class WaitForApproval(FlowStoneError):
    """What the function of an asset returns or raises to ask people; see `wait_for_approval`."""

    type = "wait_for_approval"

    def __init__(self, ask: Ask, value: Any) -> None:  # noqa: ANN401
        super().__init__(f"waits for an approval: {ask.message}")
        self.ask = ask
        self.value = value


def wait_for_approval(
    *,
    value: Any = NO_VALUE,  # noqa: ANN401 - any value of a user
    message: str = "",
    context: Mapping[str, Any] | None = None,
    options: Sequence[str] = (),
    approvers: Sequence[str] = (),
    quorum: int = 1,
    four_eyes: bool = False,
    timeout: float | None = None,
    on_timeout: OnTimeout | None = None,
    escalation: Sequence[Escalation] = (),
    remind_every: float | None = None,
    notify: Sequence[str] | None = None,
) -> WaitForApproval:
    """Return what the function of an asset returns, or raises, to wait for people to decide.

    The `value` is what they are to approve: it becomes the asset's when they do. Without one, the
    asset needs `on_approved=`, a function that makes the value then. An asset that has `approval=`
    returns its value, and not this. All else is explained at `Ask`. Raises DefinitionError.
    """
    ask = Ask(
        message=message,
        context={} if context is None else context,
        options=options,
        approvers=approvers,
        quorum=quorum,
        four_eyes=four_eyes,
        timeout=timeout,
        on_timeout=on_timeout,
        escalation=escalation,
        remind_every=remind_every,
        notify=notify,
    )
    return WaitForApproval(ask, value)


@dataclass(frozen=True)
class Decision:
    """What `on_approved` and `on_rejected` are told.

    `value` is what was approved: the proposed value, or what a reviewer has put in its place;
    None if nothing was proposed. `option` is the one that was chosen, `context` what was asked
    with, `by` who has decided last, or "timeout".
    """

    approval_id: int
    approved: bool
    by: str
    at: datetime
    reason: str | None = None
    option: str | None = None
    value: Any = None
    is_edited: bool = False
    context: Mapping[str, Any] = field(default_factory=dict)


def person(actor: str) -> str:
    """Return who an actor is, however the ledger names them: "Ann@host" is "ann".

    Who may decide, and who has decided already, is told by that. Two people of one name at
    different hosts count as one, so that nobody decides twice.
    """
    return actor.partition("@")[0].strip().lower()


_SEQUENCES: Final = ("options", "approvers", "escalation", "notify")


def _check_kinds(ask: Ask) -> None:
    """Raise DefinitionError for what is of another kind than it is said to be."""
    given: Mapping[str, Any] = vars(ask)
    if not isinstance(given["message"], str):
        raise DefinitionError(f"approval: message={given['message']!r}; it is a text")
    if not isinstance(given["context"], Mapping):
        raise DefinitionError(
            f"approval: context={given['context']!r}; it is a dict of JSON values by name"
        )
    for name in _SEQUENCES:
        value = given[name]
        is_left_out = name == "notify" and value is None
        if not is_left_out and (isinstance(value, str) or not isinstance(value, Sequence)):
            raise DefinitionError(f"approval: {name}={value!r}; it takes a list")
    if not all(isinstance(level, Escalation) for level in given["escalation"]):
        raise DefinitionError("approval: escalation= takes a list of Escalation(...)")


def has_role(approvers: Iterable[str]) -> bool:
    """Return whether a role is among the approvers, which may be any number of people."""
    return any(name.startswith(ROLE) for name in approvers)


def _check_names(what: str, names: Any) -> None:  # noqa: ANN401 - as the caller may not check types
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise DefinitionError(f"approval: {what}= takes a list of texts, such as ['ann']")
    for name in names:
        if storable(name) != name:
            raise DefinitionError(
                f"approval: {what}= has {name!r}, which the ledger cannot keep; leave out NUL and "
                "what is no character"
            )
        if what == "approvers" and not person(name):
            raise DefinitionError(f"approval: {what}= has {name!r}, which is nobody's name")


def _check_seconds(what: str, seconds: Any) -> None:  # noqa: ANN401
    if seconds is not None and (type(seconds) not in (int, float) or not 0 < seconds <= MAX_WAIT):
        raise DefinitionError(
            f"approval: {what}={seconds!r}; it takes a number of seconds, up to a year, or None"
        )


def _on_timeout(timeout: Any, on_timeout: Any) -> OnTimeout | None:  # noqa: ANN401
    _check_seconds("timeout", timeout)
    if on_timeout is not None and on_timeout not in ON_TIMEOUT:
        raise DefinitionError(
            f"approval: on_timeout={on_timeout!r}; it is one of {', '.join(ON_TIMEOUT)}"
        )
    if timeout is None and on_timeout is not None:
        raise DefinitionError(
            f"approval: on_timeout={on_timeout!r} without a timeout= never holds; give it one"
        )
    if timeout is None:
        return None
    kept: OnTimeout = on_timeout or "reject"
    return kept
