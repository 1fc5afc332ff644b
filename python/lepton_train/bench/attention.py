"""Benchmark of attention: forward, and forward with backward, beside torch's own."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import lepton_kernels as lk
from lepton_train.bench import shapes
from lepton_train.bench.measure import Case, Missing, Prepared, measure
from lepton_train.bench.options import Options
from lepton_train.bench.rows import Row

FAMILY = "attention"
ROLES = {"lepton": "ours", "torch_sdpa": "peer", "torch_flex_compiled": "peer"}
_COMPILED = ("torch_flex_compiled",)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Relative to the largest element. Wide for bfloat16, as torch sums gradients in it.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Shape:
    """One case of the shapes file.

    `window` keys to the left, -1 for no limit; `cache` "int8" for decoding over a quantised cache;
    `lengths` of sequences laid end to end, in one call or, with `pieces`, in one call each.
    """

    name: str
    heads: int
    length: int
    head_dim: int
    batch: int = 1
    kv_heads: int = 0
    queries: int = 0
    causal: bool = False
    window: int = -1
    cache: str = ""
    lengths: tuple[int, ...] = ()
    pieces: bool = False

    @property
    def parts(self) -> list[slice]:
        """Rows of each sequence."""
        ends = list(itertools.accumulate(self.lengths or (self.length,)))
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // (self.kv_heads or self.heads)

    @property
    def rows(self) -> int:
        """Query length."""
        return self.queries or self.length

    def scores(self) -> float:
        """Scores that the mask leaves, over batch and heads."""
        if self.lengths:
            one = [dataclasses.replace(self, length=n, lengths=()) for n in self.lengths]
            return sum(shape.scores() for shape in one)
        seen = float(self.rows * self.length)
        if self.causal:
            left = min(self.window, self.length - 1) if self.window >= 0 else self.length - 1
            seen = self.rows * (left + 1) - left * (left + 1) / 2
        return self.batch * self.heads * seen


@dataclass
class Problem:
    """Data of one case, the same every time."""

    shape: Shape
    dtype: torch.dtype
    training: bool
    device: torch.device | str = "cpu"
    most_checked: int = 1 << 24
    q: torch.Tensor = field(init=False)
    k: torch.Tensor = field(init=False)
    v: torch.Tensor = field(init=False)
    grad: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Draw the tensors."""
        s, generator = self.shape, torch.Generator().manual_seed(0)

        def draw(heads: int, length: int) -> torch.Tensor:
            x = torch.randn(s.batch, length, heads, s.head_dim, generator=generator)
            x = x.to(self.dtype).to(self.device).transpose(1, 2)
            return x.requires_grad_(self.training)

        self.q, self.grad = draw(s.heads, s.rows), draw(s.heads, s.rows).detach()
        self.k, self.v = (draw(s.heads // s.group, s.length) for _ in range(2))
        self.quantized: tuple[torch.Tensor, ...] = ()
        if s.cache == "int8":
            k, k_scale = lk.quantize_int8(self.k.transpose(1, 2).contiguous())
            v, v_scale = lk.quantize_int8(self.v.transpose(1, 2).contiguous())
            scales = [scale.reshape(k.shape[:3]) for scale in (k_scale, v_scale)]
            self.quantized = (k, v, *scales)
            # The peers have no such cache; they get its values.
            self.k, self.v = (
                (x.float() * scale.unsqueeze(-1)).to(self.dtype).transpose(1, 2)
                for x, scale in zip((k, v), scales, strict=True)
            )

    def run(self, attend: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        """The output, and in training the gradients."""
        if not self.training:
            return [attend(self.q, self.k, self.v)]
        with torch.inference_mode(False), torch.enable_grad():
            out = attend(self.q, self.k, self.v)
            return [out.detach(), *torch.autograd.grad(out, (self.q, self.k, self.v), self.grad)]

    @functools.cached_property
    def expected(self) -> list[torch.Tensor] | None:
        """In float64, of the first key head of the first batch; None if that is too much work."""
        s = self.shape
        if s.rows * s.length * s.group > self.most_checked:
            return None
        with torch.inference_mode(False), torch.enable_grad():
            parts = [
                t[:1, :heads].detach().double().requires_grad_(self.training)
                for t, heads in ((self.q, s.group), (self.k, 1), (self.v, 1))
            ]
            out = _in_parts(s, _plain(s))(*parts)
            if not self.training:
                return [out]
            grads = torch.autograd.grad(out, parts, self.grad[:1, : s.group].double())
            return [out.detach(), *grads]

    def wrong(self, results: list[torch.Tensor]) -> str:
        """What is wrong with the results, or nothing."""
        names = ("output", "gradient of q", "gradient of k", "gradient of v")
        if self.expected is None:
            finite = all(bool(torch.isfinite(r).all()) for r in results)
            return "" if finite else "not finite"
        for name, got, want in zip(names, results, self.expected, strict=False):
            part = got[:1, : want.shape[1]].double()
            error = float((part - want).abs().max() / want.abs().max())
            if not error <= _TOLERANCE[self.dtype]:
                return f"{name} is off by {error:.2g} of its largest element"
        return ""


def _plain(s: Shape) -> Callable[..., torch.Tensor]:
    return functools.partial(  # type: ignore[return-value]
        lk.scaled_dot_product_attention,
        is_causal=s.causal,
        enable_gqa=True,
        window_size=(s.window, -1),
    )


def _in_parts(s: Shape, attend: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """One call for each of the sequences laid end to end."""
    if not s.lengths:
        return attend

    def attend_all(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.cat([attend(*(t[:, :, part] for t in tensors)) for part in s.parts], 2)

    return attend_all


def lepton(problem: Problem) -> Callable[..., torch.Tensor]:
    """lepton's, by the backend in force."""
    s = problem.shape
    if problem.quantized:
        k, v, k_scale, v_scale = problem.quantized

        def decode(q: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            out = lk.flash_attn_with_kvcache(
                q.transpose(1, 2), k, v, k_scale=k_scale, v_scale=v_scale
            )
            assert isinstance(out, torch.Tensor)
            return out.transpose(1, 2)

        return decode
    if not s.lengths or s.pieces:
        return _in_parts(s, _plain(s))
    ends = [0, *itertools.accumulate(s.lengths)]
    with torch.inference_mode(False):  # autograd saves it where training is timed
        bounds = torch.tensor(ends, dtype=torch.int32, device=problem.q.device)

    def varlen(*tensors: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2)[0] for t in tensors)
        longest = max(s.lengths)
        out = lk.flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest, causal=s.causal)
        assert isinstance(out, torch.Tensor)
        return out.unsqueeze(0).transpose(1, 2)

    return varlen


def sdpa(problem: Problem) -> Callable[..., torch.Tensor]:
    """torch's, whichever of its kernels it chooses."""
    s = problem.shape
    mask = None
    if s.window >= 0:
        device = problem.q.device
        distance = torch.arange(s.length, device=device)
        distance = distance - torch.arange(s.rows, device=device)[:, None]
        mask = (distance <= 0) & (distance >= -s.window)
    attend = functools.partial(
        torch.nn.functional.scaled_dot_product_attention,
        attn_mask=mask,
        is_causal=s.causal and mask is None,
        enable_gqa=s.group > 1,
    )
    return _in_parts(s, attend)


def flex(problem: Problem) -> Callable[..., torch.Tensor]:
    """torch's FlexAttention, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    s = problem.shape
    device = problem.q.device.type
    if problem.training and device == "cpu":
        raise Missing("FlexAttention has no backward on the CPU")
    if s.pieces:
        raise Missing("FlexAttention compiles anew for each of the lengths")
    block_mask = None
    if s.causal:
        ends = torch.tensor(list(itertools.accumulate(s.lengths or (s.length,))), device=device)
        sequence = torch.bucketize(torch.arange(s.length, device=device), ends, right=True)

        def seen(b: Any, h: Any, i: Any, j: Any) -> Any:
            mask = j <= i
            if s.window >= 0:
                mask = mask & (j >= i - s.window)
            return mask & (sequence[i] == sequence[j]) if s.lengths else mask

        block_mask = create_block_mask(seen, None, None, s.rows, s.length, device=device)
    # Else the shapes of earlier cases turn it dynamic, and after eight of them off.
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=False)
    return functools.partial(compiled, block_mask=block_mask, enable_gqa=s.group > 1)


_BUILD = {"lepton": lepton, "torch_sdpa": sdpa, "torch_flex_compiled": flex}


def prepare(attend: Callable[[Problem], Callable[..., torch.Tensor]], problem: Problem) -> Prepared:
    """Calls of `attend(problem)`, which takes query, key and value."""
    call = functools.partial(problem.run, attend(problem))
    return Prepared([call, call], problem.wrong)


def case_of(problem: Problem, dtype: str, kind: str | None = None) -> Case:
    """The row keys of a problem: a product of D takes 2 D operations per score, and 2 or 7 of them.

    Training counts the scores that the backward computes anew as torch does: five products. `kind`
    is that of the ceiling; by default what the instruction set has.
    """
    s = problem.shape
    tensors = [problem.q, problem.k, problem.v]
    tensors += [problem.grad] * problem.training
    if problem.quantized:
        tensors = [problem.q, *problem.quantized]
    read = sum(t.numel() * t.element_size() for t in tensors)
    kind = kind or ("bf16" if dtype == "bf16" and lk.info()["isa"] == "amx" else "fp32")
    return Case(
        family=FAMILY,
        name=f"{s.name}/{'training' if problem.training else 'forward'}",
        shape={
            "B": s.batch, "H": s.heads, "Hkv": s.heads // s.group, "Lq": s.rows, "Lk": s.length,
            "D": s.head_dim, "causal": s.causal, "window": s.window, "cache": s.cache,
        },
        dtype=dtype,
        operations=2.0 * s.head_dim * s.scores() * (7 if problem.training else 2),
        read_bytes=float(read),
        ceiling_kind=kind,
    )  # fmt: skip


def problems(options: Options) -> list[tuple[Shape, bool, str]]:
    """(shape, training, dtype) of every case that the options ask for."""
    data = shapes.load(FAMILY, options.shapes)
    names = data["quick"]["cases"] if options.quick else [case["name"] for case in data["cases"]]
    found = []
    for case in data["cases"]:
        shape = Shape(**{**case, "lengths": tuple(case.get("lengths", ()))})
        for kind in data["passes"]:
            training = kind == "training"
            wanted = shape.name in names and not (training and shape.queries)
            if wanted and options.pattern.search(f"{shape.name}/{kind}"):
                found += [(shape, training, dtype) for dtype in options.dtypes]
    return found


def chosen(options: Options) -> list[str]:
    """The implementations that the options ask for.

    Raises:
        ValueError: `--only` names one that does not exist.
    """
    return options.chosen(ROLES, _COMPILED)


def bench(options: Options) -> Iterator[list[Row]]:
    """Rows case by case."""
    names = chosen(options)
    for shape, training, dtype in problems(options):
        problem = Problem(shape, _DTYPES[dtype], training)
        builders = {name: functools.partial(prepare, _BUILD[name], problem) for name in names}
        yield measure(case_of(problem, dtype), builders, options.budget_s)
