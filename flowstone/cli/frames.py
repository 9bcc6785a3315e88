"""Frames on a terminal: the first rows, as a table that fits its width."""

from __future__ import annotations

from typing import Any, Final

from rich import box
from rich.markup import escape
from rich.table import Table

from flowstone.io.frames import FORMATS, first_rows
from flowstone.outcome import StoredOutput
from flowstone.texts import printable

ROWS: Final = 5
COLUMNS: Final = 8


def is_frame(stored: StoredOutput | None, value: Any) -> bool:  # noqa: ANN401 - any value
    """Return whether a stored value was read, and is a frame."""
    return stored is not None and stored.format in FORMATS and not isinstance(value, str)


def frame_summary(stored: StoredOutput, value: Any) -> str:  # noqa: ANN401 - a frame
    """Return in words what `frame_table` shows of a frame."""
    columns, rows = first_rows(value, ROWS)
    cut = f" and {COLUMNS} columns" if len(columns) > COLUMNS else ""
    return f"{stored.rows:,} rows, {len(columns)} columns; the first {len(rows)} rows{cut} below"


def frame_table(value: Any) -> Table:  # noqa: ANN401 - a frame
    """Return the first rows of a frame."""
    columns, rows = first_rows(value, ROWS)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns[:COLUMNS]:
        table.add_column(escape(printable(name)), overflow="fold")
    for row in rows:
        table.add_row(*(escape(printable(_cell(cell))) for cell in row[:COLUMNS]))
    return table


def _cell(value: Any) -> str:  # noqa: ANN401
    return f"{value:.6g}" if isinstance(value, float) else str(value)
