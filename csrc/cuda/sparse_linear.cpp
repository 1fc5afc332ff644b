// Torch side of sparse_linear on CUDA. The header of a packed weight lies on the GPU: who calls has
// read it once and hands it over, so that no call waits.
#include "cuda/finish_arguments.h"
#include "cuda/sparse_linear_cuda.h"
#include "ops/int8_arguments.h"

namespace lepton {
namespace {

constexpr const char* kOp = "sparse_linear";

// `header`: layout, dtype, out_features, in_features, n, m, count.
Tensor sparse_linear_with_header(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias,
                                 std::optional<Tensor> residual, int64_t activation,
                                 ScalarType out_dtype, std::vector<int64_t> header) {
  const auto given = [](const std::optional<Tensor>& tensor) {
    return tensor ? &*tensor : nullptr;
  };
  const OnDevice device(
      kOp, {"x", &x}, {{"weight", &packed}, {"bias", given(bias)}, {"residual", given(residual)}});
  LEPTON_CHECK(x.dim() >= 1, kOp, ": x must have shape (..., in_features), got ()");
  LEPTON_CHECK(header.size() == 7 && header[0] >= 0 && header[0] < 3 && header[1] >= 0 &&
                   header[1] < 4 && header[6] >= 0,
               kOp, ": damaged header of a packed weight");
  LEPTON_CHECK(
      packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 && packed.is_contiguous(), kOp,
      ": weight must come from pack_sparse");
  SparseCall call{};
  call.x_dtype = cuda_dtype(kOp, "x", x.scalar_type());
  LEPTON_CHECK(call.x_dtype != DType::i8, kOp, ": x must be float, got int8");
  const Rows rows = as_rows(x);
  const int64_t out_features = header[2];
  call.in_features = header[3];
  LEPTON_CHECK(call.in_features == rows.columns, kOp, ": weight has shape (", out_features, ", ",
               call.in_features, "), x has ", rows.columns, " columns");
  constexpr DType kValues[] = {DType::f32, DType::bf16, DType::f16, DType::i8};
  call.layout = static_cast<SparseLayout>(header[0]);
  call.value_dtype = kValues[header[1]];
  call.two_of_four = call.layout == SparseLayout::n_of_m && header[4] == 2 && header[5] == 4;
  call.count = header[6];
  LEPTON_CHECK(call.value_dtype != DType::i8 || call.in_features <= kMostInt8Products, kOp, ": ",
               call.in_features, " input features can overflow int32");
  call.m = to_int32(kOp, "rows of x", rows.count);
  call.n = to_int32(kOp, "out_features", out_features);
  // Up to six terms of k, two bytes each.
  to_int32(kOp, "in_features", 12 * round_up(call.in_features, 128));
  call.x = rows.tensor.const_data_ptr();
  call.x_stride = rows.stride;
  call.packed = data_of<uint8_t>(packed);

  const FinishTensors kept =
      set_finish(call.finish, kOp, x, out_features, bias, residual, activation, out_dtype);
  LEPTON_CHECK(call.finish.out_dtype != DType::i8, kOp, ": out_dtype must be float, got int8");
  const Tensor scratch = new_on(x, {prepare_sparse_call(call)}, ScalarType::Byte);
  enqueue_sparse_call(call, static_cast<uint8_t*>(scratch.mutable_data_ptr()), device.stream());
  return kept.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lepton, m) {
  m.def(
      "sparse_linear_with_header(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, "
      "int activation, ScalarType out_dtype, int[] header) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(lepton, CUDA, m) {
  m.impl("sparse_linear_with_header", TORCH_BOX(&sparse_linear_with_header));
}

}  // namespace lepton
