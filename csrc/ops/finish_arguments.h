// Bias, residual and output of the matrix ops: checks, and what their kernels get.
#pragma once

#include <algorithm>

#include "ops/tensor.h"

namespace lepton {

// What the parameters point into, and the output's shape: x's leading dimensions and out_features.
struct FinishInputs {
  Tensor bias;
  std::optional<Rows> residual;
  std::vector<int64_t> out_sizes;
};

// Checks them and fills all of `f` but the address of the output. `dtype_of` is kernel_dtype or
// that of another device.
template <class Params, class DTypeOf>
FinishInputs set_finish_inputs(Params& f, const char* op, const DTypeOf& dtype_of, const Tensor& x,
                               int64_t out_features, const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& residual, int64_t activation,
                               ScalarType out_dtype) {
  FinishInputs kept;
  LEPTON_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::silu), op,
               ": unknown activation number ", activation);
  f.activation = static_cast<Activation>(activation);
  if (bias) {
    LEPTON_CHECK(bias->dim() == 1 && bias->size(0) == out_features, op, ": bias must have shape (",
                 out_features, ",) to match out_features, got ", tuple(bias->sizes()));
    LEPTON_CHECK(dtype_of(op, "bias", bias->scalar_type()) != DType::i8, op,
                 ": bias must be float, got int8");
    kept.bias = dense_floats(*bias);
    f.bias = static_cast<const float*>(kept.bias.const_data_ptr());
  }
  kept.out_sizes.assign(x.sizes().begin(), x.sizes().end());
  kept.out_sizes.back() = out_features;
  if (residual) {
    LEPTON_CHECK(std::equal(kept.out_sizes.begin(), kept.out_sizes.end(), residual->sizes().begin(),
                            residual->sizes().end()),
                 op, ": residual must have shape ", tuple(kept.out_sizes), " like the output, got ",
                 tuple(residual->sizes()));
    f.residual_dtype = dtype_of(op, "residual", residual->scalar_type());
    LEPTON_CHECK(f.residual_dtype != DType::i8, op, ": residual must be float, got int8");
    kept.residual = as_rows(*residual);
    f.residual = kept.residual->tensor.const_data_ptr();
    f.residual_stride = kept.residual->stride;
  }
  f.out_dtype = dtype_of(op, "out_dtype", out_dtype);
  f.out_stride = out_features;
  return kept;
}

}  // namespace lepton
