"""`lepton serve` as a process."""

import http.client
import re
import signal
import socket
import subprocess
import sys

import lepton_train as lt
import pytest
from lepton_train.cli import main
from torch import nn


@pytest.fixture
def saved(tmp_path):
    lt.bundle.save(nn.Sequential(nn.Linear(3, 2)), tmp_path / "model")
    return tmp_path / "model"


def test_process_serves_and_stops(saved):
    command = [sys.executable, "-m", "lepton_train.cli", "serve", str(saved), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/health")
            assert connection.getresponse().status == 200
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_errors_are_one_line(saved, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(saved), "--port", port]) == 1
    assert "lepton serve: " in capsys.readouterr().err
    assert main(["serve", str(saved / "no")]) == 1
    assert "no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--port", "70000"], ["--max-batch", "0"], ["--run-seconds", "inf"]]
)
def test_bad_arguments_end_with_2(saved, option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(saved), *option])
    assert stop.value.code == 2
    assert "must be" in capsys.readouterr().err
