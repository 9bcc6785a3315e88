"""IO managers: how values become stored outputs, and values again."""

from __future__ import annotations

from flowstone.io.manager import Description, IOManager, Place
from flowstone.io.outputs import Outputs

__all__ = ["Description", "IOManager", "Outputs", "Place"]
