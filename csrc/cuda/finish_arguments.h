// Bias, residual and output of the matrix ops on CUDA: checks, and what their kernels get.
#pragma once

#include "cuda/arguments.h"
#include "cuda/int8_params.h"
#include "ops/finish_arguments.h"

namespace lepton {

// What FinishParams points into.
struct FinishTensors {
  FinishInputs inputs;
  Tensor out;
};

// Checks them and makes the output, of x's leading dimensions and out_features.
inline FinishTensors set_finish(FinishParams& f, const char* op, const Tensor& x,
                                int64_t out_features, const std::optional<Tensor>& bias,
                                const std::optional<Tensor>& residual, int64_t activation,
                                ScalarType out_dtype) {
  FinishInputs inputs =
      set_finish_inputs(f, op, cuda_dtype, x, out_features, bias, residual, activation, out_dtype);
  Tensor out = new_on(x, inputs.out_sizes, out_dtype);
  f.out = out.mutable_data_ptr();
  f.vectors = eight_at_once(f.out, f.out_stride) && eight_at_once(f.residual, f.residual_stride);
  return {std::move(inputs), std::move(out)};
}

}  // namespace lepton
