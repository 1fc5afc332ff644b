// Torch side of the bucket ops on the CPU.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>

#include "cpu/bucket_kernels.h"
#include "ops/tensor.h"

namespace lepton {
namespace {

constexpr int64_t kAlignBytes = 64;
// Elements of one task: a part of the L2, and few enough tasks to cost nothing.
constexpr int64_t kGrain = 32768;

BucketType type_of(const char* op, const char* argument, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return BucketType::f32;
    case ScalarType::BFloat16: return BucketType::bf16;
    case ScalarType::Half: return BucketType::f16;
    default:
      fail(op, ": ", argument, " must be float32, bfloat16, float16, got ",
           name_of(tensor.scalar_type()));
  }
}

BucketType type_of(const char* op, ScalarType dtype) {
  LEPTON_CHECK(is_float(dtype), op, ": dtype must be float32, bfloat16 or float16, got ",
               name_of(dtype));
  return dtype == ScalarType::Float      ? BucketType::f32
         : dtype == ScalarType::BFloat16 ? BucketType::bf16
                                         : BucketType::f16;
}

uint8_t* bytes(const Tensor& tensor) { return static_cast<uint8_t*>(tensor.mutable_data_ptr()); }
const uint8_t* const_bytes(const Tensor& tensor) {
  return static_cast<const uint8_t*>(tensor.const_data_ptr());
}

// A range of one tensor: what a thread works on, so that many small tensors and few large ones
// split alike.
struct Part {
  int64_t tensor, begin, end;
};

std::vector<Part> split_into_parts(const std::vector<Tensor>& tensors) {
  std::vector<Part> parts;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const int64_t count = tensors[t].numel();
    for (int64_t begin = 0; begin < count; begin += kGrain) {
      parts.push_back({static_cast<int64_t>(t), begin, std::min(begin + kGrain, count)});
    }
  }
  return parts;
}

// Calls body(part index) for all, on torch's threads; several small parts a task.
template <class Body>
void for_parts(const std::vector<Part>& parts, const Body& body) {
  int64_t elements = 0;
  for (const Part& part : parts) elements += part.end - part.begin;
  const auto count = static_cast<int64_t>(parts.size());
  const int64_t grain = elements == 0 ? 1 : std::max<int64_t>(1, count * kGrain / elements);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

std::vector<int64_t> offsets_of(const std::vector<Tensor>& tensors, int64_t element_bytes,
                                int64_t& length) {
  const int64_t align = kAlignBytes / element_bytes;
  std::vector<int64_t> offsets;
  length = 0;
  for (const Tensor& tensor : tensors) {
    offsets.push_back(length);
    length += (tensor.numel() + align - 1) / align * align;
  }
  return offsets;
}

Tensor bucket_flatten(const std::vector<Tensor>& given, ScalarType dtype, double factor) {
  constexpr const char* kOp = "bucket_flatten";
  const BucketType to = type_of(kOp, dtype);
  std::vector<Tensor> tensors;
  for (const Tensor& tensor : given) {
    type_of(kOp, "tensors", tensor);
    tensors.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
  }
  int64_t length;
  const int64_t size = bytes_of(to);
  const std::vector<int64_t> offsets = offsets_of(tensors, size, length);
  Tensor flat = new_tensor({length}, dtype);
  uint8_t* out = bytes(flat);
  for (size_t t = 0; t < tensors.size(); ++t) {
    const int64_t end = offsets[t] + tensors[t].numel();
    const int64_t next = t + 1 < tensors.size() ? offsets[t + 1] : length;
    std::memset(out + end * size, 0, static_cast<size_t>((next - end) * size));
  }
  const BucketKernels& kernels = choose_bucket_kernels();
  const std::vector<Part> parts = split_into_parts(tensors);
  for_parts(parts, [&](int64_t i) {
    const Part& part = parts[static_cast<size_t>(i)];
    const auto t = static_cast<size_t>(part.tensor);
    const BucketType from = type_of(kOp, "tensors", tensors[t]);
    kernels.convert(const_bytes(tensors[t]) + part.begin * bytes_of(from), from,
                    out + (offsets[t] + part.begin) * size, to, static_cast<float>(factor),
                    part.end - part.begin);
  });
  return flat;
}

void bucket_unflatten(const std::vector<Tensor>& tensors, const Tensor& flat, double factor) {
  constexpr const char* kOp = "bucket_unflatten_";
  const BucketType from = type_of(kOp, "flat", flat);
  int64_t length;
  const std::vector<int64_t> offsets = offsets_of(tensors, bytes_of(from), length);
  LEPTON_CHECK(flat.dim() == 1 && flat.numel() == length && flat.is_contiguous(), kOp,
               ": flat must have shape (", length, ",) and be contiguous, got ",
               tuple(flat.sizes()));
  for (const Tensor& tensor : tensors) {
    type_of(kOp, "tensors", tensor);
    LEPTON_CHECK(tensor.is_contiguous(), kOp, ": tensors must be contiguous");
  }
  const BucketKernels& kernels = choose_bucket_kernels();
  const std::vector<Part> parts = split_into_parts(tensors);
  for_parts(parts, [&](int64_t i) {
    const Part& part = parts[static_cast<size_t>(i)];
    const auto t = static_cast<size_t>(part.tensor);
    const BucketType to = type_of(kOp, "tensors", tensors[t]);
    kernels.convert(const_bytes(flat) + (offsets[t] + part.begin) * bytes_of(from), from,
                    bytes(tensors[t]) + part.begin * bytes_of(to), to, static_cast<float>(factor),
                    part.end - part.begin);
  });
}

std::tuple<Tensor, Tensor> bucket_reduce(const std::vector<Tensor>& given, bool average,
                                         ScalarType dtype) {
  constexpr const char* kOp = "bucket_reduce";
  LEPTON_CHECK(!given.empty(), kOp, ": inputs must hold at least one tensor, got none");
  std::vector<Tensor> inputs;
  std::vector<const void*> in;
  for (const Tensor& tensor : given) {
    LEPTON_CHECK(
        tensor.numel() == given[0].numel() && tensor.scalar_type() == given[0].scalar_type(), kOp,
        ": inputs must have one dtype and shape");
    inputs.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
    in.push_back(inputs.back().const_data_ptr());
  }
  Tensor reduced = new_tensor({given[0].sizes().begin(), given[0].sizes().end()}, dtype);
  Tensor squares = new_tensor({}, ScalarType::Double);
  void* out[1] = {reduced.mutable_data_ptr()};
  const BucketReduce p{in.data(),
                       static_cast<int32_t>(in.size()),
                       out,
                       1,
                       type_of(kOp, "inputs", inputs[0]),
                       type_of(kOp, dtype),
                       average ? static_cast<float>(in.size()) : 1.0f};
  const BucketKernels& kernels = choose_bucket_kernels();
  // Partial sums of fixed ranges in a fixed order: the same bits for any number of threads.
  const std::vector<Part> parts = split_into_parts({reduced});
  std::vector<double> partial(parts.size());
  for_parts(parts, [&](int64_t i) {
    const Part& part = parts[static_cast<size_t>(i)];
    partial[static_cast<size_t>(i)] = kernels.reduce(p, part.begin, part.end, true);
  });
  double total = 0.0;
  for (double value : partial) total += value;
  std::memcpy(squares.mutable_data_ptr(), &total, sizeof total);
  return {reduced, squares};
}

void bucket_unscale(const std::vector<Tensor>& tensors, const Tensor& found_inf,
                    const Tensor& inverse) {
  constexpr const char* kOp = "bucket_unscale_";
  for (const Tensor* one : {&found_inf, &inverse}) {
    LEPTON_CHECK(one->scalar_type() == ScalarType::Float && one->numel() == 1, kOp,
                 ": found_inf and inverse must be float32 with one element");
  }
  for (const Tensor& tensor : tensors) {
    type_of(kOp, "tensors", tensor);
    LEPTON_CHECK(tensor.is_contiguous(), kOp, ": tensors must be contiguous");
  }
  const float factor = *static_cast<const float*>(inverse.const_data_ptr());
  const BucketKernels& kernels = choose_bucket_kernels();
  const std::vector<Part> parts = split_into_parts(tensors);
  std::atomic<bool> finite{true};
  for_parts(parts, [&](int64_t i) {
    const Part& part = parts[static_cast<size_t>(i)];
    const Tensor& tensor = tensors[static_cast<size_t>(part.tensor)];
    const BucketType type = type_of(kOp, "tensors", tensor);
    if (!kernels.unscale(bytes(tensor) + part.begin * bytes_of(type), type, factor,
                         part.end - part.begin)) {
      finite.store(false, std::memory_order_relaxed);
    }
  });
  if (!finite.load()) *static_cast<float*>(found_inf.mutable_data_ptr()) = 1.0f;
}

Tensor bucket_squares(const std::vector<Tensor>& given) {
  constexpr const char* kOp = "bucket_squares";
  std::vector<Tensor> tensors;
  for (const Tensor& tensor : given) {
    type_of(kOp, "tensors", tensor);
    tensors.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
  }
  const BucketKernels& kernels = choose_bucket_kernels();
  const std::vector<Part> parts = split_into_parts(tensors);
  std::vector<double> partial(parts.size());
  for_parts(parts, [&](int64_t i) {
    const Part& part = parts[static_cast<size_t>(i)];
    const Tensor& tensor = tensors[static_cast<size_t>(part.tensor)];
    const BucketType type = type_of(kOp, "tensors", tensor);
    partial[static_cast<size_t>(i)] = kernels.squares(
        const_bytes(tensor) + part.begin * bytes_of(type), type, part.end - part.begin);
  });
  Tensor out = new_tensor({static_cast<int64_t>(tensors.size())}, ScalarType::Double);
  auto* sums = static_cast<double*>(out.mutable_data_ptr());
  std::fill(sums, sums + tensors.size(), 0.0);
  for (size_t i = 0; i < parts.size(); ++i) sums[parts[i].tensor] += partial[i];
  return out;
}

std::tuple<Tensor, Tensor> bucket_quantize(const Tensor& x, std::optional<Tensor> residual,
                                           int64_t block, bool fp8) {
  constexpr const char* kOp = "bucket_quantize";
  LEPTON_CHECK(x.dim() == 1 && x.is_contiguous(), kOp, ": x must have shape (elements,), got ",
               tuple(x.sizes()));
  LEPTON_CHECK(block >= 1, kOp, ": block must be at least 1, got ", block);
  const int64_t blocks = (x.numel() + block - 1) / block;
  Tensor q = new_tensor({x.numel()}, ScalarType::Char);
  Tensor scale = new_tensor({blocks}, ScalarType::Float);
  BucketQuantize p{x.const_data_ptr(),
                   type_of(kOp, "x", x),
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
  const BucketKernels& kernels = choose_bucket_kernels();
  const int64_t grain = std::max<int64_t>(1, kGrain / block);
  torch::stable::parallel_for(0, blocks, grain,
                              [&](int64_t begin, int64_t end) { kernels.quantize(p, begin, end); });
  return {q, scale};
}

void bucket_dequantize(const Tensor& out, const Tensor& q, const Tensor& scale, int64_t block,
                       bool fp8, double factor, bool accumulate) {
  constexpr const char* kOp = "bucket_dequantize_";
  LEPTON_CHECK(block >= 1, kOp, ": block must be at least 1, got ", block);
  const int64_t blocks = (out.numel() + block - 1) / block;
  LEPTON_CHECK(out.is_contiguous() && q.is_contiguous() && scale.is_contiguous() &&
                   q.scalar_type() == ScalarType::Char && q.numel() == out.numel() &&
                   scale.scalar_type() == ScalarType::Float && scale.numel() == blocks,
               kOp, ": q must be int8 like out and scale float32 of shape (", blocks,
               ",), all contiguous");
  const BucketDequantize p{static_cast<const int8_t*>(q.const_data_ptr()),
                           static_cast<const float*>(scale.const_data_ptr()),
                           out.mutable_data_ptr(),
                           type_of(kOp, "out", out),
                           static_cast<float>(factor),
                           accumulate,
                           out.numel(),
                           block,
                           fp8};
  const BucketKernels& kernels = choose_bucket_kernels();
  const int64_t grain = std::max<int64_t>(1, kGrain / block);
  torch::stable::parallel_for(
      0, blocks, grain, [&](int64_t begin, int64_t end) { kernels.dequantize(p, begin, end); });
}

void bucket_outer(const Tensor& out, const std::vector<Tensor>& left,
                  const std::vector<Tensor>& right, double divisor) {
  constexpr const char* kOp = "bucket_outer_";
  const BucketType type = type_of(kOp, "out", out);
  LEPTON_CHECK(out.dim() == 2 && out.is_contiguous(), kOp,
               ": out must be contiguous of shape (rows, columns), got ", tuple(out.sizes()));
  LEPTON_CHECK(left.size() == right.size(), kOp, ": left and right must be of one length");
  const int64_t rows = out.size(0), columns = out.size(1);
  int64_t terms = 0;
  std::vector<BucketFactors> sources;
  std::vector<Tensor> kept;
  for (size_t i = 0; i < left.size(); ++i) {
    for (const Tensor* factor : {&left[i], &right[i]}) {
      LEPTON_CHECK(factor->dim() == 2 && factor->scalar_type() == out.scalar_type() &&
                       factor->size(0) == left[i].size(0) &&
                       factor->size(1) == (factor == &left[i] ? rows : columns),
                   kOp, ": factors must be like out and of shapes (terms, ", rows, ") and (terms, ",
                   columns, ")");
      kept.push_back(factor->is_contiguous() ? *factor : torch::stable::contiguous(*factor));
    }
    sources.push_back(
        {kept[2 * i].const_data_ptr(), kept[2 * i + 1].const_data_ptr(), left[i].size(0), nullptr});
    terms += left[i].size(0);
  }
  void* to[1] = {out.mutable_data_ptr()};
  const int64_t scratch_count = outer_scratch_count(terms, columns);
  const BucketKernels& kernels = choose_bucket_kernels();
  // Every task lays the right factors out anew: some hundred rows repay that.
  torch::stable::parallel_for(0, rows, 120, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(scratch_count));
    kernels.outer({sources.data(), static_cast<int32_t>(sources.size()), to, 1, rows, columns, type,
                   static_cast<float>(divisor), scratch.data(), scratch_count},
                  begin, end);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CPU, m) {
  m.impl("bucket_flatten", TORCH_BOX(&bucket_flatten));
  m.impl("bucket_unflatten_", TORCH_BOX(&bucket_unflatten));
  m.impl("bucket_reduce", TORCH_BOX(&bucket_reduce));
  m.impl("bucket_unscale_", TORCH_BOX(&bucket_unscale));
  m.impl("bucket_squares", TORCH_BOX(&bucket_squares));
  m.impl("bucket_quantize", TORCH_BOX(&bucket_quantize));
  m.impl("bucket_dequantize_", TORCH_BOX(&bucket_dequantize));
  m.impl("bucket_outer_", TORCH_BOX(&bucket_outer));
}

}  // namespace lepton
