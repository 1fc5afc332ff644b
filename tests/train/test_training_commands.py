"""`lepton train`, `lepton eval` and `lepton compress` on small real data."""

import importlib.util
import json

import lepton_train as lt
import pytest
import torch
from lepton_train.cli import main


@pytest.fixture(autouse=True)
def _packages():
    for module in ("sklearn", "matplotlib", "pydantic", "yaml", "safetensors"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs the package {module}: pip install 'lepton-kernels[train]'")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("needs scikit-learn")
    out = tmp_path_factory.mktemp("run")
    options = ["--limit", "600", "--epochs", "2", "--lr", "0.003", "--out", str(out)]
    assert main(["train", "--model", "image_cnn", "--data", "digits", *options]) == 0
    return out


def test_train_writes_what_eval_reads(trained, tmp_path, capsys):
    names = {file.name for file in trained.iterdir()}
    assert names == {"best.pt", "curves.png", "data_card.json", "last.pt", "train.json"}
    report = json.loads((trained / "train.json").read_text())
    assert len(report["history"]) == 2
    assert report["data"]["leaks"] == 0
    out = tmp_path / "eval"
    arguments = ["--model", "image_cnn", "--data", "digits", "--limit", "600", "--out", str(out)]
    metrics = ["--metric", "accuracy", "--metric", "f1_macro"]
    status = main(["eval", *arguments, "--weights", str(trained / "best.pt"), *metrics])
    assert status == 0
    values = json.loads((out / "eval.json").read_text())
    assert values["examples"] == 60
    assert values["scores"]["accuracy"] > 0.5
    assert values["latency_ms"] > 0
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "throughput" in capsys.readouterr().out
    # Begun without --resume, what lies there is kept.
    train = ["train", *arguments[:6], "--out", str(trained)]
    assert main(train) == 1
    assert "resume=True goes on with it" in capsys.readouterr().err


def test_two_processes(tmp_path, capfd):
    out = tmp_path / "run"
    options = ["--limit", "200", "--epochs", "1", "--out", str(out), "--processes", "2"]
    assert main(["train", "--model", "image_cnn", "--data", "digits", *options]) == 0
    assert json.loads((out / "train.json").read_text())["processes"] == 2
    assert capfd.readouterr().out.count("wrote") == 3


RECIPE = """
name: small digits
model: {name: image_cnn, options: {hidden: 32}}
data: {name: digits, limit: 400}
steps:
  - train: {epochs: 1, lr: 0.003}
  - prune: {sparsity: 0.5}
  - quantize: {budget: 0.2}
  - pack: {rounds: 1}
"""


def test_compress_by_a_recipe(tmp_path, capsys):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    status = main(
        ["compress", "--recipe", str(recipe), "--out", str(out), "--rounds", "1", "--seed", "3"]
    )
    assert status == 0
    report = json.loads((out / "report.json").read_text())
    assert [row["step"] for row in report["rows"]] == [
        "start",
        "train",
        "prune",
        "quantize",
        "pack",
    ]
    assert report["seed"] == 3
    assert report["after"]["size_mb"] < report["before"]["size_mb"]
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "model.safetensors").stat().st_size / 1e6 == pytest.approx(
        report["after"]["size_mb"], abs=0.01
    )
    text = capsys.readouterr().out
    assert "small digits: accuracy" in text
    if (out / "bundle").exists():
        assert lt.bundle.verify(out / "bundle")
        assert lt.bundle.load(out / "bundle")(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    else:
        assert "no bundle: bundle.save" in text


def test_the_bundle_of_a_text_model_reads_texts(tmp_path, monkeypatch):
    for module in ("transformers", "tokenizers", "starlette", "prometheus_client"):
        pytest.importorskip(module)
    from lepton_train.compression.run_recipe import run_recipe, save_bundle
    from lepton_train.serve.predictor import Predictor

    (tmp_path / "tiny_texts.py").write_text(
        "import lepton_train as lt\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "def make(classes):\n"
        "    tokenizer = lt.data.train_tokenizer(['good film', 'bad film'], vocabulary=60)\n"
        "    config = BertConfig(vocab_size=60, hidden_size=32, intermediate_size=32,\n"
        "                        num_hidden_layers=1, num_attention_heads=2, num_labels=classes)\n"
        "    return BertForSequenceClassification(config), tokenizer\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = [f"{('bad', 'good')[i % 2]} film {i},{('neg', 'pos')[i % 2]}" for i in range(40)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    recipe = {
        "model": "tiny_texts:make",
        "data": {"path": str(tmp_path / "texts.csv"), "length": 6},
        "steps": ["quantize"],
    }
    run = run_recipe(recipe, rounds=1, progress=False)
    save_bundle(run, tmp_path / "bundle")
    predictor = Predictor(tmp_path / "bundle")
    texts = ["good film 3", "bad film with many more words than six tokens"]
    inputs = predictor.inputs(texts)
    assert inputs["input_ids"].shape == (2, 6)
    tokens = run.task.tokenizer(
        texts, padding=True, truncation=True, max_length=6, return_tensors="pt"
    )
    expected = run.model(**tokens).logits
    (found,) = predictor.predict(inputs)["outputs"].values()
    torch.testing.assert_close(torch.tensor(found), expected.detach(), rtol=1e-5, atol=1e-5)


def test_compress_over_seeds(tmp_path, capsys):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(
        "model: {name: image_cnn, options: {hidden: 8}}\n"
        "data: {name: digits, limit: 100}\nsteps: [quantize]\n"
    )
    options = ["--rounds", "1", "--seed", "1", "2", "--json", str(tmp_path / "all.json")]
    assert main(["compress", "--recipe", str(recipe), "--out", str(out), *options]) == 0
    assert "2 seeds: mean (least to greatest)" in capsys.readouterr().out
    reports = json.loads((tmp_path / "all.json").read_text())
    assert [report["seed"] for report in reports] == [1, 2]
    for seed, report in zip((1, 2), reports, strict=True):
        assert json.loads((out / f"seed{seed}" / "report.json").read_text()) == report
    scores = sorted(report["after"]["score"] for report in reports)
    spread = f"{sum(scores) / 2:.4f} ({scores[0]:.4f} to {scores[1]:.4f})"
    assert f"| quantize | {spread} |" in (out / "page.md").read_text()
    assert (out / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["compress", "--recipe", "none.yaml"], "none.yaml is not a file"),
        (
            ["train", "--model", "image_cnn", "--data", "./none.csv", "--out", "x"],
            "'none.csv' is not a file",
        ),
        (
            ["eval", "--model", "image_cnn", "--data", "digits", "--weights", "none.pt"],
            "'none.pt' is missing",
        ),
        (
            ["train", "--model", "json:loads", "--data", "digits", "--out", "x"],
            "lepton train:",
        ),
    ],
)
def test_one_line_of_error(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert text in error
    assert "\n" not in error
    assert not (tmp_path / "x" / "last.pt").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "image_cn"], "unknown name 'image_cn'; nearest known: image_cnn"),
        (["--data", "digit"], "unknown name 'digit'; nearest known: digits"),
        (["--optimizer", "adamm"], "invalid choice: 'adamm'"),
        (["--schedule", "step"], "invalid choice: 'step'"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--lr", "0"], "--lr: must be a number above 0, got '0'"),
        (["--clip-norm", "x"], "--clip-norm: must be a number above 0, got 'x'"),
        (["--metric", "acuracy"], "nearest names: accuracy"),
        (["--early-stopping", "1.5"], "must be a whole number of at least 0, got '1.5'"),
    ],
)
def test_bad_arguments_end_with_2(options, text, capsys, tmp_path):
    good = ["--model", "image_cnn", "--data", "digits", "--out", str(tmp_path / "x")]
    with pytest.raises(SystemExit) as stop:
        main(["train", *good, *options])
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("change", ["seps: []", "metrics: accuracy", "model: {nam: image_cnn}"])
def test_unknown_keys_name_the_nearest(change, capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("model: {name: image_cnn, options: {hidden: 32}}", change))
    assert main(["compress", "--recipe", str(recipe)]) == 1
    assert "unknown key" in (error := capsys.readouterr().err)
    assert "nearest known" in error


@pytest.mark.parametrize("command", ["train", "eval", "compress"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"example: lepton {command}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([command, "--limit", "0"])
    assert stop.value.code == 2
