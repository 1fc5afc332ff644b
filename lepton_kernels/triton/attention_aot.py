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
from lepton_kernels.triton.launch import FEW_ROWS, NO_PRODUCT, AotCase

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
    "causal": {"RIGHT": True, "group": 1},  # Triton makes constants of arguments that are 1
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

_CACHED: dict[int, dict[str, Any]] = {
    16: {"PAGED": True, "INT8": True, "q_len": 1},
    64: {"PAGED": True, "VARLEN": True},
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
        if options.get("INT8"):
            pointers |= {"key": "*i8", "value": "*i8"}
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


# By the kind of products: dtype of the tensors, `PRECISION`, why there is no matrix instruction.
_PRODUCTS = {
    "bf16": ("bf16", "ieee", ""),
    "tf32": ("fp32", "tf32", ""),
    "fp32": ("fp32", "ieee", "exact float32 products, on the ordinary units"),
}


def _product_case(
    name: str,
    kernel: Any,
    products: str,
    dim: int,
    tile: configs.Tile,
    options: dict[str, Any],
    capabilities: tuple[int, ...] = (80, 90, 100),
) -> AotCase:
    dtype, precision, no_matrix = _PRODUCTS[products]
    # Scores of the keys' kernel lie transposed: its rows are keys.
    rows = tile.block_n if kernel is attention_backward_key_kernel else tile.block_m
    return _case(
        f"attention {name}", kernel, dtype, dim, tile, {**options, "PRECISION": precision},
        no_matrix=no_matrix, mma_sync=FEW_ROWS if rows < 64 and not no_matrix else "",
        capabilities=capabilities,
    )  # fmt: skip


def aot_cases() -> Iterator[AotCase]:
    """Each kernel in each configuration: with a causal mask alone, and with all options."""
    for kind, kernel in _KERNELS.items():
        for dim in (64, 128, 256):
            for products, options, table in (
                ("bf16", "causal", configs.FAST),
                ("bf16", "all", configs.DEMANDING),
                ("tf32", "all", configs.TF32),
                ("fp32", "all", configs.FLOAT32),
            ):
                if kind in table:
                    only_sm90 = dim == 256 and table is configs.FAST and kind in configs.FAST_256
                    yield _product_case(
                        f"{kind} {products} D{dim} {options}", kernel, products, dim,
                        table[kind][dim], OPTIONS[options], (90,) if only_sm90 else (80, 90, 100),
                    )  # fmt: skip
    for kind, tile in configs.FAST_256.items():
        yield _product_case(
            f"{kind} bf16 D256 causal 64 rows", _KERNELS[kind], "bf16", 256, tile,
            OPTIONS["causal"], (80, 100),
        )  # fmt: skip
    for rows, products, tiles in (
        *((rows, "bf16", tiles) for rows, tiles in configs.CACHED.items()),
        (16, "tf32", configs.CACHED_FLOAT32),
        (16, "fp32", configs.CACHED_FLOAT32),
    ):
        for dim, tile in tiles.items():
            yield _product_case(
                f"cached {products} D{dim} {rows} rows", attention_cached_kernel, products, dim,
                tile, {**OPTIONS["all"], **_CACHED[rows]},
            )  # fmt: skip
    for name, kernel, rows in (
        ("merge", attention_merge_kernel, 4),
        ("delta", attention_delta_kernel, 32),
    ):
        yield _case(
            f"attention {name} bf16 D128", kernel, "bf16", 128, configs.Tile(rows, 1, 4, 1), {},
            no_matrix=NO_PRODUCT,
        )  # fmt: skip
