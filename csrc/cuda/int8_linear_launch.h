// Which kernels of the int8 family run, and with which shape; for the GPU and for the emulator
// (launch.h says what a launcher is).
#pragma once

#include "cuda/int8_linear_kernel.cuh"
#include "cuda/int8_pack_kernel.cuh"
#include "cuda/int8_prepare_kernel.cuh"
#include "cuda/int8_widen_kernel.cuh"
#include "cuda/launch.h"

namespace lepton {

// The three tiles of a product, and the kernel that runs them.
template <class MmaType>
struct GemmShapes {
  using Mma = MmaType;
  // 128 x 128: two blocks fill an SM's registers.
  using Large = GemmShape<Mma, 2, 2, 4, 4, 4>;
  // 64 x 64: fills the machine where there are few tiles.
  using Medium = GemmShape<Mma, 2, 2, 2, 2, 4>;
  // 16 x 64: few rows; the weights stream past them.
  using Small = GemmShape<Mma, 1, 2, 1, 2, 6>;
  static constexpr int kBlocksAtOnce = 1;

  template <class Shape>
  static constexpr auto kernel() {
    return &gemm_kernel<Shape>;
  }
};

// How one product is cut.
struct GemmPlan {
  GemmTileSize size;
  int32_t splits;
  int64_t workspace_bytes;   // of 32-bit sums; 0 without splits
  int64_t workspace_stride;  // between rows of sums
};

template <class Shape>
int64_t tiles_of(const GemmParams& p) {
  return int64_t{ceil_div(p.finish.m, Shape::kTileM)} * ceil_div(p.finish.n, Shape::kTileN);
}

// `processors`: SMs of the device.
template <class Shapes>
GemmPlan plan_gemm(const GemmParams& p, int processors, GemmTileSize wanted = GemmTileSize::choose,
                   int32_t wanted_splits = 0) {
  GemmPlan plan{wanted, 1, 0, 0};
  if (wanted == GemmTileSize::choose) {
    plan.size = p.finish.m <= Shapes::Small::kTileM                ? GemmTileSize::small
                : tiles_of<typename Shapes::Large>(p) < processors ? GemmTileSize::medium
                                                                   : GemmTileSize::large;
  }
  // Groups become floats one after the other: no split of k would keep the bits.
  if (p.groups > 1) return plan;
  const int64_t tiles = plan.size == GemmTileSize::small    ? tiles_of<typename Shapes::Small>(p)
                        : plan.size == GemmTileSize::medium ? tiles_of<typename Shapes::Medium>(p)
                                                            : tiles_of<typename Shapes::Large>(p);
  // At least eight blocks of k for each split, or the sums cost more than the product.
  const int64_t most = p.blocks / 8 < 16 ? p.blocks / 8 : 16;
  const int64_t fill = tiles > 0 ? 2 * processors / tiles : 1;
  int64_t splits = wanted_splits > 0 ? wanted_splits : fill < most ? fill : most;
  if (splits > p.blocks / Shapes::kBlocksAtOnce) splits = p.blocks / Shapes::kBlocksAtOnce;
  if (splits < 2) return plan;
  plan.splits = static_cast<int32_t>(splits);
  plan.workspace_stride = ceil_div(p.finish.n, kColumns) * kColumns;
  plan.workspace_bytes = splits * p.finish.m * plan.workspace_stride * 4;
  return plan;
}

template <class Shapes, class Shape, class Launch>
void launch_gemm_shape(const GemmParams& p, const Launch& launch) {
  const LaunchShape shape{
      {static_cast<uint32_t>(tiles_of<Shape>(p)), 1, static_cast<uint32_t>(p.splits)},
      {Shape::kThreads},
      Shape::kSharedBytes};
  launch(Shapes::template kernel<Shape>(), shape, p);
}

// One group of k. p.splits and the workspace are those of the plan.
template <class Shapes, class Launch>
void launch_gemm(const GemmParams& p, const GemmPlan& plan, const Launch& launch) {
  if (p.finish.m == 0 || p.finish.n == 0) return;
  switch (plan.size) {
    case GemmTileSize::small: launch_gemm_shape<Shapes, typename Shapes::Small>(p, launch); break;
    case GemmTileSize::medium: launch_gemm_shape<Shapes, typename Shapes::Medium>(p, launch); break;
    default: launch_gemm_shape<Shapes, typename Shapes::Large>(p, launch); break;
  }
  if (p.splits > 1) {
    const int64_t threads = int64_t{p.finish.m} * ceil_div(p.finish.n, kColumns);
    launch(gemm_finish_kernel<typename Shapes::Mma::Sum>,
           LaunchShape{{static_cast<uint32_t>(ceil_div<int64_t>(threads, 128))}, {128}}, p);
  }
}

// Many groups of k.
template <class Mma, class Launch>
void launch_grouped_gemm(const GemmParams& p, const Launch& launch) {
  using Shape = typename GemmShapes<Mma>::Medium;
  if (p.finish.m == 0 || p.finish.n == 0) return;
  launch(gemm_grouped_kernel<Shape>,
         LaunchShape{
             {static_cast<uint32_t>(tiles_of<Shape>(p))}, {Shape::kThreads}, Shape::kSharedBytes},
         p);
}

// Rows to operand strips, or (plain) to rows of int8.
template <class Launch>
void launch_prepare(const PrepareParams& p, bool plain, const Launch& launch) {
  const int32_t rows = plain ? p.rows : p.padded_rows;
  if (rows == 0) return;
  const LaunchShape shape{{static_cast<uint32_t>(rows)}, {kPrepareThreads}, kPrepareSharedBytes};
  const auto run = [&](auto of_strips, auto of_rows) {
    launch(plain ? of_rows : of_strips, shape, p);
  };
  switch (p.x_dtype) {
    case DType::f32:
      return run(quantize_rows_kernel<float, false>, quantize_rows_kernel<float, true>);
    case DType::bf16:
      return run(quantize_rows_kernel<bf16, false>, quantize_rows_kernel<bf16, true>);
    case DType::f16: return run(quantize_rows_kernel<f16, false>, quantize_rows_kernel<f16, true>);
    default: return launch(copy_rows_kernel<void>, shape, p);
  }
}

template <class Launch>
void launch_pack(const PackParams& p, const Launch& launch) {
  const int64_t strips = p.out_padded > 0 ? p.out_padded / 16 : 1;
  const LaunchShape shape{{static_cast<uint32_t>(strips), static_cast<uint32_t>(p.groups)},
                          {kPackThreads},
                          kPackThreads / 32 * 16 * 4};
  launch(pack_weight_kernel<void>, shape, p);
}

// Rows as strips of 16-bit floats.
template <class Launch>
void launch_widen_rows(const PrepareParams& p, int32_t planes, bool to_f16, const Launch& launch) {
  if (p.padded_rows == 0 || p.row_padded == 0) return;
  const LaunchShape shape{{static_cast<uint32_t>(p.padded_rows), static_cast<uint32_t>(planes)},
                          {kPrepareThreads}};
  switch (p.x_dtype) {
    case DType::f32: return launch(widen_rows_kernel<float, bf16>, shape, p);
    case DType::bf16: return launch(widen_rows_kernel<bf16, bf16>, shape, p);
    default:
      return launch(to_f16 ? widen_rows_kernel<f16, f16> : widen_rows_kernel<f16, bf16>, shape, p);
  }
}

template <class Launch>
void launch_widen_weight(const WidenWeightParams& p, int32_t strips, bool to_f16,
                         const Launch& launch) {
  if (strips == 0 || p.row_padded == 0) return;
  const LaunchShape shape{{static_cast<uint32_t>(strips)}, {kPrepareThreads}};
  launch(to_f16 ? widen_weight_kernel<f16> : widen_weight_kernel<bf16>, shape, p);
}

}  // namespace lepton
