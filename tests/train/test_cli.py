import importlib.util
import json
import os
import subprocess
import sys

import pytest
from lepton_train.cli import main


def lepton(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lepton_train.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        check=False,
    )


def test_help():
    done = lepton("--help")
    assert done.returncode == 0
    assert "info" in done.stdout
    assert "example:" in done.stdout


@pytest.mark.parametrize("command", ["info", "demo", "bench"])
def test_help_of_each_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example: lepton {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["info", "--colour"], ["demo", "--batch", "0"], ["demo", "--rounds", "x"]],
)
def test_bad_arguments_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: lepton" in capsys.readouterr().err


def test_info(capsys, tmp_path):
    assert main(["info"]) == 0
    assert "isa" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert "isa" in json.loads(capsys.readouterr().out)
    assert main(["info", "--json", str(tmp_path / "info.json")]) == 0
    assert json.loads((tmp_path / "info.json").read_text())["threads"] >= 1
    assert list(tmp_path.iterdir()) == [tmp_path / "info.json"]


def test_missing_model_is_one_line_and_1():
    for package in ("gensim", "transformers", "rich", "safetensors"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}: pip install {package}")
    done = lepton("demo", "--model", "/no/such/model")
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("lepton demo: model '/no/such/model' is not a folder")
    assert "Traceback" not in done.stderr


def test_debug_shows_the_trace(capsys, monkeypatch):
    def fail():
        raise ValueError("broken\nin two lines")

    monkeypatch.setattr("lepton_kernels.info", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "lepton info: broken in two lines\n"
    assert main(["info", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_stops_gets_no_trace(tmp_path):
    command = f"{sys.executable} -m lepton_train.cli info --json | true"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert "Pipe" not in done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("lepton-kernels ")
