// A whole call of int8_linear or int8_mm: its scratch memory, and its kernels in order. The torch
// side and the emulator's entry fill the same Int8Call.
#pragma once

#include "cuda/int8_linear_launch.h"

namespace lepton {

// Sections of the scratch memory.
class Int8Scratch {
 public:
  explicit Int8Scratch(const Int8Call& call) {
    const int64_t strips = ceil_div<int64_t>(call.m, kStripRows);
    planes = call.weight_only && call.x_dtype == DType::f32 ? 3 : 1;
    const int64_t element = call.weight_only ? 2 * planes : 1;
    row_scale = take(4 * int64_t{call.m});
    row_zero = take(4 * int64_t{call.m});
    rows = take(strips * kStripRows * call.layout.row_padded * element);
    sums = take(call.weight ? 4 * call.layout.groups * call.n_padded : 0);
    tiles = take(call.weight ? call.n_padded * call.layout.row_padded : 0);
    widened = take(call.weight_only ? call.n_padded * call.layout.row_padded * element : 0);
    const GemmParams product = gemm(call, planes);
    plan = call.weight_only
               ? plan_gemm<GemmShapes<MmaFloat16<bf16>>>(product, call.processors, call.size,
                                                         call.splits)
               : plan_gemm<GemmShapes<MmaInt8>>(product, call.processors, call.size, call.splits);
    workspace = take(plan.workspace_bytes);
  }

  // Sizes of the product.
  static GemmParams gemm(const Int8Call& call, int32_t planes) {
    GemmParams p{};
    p.x_strips = ceil_div(call.m, kStripRows);
    p.w_strips = call.n_padded / kStripRows;
    const int64_t bytes = call.layout.row_padded * (call.weight_only ? 2 * planes : 1);
    p.blocks = static_cast<int32_t>(bytes / kBlockBytes);
    p.groups = static_cast<int32_t>(call.layout.groups);
    p.planes = planes;
    p.group_words = static_cast<int32_t>(call.layout.group_padded / (call.weight_only ? 2 : 4));
    p.splits = 1;
    p.finish = call.finish;
    p.finish.m = call.m;
    p.finish.n = call.n;
    p.finish.n_padded = call.n_padded;
    return p;
  }

  int64_t bytes() const { return end_; }

  int32_t planes;
  int64_t row_scale, row_zero, rows, sums, tiles, widened, workspace;
  GemmPlan plan;

 private:
  int64_t take(int64_t bytes) {
    const int64_t at = end_;
    end_ += (bytes + 255) / 256 * 256;
    return at;
  }
  int64_t end_ = 0;
};

// float32 as three planes of bfloat16, from the highest bits down.
constexpr uint32_t kThreePlanes = 0x210;

template <class Mma, class Launch>
void launch_product(const GemmParams& p, const GemmPlan& plan, const Launch& launch) {
  if (p.groups > 1) return launch_grouped_gemm<Mma>(p, launch);
  launch_gemm<GemmShapes<Mma>>(p, plan, launch);
}

template <class Launch>
void run_int8_call(const Int8Call& call, uint8_t* scratch, const Launch& launch) {
  if (call.m == 0 || call.n == 0) return;
  const Int8Scratch at(call);
  GemmParams gemm = Int8Scratch::gemm(call, at.planes);
  gemm.splits = at.plan.splits;
  gemm.workspace = scratch + at.workspace;
  gemm.workspace_stride = at.plan.workspace_stride;

  const int32_t* sums = call.weight_sum;
  const int8_t* tiles = call.tiles;
  if (call.weight) {
    PackParams pack{};
    pack.weight = call.weight;
    pack.n_stride = call.weight_n_stride, pack.k_stride = call.weight_k_stride;
    pack.out_features = call.n, pack.in_features = call.layout.columns;
    pack.groups = call.layout.groups, pack.group_size = call.layout.group_size;
    pack.group_padded = call.layout.group_padded, pack.in_padded = call.layout.row_padded;
    pack.out_padded = call.n_padded;
    pack.sums = reinterpret_cast<int32_t*>(scratch + at.sums);
    pack.tiles = reinterpret_cast<int8_t*>(scratch + at.tiles);
    launch_pack(pack, launch);
    sums = pack.sums, tiles = pack.tiles;
  }

  PrepareParams rows{};
  rows.x = call.x;
  rows.x_stride = call.x_stride, rows.x_dtype = call.x_dtype;
  rows.rows = call.m, rows.padded_rows = gemm.x_strips * kStripRows;
  rows.columns = static_cast<int32_t>(call.layout.columns);
  rows.group_size = static_cast<int32_t>(call.layout.group_size);
  rows.group_padded = static_cast<int32_t>(call.layout.group_padded);
  rows.row_padded = static_cast<int32_t>(call.layout.row_padded);
  rows.symmetric = true;
  rows.vectors = four_at_once(call.x, call.x_stride, call.x_dtype, call.layout.group_size);
  rows.scale = call.x_scale, rows.scale_stride = call.x_scale_stride;
  rows.zero_point = call.x_zero_point, rows.zero_point_stride = call.x_zero_point_stride;
  rows.q = reinterpret_cast<int8_t*>(scratch + at.rows);
  gemm.x = scratch + at.rows;

  if (call.weight_only) {
    const bool f16_operands = call.x_dtype == DType::f16;
    rows.plane_code = kThreePlanes;
    launch_widen_rows(rows, at.planes, f16_operands, launch);
    launch_widen_weight(
        {reinterpret_cast<const uint8_t*>(tiles), scratch + at.widened, rows.row_padded, at.planes},
        gemm.w_strips, f16_operands, launch);
    gemm.w = scratch + at.widened;
    if (f16_operands) return launch_product<MmaFloat16<f16>>(gemm, at.plan, launch);
    return launch_product<MmaFloat16<bf16>>(gemm, at.plan, launch);
  }
  const bool scaled = call.finish.out_dtype != DType::i32;
  if (scaled) {
    rows.row_scale = reinterpret_cast<float*>(scratch + at.row_scale);
    gemm.finish.row_scale = rows.row_scale;
  }
  if (call.x_zero_point) {
    rows.row_zero = reinterpret_cast<int32_t*>(scratch + at.row_zero);
    gemm.finish.row_zero = rows.row_zero;
    gemm.finish.weight_sum = sums;
  }
  launch_prepare(rows, false, launch);
  gemm.w = reinterpret_cast<const uint8_t*>(tiles);
  launch_product<MmaInt8>(gemm, at.plan, launch);
}

}  // namespace lepton
