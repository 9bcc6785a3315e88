"""Freshness: what an output was made of, as hashes that tell whether it would come out the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

HASH_LENGTH: Final = 32
"""Hexadecimal digits of each part: 128 bits, far beyond any chance that two agree."""

Input = tuple[str, str, str | None]
"""Asset, encoded partition, and the SHA-256 of the value, None where there is none."""


@dataclass(frozen=True)
class Fingerprint:
    """What one output was made of: the code of the function, its config, and the exact inputs.

    The partition is not in it, for fingerprints are compared within one asset x partition only.
    """

    code: str
    config: str
    inputs: str

    def __str__(self) -> str:
        """Return the form that the ledger keeps; equal texts mean equal fingerprints."""
        return f"{self.code}.{self.config}.{self.inputs}"

    @classmethod
    def parse(cls, text: str) -> Fingerprint:
        """Return the fingerprint that `str()` has written."""
        code, config, inputs = text.split(".")
        return cls(code, config, inputs)


def fingerprint(code: str, config: object, inputs: Iterable[Input]) -> Fingerprint:
    """Return the fingerprint of what a step makes of these.

    `code` is the asset's `code_hash`; `config` holds the JSON values of its validated
    config, so that a default counts as much as a value that was given, or None for an
    asset that takes none, and what the run says of its resources; `inputs` come in the
    order of the plan.
    """
    return Fingerprint(code, digest(config), inputs_hash(inputs))


def inputs_hash(inputs: Iterable[Input]) -> str:
    """Return the hash of the values that a step reads, in the order of the plan."""
    return digest([list(one) for one in inputs])


def digest(value: object) -> str:
    """Return the hash of a JSON value, the same in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:HASH_LENGTH]
