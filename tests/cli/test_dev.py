"""`flowstone dev`: everything starts, everything stops, whatever ends it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import Cli, Dev, wait_until

ASSETS = "tests.cli.small_assets"


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_dev_leaves_no_process_behind(
    cli: Cli, start_dev: Callable[..., Dev], number: signal.Signals
) -> None:
    dev = start_dev(cli, ASSETS)
    dev.wait_until_ready()
    children = dev.children()
    names = " ".join(" ".join(child.cmdline()) for child in children)
    for part in ("postgres", "valkey", "worker", "beat", "flower"):
        assert part in names
    code = dev.stop(number)
    assert code == (-number if number == signal.SIGKILL else 0), dev.output()
    wait_until(lambda: gone(children), "all parts to end")


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[signal.SIGKILL], [signal.SIGINT, signal.SIGINT]])
def test_a_step_that_runs_does_not_keep_its_worker_alive(
    cli: Cli, start_dev: Callable[..., Dev], numbers: list[signal.Signals]
) -> None:
    dev = start_dev(cli, ASSETS)
    dev.wait_until_ready()
    run_id = cli("run", "sleeps", "--detach").out.strip()
    wait_until(lambda: '"running": 1' in cli("status", run_id, "--json").out, "the step")
    children = dev.children()
    for number in numbers:
        dev.process.send_signal(number)
        # The second one has to come while the first is obeyed.
        wait_until(lambda: dev.process.poll() is not None or "stopping" in dev.output(), "dev")
    dev.process.wait(60)
    wait_until(lambda: gone(children), "all parts to end")


@pytest.mark.slow
def test_a_step_that_was_cut_off_goes_on_with_the_next_dev(
    cli: Cli, start_dev: Callable[..., Dev]
) -> None:
    dev = start_dev(cli, ASSETS)
    dev.wait_until_ready()
    run_id = cli("run", "sleeps", "--detach").out.strip()
    wait_until(lambda: '"running": 1' in cli("status", run_id, "--json").out, "the step")
    assert dev.stop(signal.SIGINT) == 0, dev.output()
    start_dev(cli, ASSETS).wait_until_ready()
    log = [json.loads(line) for line in cli("audit", "export", "--run", run_id).out.splitlines()]
    assert [row["action"] for row in log][-1] == "step.handed_back"
    # It need not wait until a lease has ended.
    wait_until(lambda: '"running": 1' in cli("status", run_id, "--json").out, "the step", 30)


@pytest.mark.slow
def test_dev_ends_when_its_database_does(cli: Cli, start_dev: Callable[..., Dev]) -> None:
    dev = start_dev(cli, ASSETS)
    dev.wait_until_ready()
    (server,) = [p for p in psutil.Process(dev.process.pid).children() if "postgres" in p.name()]
    server.kill()
    assert dev.process.wait(60) == 3
    assert "PostgreSQL has ended" in dev.output()


@pytest.mark.slow
def test_a_run_goes_through_dev_and_can_be_looked_at_from_outside(
    cli: Cli, start_dev: Callable[..., Dev], tmp_path: Path
) -> None:
    dev = start_dev(cli, ASSETS)
    dev.wait_until_ready()
    # The caller does not know the assets' module: names are enough.
    outside = cli.inside(tmp_path)
    ran = outside("run", "total", "--upstream")
    assert ran.code == 0, ran
    assert "succeeded, 2 of 2 steps" in ran.out
    listed = outside("runs")
    assert "succeeded" in listed.out
    run_id = outside("run", "total", "--detach").out.strip()
    wait_until(lambda: cli("status", run_id[:8], "--json").out.count('"succeeded"') >= 2, "run")
    shown = cli("show", "total", assets=ASSETS)
    assert "numbers" in shown.out
    assert "outputs: 1" in shown.out
    second = cli("dev", assets=ASSETS)
    assert "already run by process" in second.refused(3)
    refusals(outside)


def refusals(cli: Cli) -> None:
    """Bad requests are refused by the coordinator, in one line each, and compute nothing."""
    error = cli("run", "totl").refused(2)
    assert "asset 'totl' is not defined; did you mean 'total'?" in error
    error = cli("run", "daily", "--partition", "2031-01-01").refused(2)
    assert "asset 'daily': partition 2031-01-01 lies outside 2026-01-01 to 2026-01-31" in error
    error = cli("run", "daily").refused(2)
    assert "give a partition such as 2026-01-01, 2026-01-02" in error
    error = cli("run", "fails").refused(1)
    assert "fails: ValueError: the sky is green" in error
    error = cli("status", "zzz").refused(2)
    assert "no run begins with 'zzz'" in error


def test_dev_says_at_once_that_the_graph_has_a_cycle(cli: Cli) -> None:
    error = cli("dev", assets="tests.cli.cyclic_assets").refused(2)
    assert "assets read each other in a circle: a -> b -> a" in error
    assert not (cli.home / "postgres").exists()
