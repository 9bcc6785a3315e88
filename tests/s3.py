"""An S3 service on this machine, that each test has a bucket of."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from urllib.request import Request, urlopen
from uuid import uuid4

from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem


class S3Service:
    """A real S3 API, in a thread of this process."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.WARNING)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to use it; who fails, fails at once."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self) -> str:
        """Make a bucket, and return its URL."""
        name = f"lake-{uuid4().hex}"
        with urlopen(Request(f"{self.url}/{name}", method="PUT"), timeout=30):  # noqa: S310
            return f"s3://{name}"

    def stop(self) -> None:
        self._server.stop()


def forget_clients() -> None:
    """Have new ones made, which see the environment of now."""
    S3FileSystem.clear_instance_cache()
