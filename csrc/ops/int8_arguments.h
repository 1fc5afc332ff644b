// Arguments of int8_linear that the CPU and the CUDA kernels take alike.
#pragma once

#include "ops/tensor.h"

namespace lepton {

constexpr int64_t kMostInt8Products = 65536;  // a sum of more can overflow int32

struct Int8WeightShape {
  bool canonical;  // int8 of shape (out_features, in_features), else packed
  int64_t out_features, groups;
};

// Checks the weight, as far as shapes and dtypes tell, and which parameters of x go together.
inline Int8WeightShape check_int8_weight(const char* op, const Rows& rows, DType x_dtype,
                                         const Tensor& weight, const Tensor& weight_scale,
                                         bool x_scale, bool x_zero_point, bool weight_only) {
  LEPTON_CHECK(x_dtype != DType::i8 || (x_scale && !weight_only), op,
               ": an int8 x needs x_scale and no weight_only");
  LEPTON_CHECK(!weight_only || !x_scale, op, ": weight_only takes no x_scale");
  LEPTON_CHECK(!x_zero_point || x_scale, op, ": x_zero_point needs x_scale");
  LEPTON_CHECK(weight_scale.dim() <= 2, op,
               ": weight_scale must have shape (out_features,) or (out_features, groups), got ",
               tuple(weight_scale.sizes()));
  const int64_t groups = weight_scale.dim() == 2 ? weight_scale.size(1) : 1;
  LEPTON_CHECK(groups > 0 && rows.columns % groups == 0, op, ": weight_scale has ", groups,
               " groups, which do not divide in_features ", rows.columns);
  const bool canonical = weight.scalar_type() == ScalarType::Char;
  LEPTON_CHECK(!canonical || (weight.dim() == 2 && weight.size(1) == rows.columns), op,
               ": weight must have shape (out_features, ", rows.columns, "), got ",
               tuple(weight.sizes()));
  LEPTON_CHECK(canonical || weight_scale.dim() > 0, op,
               ": weight_scale must have shape (out_features,) with a packed weight, got ()");
  const int64_t out_features = canonical ? weight.size(0) : weight_scale.size(0);
  LEPTON_CHECK(weight_scale.dim() == 0 || weight_scale.size(0) == out_features, op,
               ": weight_scale must have shape (", out_features, ",) to match out_features, got ",
               tuple(weight_scale.sizes()));
  LEPTON_CHECK(
      is_float(weight_scale.scalar_type()) || weight_scale.scalar_type() == ScalarType::Double, op,
      ": weight_scale must be float, got ", name_of(weight_scale.scalar_type()));
  LEPTON_CHECK(weight_only || rows.columns / groups <= kMostInt8Products, op, ": in_features ",
               rows.columns / groups, " in one group can overflow int32");
  return {canonical, out_features, groups};
}

// Values that go from one of a quantiser's parameter to the next: one for all rows, or one per row.
inline int64_t int8_row_stride(const char* op, const char* name, const Tensor& tensor,
                               ScalarType dtype, int64_t rows) {
  LEPTON_CHECK(tensor.scalar_type() == dtype, op, ": ", name, " must be ", name_of(dtype), ", got ",
               name_of(tensor.scalar_type()));
  LEPTON_CHECK(tensor.is_contiguous() && (tensor.numel() == 1 || tensor.numel() == rows), op, ": ",
               name, " must have one value or ", rows, ", got ", tuple(tensor.sizes()));
  return tensor.numel() == 1 ? 0 : 1;
}

// Which parameters of an int8 output go together.
inline void check_int8_output(const char* op, DType out_dtype, bool out_scale,
                              bool out_zero_point) {
  LEPTON_CHECK((out_dtype == DType::i8) == out_scale, op,
               ": out_scale must be given exactly when out_dtype is int8");
  LEPTON_CHECK(!out_zero_point || out_scale, op, ": out_zero_point needs out_scale");
}

}  // namespace lepton
