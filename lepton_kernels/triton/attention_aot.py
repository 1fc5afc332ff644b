"""Attention kernels as the ahead-of-time gate compiles them: every configuration, few options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lepton_kernels.triton import attention_configs as configs
from lepton_kernels.triton.attention_backward import (
    attention_backward_bias_kernel,
    attention_backward_key_kernel,
    attention_backward_query_kernel,
    attention_delta_kernel,
)
from lepton_kernels.triton.attention_cached_kernels import (
    attention_cached_kernel,
    attention_merge_kernel,
)
from lepton_kernels.triton.attention_forward import attention_forward_kernel
from lepton_kernels.triton.launch import AotCase

_POINTERS = {
    "alibi_slopes": "*fp32", "sinks": "*fp32", "rng_state": "*i64", "lse": "*fp32",
    "delta": "*fp32", "partial": "*fp32", "grad_lse": "*fp32", "cu_seqlens_q": "*i32",
    "cu_seqlens_k": "*i32", "tile_sequence": "*i32", "tile_row": "*i32", "seqlens_k": "*i32",
    "start_k": "*i32", "batch_index": "*i32", "block_table": "*i32", "key_scale": "*fp32",
    "value_scale": "*fp32", "partial_lse": "*fp32",
}  # fmt: skip
_ELEMENTS = (
    "query", "key", "value", "bias", "out", "grad_out", "grad_query", "grad_key", "grad_value",
)  # fmt: skip
_FLOATS = ("scale", "score_scale", "cap", "dropout_scale")
_OFF = {
    "VARLEN": False, "BOTTOM_RIGHT": False, "LEFT": False, "RIGHT": False, "SOFTCAP": False,
    "ALIBI": False, "BIAS": 0, "SINKS": False, "DROPOUT": False, "ONE_LOOP": False,
    "GRAD_LSE": True, "PAGED": False, "INT8": False, "START": False, "INDEXED": False,
    "ALL_BATCHES": True, "ALL_HEADS": False, "ALL_ROWS": False, "ALL_COLS": False,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"RIGHT": True},
    "all": {
        "RIGHT": True, "LEFT": True, "BOTTOM_RIGHT": True, "SOFTCAP": True, "ALIBI": True,
        "BIAS": 2, "SINKS": True, "DROPOUT": True, "ONE_LOOP": True,
    },
}  # fmt: skip
_KERNELS = {
    "forward": attention_forward_kernel,
    "query": attention_backward_query_kernel,
    "key": attention_backward_key_kernel,
    "bias": attention_backward_bias_kernel,
}


def _case(
    name: str,
    kernel: Any,
    dtype: str,
    dim: int,
    tile: configs.Tile,
    options: dict[str, Any],
    **more: Any,
) -> AotCase:
    constants = {
        **_OFF, "HEAD_DIM": dim, "VALUE_DIM": dim, "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n, "BLOCK_D": dim, "BLOCK_DV": dim, "PRECISION": "ieee", **options,
    }  # fmt: skip
    signature = {}
    pointers = _POINTERS
    if kernel is attention_cached_kernel:
        # Split keys: partial results in float32.
        pointers = {**_POINTERS, "out": "*fp32"}
    for argument in kernel.arg_names:
        if argument in constants:
            continue
        if argument in pointers:
            signature[argument] = pointers[argument]
        elif argument in _ELEMENTS:
            signature[argument] = f"*{dtype}"
        else:
            signature[argument] = "fp32" if argument in _FLOATS else "i32"
    return AotCase(
        name=name,
        kernel=kernel,
        signature=signature,
        constants={k: v for k, v in constants.items() if k in kernel.arg_names},
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        divisible=tuple(a for a in signature if a.startswith("stride_") and "bias" not in a),
        **more,
    )


def aot_cases() -> Iterator[AotCase]:
    """Each kernel in each configuration: with a causal mask alone, and with all options."""
    for kind, kernel in _KERNELS.items():
        for dim in (64, 128, 256):
            tiles = {
                ("bf16", "causal"): configs.FAST.get(kind, {}).get(dim),
                ("bf16", "all"): configs.DEMANDING[kind][dim],
                ("fp32", "all"): configs.FLOAT32[dim],
            }
            for (dtype, options), tile in tiles.items():
                if tile is not None:
                    yield _case(
                        f"attention {kind} {dtype} D{dim} {options}", kernel, dtype, dim, tile,
                        OPTIONS[options], matrix=dtype != "fp32",
                    )  # fmt: skip
    for rows, table in (*configs.CACHED.items(), (16, configs.CACHED_FLOAT32)):
        dtype = "fp32" if table is configs.CACHED_FLOAT32 else "bf16"
        for dim, tile in table.items():
            yield _case(
                f"attention cached {dtype} D{dim} {rows} rows", attention_cached_kernel, dtype, dim,
                tile, {**OPTIONS["all"], "PAGED": True}, matrix=dtype != "fp32",
            )  # fmt: skip
    tile = configs.Tile(4, 1, 4, 1)
    yield _case(
        "attention merge bf16 D128", attention_merge_kernel, "bf16", 128, tile, {}, matrix=False
    )
    tile = configs.Tile(32, 1, 4, 1)
    yield _case(
        "attention delta bf16 D128", attention_delta_kernel, "bf16", 128, tile, {}, matrix=False
    )
