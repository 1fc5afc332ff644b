// Bias, residual and output of the matrix ops on CUDA: checks, and what their kernels get.
#pragma once

#include "cuda/arguments.h"
#include "cuda/int8_params.h"

namespace lepton {

// What FinishParams points into.
struct FinishTensors {
  Tensor bias, out;
  std::optional<Rows> residual;
};

// Checks them and makes the output, of x's leading dimensions and out_features.
inline FinishTensors set_finish(FinishParams& f, const char* op, const Tensor& x,
                                int64_t out_features, const std::optional<Tensor>& bias,
                                const std::optional<Tensor>& residual, int64_t activation,
                                ScalarType out_dtype) {
  FinishTensors kept;
  LEPTON_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::silu), op,
               ": unknown activation number ", activation);
  f.activation = static_cast<Activation>(activation);
  if (bias) {
    LEPTON_CHECK(bias->dim() == 1 && bias->size(0) == out_features, op, ": bias must have shape (",
                 out_features, ",) to match out_features, got ", tuple(bias->sizes()));
    LEPTON_CHECK(cuda_dtype(op, "bias", bias->scalar_type()) != DType::i8, op,
                 ": bias must be float, got int8");
    kept.bias = dense_floats(*bias);
    f.bias = data_of<float>(kept.bias);
  }
  std::vector<int64_t> out_sizes(x.sizes().begin(), x.sizes().end());
  out_sizes.back() = out_features;
  if (residual) {
    LEPTON_CHECK(std::equal(out_sizes.begin(), out_sizes.end(), residual->sizes().begin(),
                            residual->sizes().end()),
                 op, ": residual must have shape ", tuple(out_sizes), " like the output, got ",
                 tuple(residual->sizes()));
    f.residual_dtype = cuda_dtype(op, "residual", residual->scalar_type());
    LEPTON_CHECK(f.residual_dtype != DType::i8, op, ": residual must be float, got int8");
    kept.residual = as_rows(*residual);
    f.residual = kept.residual->tensor.const_data_ptr();
    f.residual_stride = kept.residual->stride;
  }
  f.out_dtype = cuda_dtype(op, "out_dtype", out_dtype);
  kept.out = new_on(x, out_sizes, out_dtype);
  f.out = kept.out.mutable_data_ptr();
  f.out_stride = out_features;
  f.vectors = eight_at_once(f.out, f.out_stride) && eight_at_once(f.residual, f.residual_stride);
  return kept;
}

}  // namespace lepton
