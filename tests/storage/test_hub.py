"""Is the Hub's silence told from its answer, quickly, and a proxy's refusal from both?"""

import http.server
import socket
import threading
import time

import pytest

from safetyheads.storage import hub


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    """Nothing in the environment forbids the Hub or stands before it."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(monkeypatch):
    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200
        asked = 0

        def do_HEAD(self):
            type(self).asked += 1
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}/")
        yield Handler
        running.shutdown()


@pytest.mark.parametrize(
    ("status", "answers"),
    [(200, True), (401, True), (404, True), (403, False), (407, False), (503, False)],
)
def test_an_answer_is_told_from_a_block(server, status, answers):
    server.status = status
    started = time.monotonic()
    assert hub.hub_answers(20.0) == answers
    assert time.monotonic() - started < 10, "an answer of any kind ends the waiting"
    assert server.asked == 1


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_forbidden_hub_is_not_asked(server, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not hub.hub_answers(5.0)
    assert server.asked == 0
    assert name in hub.hub_silence()


def test_a_hub_that_accepts_and_never_answers_costs_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        started = time.monotonic()
        assert not hub.hub_answers(0.3)
        assert 0.2 < time.monotonic() - started < 2
    assert "did not answer" in hub.hub_silence()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "no address at all"])
def test_a_port_that_refuses_and_an_address_that_is_none(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    started = time.monotonic()
    assert not hub.hub_answers(20.0)
    assert time.monotonic() - started < 10
