// A whole call of sparse_linear: which kernels run, with which shape and scratch memory; for the
// GPU and for the emulator (launch.h says what a launcher is).
#pragma once

#include "cuda/int8_linear_launch.h"
#include "cuda/sparse_expand_kernel.cuh"
#include "cuda/sparse_gemm_kernel.cuh"

namespace lepton {

template <class MmaType>
struct SparseGemmShapes {
  using Mma = MmaType;
  using Large = SparseGemmShape<Mma, 2, 2, 4, 4, 3>;
  using Medium = SparseGemmShape<Mma, 2, 2, 2, 2, 3>;
  using Small = SparseGemmShape<Mma, 1, 2, 1, 2, 4>;
  static constexpr int kBlocksAtOnce = 2;

  template <class Shape>
  static constexpr auto kernel() {
    return &sparse_gemm_kernel<Shape>;
  }
};

// Sections of a packed weight, in bytes.
struct SparseSections {
  int64_t scale, offsets, pattern, values;

  SparseSections(const SparseCall& call, int64_t strips, int64_t in_padded) {
    const int64_t per_row = call.value_dtype == DType::i8 ? round_up(64 * strips, 64) : 0;
    const int64_t masks = call.layout == SparseLayout::block ? call.count : strips * in_padded;
    scale = 128;
    offsets = scale + 2 * per_row;
    pattern = offsets + round_up(8 * (strips + 1), 64);
    values = pattern + round_up(2 * masks, 64);
  }
};

// Planes of a float operand; those of a product whose bits float32 can see.
inline PlaneTerms plane_terms(DType x, DType weight) {
  if (x == DType::f16 && weight == DType::f16) return {1, 0, 0};
  const auto planes = [](DType dtype) {
    return dtype == DType::f32 ? 3 : dtype == DType::f16 ? 2 : 1;
  };
  PlaneTerms terms{};
  for (int i = 0; i < planes(x); ++i) {
    for (int j = 0; j < planes(weight) && i + j < 3; ++j) {
      terms.x |= static_cast<uint32_t>(i) << (4 * terms.count);
      terms.weight |= static_cast<uint32_t>(j) << (4 * terms.count);
      ++terms.count;
    }
  }
  return terms;
}

// The sizes of a call, and the sections of its scratch memory.
struct SparsePlan {
  explicit SparsePlan(const SparseCall& call)
      : int8(call.value_dtype == DType::i8),
        f16_operands(call.value_dtype == DType::f16 && call.x_dtype == DType::f16),
        in_padded(round_up(call.in_features, 64)),
        // A slab of mma.sp is 128 bytes.
        out_padded(int8 && call.two_of_four ? round_up(in_padded, 128) : in_padded),
        terms(int8 ? PlaneTerms{1, 0, 0} : plane_terms(call.x_dtype, call.value_dtype)) {
    gemm.x_strips = ceil_div(call.m, kStripRows);
    gemm.w_strips = ceil_div(call.n, kStripRows);
    const int64_t k_bytes = out_padded * (int8 ? 1 : 2 * terms.count);
    gemm.blocks = static_cast<int32_t>(k_bytes / kBlockBytes);
    gemm.groups = gemm.planes = gemm.splits = 1;
    gemm.finish = call.finish;
    gemm.finish.m = call.m, gemm.finish.n = call.n;
    gemm.finish.n_padded = gemm.w_strips * kStripRows;
    plan = call.two_of_four
               ? plan_gemm<SparseGemmShapes<SparseMmaInt8>>(gemm, call.processors, call.size,
                                                            call.splits)
               : plan_gemm<GemmShapes<MmaInt8>>(gemm, call.processors, call.size, call.splits);
    gemm.splits = plan.splits;
    gemm.workspace_stride = plan.workspace_stride;
    row_scale = take(4 * int64_t{call.m});
    rows = take(int64_t{gemm.x_strips} * kStripRows * k_bytes);
    const int64_t block = call.two_of_four ? kSparseBlock : kStripBlock;
    weight = take(int64_t{gemm.w_strips} * gemm.blocks * block);
    workspace = take(plan.workspace_bytes);
  }

  bool int8, f16_operands;
  int64_t in_padded, out_padded;
  PlaneTerms terms;
  GemmParams gemm{};
  GemmPlan plan{};
  int64_t row_scale, rows, weight, workspace;
  int64_t bytes = 0;

 private:
  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += round_up(size, 256);
    return at;
  }
};

// Calls body(tag of T) for a dtype of float values.
template <class T>
struct TypeTag {
  using Type = T;
};
template <class Body>
void with_float_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32: return body(TypeTag<float>{});
    case DType::bf16: return body(TypeTag<bf16>{});
    default: return body(TypeTag<f16>{});
  }
}

template <class Launch>
void launch_expand(const SparseCall& call, const SparsePlan& at, const ExpandParams& p,
                   const Launch& launch) {
  const LaunchShape shape{{static_cast<uint32_t>(p.strips)}, {kExpandThreads}, kExpandSharedBytes};
  const bool block = call.layout == SparseLayout::block;
  if (at.int8) {
    if (call.two_of_four) return launch(compress_int8_kernel<void>, shape, p);
    if (block) return launch(expand_block_kernel<int8_t, int8_t>, shape, p);
    return launch(expand_int8_kernel<void>, shape, p);
  }
  with_float_type(call.value_dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const auto to = [&](auto operand) {
      using To = typename decltype(operand)::Type;
      if (call.two_of_four) return launch(compress_float_kernel<T, To>, shape, p);
      if (block) return launch(expand_block_kernel<T, To>, shape, p);
      return launch(expand_float_kernel<T, To>, shape, p);
    };
    if constexpr (is_same<T, f16>) {
      if (at.f16_operands) return to(TypeTag<f16>{});
    }
    to(TypeTag<bf16>{});
  });
}

template <class Launch>
void run_sparse_call(const SparseCall& call, uint8_t* scratch, const Launch& launch) {
  if (call.m == 0 || call.n == 0) return;
  SparsePlan at(call);
  GemmParams& gemm = at.gemm;
  gemm.x = scratch + at.rows, gemm.w = scratch + at.weight;
  gemm.workspace = scratch + at.workspace;
  const SparseSections packed(call, gemm.w_strips, at.in_padded);

  if (at.in_padded > 0) {
    ExpandParams expand{};
    expand.offsets = reinterpret_cast<const int64_t*>(call.packed + packed.offsets);
    expand.pattern = call.packed + packed.pattern;
    expand.values = call.packed + packed.values;
    expand.strips = gemm.w_strips;
    expand.in_padded = static_cast<int32_t>(at.in_padded);
    expand.out_padded = static_cast<int32_t>(at.out_padded);
    expand.terms = at.terms;
    expand.to = scratch + at.weight;
    launch_expand(call, at, expand, launch);
  }

  PrepareParams rows{};
  rows.x = call.x;
  rows.x_stride = call.x_stride, rows.x_dtype = call.x_dtype;
  rows.rows = call.m, rows.padded_rows = gemm.x_strips * kStripRows;
  rows.columns = rows.group_size = static_cast<int32_t>(call.in_features);
  rows.group_padded = static_cast<int32_t>(round_up(call.in_features, 4));
  rows.row_padded = static_cast<int32_t>(at.out_padded);
  rows.symmetric = true;
  rows.vectors = four_at_once(call.x, call.x_stride, call.x_dtype, 4);
  rows.q = reinterpret_cast<int8_t*>(scratch + at.rows);
  rows.plane_code = at.terms.x;
  if (at.int8) {
    rows.row_scale = reinterpret_cast<float*>(scratch + at.row_scale);
    gemm.finish.row_scale = rows.row_scale;
    gemm.finish.weight_scale = reinterpret_cast<const float*>(call.packed + packed.scale);
    gemm.finish.weight_scale_stride = 1;
    launch_prepare(rows, false, launch);
    if (call.two_of_four) {
      return launch_gemm<SparseGemmShapes<SparseMmaInt8>>(gemm, at.plan, launch);
    }
    return launch_gemm<GemmShapes<MmaInt8>>(gemm, at.plan, launch);
  }
  launch_widen_rows(rows, at.terms.count, at.f16_operands, launch);
  const auto product = [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (call.two_of_four) {
      return launch_gemm<SparseGemmShapes<SparseMmaFloat16<T>>>(gemm, at.plan, launch);
    }
    return launch_gemm<GemmShapes<MmaFloat16<T>>>(gemm, at.plan, launch);
  };
  if (at.f16_operands) return product(TypeTag<f16>{});
  product(TypeTag<bf16>{});
}

}  // namespace lepton
