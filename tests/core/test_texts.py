"""Texts of users: what a terminal would take for an order is shown, and not obeyed."""

from __future__ import annotations

import json

from flowstone.texts import printable, printable_json


def test_control_characters_are_shown() -> None:
    assert printable("a\tb\nc é ") == "a\tb\nc é "
    assert printable("\x1b[2Jx\r\x00\x7f\x9b") == r"\x1b[2Jx\x0d\x00\x7f\x9b"


def test_json_stays_the_same_value() -> None:
    value = {"é\x9b": ["\x1b]0;\x07", "\x7f", 1.5, None]}
    text = printable_json(value)
    assert json.loads(text) == value
    assert text.isprintable()
    assert "é" in text
