"""The bucket ops on a GPU against the same ops on the CPU, bit for bit."""

import pytest
import torch

import lepton_kernels as lk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def tensors():
    counts = [1, 0, 63, 123, 1000, 8192 + 5, 100_000]
    return [torch.randn(n).to(FLOATS[i % 3]) for i, n in enumerate(counts)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("many", [False, True])
def test_flatten_and_back(dtype, many):
    cpu = tensors() * (40 if many else 1)
    gpu = [t.cuda() for t in cpu]
    flat = lk.bucket_flatten(gpu, dtype=dtype, factor=0.3)
    assert torch.equal(flat.cpu(), lk.bucket_flatten(cpu, dtype=dtype, factor=0.3))
    lk.bucket_unflatten_(gpu, flat, factor=2.0)
    lk.bucket_unflatten_(cpu, flat.cpu(), factor=2.0)
    assert all(torch.equal(g.cpu(), c) for g, c in zip(gpu, cpu, strict=True))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("block", [7, 256, 5000])
def test_quantize(dtype, block):
    x, residual = torch.randn(100_003), torch.randn(100_003)
    gpu_residual = residual.cuda()
    q, scale = lk.bucket_quantize(x, residual=residual, block=block, dtype=dtype)
    gq, gscale = lk.bucket_quantize(x.cuda(), residual=gpu_residual, block=block, dtype=dtype)
    assert torch.equal(gq.cpu().view(torch.int8), q.view(torch.int8))
    assert torch.equal(gscale.cpu(), scale)
    assert torch.equal(gpu_residual.cpu(), residual)
    out = lk.bucket_dequantize_(torch.empty_like(x), q, scale, block=block)
    assert torch.equal(
        lk.bucket_dequantize_(torch.empty_like(x).cuda(), gq, gscale, block=block).cpu(), out
    )


def test_reduce_squares_and_unscale():
    cpu = [torch.randn(70_001) for _ in range(3)]
    gpu = [t.cuda() for t in cpu]
    reduced, squares = lk.bucket_reduce(gpu, average=True)
    want, want_squares = lk.bucket_reduce(cpu, average=True)
    assert torch.equal(reduced.cpu(), want)
    assert torch.allclose(squares.cpu(), want_squares, rtol=1e-12)
    assert torch.allclose(lk.bucket_squares(gpu).cpu(), lk.bucket_squares(cpu), rtol=1e-12)
    found, inverse = torch.zeros(1).cuda(), torch.tensor([0.25]).cuda()
    gpu[1][5] = torch.inf
    lk.bucket_unscale_(gpu, found, inverse)
    assert found.item() == 1
    assert torch.equal(gpu[0].cpu(), cpu[0] * 0.25)


def test_tensors_on_two_devices():
    with pytest.raises((ValueError, RuntimeError), match=r"tensors.* must be on"):
        lk.bucket_flatten([torch.ones(3).cuda(), torch.ones(3)])
    with pytest.raises((ValueError, RuntimeError), match="must be on"):
        lk.bucket_quantize(torch.ones(3).cuda(), residual=torch.zeros(3))


def test_streams_are_obeyed():
    x = torch.zeros(2**22).cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        x.fill_(3.0)
        flat = lk.bucket_flatten([x])
    stream.synchronize()
    assert (flat == 3).all()
