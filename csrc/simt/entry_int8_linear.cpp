// The int8 family in the emulator.
#include "cuda/int8_linear_run.h"
#include "simt/entry.h"

namespace {

using namespace lepton;

Int8RowLayout make_layout(int64_t columns, int64_t groups) {
  const int64_t size = columns / groups;
  const int64_t padded = round_up(size, 4);
  return {columns, size, groups, padded, round_up(groups * padded, 64)};
}

}  // namespace

// A whole call. `weight` (n_stride, k_stride) or a packed weight.
LEPTON_SIMT_ENTRY simt_int8_linear(
    int64_t m, int64_t n, int64_t k, int64_t groups, const void* x, int64_t x_stride,
    int64_t x_dtype, const float* x_scale, int64_t x_scale_stride, const int32_t* x_zero_point,
    int64_t x_zero_point_stride, int64_t weight_only, const int8_t* weight, int64_t n_stride,
    int64_t k_stride, uint8_t* packed, const float* weight_scale, int64_t weight_scale_stride,
    const float* bias, int64_t activation, const void* residual, int64_t residual_stride,
    int64_t residual_dtype, void* out, int64_t out_dtype, const float* out_scale,
    const int32_t* out_zero_point, uint8_t* scratch, int64_t scratch_bytes, int64_t processors,
    int64_t size, int64_t splits) {
  Int8Call call{};
  call.m = static_cast<int32_t>(m), call.n = static_cast<int32_t>(n);
  call.layout = make_layout(k, groups);
  call.n_padded = static_cast<int32_t>(round_up(n, 16));
  call.x = x, call.x_stride = x_stride, call.x_dtype = static_cast<DType>(x_dtype);
  call.x_scale = x_scale, call.x_scale_stride = static_cast<int32_t>(x_scale_stride);
  call.x_zero_point = x_zero_point;
  call.x_zero_point_stride = static_cast<int32_t>(x_zero_point_stride);
  call.weight_only = weight_only != 0;
  call.weight = weight, call.weight_n_stride = n_stride, call.weight_k_stride = k_stride;
  if (packed) {
    const PackParams p = pack_params(PackedHeader::make(n, k, groups > 1 ? k / groups : 0), packed);
    call.tiles = p.tiles, call.weight_sum = p.sums;
  }
  FinishParams& f = call.finish;
  f.weight_scale = weight_scale;
  f.weight_scale_stride = static_cast<int32_t>(weight_scale_stride);
  f.bias = bias, f.activation = static_cast<Activation>(activation);
  f.residual = residual, f.residual_stride = residual_stride;
  f.residual_dtype = static_cast<DType>(residual_dtype);
  f.out = out, f.out_stride = n, f.out_dtype = static_cast<DType>(out_dtype);
  f.vectors = eight_at_once(out, n) && eight_at_once(residual, residual_stride);
  f.out_scale = out_scale, f.out_zero_point = out_zero_point;
  call.processors = static_cast<int32_t>(processors);
  call.size = static_cast<GemmTileSize>(size), call.splits = static_cast<int32_t>(splits);
  if (Int8Scratch(call).bytes() > scratch_bytes) return -1;
  return simt::run([&] { run_int8_call(call, scratch, simt::Launcher{}); });
}

LEPTON_SIMT_ENTRY simt_quantize_int8(int64_t rows, int64_t columns, const void* x, int64_t x_stride,
                                     int64_t x_dtype, int64_t symmetric, int8_t* q, float* scale,
                                     int32_t* zero_point) {
  PrepareParams p{};
  p.x = x, p.x_stride = x_stride, p.x_dtype = static_cast<DType>(x_dtype);
  p.rows = static_cast<int32_t>(rows), p.columns = static_cast<int32_t>(columns);
  p.symmetric = symmetric != 0;
  p.vectors = four_at_once(x, x_stride, p.x_dtype, 4);
  p.q = q, p.row_scale = scale, p.row_zero = zero_point;
  return simt::run([&] { launch_prepare(p, true, simt::Launcher{}); });
}

LEPTON_SIMT_ENTRY simt_pack_int8_weight(int64_t n, int64_t k, int64_t group_size,
                                        const int8_t* weight, int64_t n_stride, int64_t k_stride,
                                        uint8_t* packed) {
  PackParams p = pack_params(PackedHeader::make(n, k, group_size), packed);
  p.weight = weight, p.n_stride = n_stride, p.k_stride = k_stride;
  return simt::run([&] { launch_pack(p, simt::Launcher{}); });
}
