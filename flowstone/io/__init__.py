"""IO managers: how values become stored outputs, and values again."""

from __future__ import annotations

from flowstone.io.files import FileOutputs

__all__ = ["FileOutputs"]
