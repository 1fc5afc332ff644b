"""A real server on the loopback interface, in a thread."""

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

PACKAGES = ("pydantic", "safetensors", "starlette", "uvicorn", "prometheus_client")
for package in PACKAGES:
    pytest.importorskip(package, reason=f"needs the package {package}: pip install {package}")


class Client:
    def __init__(self, port):
        self.port = port

    def send(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if isinstance(body, dict):
            body = json.dumps(body)
            headers = {"Content-Type": "application/json"} | headers
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if answer.getheader("Content-Type", "").startswith("application/json"):
            data = json.loads(data)
        return answer.status, data

    def get(self, path):
        return self.send("GET", path)

    def predict(self, inputs):
        return self.send("POST", "/predict", {"inputs": inputs})

    def raw(self, data, wait=10.0):
        """Send bytes; returns what comes back until the server closes or is silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            connection.sendall(data)
            received = b""
            try:
                while chunk := connection.recv(65536):
                    received += chunk
                    if b"\r\n\r\n" in received and received.endswith(b"}"):
                        break
            except (TimeoutError, ConnectionResetError):
                pass
            return received


@contextmanager
def running(predictor, **options):
    import uvicorn
    from lepton_train.serve import create_app

    app = create_app(predictor, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield Client(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
        app.state.server.close()


@pytest.fixture
def run_server():
    return running
