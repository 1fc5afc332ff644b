// Torch side of the bucket ops on CUDA.
#include <cstring>
#include <tuple>

#include "cuda/bucket_cuda.h"
#include "cuda/bucket_list.h"
#include "cuda/on_device.h"

namespace lepton {
namespace {

BucketType type_of(const char* op, const char* argument, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return BucketType::f32;
    case ScalarType::BFloat16: return BucketType::bf16;
    case ScalarType::Half: return BucketType::f16;
    default:
      fail(op, ": ", argument, " must be float32, bfloat16 or float16, got ", name_of(dtype));
  }
}

void check_one_device(const char* op, const char* argument, const std::vector<Tensor>& tensors) {
  for (const Tensor& tensor : tensors) {
    OnDevice::check(op, {argument, &tensors[0]}, {{argument, &tensor}});
  }
}

std::vector<Tensor> contiguous(const char* op, const char* argument,
                               const std::vector<Tensor>& given) {
  std::vector<Tensor> tensors;
  for (const Tensor& tensor : given) {
    type_of(op, argument, tensor.scalar_type());
    tensors.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
  }
  return tensors;
}

void check_contiguous(const char* op, const std::vector<Tensor>& tensors) {
  for (const Tensor& tensor : tensors) {
    LEPTON_CHECK(tensor.is_contiguous(), op, ": tensors must be contiguous");
  }
}

// The list on its way to the device. What it holds must live until the launch.
class DeviceList {
 public:
  DeviceList(const char* op, const std::vector<Tensor>& tensors, BucketType flat) {
    for (const Tensor& tensor : tensors) {
      list_.add(tensor.mutable_data_ptr(), tensor.numel(),
                type_of(op, "tensors", tensor.scalar_type()), kBucketAlignBytes / bytes_of(flat));
    }
    if (!list_.fits_inline()) upload(tensors[0]);
  }
  const BucketList& list() const { return list_; }
  BucketTable table() const {
    return list_.table(uploaded_ ? uploaded_->const_data_ptr() : nullptr);
  }

 private:
  // Pinned and not waited for: torch keeps the pinned memory until the copy is done.
  void upload(const Tensor& like) {
    const auto size = static_cast<int64_t>(list_.entries.size() * sizeof(BucketEntry));
    const Tensor pinned = torch::stable::empty({size}, ScalarType::Byte, std::nullopt, std::nullopt,
                                               /*pin_memory=*/true);
    std::memcpy(pinned.mutable_data_ptr(), list_.entries.data(), static_cast<size_t>(size));
    uploaded_ = new_on(like, {size}, ScalarType::Byte);
    torch::stable::copy_(*uploaded_, pinned, /*non_blocking=*/true);
  }
  BucketList list_;
  std::optional<Tensor> uploaded_;
};

Tensor bucket_flatten(const std::vector<Tensor>& given, ScalarType dtype, double factor) {
  constexpr const char* kOp = "bucket_flatten";
  const BucketType to = type_of(kOp, "dtype", dtype);
  check_one_device(kOp, "tensors", given);
  const OnDevice device(kOp, {"tensors", &given[0]});
  const std::vector<Tensor> tensors = contiguous(kOp, "tensors", given);
  const DeviceList device_list(kOp, tensors, to);
  Tensor flat = new_on(given[0], {device_list.list().length}, dtype);
  bucket_copy_cuda({device_list.table(), flat.mutable_data_ptr(), static_cast<float>(factor), true},
                   to, device_list.list().chunks, device.stream());
  return flat;
}

void bucket_unflatten(const std::vector<Tensor>& tensors, const Tensor& flat, double factor) {
  constexpr const char* kOp = "bucket_unflatten_";
  const BucketType from = type_of(kOp, "flat", flat.scalar_type());
  const OnDevice device(kOp, {"flat", &flat});
  check_contiguous(kOp, tensors);
  if (tensors.empty()) return;
  check_one_device(kOp, "tensors", tensors);
  OnDevice::check(kOp, {"flat", &flat}, {{"tensors", &tensors[0]}});
  const DeviceList device_list(kOp, tensors, from);
  LEPTON_CHECK(flat.dim() == 1 && flat.numel() == device_list.list().length && flat.is_contiguous(),
               kOp, ": flat must have shape (", device_list.list().length,
               ",) and be contiguous, got ", tuple(flat.sizes()));
  bucket_copy_cuda({device_list.table(), flat.mutable_data_ptr(), static_cast<float>(factor)}, from,
                   false, device_list.list().chunks, device.stream());
}

std::tuple<Tensor, Tensor> bucket_reduce(const std::vector<Tensor>& given, bool average,
                                         ScalarType dtype) {
  constexpr const char* kOp = "bucket_reduce";
  LEPTON_CHECK(!given.empty(), kOp, ": inputs must hold at least one tensor, got none");
  check_one_device(kOp, "inputs", given);
  const OnDevice device(kOp, {"inputs", &given[0]});
  const std::vector<Tensor> inputs = contiguous(kOp, "inputs", given);
  const BucketType in = type_of(kOp, "inputs", inputs[0].scalar_type());
  const BucketType out = type_of(kOp, "dtype", dtype);
  const int64_t count = inputs[0].numel();
  bool vector = true;
  for (const Tensor& tensor : inputs) {
    LEPTON_CHECK(tensor.numel() == count && tensor.scalar_type() == inputs[0].scalar_type(), kOp,
                 ": inputs must have one dtype and shape");
    vector = vector && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  }
  const DeviceList device_list(kOp, inputs, in);
  Tensor reduced = new_on(inputs[0], {given[0].sizes().begin(), given[0].sizes().end()}, dtype);
  Tensor squares = new_on(inputs[0], {}, ScalarType::Double);
  const int64_t chunks = (count + kBucketChunkElements - 1) / kBucketChunkElements;
  Tensor partial = new_on(inputs[0], {chunks}, ScalarType::Double);
  BucketSum p{device_list.table(),
              reduced.mutable_data_ptr(),
              static_cast<double*>(partial.mutable_data_ptr()),
              count,
              average ? static_cast<float>(inputs.size()) : 1.0f,
              vector};
  bucket_sum_cuda(p, in, out, static_cast<double*>(squares.mutable_data_ptr()), device.stream());
  return {reduced, squares};
}

void bucket_unscale(const std::vector<Tensor>& tensors, const Tensor& found_inf,
                    const Tensor& inverse) {
  constexpr const char* kOp = "bucket_unscale_";
  const OnDevice device(kOp, {"found_inf", &found_inf}, {{"inverse", &inverse}});
  for (const Tensor* one : {&found_inf, &inverse}) {
    LEPTON_CHECK(one->scalar_type() == ScalarType::Float && one->numel() == 1, kOp,
                 ": found_inf and inverse must be float32 with one element");
  }
  if (tensors.empty()) return;
  check_contiguous(kOp, tensors);
  check_one_device(kOp, "tensors", tensors);
  OnDevice::check(kOp, {"found_inf", &found_inf}, {{"tensors", &tensors[0]}});
  const DeviceList device_list(kOp, tensors, BucketType::f32);
  bucket_unscale_cuda({device_list.table(), static_cast<const float*>(inverse.const_data_ptr()),
                       static_cast<float*>(found_inf.mutable_data_ptr())},
                      device_list.list().chunks, device.stream());
}

Tensor bucket_squares(const std::vector<Tensor>& given) {
  constexpr const char* kOp = "bucket_squares";
  check_one_device(kOp, "tensors", given);
  const OnDevice device(kOp, {"tensors", &given[0]});
  const std::vector<Tensor> tensors = contiguous(kOp, "tensors", given);
  const DeviceList device_list(kOp, tensors, BucketType::f32);
  Tensor partial = new_on(given[0], {device_list.list().chunks}, ScalarType::Double);
  Tensor out = new_on(given[0], {static_cast<int64_t>(tensors.size())}, ScalarType::Double);
  bucket_squares_cuda({device_list.table(), static_cast<double*>(partial.mutable_data_ptr())},
                      static_cast<double*>(out.mutable_data_ptr()), device_list.list().chunks,
                      device.stream());
  return out;
}

std::tuple<Tensor, Tensor> bucket_quantize(const Tensor& x, std::optional<Tensor> residual,
                                           int64_t block, bool fp8) {
  constexpr const char* kOp = "bucket_quantize";
  const OnDevice device(kOp, {"x", &x}, {{"residual", residual ? &*residual : nullptr}});
  LEPTON_CHECK(x.dim() == 1 && x.is_contiguous(), kOp, ": x must have shape (elements,), got ",
               tuple(x.sizes()));
  LEPTON_CHECK(block >= 1, kOp, ": block must be at least 1, got ", block);
  Tensor q = new_on(x, {x.numel()}, ScalarType::Char);
  Tensor scale = new_on(x, {(x.numel() + block - 1) / block}, ScalarType::Float);
  BucketQuantize p{x.const_data_ptr(),
                   type_of(kOp, "x", x.scalar_type()),
                   nullptr,
                   static_cast<int8_t*>(q.mutable_data_ptr()),
                   static_cast<float*>(scale.mutable_data_ptr()),
                   x.numel(),
                   block,
                   fp8};
  if (residual) {
    LEPTON_CHECK(residual->scalar_type() == ScalarType::Float && residual->is_contiguous() &&
                     residual->dim() == 1 && residual->numel() == x.numel(),
                 kOp, ": residual must be float32 of shape ", tuple(x.sizes()));
    p.residual = static_cast<float*>(residual->mutable_data_ptr());
  }
  bucket_quantize_cuda(p, device.stream());
  return {q, scale};
}

void bucket_dequantize(const Tensor& out, const Tensor& q, const Tensor& scale, int64_t block,
                       bool fp8, double factor, bool accumulate) {
  constexpr const char* kOp = "bucket_dequantize_";
  const OnDevice device(kOp, {"out", &out}, {{"q", &q}, {"scale", &scale}});
  LEPTON_CHECK(block >= 1, kOp, ": block must be at least 1, got ", block);
  const int64_t blocks = (out.numel() + block - 1) / block;
  LEPTON_CHECK(out.is_contiguous() && q.is_contiguous() && scale.is_contiguous() &&
                   q.scalar_type() == ScalarType::Char && q.numel() == out.numel() &&
                   scale.scalar_type() == ScalarType::Float && scale.numel() == blocks,
               kOp, ": q must be int8 like out and scale float32 of shape (", blocks,
               ",), all contiguous");
  bucket_dequantize_cuda({static_cast<const int8_t*>(q.const_data_ptr()),
                          static_cast<const float*>(scale.const_data_ptr()), out.mutable_data_ptr(),
                          type_of(kOp, "out", out.scalar_type()), static_cast<float>(factor),
                          accumulate, out.numel(), block, fp8},
                         device.stream());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CUDA, m) {
  m.impl("bucket_flatten", TORCH_BOX(&bucket_flatten));
  m.impl("bucket_unflatten_", TORCH_BOX(&bucket_unflatten));
  m.impl("bucket_reduce", TORCH_BOX(&bucket_reduce));
  m.impl("bucket_unscale_", TORCH_BOX(&bucket_unscale));
  m.impl("bucket_squares", TORCH_BOX(&bucket_squares));
  m.impl("bucket_quantize", TORCH_BOX(&bucket_quantize));
  m.impl("bucket_dequantize_", TORCH_BOX(&bucket_dequantize));
}

}  // namespace lepton
