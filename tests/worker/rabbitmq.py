"""A RabbitMQ of the tests' own, where it is installed: all of it on 127.0.0.1, in a folder."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from kombu.connection import Connection
from kombu.exceptions import ChannelError

from flowstone.embedded.account import own_account
from flowstone.embedded.process import end, launch
from flowstone.queues import MAX_MESSAGE_PRIORITY
from tests.worker.broker_view import Sent
from tests.worker.nodes import BrokerNode
from tests.worker.waiting import wait_until

PROGRAM: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""The server itself; the one in the path would first become another user."""

EPMD: Final = Path("/usr/bin/epmd")
START_SECONDS: Final = 120
STOP_SECONDS: Final = 30.0
NO_QUEUE: Final = 404
LOGIN: Final = base64.b64encode(b"guest:guest").decode()

CONFIG: Final = """
listeners.tcp.default = 127.0.0.1:{amqp}
management.tcp.ip = 127.0.0.1
management.tcp.port = {api}
# How old the answers of its HTTP API may be, in milliseconds.
collect_statistics_interval = 100
log.console = true
"""


class RabbitServer:
    """A server with its epmd, which finds the ports of Erlang's nodes; both end with this process.

    Ports, folders, the name of the node and its cookie are its own.
    """

    def __init__(self, home: Path, settings: str = "") -> None:
        """`settings` are more lines of its configuration, in the classic form of Erlang."""
        self.home = home
        self._settings = settings
        self.log_path = home / "rabbitmq.log"
        self.amqp, self.api, self._epmd_port, self._dist = _free_ports(4)
        self._epmd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    def url(self, vhost: str) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.amqp}/{quote(vhost, safe='')}"

    def is_running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Start it and return when it answers; its data are those of the last time."""
        (self.home / "home").mkdir(parents=True, exist_ok=True)
        (self.home / "rabbitmq.conf").write_text(CONFIG.format(amqp=self.amqp, api=self.api))
        (self.home / "advanced.config").write_text(f"[{self._settings}].")
        (self.home / "plugins").write_text("[rabbitmq_management].")
        if self._epmd is None:
            self._epmd = self._launch(EPMD, "-address", "127.0.0.1", "-port", str(self._epmd_port))
        self._server = self._launch(PROGRAM, "-noinput")
        wait_until(self._has_started_or_ended, "RabbitMQ answers", START_SECONDS)
        assert self.is_running(), self.log_path.read_text()

    def stop(self) -> None:
        """Stop it and its epmd, each by its process."""
        if self._server is not None:
            end(self._server, ((signal.SIGTERM, STOP_SECONDS),), "RabbitMQ")
            self._server = None
        if self._epmd is not None:
            end(self._epmd, ((signal.SIGTERM, STOP_SECONDS),), "epmd")
            self._epmd = None

    def kill(self) -> None:
        """End it at once, without letting it write anything."""
        if self._server is not None:
            end(self._server, (), "RabbitMQ")
            self._server = None

    def ask(self, path: str, method: str = "GET") -> Any:
        """Call the HTTP API of its management plugin."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api}/api/{path}",
            method=method,
            headers={"Authorization": f"Basic {LOGIN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the same
            return json.loads(answer.read() or b"null")

    def _has_started_or_ended(self) -> bool:
        try:
            self.ask("overview")
        except (OSError, urllib.error.URLError):
            return not self.is_running()
        # The listener of AMQP comes last.
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.amqp)) == 0

    def _launch(self, program: Path, *options: str) -> subprocess.Popen[bytes]:
        return launch(
            [program, *options],
            account=own_account(),
            death_signal=signal.SIGKILL,
            log=self.log_path,
            env=self._environment(),
        )

    def _environment(self) -> dict[str, str]:
        home = str(self.home)
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            # Where Erlang keeps the cookie.
            "HOME": f"{home}/home",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"flowstone{self.amqp}@localhost",
            "RABBITMQ_CONF_ENV_FILE": f"{home}/none",
            "RABBITMQ_CONFIG_FILE": f"{home}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{home}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{home}/plugins",
            "RABBITMQ_MNESIA_BASE": f"{home}/mnesia",
            "RABBITMQ_LOG_BASE": f"{home}/log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": f"{home}/pid",
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false"
            ),
            # The server takes the place of its shell script, so that its process is ours.
            "RABBITMQ_ALLOW_INPUT": "1",
        }


class RabbitNode(BrokerNode):
    """A virtual host of a RabbitMQ server, which itself outlives the test."""

    name = "broker"

    server: RabbitServer

    def __init__(self, server: RabbitServer, vhost: str) -> None:
        self.server = server
        self.vhost = vhost
        self.url = server.url(vhost)
        server.ask(f"vhosts/{vhost}", "PUT")

    def kill(self, signal: str = "SIGKILL") -> None:  # noqa: ARG002 - the signature is Docker's
        self.server.kill()

    def restart(self, timeout: float = 0) -> None:  # noqa: ARG002 - the same
        self.server.kill()
        self.server.start()

    def teardown(self) -> None:
        """Leave the next test a server that runs, without this one's messages."""
        if not self.server.is_running():
            self.server.start()
        self.server.ask(f"vhosts/{self.vhost}", "DELETE")


class RabbitBroker:
    """What lies on the virtual host of a test."""

    def __init__(self, node: RabbitNode) -> None:
        self._node = node

    def waiting(self, *queues: str) -> int:
        return sum(self._count(name) for name in queues or self._queues())

    def unacked(self) -> int:
        found = self._node.server.ask(f"queues/{self._node.vhost}")
        return sum(queue.get("messages_unacknowledged", 0) for queue in found)

    def take(self, *queues: str) -> list[Sent]:
        return [sent for queue in queues or self._queues() for sent in self._take(queue)]

    def lose_all(self) -> None:
        for queue in self._queues():
            with self._channel() as channel:
                channel.queue_purge(queue)

    def _queues(self) -> list[str]:
        found = self._node.server.ask(f"queues/{self._node.vhost}")
        # Not those of Celery's events and remote control, which are of one process.
        return [queue["name"] for queue in found if not queue["auto_delete"]]

    def _count(self, queue: str) -> int:
        try:
            with self._channel() as channel:
                return int(channel.queue_declare(queue, passive=True).message_count)
        except ChannelError as error:
            if int(error.reply_code) != NO_QUEUE:
                raise
            return 0

    def _take(self, queue: str) -> Iterator[Sent]:
        with self._channel() as channel:
            while self._count(queue) and (message := channel.basic_get(queue, no_ack=True)):
                assert message.properties["content_type"] == "application/json"
                args, kwargs, embed = json.loads(message.body)
                headers = message.properties["application_headers"]
                priority = MAX_MESSAGE_PRIORITY - message.properties["priority"]
                raw = json.dumps([message.properties, message.body]).encode()
                yield Sent(queue, priority, raw, headers, args, kwargs, embed)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        with Connection(self._node.url) as connection:
            yield connection.channel()


def _free_ports(count: int) -> list[int]:
    """Return ports that are free at this moment, each another one."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()
