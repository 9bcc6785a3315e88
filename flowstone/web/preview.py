"""A proposed value as people look at it: JSON, or the first rows of a frame, within bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from flowstone.errors import FlowStoneError
from flowstone.io.edits import readable
from flowstone.io.formats import PICKLE
from flowstone.io.frames import FORMATS, first_rows
from flowstone.outcome import StoredOutput
from flowstone.runtime import Runtime

MAX_READ: Final = 5_000_000
"""Bytes of a stored value that is still read for a page."""
MAX_TEXT: Final = 20_000
"""Characters of a value that a page shows."""
MAX_CELL: Final = 2_000
"""Characters of one value of a table, or of the context."""
MAX_ROWS: Final = 20
MAX_COLUMNS: Final = 20


@dataclass(frozen=True)
class Preview:
    """What a page shows of a value: a text or a table, and a note on what it leaves out."""

    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    note: str = ""


def preview(here: Runtime, asset: str, stored: StoredOutput) -> Preview:
    """Return what a page shows of a staged value; a value that cannot be read has a note."""
    size = f"{stored.size:,} bytes"
    if stored.rows is not None:
        size = f"{stored.rows:,} rows, {size}"
    if stored.size > MAX_READ:
        return Preview(note=f"{size}, which is too much for a page")
    if stored.format == PICKLE:
        return Preview(note=f"{size}, pickled, which is not read here")
    try:
        value = here.read(asset, stored, pickle=False)
    except FlowStoneError as error:
        return Preview(note=f"{size}; it cannot be read here: {error.message}")
    if stored.format in FORMATS:
        return _frame(value, size)
    return replace(of_json(readable(value)), note=size)


def of_json(value: Any) -> Preview:  # noqa: ANN401 - any JSON value
    """Return a JSON value, cut where it is too long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    return Preview(text=cut(text, MAX_TEXT))


def of_context(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what an asset tells those who decide, as a table."""
    return [(name, _cell(value)) for name, value in context.items()]


def cut(text: str, limit: int) -> str:
    """Return a text, or the beginning of it."""
    more = len(text) - limit
    return text if more <= 0 else f"{text[:limit]} … ({more:,} more characters)"


def _frame(value: Any, size: str) -> Preview:  # noqa: ANN401 - a frame
    columns, rows = first_rows(value, MAX_ROWS)
    left_out = len(columns) - MAX_COLUMNS
    note = f"{size}, {len(columns)} columns; the first {len(rows)} rows"
    if left_out > 0:
        note += f" and {MAX_COLUMNS} columns"
    shown = [[_cell(cell) for cell in row[:MAX_COLUMNS]] for row in rows]
    return Preview(columns=columns[:MAX_COLUMNS], rows=shown, note=note)


def _cell(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, str):
        return cut(value, MAX_CELL)
    if isinstance(value, dict | list | bool | None):
        return cut(json.dumps(readable(value), ensure_ascii=False), MAX_CELL)
    return cut(str(value), MAX_CELL)
