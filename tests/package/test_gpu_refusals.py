"""What is said where tensors, backend and GPU don't fit each other; no GPU needed."""

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lepton_kernels as lk
from lepton_kernels import _backend, _dispatch, _library


def linear(device, other=None):
    x = torch.empty(3, 8, device=device)
    weight = torch.empty(4, 8, device=other or device, dtype=torch.int8)
    return lambda: lk.int8_linear(x, weight, torch.empty(4, device=device))


def attention(device, other=None):
    q = torch.empty(1, 2, 5, 8, device=device, dtype=torch.bfloat16)
    k = torch.empty(1, 2, 5, 8, device=other or device, dtype=torch.bfloat16)
    return lambda: lk.scaled_dot_product_attention(q, k, k)


def product(device, other=None):
    a = torch.empty(3, 8, device=device, dtype=torch.int8)
    return lambda: lk.int8_mm(a, torch.empty(8, 4, device=other or device, dtype=torch.int8))


def flatten(device, other=None):
    tensors = [torch.empty(3, device=device), torch.empty(3, device=other or device)]
    return lambda: lk.bucket_flatten(tensors)


def quantize(device, other=None):
    x, residual = torch.empty(9, device=device), torch.empty(9, device=other or device)
    return lambda: lk.bucket_quantize(x, residual=residual)


CALLS = [linear, attention, product, flatten, quantize]


@pytest.fixture
def every_backend(monkeypatch):
    monkeypatch.setattr(_backend, "_available_backends", lambda: list(_backend.BACKENDS))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("backend", "device", "got"),
    [("cuda", "cpu", "cpu"), ("triton", "cpu", "cpu"), ("cpu", "cuda", "cuda:0")],
)
def test_a_forced_backend_refuses_tensors_of_another_device(
    every_backend, call, backend, device, got
):
    expected = f"force_backend is '{backend}', which takes tensors on .*, got .* on {got}"
    with FakeTensorMode(), lk.force_backend(backend):
        run = call(device)
        with pytest.raises(ValueError, match=expected):
            run()


@pytest.mark.parametrize(
    ("dtype", "dim", "refused"),
    [
        (torch.bfloat16, 256, False),
        (torch.float16, 8, False),
        (torch.float32, 64, True),
        (torch.bfloat16, 264, True),
    ],
)
def test_attention_without_a_cuda_kernel_is_refused_where_cuda_is_forced(
    every_backend, dtype, dim, refused
):
    expected = f"at most 256 elements a head, got {str(dtype)[6:]} with {dim}; with force_backend"
    with FakeTensorMode(), lk.force_backend("cuda"):
        q = torch.empty(1, 4, 2, dim, device="cuda", dtype=dtype)
        if refused:
            with pytest.raises(NotImplementedError, match=expected):
                lk.flash_attn_func(q, q, q)
        else:
            lk.flash_attn_func(q, q, q)


@pytest.mark.parametrize("call", CALLS)
def test_nothing_forced_refuses_nothing(call):
    with FakeTensorMode():
        call("cuda")()
        call("cpu")()
    with lk.force_backend("reference"), FakeTensorMode():
        call("cuda")()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda"), ("cuda:0", "cuda:1")])
def test_tensors_on_two_devices(call, devices):
    with FakeTensorMode():
        run = call(*devices)
        with pytest.raises(ValueError, match="must be on"):
            run()


BUILT = ["sm_80", "sm_90a", "sm_100", "PTX"]


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (BUILT, (8, 0), True),
        (BUILT, (8, 9), True),  # by sm_80
        (BUILT, (9, 0), True),
        (BUILT, (10, 3), True),  # by sm_100
        (BUILT, (12, 0), True),  # by PTX
        (BUILT, (7, 5), False),
        (["sm_90a", "PTX"], (10, 0), False),  # there is no PTX of 90a
        (["sm_90a"], (9, 0), True),
        (["sm_86"], (8, 0), False),
    ],
)
def test_which_gpus_a_build_runs_on(architectures, capability, runs):
    message = _library.unsupported_gpu(architectures, capability)
    assert (message == "") is runs
    if not runs:
        major, minor = capability
        assert f"compute capability {major}.{minor} cannot run" in message
        assert "LEPTON_CUDA_ARCHS" in message


def test_a_gpu_that_was_not_compiled_for_is_refused(monkeypatch):
    monkeypatch.setattr(_backend, "CUDA_LIBRARY", "there")
    monkeypatch.setattr(_backend, "CUDA_ARCHITECTURES", BUILT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(ValueError, match=r"holds code for sm_80, .*capability 7\.5 cannot run"):
        lk.force_backend("cuda")


def test_a_build_without_kernels_says_so_once_and_serves_cuda_tensors(monkeypatch):
    if _backend.CUDA_LIBRARY is not None or torch.version.cuda is None:
        pytest.skip("only where no CUDA kernel is registered")
    monkeypatch.setattr(_dispatch, "_warned_of_reference", False)
    a = torch.randint(-9, 9, (3, 8), dtype=torch.int8)
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.warns(lk.NativeLibraryWarning, match="built without CUDA kernels"):
        out = torch.ops.lepton.int8_mm.default.redispatch(keys, a, a.T)
    assert torch.equal(out, a.int() @ a.T.int())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.ops.lepton.int8_mm.default.redispatch(keys, a, a.T)
