// Torch side of the int8 family on CUDA. What only the data of a tensor can tell is not checked
// here, as reading it would wait for the GPU: a scale that is not finite gives NaN.
// unpack_int8_weight, which must read a header, stays with the reference.
#include <tuple>

#include "cuda/finish_arguments.h"
#include "cuda/int8_linear_cuda.h"
#include "ops/int8_arguments.h"

namespace lepton {
namespace {

constexpr const char* kOp = "int8_linear";

uint8_t* bytes_of(const Tensor& tensor) { return static_cast<uint8_t*>(tensor.mutable_data_ptr()); }

void run(const Tensor& x, Int8Call& call, const OnDevice& device) {
  const Tensor scratch = new_on(x, {prepare_int8_call(call)}, ScalarType::Byte);
  enqueue_int8_call(call, bytes_of(scratch), device.stream());
}

Tensor pack_int8_weight(const Tensor& weight, int64_t group_size) {
  constexpr const char* op = "pack_int8_weight";
  LEPTON_CHECK(weight.scalar_type() == ScalarType::Char, op, ": weight must be int8, got ",
               name_of(weight.scalar_type()));
  LEPTON_CHECK(weight.dim() == 2, op, ": weight must have shape (out_features, in_features), got ",
               tuple(weight.sizes()));
  LEPTON_CHECK(group_size >= 0 && (group_size == 0 || weight.size(1) % group_size == 0), op,
               ": group_size must divide in_features ", weight.size(1), ", got ", group_size);
  const OnDevice device(op, {"weight", &weight});
  const auto header = PackedHeader::make(weight.size(0), weight.size(1), group_size);
  LEPTON_CHECK(header.groups() < 65536, op, ": the CUDA kernels take at most 65535 groups, got ",
               header.groups());
  Tensor packed = new_on(weight, {header.bytes()}, ScalarType::Byte);
  PackParams p = pack_params(header, bytes_of(packed));
  p.weight = data_of<int8_t>(weight);
  p.n_stride = weight.stride(0), p.k_stride = weight.stride(1);
  enqueue_pack_int8_weight(p, device.stream());
  return packed;
}

// The packed weight's sections; its size is all that is known of it without waiting.
PackParams open_packed(const char* op, const Tensor& packed, const PackedHeader& header) {
  LEPTON_CHECK(
      packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous(), op,
      ": weight must be int8 (out_features, in_features) or come from pack_int8_weight");
  LEPTON_CHECK(packed.size(0) == header.bytes(), op, ": packed weight has ", packed.size(0),
               " bytes, one of shape (", header.out_features, ", ", header.in_features, ") and ",
               header.groups(), " groups has ", header.bytes());
  // The kernels only read it.
  return pack_params(header, const_cast<uint8_t*>(data_of<uint8_t>(packed)));
}

// A quantiser's parameter: one value, or one per row of x.
int32_t row_stride(const char* name, const Tensor& tensor, ScalarType dtype, int64_t rows) {
  return static_cast<int32_t>(int8_row_stride(kOp, name, tensor, dtype, rows));
}

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                   std::optional<Tensor> bias, std::optional<Tensor> residual,
                   std::optional<Tensor> x_scale, std::optional<Tensor> x_zero_point,
                   std::optional<Tensor> out_scale, std::optional<Tensor> out_zero_point,
                   bool weight_only, int64_t activation, ScalarType out_dtype) {
  LEPTON_CHECK(x.dim() >= 1, kOp, ": x must have shape (..., in_features), got ()");
  const auto given = [](const std::optional<Tensor>& tensor) {
    return tensor ? &*tensor : nullptr;
  };
  const OnDevice device(kOp, {"x", &x},
                        {{"weight", &weight},
                         {"weight_scale", &weight_scale},
                         {"bias", given(bias)},
                         {"residual", given(residual)},
                         {"x_scale", given(x_scale)},
                         {"x_zero_point", given(x_zero_point)},
                         {"out_scale", given(out_scale)},
                         {"out_zero_point", given(out_zero_point)}});
  const Rows rows = as_rows(x);
  Int8Call call{};
  call.x_dtype = cuda_dtype(kOp, "x", x.scalar_type());
  const auto [canonical, out_features, groups] =
      check_int8_weight(kOp, rows, call.x_dtype, weight, weight_scale, x_scale.has_value(),
                        x_zero_point.has_value(), weight_only);
  const auto header =
      PackedHeader::make(out_features, rows.columns, groups > 1 ? rows.columns / groups : 0);
  LEPTON_CHECK(groups < 65536, kOp, ": the CUDA kernels take at most 65535 groups, got ", groups);

  call.m = to_int32(kOp, "rows of x", rows.count);
  call.n = to_int32(kOp, "out_features", out_features);
  call.n_padded = to_int32(kOp, "out_features", header.out_padded);
  to_int32(kOp, "in_features", 6 * header.in_padded);
  call.layout = header.layout();
  call.x = rows.tensor.const_data_ptr();
  call.x_stride = rows.stride;
  call.weight_only = weight_only;
  if (canonical) {
    call.weight = data_of<int8_t>(weight);
    call.weight_n_stride = weight.stride(0), call.weight_k_stride = weight.stride(1);
  } else {
    const PackParams packed = open_packed(kOp, weight, header);
    call.tiles = packed.tiles, call.weight_sum = packed.sums;
  }
  if (x_scale) {
    call.x_scale = data_of<float>(*x_scale);
    call.x_scale_stride = row_stride("x_scale", *x_scale, ScalarType::Float, rows.count);
  }
  if (x_zero_point) {
    call.x_zero_point = data_of<int32_t>(*x_zero_point);
    call.x_zero_point_stride =
        row_stride("x_zero_point", *x_zero_point, ScalarType::Int, rows.count);
  }

  FinishParams& f = call.finish;
  const Tensor scale = dense_floats(weight_scale);
  f.weight_scale = data_of<float>(scale);
  f.weight_scale_stride = weight_scale.dim() == 0 ? 0 : static_cast<int32_t>(groups);
  const FinishTensors kept =
      set_finish(f, kOp, x, out_features, bias, residual, activation, out_dtype);
  check_int8_output(kOp, f.out_dtype, out_scale.has_value(), out_zero_point.has_value());
  if (out_scale) {
    row_stride("out_scale", *out_scale, ScalarType::Float, 1);
    f.out_scale = data_of<float>(*out_scale);
  }
  if (out_zero_point) {
    row_stride("out_zero_point", *out_zero_point, ScalarType::Int, 1);
    f.out_zero_point = data_of<int32_t>(*out_zero_point);
  }
  run(x, call, device);
  return kept.out;
}

Tensor int8_mm(const Tensor& a, const Tensor& b) {
  constexpr const char* op = "int8_mm";
  LEPTON_CHECK(a.scalar_type() == ScalarType::Char, op, ": a must be int8, got ",
               name_of(a.scalar_type()));
  LEPTON_CHECK(b.scalar_type() == ScalarType::Char, op, ": b must be int8, got ",
               name_of(b.scalar_type()));
  LEPTON_CHECK(a.dim() == 2, op, ": a must have shape (M, K), got ", tuple(a.sizes()));
  LEPTON_CHECK(b.dim() == 2 && b.size(0) == a.size(1), op, ": b must have shape (", a.size(1),
               ", N) to match a, got ", tuple(b.sizes()));
  const OnDevice device(op, {"a", &a}, {{"b", &b}});
  const Rows rows = as_rows(a);
  const auto header = PackedHeader::make(b.size(1), b.size(0), 0);
  Tensor out = new_on(a, {a.size(0), b.size(1)}, ScalarType::Int);
  Int8Call call{};
  call.m = to_int32(op, "rows of a", rows.count);
  call.n = to_int32(op, "columns of b", b.size(1));
  call.n_padded = to_int32(op, "columns of b", header.out_padded);
  to_int32(op, "rows of b", header.in_padded);
  call.layout = header.layout();
  call.x = rows.tensor.const_data_ptr(), call.x_stride = rows.stride, call.x_dtype = DType::i8;
  call.weight = data_of<int8_t>(b);
  call.weight_n_stride = b.stride(1), call.weight_k_stride = b.stride(0);
  call.finish.out = out.mutable_data_ptr();
  call.finish.out_stride = b.size(1), call.finish.out_dtype = DType::i32;
  call.finish.vectors = eight_at_once(call.finish.out, call.finish.out_stride);
  run(a, call, device);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> quantize_int8(const Tensor& x, bool symmetric) {
  constexpr const char* op = "quantize_int8";
  LEPTON_CHECK(is_float(x.scalar_type()), op, ": x must be float32, bfloat16, float16, got ",
               name_of(x.scalar_type()));
  LEPTON_CHECK(x.dim() == 2, op, ": x must have shape (rows, columns), got ", tuple(x.sizes()));
  const OnDevice device(op, {"x", &x});
  const Rows rows = as_rows(x);
  Tensor q = new_on(x, {rows.count, rows.columns}, ScalarType::Char);
  Tensor scale = new_on(x, {rows.count}, ScalarType::Float);
  Tensor zero_point = new_on(x, {rows.count}, ScalarType::Int);
  PrepareParams p{};
  p.x = rows.tensor.const_data_ptr();
  p.x_stride = rows.stride;
  p.x_dtype = cuda_dtype(op, "x", x.scalar_type());
  p.rows = to_int32(op, "rows of x", rows.count);
  p.columns = to_int32(op, "columns of x", rows.columns);
  p.symmetric = symmetric;
  p.vectors = four_at_once(p.x, p.x_stride, p.x_dtype, 4);
  p.q = static_cast<int8_t*>(q.mutable_data_ptr());
  p.row_scale = static_cast<float*>(scale.mutable_data_ptr());
  p.row_zero = static_cast<int32_t*>(zero_point.mutable_data_ptr());
  enqueue_quantize_int8(p, device.stream());
  return {q, scale, zero_point};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CUDA, m) {
  m.impl("pack_int8_weight", TORCH_BOX(&pack_int8_weight));
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
  m.impl("int8_mm", TORCH_BOX(&int8_mm));
  m.impl("quantize_int8", TORCH_BOX(&quantize_int8));
}

}  // namespace lepton
