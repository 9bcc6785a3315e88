"""Delays that an asset or a server asks for, and odd values, on a real worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from pytest_celery import CeleryTestSetup

import flowstone
from flowstone import RunState
from flowstone.canvas import Publisher
from flowstone.errors import RunFailed
from flowstone.reconcile import reconcile
from flowstone.registry import Registry, load_registry
from flowstone.runtime import Runtime
from flowstone.settings import Settings
from tests.worker import retry_assets
from tests.worker.conftest import needs_chords
from tests.worker.ledger_view import LedgerView
from tests.worker.waiting import wait_until


@pytest.fixture(scope="module")
def definitions() -> Registry:
    return load_registry([retry_assets.__name__])


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"assets": (retry_assets.__name__,)})


class Busy(BaseHTTPRequestHandler):
    """Answers 503 to the first request, with a time, 404 to what is missing, and 200 to others."""

    asked: list[str]
    retry_after: str

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
        elif len(self.asked) == 1:
            self.send_response(503)
            self.send_header("Retry-After", self.retry_after)
            self.end_headers()
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"answer")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    Busy.asked, Busy.retry_after = [], "0"
    made = HTTPServer(("127.0.0.1", 0), Busy)
    thread = threading.Thread(target=made.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def url(server: HTTPServer) -> dict[str, str]:
    return {"url": f"http://127.0.0.1:{server.server_port}"}


@needs_chords
def test_a_server_says_when_and_a_chord_stays_correct(
    celery_setup: CeleryTestSetup, view: LedgerView, server: HTTPServer
) -> None:
    handle = flowstone.materialize_all("joins", config={"asks": url(server)})
    assert handle.result(timeout=30) == "answer! 2"
    assert view.attempts(handle.id, "asks") == [(1, "retrying"), (2, "succeeded")]
    for step in ("before_asks", "after_asks", "beside_asks", "joins"):
        assert view.attempts(handle.id, step) == [(1, "succeeded")]
    assert Busy.asked == ["/", "/"]
    # It was tried again in its place, by the worker that had it.
    assert len(view.canvases(handle.id)) == 1
    celery_setup.worker.assert_log_exists("retry: Retry in 0.0s: <HTTPError 503:")


def test_a_delay_that_a_server_asks_for_is_parked_if_it_is_long(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView, server: HTTPServer
) -> None:
    Busy.retry_after = "2"
    handle = flowstone.materialize_all("joins", config={"asks": url(server)})
    wait_until(lambda: view.states(handle.id).get("asks") == "retrying", "asks is parked")
    assert view.steps(handle.id)["asks"].canvas is None
    celery_setup.worker.assert_log_exists("retry: Retry in 2.0s: <HTTPError 503:")
    wake = Publisher(celery_setup.app).wake
    assert wait_until(lambda: reconcile(here, wake)["retry_due"], "the retry is due") == 1
    assert handle.result(timeout=30) == "answer! 2"
    assert view.attempts(handle.id, "asks") == [(1, "retrying"), (2, "succeeded")]


def test_what_a_server_refuses_is_not_asked_for_again(
    celery_setup: CeleryTestSetup, view: LedgerView, server: HTTPServer
) -> None:
    handle = flowstone.materialize("is_refused", config={"is_refused": url(server)})
    with pytest.raises(RunFailed, match="is_refused: HTTPError: HTTP Error 404: Not Found"):
        handle.result(timeout=30)
    assert view.attempts(handle.id, "is_refused") == [(1, "failed")]
    assert Busy.asked == ["/missing"]
    # Celery tells what it was, and where, though it cannot pickle it.
    celery_setup.worker.assert_log_exists(
        "raised unexpected: FlowStoneError('HTTPError: HTTP Error 404: Not Found')"
    )
    assert 'urlopen(f"{context.config.url}/missing")' in celery_setup.worker.logs()


def test_an_asset_says_when_and_the_chain_goes_on(
    celery_setup: CeleryTestSetup, here: Runtime, view: LedgerView
) -> None:
    handle = flowstone.materialize_all("after_not_yet")
    wake = Publisher(celery_setup.app).wake
    celery_setup.worker.assert_log_exists("retry: Retry in 1.0s: RetryAfter(1,")
    assert wait_until(lambda: reconcile(here, wake)["retry_due"], "the retry is due") == 1
    assert handle.result(timeout=30) == 3
    assert view.attempts(handle.id, "not_yet") == [(1, "retrying"), (2, "succeeded")]
    (row,) = view.rows(
        "SELECT error_type, error_message FROM flowstone.attempts WHERE outcome = 'retrying'"
    )
    assert (row.error_type, row.error_message) == ("retry_after", "the report is not ready")


def test_whatever_an_asset_returns_is_its_value_or_a_failure_that_names_it(
    celery_setup: CeleryTestSetup, view: LedgerView
) -> None:
    odd = {
        "returns_an_outcome": "flowstone.outcome.Skipped",
        "returns_an_error": "builtins.ConnectionError",
        "returns_a_result": "celery.result.AsyncResult",
    }
    handle = flowstone.materialize_all(["returns_a_tuple", *odd])
    assert handle.wait(timeout=30) == RunState.FAILED
    assert view.states(handle.id) == {"returns_a_tuple": "succeeded"} | dict.fromkeys(odd, "failed")
    assert flowstone.get("returns_a_tuple") == ("retry", 3)
    for error in handle.errors():
        assert error.type == "output_error"
        said = f"asset {error.step!r} returned a {odd[error.step]}: "
        assert error.message.startswith(said)
        assert error.message.endswith("or set pickle=True")
        assert view.attempts(handle.id, error.step) == [(1, "failed")]
    assert len(handle.errors()) == 3
    with pytest.raises(RunFailed, match="3 of 4 assets failed: returns_a_result: output_error: "):
        handle.result("returns_a_tuple")
