// Torch side of quantize_int8 on the CPU.
#include <tuple>

#include "ops/int8_common.h"

namespace lepton {
namespace {

std::tuple<Tensor, Tensor, Tensor> quantize_int8(const Tensor& x, bool symmetric) {
  constexpr const char* kOp = "quantize_int8";
  LEPTON_CHECK(is_float(x.scalar_type()), kOp, ": x must be float32, bfloat16, float16, got ",
               name_of(x.scalar_type()));
  LEPTON_CHECK(x.dim() == 2, kOp, ": x must have shape (rows, columns), got ", tuple(x.sizes()));
  const Rows rows = as_rows(x);
  Tensor q = new_tensor({rows.count, rows.columns}, ScalarType::Char);
  Tensor scale = new_tensor({rows.count}, ScalarType::Float);
  Tensor zero_point = new_tensor({rows.count}, ScalarType::Int);

  Int8Quantize p{};
  p.x = rows.tensor.const_data_ptr();
  p.x_stride = rows.stride;
  p.x_dtype = kernel_dtype(kOp, "x", x.scalar_type());
  p.layout = {rows.columns, rows.columns, 1, rows.columns, rows.columns};
  p.symmetric = symmetric;
  p.q = q.mutable_data_ptr();
  p.q_stride = rows.columns;
  p.row_scale = static_cast<float*>(scale.mutable_data_ptr());
  p.row_zero = static_cast<int32_t*>(zero_point.mutable_data_ptr());
  const Int8Kernels& kernels = choose_int8_kernels(rows.count, p.layout);
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(rows.columns, 1));
  torch::stable::parallel_for(0, rows.count, grain,
                              [&](int64_t begin, int64_t end) { kernels.quantize(p, begin, end); });
  return {q, scale, zero_point};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CPU, m) { m.impl("quantize_int8", TORCH_BOX(&quantize_int8)); }

}  // namespace lepton
