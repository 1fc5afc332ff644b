// sparse_linear in the emulator.
#include "cuda/sparse_linear_launch.h"
#include "simt/entry.h"

LEPTON_SIMT_ENTRY simt_sparse_linear(int64_t m, int64_t n, int64_t k, const void* x,
                                     int64_t x_stride, int64_t x_dtype, const uint8_t* packed,
                                     int64_t layout, int64_t two_of_four, int64_t value_dtype,
                                     int64_t count, const float* bias, int64_t activation,
                                     const void* residual, int64_t residual_stride,
                                     int64_t residual_dtype, void* out, int64_t out_dtype,
                                     uint8_t* scratch, int64_t scratch_bytes, int64_t processors,
                                     int64_t size, int64_t splits) {
  using namespace lepton;
  SparseCall call{};
  call.m = static_cast<int32_t>(m), call.n = static_cast<int32_t>(n), call.in_features = k;
  call.x = x, call.x_stride = x_stride, call.x_dtype = static_cast<DType>(x_dtype);
  call.packed = packed, call.layout = static_cast<SparseLayout>(layout);
  call.two_of_four = two_of_four != 0, call.value_dtype = static_cast<DType>(value_dtype);
  call.count = count;
  FinishParams& f = call.finish;
  f.bias = bias, f.activation = static_cast<Activation>(activation);
  f.residual = residual, f.residual_stride = residual_stride;
  f.residual_dtype = static_cast<DType>(residual_dtype);
  f.out = out, f.out_stride = n, f.out_dtype = static_cast<DType>(out_dtype);
  f.vectors = eight_at_once(out, n) && eight_at_once(residual, residual_stride);
  call.processors = static_cast<int32_t>(processors);
  call.size = static_cast<GemmTileSize>(size), call.splits = static_cast<int32_t>(splits);
  if (SparsePlan(call).bytes > scratch_bytes) return -1;
  return simt::run([&] { run_sparse_call(call, scratch, simt::Launcher{}); });
}
