"""Only what was made with one of the secrets passes, and only for what it was made."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowstone.context import Context, Resources
from flowstone.errors import BadConfig, BadToken, DefinitionError
from flowstone.log import get_logger
from flowstone.names import NAME
from flowstone.partition import UNPARTITIONED, UnpartitionedSet
from flowstone.signalling import token_hash, wait_for_signal
from flowstone.tokens import (
    MAX_AGE,
    Invitation,
    approval_token,
    check_signature,
    is_own,
    newest,
    read_approval_token,
    sign,
    signal_token,
    step_of,
)

SECRET, OLD, OTHER = b"s" * 32, b"o" * 32, b"x" * 32
LOGGER = get_logger("test")
NOW = 1_800_000_000

names = st.from_regex(NAME, fullmatch=True)
steps = st.integers(1, 2**63 - 1)
people = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200).filter(
    lambda name: bool(name.strip())
)
anything = st.characters(codec="utf-8") | st.characters(codec="ascii")


def changed(data: st.DataObject, text: str) -> str:
    """Return a text with one character in place of, before or without another one."""
    at = data.draw(st.integers(0, len(text) - 1))
    put = data.draw(st.sampled_from(["", text[at] + data.draw(anything), data.draw(anything)]))
    if put == text[at]:
        put = "" if data.draw(st.booleans()) else put * 2
    return text[:at] + put + text[at + 1 :]


@given(steps, names)
def test_the_token_of_a_signal_is_always_the_same_and_fits_into_an_address(
    step: int, name: str
) -> None:
    token = signal_token(SECRET, step, name)
    assert token == signal_token(SECRET, step, name)
    assert wait_for_signal(name=name, token=token).ask.token == token
    assert is_own(token)
    assert step_of([SECRET], token) == step
    # While secrets are replaced, what was made with the old one is still true, and the same.
    assert step_of([OTHER, SECRET], token) == step
    assert token_hash(token) == token_hash(signal_token(OTHER, step, name))
    assert token_hash(token) != token_hash(signal_token(SECRET, step + 1, name))
    assert step_of([OTHER], token) is None
    assert step_of([], token) is None


@given(st.data(), steps, names)
def test_a_token_of_which_a_character_was_changed_is_none(
    data: st.DataObject, step: int, name: str
) -> None:
    wrong = changed(data, signal_token(SECRET, step, name))
    assert step_of([SECRET, OLD], wrong) is None


@given(st.tuples(steps, names), st.tuples(steps, names))
def test_each_signal_of_each_step_has_its_own(one: tuple[int, str], other: tuple[int, str]) -> None:
    assert (signal_token(SECRET, *one) == signal_token(SECRET, *other)) == (one == other)


@given(steps, people)
def test_a_link_says_who_may_decide_what_until_when(gate: int, by: str) -> None:
    token = approval_token(OLD, gate, by, NOW + 1)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", token)
    assert read_approval_token([SECRET, OLD], token, NOW) == Invitation(gate, by, NOW + 1)
    for secrets, now in (([SECRET], NOW), ([OLD], NOW + 1), ([], NOW)):
        with pytest.raises(BadToken):
            read_approval_token(secrets, token, now)


@given(st.data(), steps, people)
def test_a_link_of_which_a_character_was_changed_is_none(
    data: st.DataObject, gate: int, by: str
) -> None:
    wrong = changed(data, approval_token(SECRET, gate, by, NOW + 1))
    with pytest.raises(BadToken, match="not a true one"):
        read_approval_token([SECRET], wrong, NOW)


def test_a_link_is_for_somebody() -> None:
    for nobody in ("", " ", "x" * 201):
        with pytest.raises(BadToken, match="give a name"):
            approval_token(SECRET, 1, nobody, NOW)


@given(steps, names, st.binary(max_size=50))
def test_no_token_passes_for_another_kind(step: int, name: str, body: bytes) -> None:
    token, link = signal_token(SECRET, step, name), approval_token(SECRET, step, name, NOW + 1)
    assert step_of([SECRET], link) is None
    with pytest.raises(BadToken):
        read_approval_token([SECRET], token, NOW)
    # Nor does the end of one under the beginning of the other.
    for first, last in ((token, link), (link, token)):
        mixed = f"{first.rpartition('.')[0]}.{last.rpartition('.')[2]}"
        assert step_of([SECRET], mixed) is None
        with pytest.raises(BadToken):
            read_approval_token([SECRET], mixed, NOW)


@given(names, st.binary(max_size=50), st.integers(-MAX_AGE, MAX_AGE))
def test_a_signature_fits_one_request_for_five_minutes(token: str, body: bytes, age: int) -> None:
    header = sign(OLD, NOW + 0.9, token, body)
    check_signature([SECRET, OLD], header, NOW + age, token, body)
    for secrets, now, parts in (
        ([SECRET], NOW, (token, body)),
        ([], NOW, (token, body)),
        ([OLD], NOW + MAX_AGE + 1, (token, body)),
        ([OLD], NOW - MAX_AGE - 1, (token, body)),
        ([OLD], NOW, (token + "x", body)),
        ([OLD], NOW, (token, body + b" ")),
        ([OLD], NOW, (body,)),
    ):
        with pytest.raises(BadToken):
            check_signature(secrets, header, now, *parts)


@given(st.data(), st.binary(max_size=20))
def test_a_header_of_which_a_character_was_changed_is_refused(
    data: st.DataObject, body: bytes
) -> None:
    wrong = changed(data, sign(SECRET, NOW, "token", body)).strip()
    if wrong != sign(SECRET, NOW, "token", body):
        with pytest.raises(BadToken):
            check_signature([SECRET], wrong, NOW, "token", body)


@given(st.none() | st.text())
def test_a_malformed_header_is_refused(header: str | None) -> None:
    with pytest.raises(BadToken):
        check_signature([SECRET], header, NOW, "token", b"")


def test_the_signature_is_what_others_would_compute() -> None:
    mac = hmac.new(SECRET, b'1800000000.tok.{"a": 1}', hashlib.sha256).hexdigest()
    assert sign(SECRET, NOW, "tok", b'{"a": 1}') == f"t=1800000000,v1={mac}"


def test_a_context_of_a_test_has_no_tokens_and_no_context_has_one_for_what_is_no_name() -> None:
    context = Context("r", "a", UNPARTITIONED, UnpartitionedSet(), 1, None, Resources({}), LOGGER)
    with pytest.raises(BadConfig, match=r"signal 'done': FLOWSTONE_SECRET is not set"):
        context.signal_token("done")
    with pytest.raises(DefinitionError, match=r"signal_token: 'no name' is not a name"):
        replace(context, token_of=str).signal_token("no name")
    assert replace(context, token_of=str.upper).signal_token() == "SIGNAL"


def test_without_a_secret_nothing_is_signed() -> None:
    assert newest((SECRET, OLD)) == SECRET
    with pytest.raises(BadConfig, match="make one with"):
        newest(())
