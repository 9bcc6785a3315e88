"""One cluster for all scenarios; CHAOS_N says how many there are, CHAOS_SEED picks one of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flowstone import runtime
from flowstone.registry import build_registry
from flowstone.runtime import Runtime
from tests.chaos import injected, report
from tests.chaos.cluster import Cluster
from tests.chaos.report import Seen
from tests.chaos.world import SHORT


def seeds() -> Sequence[int]:
    """Return the seeds to play."""
    if os.environ.get("CHAOS_SEED"):
        return [int(seed) for seed in os.environ["CHAOS_SEED"].split(",")]
    if os.environ.get("CHAOS_N"):
        return range(int(os.environ["CHAOS_N"]))
    return SHORT


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", seeds())


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    home = Path(tempfile.mkdtemp(prefix="flowstone-chaos-"))
    # As root, PostgreSQL runs as another user, who must be able to get here.
    home.chmod(0o755)
    made = Cluster(home, seeds())
    injected.install_for_messages(made.orders)
    try:
        made.start()
        yield made
    finally:
        left = made.stop()
        if request.session.testsfailed:
            report.keep_logs(home)
        shutil.rmtree(home, ignore_errors=True)
    assert not left, f"processes are left: {left}"


@pytest.fixture
def here(cluster: Cluster) -> Iterator[Runtime]:
    """The runtime of whoever submits, who has no definitions."""
    made = Runtime(cluster.settings, build_registry([]))
    runtime.use(made)
    yield made
    runtime.use(None)
    made.close()


@pytest.fixture(scope="session")
def seen() -> Iterator[list[Seen]]:
    """What was seen, which is written in the end."""
    found: list[Seen] = []
    yield found
    if "CHAOS_N" in os.environ and not os.environ.get("CHAOS_SEED"):
        passed = {one.seed for one in found}
        report.write(found, [seed for seed in seeds() if seed not in passed])
