"""The demonstration: a real pretrained encoder made smaller and faster, before and after."""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import lepton_kernels as lk
from lepton_train.data.lee import LeeData, load_lee
from lepton_train.fuse import fuse_
from lepton_train.models import TextModel, load_encoder
from lepton_train.packages import require
from lepton_train.progress import Progress
from lepton_train.quantize import quantize_
from lepton_train.report import QuantizationReport
from lepton_train.timing import Timing, interleaved

SCORE_MARGIN = 0.005
WORST_COSINE = 0.99
TOKENS = 128
BEFORE = "torch_fp32"


@dataclass
class Variant:
    """One way to run the model.

    Args:
        name (str): "torch_fp32", "lepton_dynamic", "lepton_dynamic_attention", ...
        model (nn.Module): what to run.
        report (QuantizationReport, optional): what `quantize_` did. Default: None.
        score (float): Pearson correlation with the human ratings.
        worst_cosine, mean_cosine (float): to the fp32 embeddings of real sentences.
    """

    name: str
    model: nn.Module
    report: QuantizationReport | None = None
    score: float = 0.0
    worst_cosine: float = 0.0
    mean_cosine: float = 0.0

    def keeps(self, before: Variant) -> bool:
        """Whether score and embeddings stay within the limits."""
        return abs(self.score - before.score) <= SCORE_MARGIN and self.worst_cosine > WORST_COSINE


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16; elsewhere torch is slower with it."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(lk.info()["cpu_features"])


def lepton_variant(
    text: TextModel,
    mode: str,
    lee: LeeData,
    calibration_texts: int,
    dtype: torch.dtype = torch.float32,
    attention: bool = False,
) -> Variant:
    """A copy of the model with int8 linear layers and fused activations and residuals.

    Args:
        text (TextModel): the float model.
        mode (str): "dynamic", "static" or "weight_only".
        lee (LeeData): its background texts calibrate "static"; no rated text is used.
        calibration_texts (int): how many of them.
        dtype (torch.dtype): of activations, biases and what is no linear layer. The weights are
            quantised before they are rounded to it. Default: torch.float32.
        attention (bool): `lepton_kernels`' attention in place of torch's. Default: False.

    Raises:
        NotImplementedError, ValueError: attention, and transformers or the encoder can't change it.
    """
    model = copy.deepcopy(text.model)
    calibration = None
    if mode == "static":
        texts = lee.background[:calibration_texts]
        calibration = [text.tokens(texts[i : i + 16]) for i in range(0, len(texts), 16)]
    report = quantize_(model, mode, calibration=calibration)
    fuse_(model)
    if attention:
        encoder: Any = model.encoder
        encoder.set_attn_implementation(lk.integrations.transformers.register())
    name = _variant_name(mode, dtype, attention)
    return Variant(name, model.to(dtype), report)


def _variant_name(mode: str, dtype: torch.dtype, attention: bool) -> str:
    bf16 = "_bf16" if dtype == torch.bfloat16 else ""
    return f"lepton_{mode}{bf16}{'_attention' if attention else ''}"


def torch_dynamic_int8(model: nn.Module) -> nn.Module:
    """torch's own dynamic int8 of a model's linear layers, on its x86 engine where present."""
    engines = torch.backends.quantized.supported_engines
    engine = next((name for name in ("x86", "fbgemm", "onednn", "qnnpack") if name in engines), "")
    if not engine:
        raise RuntimeError("this torch has no quantized engine")
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def measure_quality(
    variant: Variant, text: TextModel, lee: LeeData, reference: tuple[torch.Tensor, torch.Tensor]
) -> None:
    """Fill in score and cosines of a variant.

    Args:
        variant (Variant): gets the figures.
        text (TextModel): its tokenizer is used.
        lee (LeeData): texts, ratings, sentences.
        reference (pair of Tensor): fp32 embeddings of the texts and of the sentences.
    """
    texts = text.embed(lee.texts, model=variant.model)
    sentences = text.embed(lee.sentences, model=variant.model)
    cosine = torch.nn.functional.cosine_similarity(
        torch.cat([texts, sentences]).double(), torch.cat(reference).double()
    )
    variant.score = lee.pearson(texts)
    variant.worst_cosine = cosine.min().item()
    variant.mean_cosine = cosine.mean().item()


def disk_bytes(model: nn.Module, linears_only: bool = False) -> int:
    """Bytes of a model's state dict as a safetensors file, or of its linear weights in it.

    torch's own quantised layers keep objects that safetensors can't hold: `torch.save` then.
    """
    state = model.state_dict()
    if linears_only:
        kinds = (nn.Linear, lk.nn.Int8Linear)
        names = {n for n, module in model.named_modules() if isinstance(module, kinds)}
        weights = {f"{name}.{part}" for name in names for part in ("weight", "weight_scale")}
        state = {key: value for key, value in state.items() if key in weights}
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.tell()
    save = require("safetensors.torch", "lepton demo", "safetensors").save
    return len(save({key: value.clone().contiguous() for key, value in state.items()}))


def run_demo(
    model: str | os.PathLike[str] | None = None,
    *,
    batch: int = 32,
    rounds: int = 11,
    calibration_texts: int = 96,
) -> dict[str, Any]:
    """Quantise a text encoder and measure it against torch, all in one run.

    Args:
        model (str or path, optional): Hugging Face folder. Default: None (all-MiniLM-L6-v2).
        batch (int): texts in the large batch, each padded to 128 tokens. Default: 32.
        rounds (int): timed rounds; medians are reported. Default: 11.
        calibration_texts (int): background texts for static mode, 1 to 300. Default: 96.

    Returns:
        dict: the report, ready for JSON; its keys are those that docs and README name.

    Raises:
        MissingPackageError: a package of the extra `demo` is not installed.
        FileNotFoundError, ValueError: the model can't be loaded.
    """
    if batch < 1:
        raise ValueError(f"demo: batch must be at least 1, got {batch}")
    steps = 16 + (8 if multiplies_bf16() else 6) * 2 * (rounds + 2)
    with Progress(steps, "lepton demo") as progress:
        progress.step("loading model and data")
        lee = load_lee()
        text = load_encoder(model)
        before = Variant(BEFORE, text.model)
        reference = (text.embed(lee.texts), text.embed(lee.sentences))
        measure_quality(before, text, lee, reference)
        ours, notes = _our_variants(text, lee, before, reference, calibration_texts, progress)
        peers, missing = _peers(text, lee, reference, progress)
        variants = [before, *ours, *peers]
        texts = (lee.texts * (batch // len(lee.texts) + 1))[:batch]
        times = {
            size: _time(text, variants, texts[:size], rounds, progress)
            for size in dict.fromkeys((batch, 1))
        }
        progress.step("sizes")
        rows = {
            variant.name: _figures(variant, times[batch], times[1], batch) for variant in variants
        }
    good = [variant for variant in ours if variant.keeps(before)]
    pool = good or [max(ours, key=lambda variant: variant.worst_cosine)]
    after = min(pool, key=lambda variant: rows[variant.name]["latency_ms"])
    return _result(text.name, before, after, ours, rows, missing, notes, batch)


def _our_variants(
    text: TextModel,
    lee: LeeData,
    before: Variant,
    reference: tuple[torch.Tensor, torch.Tensor],
    calibration_texts: int,
    progress: Progress,
) -> tuple[list[Variant], list[str]]:
    variants: list[Variant] = []
    notes: list[str] = []
    dtypes = [torch.float32, *[torch.bfloat16] * multiplies_bf16()]
    kinds = [("dynamic", dtype, attention) for dtype in dtypes for attention in (False, True)]
    kinds += [(mode, torch.float32, False) for mode in ("static", "weight_only")]
    for mode, dtype, attention in kinds:
        if mode == "weight_only" and any(variant.keeps(before) for variant in variants):
            break
        progress.step(f"int8 {mode}")
        try:
            variant = lepton_variant(text, mode, lee, calibration_texts, dtype, attention)
        except (NotImplementedError, ValueError) as error:
            if not attention:
                raise
            # Not every encoder or transformers lets its attention be changed.
            name = _variant_name(mode, dtype, attention)
            notes.append(f"{name} left out: {str(error).partition(chr(10))[0]}")
            continue
        measure_quality(variant, text, lee, reference)
        if not variant.keeps(before):
            notes.append(
                f"{variant.name} misses the limits: score {variant.score:.4f} "
                f"({variant.score - before.score:+.4f}), worst cosine {variant.worst_cosine:.4f}"
            )
        variants.append(variant)
    return variants, notes


def _peers(
    text: TextModel,
    lee: LeeData,
    reference: tuple[torch.Tensor, torch.Tensor],
    progress: Progress,
) -> tuple[list[Variant], dict[str, str]]:
    makers: dict[str, Callable[[nn.Module], nn.Module]] = {
        "torch_bf16": lambda model: copy.deepcopy(model).bfloat16(),
        "torch_dynamic_int8": torch_dynamic_int8,
    }
    variants: list[Variant] = []
    missing: dict[str, str] = {}
    for name, make in makers.items():
        progress.step(name)
        try:
            variant = Variant(name, make(text.model))
            measure_quality(variant, text, lee, reference)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            # A peer that this torch lacks is named in the report, and the rest goes on.
            missing[name] = str(error).partition("\n")[0]
        else:
            variants.append(variant)
    return variants, missing


def _time(
    text: TextModel, variants: list[Variant], texts: list[str], rounds: int, progress: Progress
) -> dict[str, Timing]:
    inputs = text.tokens(texts, TOKENS, pad=True)
    title = f"timing {len(texts)} x {TOKENS}"

    def runner(model: nn.Module) -> Callable[[], torch.Tensor]:
        return lambda: model(**inputs)

    with torch.inference_mode():
        return interleaved(
            {variant.name: runner(variant.model) for variant in variants},
            rounds=rounds,
            progress=lambda _: progress.step(title),
        )


def _figures(
    variant: Variant, large: dict[str, Timing], single: dict[str, Timing], batch: int
) -> dict[str, Any]:
    timing, one = large[variant.name], single[variant.name]
    return {
        "latency_ms": timing.median_ms,
        "latency_quartiles_ms": [timing.low_ms, timing.high_ms],
        "throughput": timing.throughput(batch),
        "size_mb": disk_bytes(variant.model) / 1e6,
        "score": variant.score,
        "cosine": {"worst": variant.worst_cosine, "mean": variant.mean_cosine},
        "batch1": {"latency_ms": one.median_ms, "throughput": one.throughput(1)},
    }


def _attention_gains(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times as fast each variant became by lepton's attention alone."""
    gains = {}
    for name, row in rows.items():
        without = rows.get(name.removesuffix("_attention"))
        if name.endswith("_attention") and without is not None:
            gains[name] = {
                "speedup": without["latency_ms"] / row["latency_ms"],
                "speedup_batch1": without["batch1"]["latency_ms"] / row["batch1"]["latency_ms"],
            }
    return gains


def _result(
    name: str,
    before: Variant,
    after: Variant,
    ours: list[Variant],
    rows: dict[str, dict[str, Any]],
    missing: dict[str, str],
    notes: list[str],
    batch: int,
) -> dict[str, Any]:
    info = lk.info()
    first, last = rows[before.name], rows[after.name]
    linear = [disk_bytes(variant.model, linears_only=True) / 1e6 for variant in (before, after)]
    own = {variant.name for variant in ours}
    report = after.report
    assert report is not None
    return {
        "model": name,
        "data": "Lee similarity: 50 texts, 1225 rated pairs, and their sentences",
        "before": first,
        "after": {"variant": after.name, **last},
        "speedup": first["latency_ms"] / last["latency_ms"],
        "speedup_batch1": first["batch1"]["latency_ms"] / last["batch1"]["latency_ms"],
        "keeps_score": after.keeps(before),
        "limits": {"score": SCORE_MARGIN, "worst_cosine": WORST_COSINE},
        "linear_weights_mb": {"before": linear[0], "after": linear[1]},
        "variants": {key: row for key, row in rows.items() if key in own},
        "attention": _attention_gains(rows),
        "peers": {key: row for key, row in rows.items() if key != before.name and key not in own},
        "missing_peers": missing,
        "notes": notes,
        "quantization": report.to_dict(),
        "batch": batch,
        "tokens": TOKENS,
        "isa": info["isa"],
        "threads": info["threads"],
        "torch": torch.__version__.partition("+")[0],
        "cpu": info["cpu"],
        "lepton_kernels": info["version"],
    }
