// Torch side of int8_linear, pack_int8_weight and unpack_int8_weight on the CPU.
#include <cstring>

#include "ops/finish_arguments.h"
#include "ops/int8_arguments.h"
#include "ops/int8_common.h"

namespace lepton {
namespace {

constexpr const char* kOp = "int8_linear";
// glibc maps larger blocks anew at every allocation, and each page faults at its first touch.
constexpr int64_t kMappedAnew = 32 << 20;

Tensor pack_int8_weight(const Tensor& weight, int64_t group_size) {
  LEPTON_CHECK(weight.scalar_type() == ScalarType::Char,
               "pack_int8_weight: weight must be int8, got ", name_of(weight.scalar_type()));
  LEPTON_CHECK(weight.dim() == 2,
               "pack_int8_weight: weight must have shape (out_features, in_features), got ",
               tuple(weight.sizes()));
  LEPTON_CHECK(group_size >= 0 && (group_size == 0 || weight.size(1) % group_size == 0),
               "pack_int8_weight: group_size must divide in_features ", weight.size(1), ", got ",
               group_size);
  return pack_for_call(weight, 0, 1, group_size);
}

PackedHeader read_header(const char* op, const Tensor& packed) {
  constexpr auto kHeaderBytes = static_cast<int64_t>(sizeof(PackedHeader));
  LEPTON_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 &&
                   packed.is_contiguous() && packed.size(0) >= kHeaderBytes,
               op,
               ": weight must be int8 (out_features, in_features) or come from pack_int8_weight");
  PackedHeader header;
  std::memcpy(&header, packed.const_data_ptr(), sizeof header);
  LEPTON_CHECK(header.magic == PackedHeader::kMagic, op,
               ": weight is uint8 but was not made by pack_int8_weight");
  LEPTON_CHECK(header.version == PackedHeader::kVersion, op, ": weight was packed as version ",
               header.version, ", this release reads version ", PackedHeader::kVersion);
  const bool sane = header.out_features >= 0 && header.in_features >= 0 && header.group_size >= 0 &&
                    (header.in_features == 0 || header.group_size > 0) &&
                    (header.group_size == 0 || header.in_features % header.group_size == 0) &&
                    header.out_features < (int64_t{1} << 40) &&
                    header.in_features < (int64_t{1} << 40);
  LEPTON_CHECK(sane &&
                   header.same_shape(PackedHeader::make(header.out_features, header.in_features,
                                                        header.group_size)) &&
                   header.bytes() == packed.size(0),
               op, ": packed weight is truncated or damaged");
  return header;
}

Tensor unpack_int8_weight(const Tensor& packed, int64_t out_features, int64_t in_features) {
  const PackedHeader header = read_header("unpack_int8_weight", packed);
  LEPTON_CHECK(header.out_features == out_features && header.in_features == in_features,
               "unpack_int8_weight: packed weight has shape (", header.out_features, ", ",
               header.in_features, "), expected (", out_features, ", ", in_features, ")");
  Tensor weight = new_tensor({out_features, in_features}, ScalarType::Char);
  const auto* tiles = static_cast<const int8_t*>(packed.const_data_ptr()) + header.tiles_offset();
  auto* out = static_cast<int8_t*>(weight.mutable_data_ptr());
  for (int64_t n = 0; n < out_features; ++n) {
    const int8_t* strip = tiles + n / 16 * 16 * header.in_padded + n % 16 * 4;
    for (int64_t k = 0; k < in_features; ++k) {
      const int64_t at = k / header.group_size * header.group_padded + k % header.group_size;
      out[n * in_features + k] = strip[at / 4 * 64 + at % 4];
    }
  }
  return weight;
}

bool all_finite(const float* values, int64_t count) {
  // An exponent of all ones; without branches, so that the compiler vectorises it.
  uint32_t worst = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    worst = std::max(worst, bits & 0x7F800000u);
  }
  return worst < 0x7F800000u;
}

const float* floats(const Tensor& tensor) {
  return static_cast<const float*>(tensor.const_data_ptr());
}

const int32_t* ints(const Tensor& tensor) {
  return static_cast<const int32_t*>(tensor.const_data_ptr());
}

// A quantiser's parameter: one value, or one per row of x.
template <class T>
int64_t row_stride(const char* name, const Tensor& tensor, ScalarType dtype, int64_t rows,
                   const T& valid) {
  const int64_t stride = int8_row_stride(kOp, name, tensor, dtype, rows);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    LEPTON_CHECK(valid(tensor, i), kOp, ": ", name, " is out of range at ", i);
  }
  return stride;
}

bool valid_scale(const Tensor& tensor, int64_t i) {
  const float scale = floats(tensor)[i];
  return std::isfinite(scale) && scale > 0.0f && std::isfinite(1.0f / scale);
}

bool valid_zero_point(const Tensor& tensor, int64_t i) {
  return ints(tensor)[i] >= -128 && ints(tensor)[i] <= 127;
}

Tensor int8_linear(const Tensor& x, const Tensor& weight, const Tensor& weight_scale,
                   std::optional<Tensor> bias, std::optional<Tensor> residual,
                   std::optional<Tensor> x_scale, std::optional<Tensor> x_zero_point,
                   std::optional<Tensor> out_scale, std::optional<Tensor> out_zero_point,
                   bool weight_only, int64_t activation, ScalarType out_dtype) {
  LEPTON_CHECK(x.dim() >= 1, kOp, ": x must have shape (..., in_features), got ()");
  const Rows rows = as_rows(x);
  const DType x_dtype = kernel_dtype(kOp, "x", x.scalar_type());
  const auto [canonical, out_features, groups] =
      check_int8_weight(kOp, rows, x_dtype, weight, weight_scale, x_scale.has_value(),
                        x_zero_point.has_value(), weight_only);
  const Tensor packed =
      canonical ? pack_for_call(weight, 0, 1, groups > 1 ? rows.columns / groups : 0) : weight;
  const PackedHeader header = read_header(kOp, packed);
  LEPTON_CHECK(header.out_features == out_features && header.in_features == rows.columns &&
                   header.groups() == groups,
               kOp, ": packed weight has (out_features, in_features, groups) (",
               header.out_features, ", ", header.in_features, ", ", header.groups(),
               "), x and weight_scale ask for (", out_features, ", ", rows.columns, ", ", groups,
               ")");
  const Tensor scale = dense_floats(weight_scale);
  LEPTON_CHECK(all_finite(floats(scale), scale.numel()), kOp,
               ": weight_scale must be finite, got NaN or infinity in it");

  Int8Quantize quantize{};
  quantize.x = rows.tensor.const_data_ptr();
  quantize.x_stride = rows.stride;
  quantize.x_dtype = x_dtype;
  quantize.layout = header.layout();
  quantize.symmetric = true;
  if (x_scale) {
    quantize.scale = floats(*x_scale);
    quantize.scale_stride =
        row_stride("x_scale", *x_scale, ScalarType::Float, rows.count, valid_scale);
  }
  if (x_zero_point) {
    quantize.zero_point = ints(*x_zero_point);
    quantize.zero_point_stride =
        row_stride("x_zero_point", *x_zero_point, ScalarType::Int, rows.count, valid_zero_point);
  }

  Int8Linear p{};
  p.m = rows.count;
  p.n = out_features;
  p.layout = header.layout();
  const auto* bytes = static_cast<const uint8_t*>(packed.const_data_ptr());
  p.weight_sum = reinterpret_cast<const int32_t*>(bytes + sizeof(PackedHeader));
  p.tiles = reinterpret_cast<const int8_t*>(bytes + header.tiles_offset());
  p.n_padded = header.out_padded;
  p.weight_scale = floats(scale);
  p.weight_scale_stride = weight_scale.dim() == 0 ? 0 : groups;
  const FinishInputs kept = set_finish_inputs(p, kOp, kernel_dtype, x, out_features, bias, residual,
                                              activation, out_dtype);
  check_int8_output(kOp, p.out_dtype, out_scale.has_value(), out_zero_point.has_value());
  if (out_scale) {
    row_stride("out_scale", *out_scale, ScalarType::Float, 1, valid_scale);
    p.out_scale_inverse = 1.0f / floats(*out_scale)[0];
  }
  if (out_zero_point) {
    row_stride("out_zero_point", *out_zero_point, ScalarType::Int, 1, valid_zero_point);
    p.out_zero_point = static_cast<float>(ints(*out_zero_point)[0]);
  }
  Tensor out = new_tensor(kept.out_sizes, out_dtype);
  p.out = out.mutable_data_ptr();
  const int64_t out_bytes = out.numel() * static_cast<int64_t>(out.element_size());
  if (out_bytes > kMappedAnew) ask_for_huge_pages(p.out, out_bytes);

  run_int8_linear(choose_int8_kernels(rows.count, p.layout), quantize, p, weight_only);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CPU, m) {
  m.impl("pack_int8_weight", TORCH_BOX(&pack_int8_weight));
  m.impl("unpack_int8_weight", TORCH_BOX(&unpack_int8_weight));
  m.impl("int8_linear", TORCH_BOX(&int8_linear));
}

}  // namespace lepton
