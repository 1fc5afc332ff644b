"""A small end-to-end run on an installation without native code; called by .ci/run."""

import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lepton_kernels as lk
import torch

notices = [w for w in caught if issubclass(w.category, lk.NativeLibraryWarning)]
assert len(notices) == 1, [str(w.message) for w in caught]
print(notices[0].message)
assert lk.info()["backends"] == ["reference"], lk.info()
linear = torch.nn.Linear(48, 20)
x = torch.randn(7, 48, requires_grad=True)
quantized = lk.nn.Int8Linear.from_linear(linear)
y = quantized(x)
y.sum().backward()
assert (y - linear(x)).abs().max() < 0.1
assert x.grad is not None
assert x.grad.isfinite().all()
print("reference backend works without native code")
