"""Tokens and signatures: what was made with a secret, and can be told from all else.

Tokens and links are made with FLOWSTONE_SECRET, which nobody else has; requests to and from others
are signed with FLOWSTONE_SHARED_SECRET, which they have, too.

What is signed begins with its purpose, so that nothing passes for something of another kind.
Texts are compared as they stand, and never what is decoded from them: each has one form only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from flowstone.errors import BadConfig, BadToken

HEADER: Final = "FlowStone-Signature"
"""The header of a request that says who has sent it; see `sign`."""

MAX_AGE: Final = 300
"""Seconds that the time of a signature may be away from the time of who checks it."""

MAX_BY: Final = 200
"""Characters of the name of whoever a link is for."""

_MAKE: Final = (
    "make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`, and set it for "
)
UNSIGNED: Final = f"FLOWSTONE_SECRET is not set, which signs links and tokens; {_MAKE}all processes"
UNSHARED: Final = (
    f"FLOWSTONE_SHARED_SECRET is not set, by which signals are signed; {_MAKE}the server and those "
    "who send them"
)

_OWN: Final = re.compile(r"(fs1\.([1-9][0-9]{0,18})\.[0-9a-f]{16})\.([A-Za-z0-9_-]{43})")
_LINK: Final = re.compile(r"(fa1\.([A-Za-z0-9_-]+))\.([A-Za-z0-9_-]{43})")
_SIGNATURE: Final = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})")


@dataclass(frozen=True)
class Invitation:
    """What a link to an approval says: who may decide with it, until when (Unix seconds)."""

    gate_id: int
    by: str
    expires: int


def newest(secrets: Sequence[bytes]) -> bytes:
    """Return the secret that signs; raise BadConfig if there is none."""
    if not secrets:
        raise BadConfig(UNSIGNED)
    return secrets[0]


def signal_token(secret: bytes, step_id: int, name: str) -> str:
    """Return the token of a signal to a step: the same for each of its attempts.

    It holds which step and which signal of that it is for, so that it can be told who is meant
    before anybody waits.
    """
    subject = f"fs1.{step_id}.{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return f"{subject}.{_mac(secret, subject)}"


def is_own(token: str) -> bool:
    """Return whether a token looks like one of `signal_token`, be it true or not."""
    return _OWN.fullmatch(token) is not None


def identity(token: str) -> str:
    """Return what tells a token from others; of one of `signal_token`, all but its signature.

    So a token that was made with another secret, before the secrets were replaced, is the same.
    """
    found = _OWN.fullmatch(token)
    return found[1] if found else token


def step_of(secrets: Iterable[bytes], token: str) -> int | None:
    """Return the step that a token is for, or None for one that was not made with the secrets."""
    found = _OWN.fullmatch(token)
    if found is None or not _is_signed(secrets, found[1], found[3]):
        return None
    return int(found[2])


def approval_token(secret: bytes, gate_id: int, by: str, expires: int) -> str:
    """Return what lets `by` decide an approval until `expires`, in Unix seconds.

    Raises BadToken for a name that is empty or too long.
    """
    if not by.strip() or len(by) > MAX_BY:
        raise BadToken(f"a link is for somebody; give a name of 1 to {MAX_BY} characters")
    said = json.dumps([gate_id, by, expires], separators=(",", ":")).encode()
    subject = f"fa1.{_text(said)}"
    return f"{subject}.{_mac(secret, subject)}"


def approval_url(web_url: str, secret: bytes, gate_id: int, by: str, seconds: float) -> str:
    """Return the address where `by` may decide an approval for so many seconds; see the token."""
    token = approval_token(secret, gate_id, by, int(time.time() + seconds))
    return f"{web_url}/approvals/{token}"


def read_approval_token(secrets: Iterable[bytes], token: str, now: float) -> Invitation:
    """Return what a token says that `approval_token` has made; raise BadToken for any other."""
    found = _LINK.fullmatch(token)
    if found is None or not _is_signed(secrets, found[1], found[3]):
        raise BadToken("this link is not a true one; perhaps a part of it is missing")
    invitation = Invitation(*json.loads(_bytes(found[2])))
    if invitation.expires <= now:
        raise BadToken("this link is too old; ask for another one")
    return invitation


def sign(secret: bytes, at: float, *parts: str | bytes) -> str:
    """Return the value of the header FlowStone-Signature: t=SECONDS,v1=HEX.

    HEX is the HMAC-SHA256 of the seconds of `at`, and of the parts, with a dot before each: the
    token and the body of a signal, or the body alone of what FlowStone sends.
    """
    return f"t={int(at)},v1={_digest(secret, str(int(at)), parts)}"


def check_signature(
    secrets: Iterable[bytes], header: str | None, now: float, *parts: str | bytes
) -> None:
    """Raise BadToken unless the header was made by `sign` of these parts, a few minutes ago.

    Any of the secrets will do, so that they can be replaced one after the other.
    """
    if header is None:
        raise BadToken(f"the request is not signed; it needs the header {HEADER}")
    found = _SIGNATURE.fullmatch(header.strip())
    if found is None:
        raise BadToken(f"the header {HEADER} is not t=SECONDS,v1=HEX")
    if not any(hmac.compare_digest(_digest(s, found[1], parts), found[2]) for s in secrets):
        raise BadToken(f"the header {HEADER} does not fit the request; check secret and body")
    if abs(now - int(found[1])) > MAX_AGE:
        raise BadToken(
            f"the request was signed more than {MAX_AGE} seconds ago, or ahead; check the clocks"
        )


def _digest(secret: bytes, at: str, parts: Sequence[str | bytes]) -> str:
    texts = [part.encode() if isinstance(part, str) else part for part in (at, *parts)]
    return hmac.new(secret, b".".join(texts), hashlib.sha256).hexdigest()


def _mac(secret: bytes, subject: str) -> str:
    # No signature of a request begins like this: that begins with a number.
    return _text(hmac.new(secret, b"flowstone." + subject.encode(), hashlib.sha256).digest())


def _is_signed(secrets: Iterable[bytes], subject: str, mac: str) -> bool:
    return any(hmac.compare_digest(_mac(secret, subject), mac) for secret in secrets)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
