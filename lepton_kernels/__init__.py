"""Fast kernels for PyTorch on any CPU: attention, int8 and sparse matrix products.

    import lepton_kernels as lk
    weight, scale = lk.quantize_int8(linear.weight)
    y = lk.int8_linear(x, lk.pack_int8_weight(weight), scale, linear.bias)

`lk.info()` tells what runs where.
"""

from lepton_kernels import _backend
from lepton_kernels._backend import force_backend, force_isa, info
from lepton_kernels._library import NativeLibraryWarning
from lepton_kernels._version import __version__
from lepton_kernels.bucket_planner import PlannedBucket, plan_buckets, tuned_bucket_bytes
from lepton_kernels.ops.attention import scaled_dot_product_attention
from lepton_kernels.ops.bucket import (
    bucket_dequantize_,
    bucket_flatten,
    bucket_outer_,
    bucket_quantize,
    bucket_reduce,
    bucket_squares,
    bucket_unflatten_,
    bucket_unscale_,
)
from lepton_kernels.ops.flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from lepton_kernels.ops.int8_linear import int8_linear, pack_int8_weight, unpack_int8_weight
from lepton_kernels.ops.int8_linear_qat import int8_linear_qat
from lepton_kernels.ops.int8_mm import int8_mm
from lepton_kernels.ops.kvcache import flash_attn_with_kvcache
from lepton_kernels.ops.quantize_int8 import quantize_int8
from lepton_kernels.ops.sparse_linear import sparse_linear
from lepton_kernels.ops.sparse_weight import SparseWeight, pack_sparse, unpack_sparse
from lepton_kernels.shm_communicator import ShmCommunicator, ShmUnavailable

from lepton_kernels import integrations, nn  # isort: skip  (they use the names above)

_backend.apply_environment()
_backend.register_gpu_backends()

__all__ = [
    "NativeLibraryWarning",
    "PlannedBucket",
    "ShmCommunicator",
    "ShmUnavailable",
    "SparseWeight",
    "__version__",
    "bucket_dequantize_",
    "bucket_flatten",
    "bucket_outer_",
    "bucket_quantize",
    "bucket_reduce",
    "bucket_squares",
    "bucket_unflatten_",
    "bucket_unscale_",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "force_backend",
    "force_isa",
    "info",
    "int8_linear",
    "int8_linear_qat",
    "int8_mm",
    "integrations",
    "nn",
    "pack_int8_weight",
    "pack_sparse",
    "plan_buckets",
    "quantize_int8",
    "scaled_dot_product_attention",
    "sparse_linear",
    "tuned_bucket_bytes",
    "unpack_int8_weight",
    "unpack_sparse",
]
