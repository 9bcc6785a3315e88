"""Whether the kernel has killed for want of memory, as far as a control group (v2) tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
GROUPS: Final = Path("/proc/self/cgroup")


class Kills:
    """Counts the processes of this control group that the kernel has killed for memory."""

    def __init__(self, root: Path = ROOT, groups: Path = GROUPS) -> None:
        self._root = root
        self._groups = groups
        self._known = self._count()

    def more(self) -> bool:
        """Return whether there were any since the last question; not where nobody counts."""
        before, self._known = self._known, self._count()
        return self._known > before

    def _count(self) -> int:
        try:
            # The line of the one hierarchy of version 2 is "0::/path".
            found = re.search(r"^0::/(.*)$", self._groups.read_text(), re.MULTILINE)
            events = self._root.joinpath(found[1] if found else "", "memory.events").read_text()
        except OSError:
            return 0
        kills = re.search(r"^oom_kill (\d+)$", events, re.MULTILINE)
        return int(kills[1]) if kills else 0
