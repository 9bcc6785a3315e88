"""What names may look like, and those that are given."""

from __future__ import annotations

import re
from typing import Final

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,199}")
"""Asset names are part of paths, task names and metric labels, so they stay plain."""

DEFAULT_IO: Final = "default"
"""The IO manager of FLOWSTONE_OUTPUT_URL."""
