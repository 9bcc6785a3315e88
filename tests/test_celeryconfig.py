"""How Celery is told to run FlowStone, as a worker of its own process sees it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowstone.dev import free_port
from flowstone.errors import BadConfig
from flowstone.priority import LEVELS
from flowstone.queues import QUEUES
from flowstone.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, tasks
conf = tasks.app.conf
names = ["task_acks_late", "worker_prefetch_multiplier", "task_soft_time_limit", "task_time_limit",
         "result_expires", "broker_transport_options", "accept_content", "task_serializer",
         "broker_channel_error_retry"]
tasks.app.loader.import_default_modules()
limits = {name.partition(".")[2]: [task.soft_time_limit, task.time_limit]
    for name, task in tasks.app.tasks.items() if name.startswith("flowstone.")}
print(json.dumps({name: conf[name] for name in names} | limits
    | {"queues": [[q.name, q.exchange.name, q.routing_key, q.max_priority]
                  for q in conf.task_queues]}
    | {"priorities": {name: tasks.app.amqp.router.route({}, name)["priority"]
                      for name, route in conf.task_routes.items() if "priority" in route}}))
"""


def configuration(**settings: str) -> dict[str, Any]:
    named = {f"FLOWSTONE_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env=os.environ | named,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("limit", [30.0, 7200.0])
def test_limits_come_from_the_settings_and_nothing_expires_before_them(limit: float) -> None:
    found = configuration(soft_time_limit="20", time_limit=str(limit))
    assert found["task_time_limit"] == limit
    # A step is interrupted by FlowStone itself, and killed a moment after the ledger's own limit.
    assert found["task_soft_time_limit"] is None
    assert found["step"] == [None, limit + 1]
    for other in ("coordinate", "prune", "sweep"):
        assert found[other] == [20, limit]
    assert found["reconcile"] == [20, min(50, limit)]
    assert found["notify"] == [20, min(80, limit)]
    # A chord forgets parts that have expired, and Redis gives out again what takes longer.
    assert found["result_expires"] > limit
    assert found["broker_transport_options"]["visibility_timeout"] > limit
    # Where RabbitMQ closes the channel, the worker goes on.
    assert found["broker_channel_error_retry"] is True


def test_a_pass_of_the_reconciler_has_a_minute() -> None:
    assert configuration()["reconcile"] == [60, 90]


def test_messages_are_json_acknowledged_late_and_not_held_in_reserve() -> None:
    found = configuration()
    assert found["accept_content"] == ["json"]
    assert found["task_serializer"] == "json"
    assert found["task_acks_late"] is True
    assert found["worker_prefetch_multiplier"] == 1
    assert configuration(prefetch="4")["worker_prefetch_multiplier"] == 4


def test_each_queue_has_an_exchange_a_key_and_priorities_of_its_own() -> None:
    top = LEVELS - 1
    assert configuration()["queues"] == [[name, name, name, top] for name in QUEUES]
    own = configuration(queues="gpu, tapes")["queues"]
    assert own[-2:] == [["gpu"] * 3 + [top], ["tapes"] * 3 + [top]]


def test_what_keeps_runs_going_goes_first_on_every_broker() -> None:
    named = ("coordinate", "prune", "reconcile", "sweep")
    control = [f"flowstone.{name}" for name in (*named, "notify")]
    redis = configuration()
    assert redis["broker_transport_options"]["priority_steps"] == list(range(LEVELS))
    assert redis["priorities"] == dict.fromkeys(control, 0)
    servers = {"broker_url": "amqp://u:p@127.0.0.1//", "result_url": "redis://127.0.0.1/1"}
    assert configuration(**servers)["priorities"] == dict.fromkeys(control, LEVELS - 1)


@pytest.mark.parametrize(
    ("queues", "said"),
    [
        ("control", "the queue 'control' is there already"),
        ("gpu,gpu", "the queue 'gpu' is there already"),
        ("g pu", "'g pu' cannot be the name of a queue"),
    ],
)
def test_a_queue_that_cannot_be_is_refused(queues: str, said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        load_settings(queues=queues)


def test_flower_gets_the_port_that_is_wanted_or_a_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        assert free_port(port) != port
    assert free_port(port) == port


def test_beat_sends_tasks_that_exist_to_the_queues_that_keep_runs_going() -> None:
    script = """
import json, tasks
tasks.app.loader.import_default_modules()
entries = tasks.app.conf.beat_schedule.values()
print(json.dumps([[e["task"], e["task"] in tasks.app.tasks, e["options"]["queue"],
    str(e["schedule"])] for e in entries]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"FLOWSTONE_RECONCILE_SECONDS": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [
        ["flowstone.reconcile", True, "control", "7.0"],
        ["flowstone.notify", True, "checkpoints", "7.0"],
        ["flowstone.prune", True, "control", "<crontab: 30 3 * * * (m/h/dM/MY/d)>"],
        ["flowstone.sweep", True, "control", "<crontab: 0 3 * * * (m/h/dM/MY/d)>"],
    ]
