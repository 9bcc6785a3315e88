"""docker-compose.yml, read and parsed: commands, ports, variables, health checks, volumes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from celery.bin.celery import celery as celery_command

from flowstone.checkup import ANSWER_SECONDS, LOOK_AGAIN_SECONDS
from flowstone.cli import app
from flowstone.queues import QUEUES
from flowstone.settings import Settings
from flowstone.web import server
from flowstone.web.health import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
RUNNING = ["postgres", "valkey", "worker", "beat", "flower", "web"]


def test_the_services_are_those_of_the_design() -> None:
    assert sorted(SERVICES) == sorted([*RUNNING, "migrate"])


@pytest.mark.parametrize("name", RUNNING)
def test_each_service_has_a_health_check_and_a_volume(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    volumes = [volume.split(":")[0] for volume in service["volumes"]]
    assert volumes
    assert set(volumes) <= set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", ["worker", "beat"])
def test_worker_and_beat_are_asked_by_a_command_of_flowstone_that_has_time_to_answer(
    name: str,
) -> None:
    check = SERVICES[name]["healthcheck"]
    form, program, group, part = check["test"]
    assert (form, program, part) == ("CMD", "flowstone", name)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert part in commands[group].commands
    # It asks the ledger, and then the broker, and may have to look twice.
    assert float(check["timeout"].removesuffix("s")) >= 2 * ANSWER_SECONDS + LOOK_AGAIN_SECONDS


def test_no_volume_is_left_over() -> None:
    used = {v.split(":")[0] for service in SERVICES.values() for v in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", ["worker", "beat", "flower"])
def test_each_celery_command_and_its_options_exist(name: str) -> None:
    program, *arguments = SERVICES[name]["command"]
    assert program == "celery"
    assert arguments[0] == "--app=tasks"
    command = celery_command.commands[arguments[1]]
    if name != "flower":  # Flower reads its options by itself; the next test looks at them
        known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)}
        assert {argument.partition("=")[0] for argument in arguments[2:]} <= known


def test_the_options_of_flower_exist() -> None:
    from flower.options import options  # noqa: PLC0415

    for argument in SERVICES["flower"]["command"][3:]:
        assert argument.removeprefix("--").partition("=")[0] in options


def test_the_worker_takes_every_queue() -> None:
    assert not [a for a in SERVICES["worker"]["command"] if a.startswith(("--queues", "-Q"))]
    script = "import tasks; print(*tasks.app.amqp.queues.consume_from)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"FLOWSTONE_QUEUES": "gpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(done.stdout.split()) == sorted([*QUEUES, "gpu"])


def test_the_worker_is_killed_only_after_it_has_handed_back_its_steps() -> None:
    grace = SERVICES["worker"]["stop_grace_period"]
    assert grace.endswith("s")
    stops = Settings.model_fields["stop_seconds"].default
    # As long again as it takes to become quiet, to tell the ledger, and to end processes.
    assert float(grace.removesuffix("s")) >= stops + 20


def test_the_web_is_a_command_of_flowstone_that_is_asked_for_its_health() -> None:
    service = SERVICES["web"]
    program, name, *given = service["command"]
    assert program == "flowstone"
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {option.partition("=")[0] for option in given} <= options
    (port,) = (option.removeprefix("--port=") for option in given if "port" in option)
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    script = service["healthcheck"]["test"][-1]
    compile(script, "health", "exec")
    assert f"http://127.0.0.1:{port}/health'" in script
    grace = float(service["stop_grace_period"].removesuffix("s"))
    assert grace > server.STOP_SECONDS
    # It has to answer while the ledger says nothing.
    assert float(service["healthcheck"]["timeout"].removesuffix("s")) > 5 > PATIENCE_SECONDS


def test_the_migration_is_a_command_of_flowstone() -> None:
    program, group, name = SERVICES["migrate"]["command"]
    assert program == "flowstone"
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert name in commands[group].commands


def test_every_variable_is_a_setting() -> None:
    known = {f"FLOWSTONE_{name.upper()}" for name in Settings.model_fields}
    for name in ("migrate", "worker", "beat", "flower", "web"):
        given = SERVICES[name]["environment"]
        assert {v for v in given if v.startswith("FLOWSTONE_")} <= known
        assert given["FLOWSTONE_DATABASE_URL"].startswith("postgresql://flowstone:")
        assert "@postgres:5432/flowstone" in given["FLOWSTONE_DATABASE_URL"]


def test_secrets_are_given_to_those_alone_who_need_them() -> None:
    for name in ("migrate", "beat", "flower"):
        assert not [v for v in SERVICES[name]["environment"] if "SECRET" in v]
    for name in ("worker", "web"):
        wanted = ("SECRET", "SHARED_SECRET", "ROLES", "NOTIFY", "WEB_URL")
        assert {f"FLOWSTONE_{part}" for part in wanted} <= SERVICES[name]["environment"].keys()


def test_no_password_has_a_default_and_flower_wants_a_login() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    secrets = ("FLOWSTONE_SECRET", "FLOWSTONE_SHARED_SECRET")
    for name in ("POSTGRES_PASSWORD", "FLOWER_BASIC_AUTH", *secrets):
        assert re.findall(rf"\${{{name}[^}}]*}}", text)
        assert all(":?" in use for use in re.findall(rf"\${{{name}[^}}]*}}", text))


def test_ports_are_open_to_this_machine_only() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {
        "postgres": ["127.0.0.1:5432:5432"],
        "valkey": ["127.0.0.1:6379:6379"],
        "flower": ["127.0.0.1:5555:5555"],
        "web": ["127.0.0.1:8080:8080"],
    }


def test_nothing_starts_before_its_servers_are_healthy_and_migrated() -> None:
    for name in ("worker", "beat", "flower", "web"):
        assert SERVICES[name]["depends_on"] == {
            "postgres": {"condition": "service_healthy"},
            "valkey": {"condition": "service_healthy"},
            "migrate": {"condition": "service_completed_successfully"},
        }


def test_the_image_copies_and_installs_what_is_there() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for line in dockerfile.splitlines():
        if line.startswith("COPY "):
            source = shlex.split(line)[1]
            assert (ROOT / source).exists()
    for folder in ("/outputs", "/state"):
        assert folder in dockerfile
