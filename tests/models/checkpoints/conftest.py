"""A cache of each test's own, and a Hub that nobody may ask or that stands on this machine."""

import http.server
import socket
import threading
import time

import pytest

from safetyheads.storage import hub as hub_module
from tests import zoo
from tests.models.checkpoints.made import WHOLE, llama_config, write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and a Hub nobody may ask."""
    monkeypatch.setenv("SAFETYHEADS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine; `answer` is what it sends, `stall_after` where it stops sending."""

    class Hub(http.server.BaseHTTPRequestHandler):
        answer, stall_after, asked = WHOLE, None, []

        def do_HEAD(self):
            self.asked.append(("HEAD", self.path))
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            self.asked.append(("GET", self.path))
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.answer)))
            self.end_headers()
            self.wfile.write(self.answer[: self.stall_after])
            if self.stall_after is not None:
                time.sleep(20)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub_module, "HUB_PATIENCE", 60.0)
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def full_disk(monkeypatch):
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)


@pytest.fixture(scope="package")
def gguf_model(tmp_path_factory):
    model = zoo.random_model(llama_config()).eval()
    path = tmp_path_factory.mktemp("gguf") / "tiny-llama.gguf"
    write_gguf(path, model)
    return path, model
