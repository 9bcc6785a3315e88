"""Scripts as a user runs them: in a folder and a process of their own, warnings being errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_script(folder: Path, text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script that knows no settings but these variables; return what it has printed."""
    (folder / "script.py").write_text(text)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FLOWSTONE_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "script.py"],
        cwd=folder,
        env=clean | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
