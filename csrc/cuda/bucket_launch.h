// Which bucket kernel runs with which grid, on the GPU and in the emulator alike.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/bucket_copy_kernel.cuh"
#include "cuda/bucket_quantize_kernel.cuh"
#include "cuda/bucket_sum_kernel.cuh"
#include "cuda/launch.h"

namespace lepton {

inline LaunchShape bucket_shape(int64_t blocks, uint32_t shared_bytes = 0) {
  return {{static_cast<uint32_t>(blocks), 1, 1}, {kBucketThreads, 1, 1}, shared_bytes};
}

template <bool kToFlat, class Launch>
void launch_bucket_copy_to(const BucketCopy& p, BucketType flat, int64_t chunks,
                           const Launch& launch) {
  const LaunchShape shape = bucket_shape(chunks);
  switch (flat) {
    case BucketType::f32: return launch(&bucket_copy_kernel<kToFlat, float>, shape, p);
    case BucketType::bf16: return launch(&bucket_copy_kernel<kToFlat, bf16>, shape, p);
    default: return launch(&bucket_copy_kernel<kToFlat, f16>, shape, p);
  }
}
template <class Launch>
void launch_bucket_copy(const BucketCopy& p, BucketType flat, bool to_flat, int64_t chunks,
                        const Launch& launch) {
  if (chunks == 0) return;
  if (to_flat) return launch_bucket_copy_to<true>(p, flat, chunks, launch);
  return launch_bucket_copy_to<false>(p, flat, chunks, launch);
}

template <class Launch>
void launch_bucket_unscale(const BucketUnscale& p, int64_t chunks, const Launch& launch) {
  if (chunks > 0) launch(&bucket_unscale_kernel, bucket_shape(chunks), p);
}

// `partial` holds `chunks` numbers; `out` one for each tensor, also for empty ones.
template <class Launch>
void launch_bucket_squares(const BucketSquares& p, double* out, int64_t chunks,
                           const Launch& launch) {
  if (p.table.tensors == 0) return;
  if (chunks > 0) launch(&bucket_squares_kernel, bucket_shape(chunks, kBucketSumBytes), p);
  launch(&bucket_finish_kernel, bucket_shape(p.table.tensors, kBucketSumBytes),
         BucketFinish{p.table, p.partial, out});
}

template <class In, class Launch>
void launch_bucket_sum_of(const BucketSum& p, BucketType out, const LaunchShape& shape,
                          const Launch& launch) {
  switch (out) {
    case BucketType::f32: return launch(&bucket_sum_kernel<In, float>, shape, p);
    case BucketType::bf16: return launch(&bucket_sum_kernel<In, bf16>, shape, p);
    default: return launch(&bucket_sum_kernel<In, f16>, shape, p);
  }
}

inline int64_t bucket_chunks_of(int64_t count) { return ceil_div<int64_t>(count, kBucketChunk); }

// `partial` holds a number for each chunk of the result; `squares` becomes their sum.
template <class Launch>
void launch_bucket_sum(const BucketSum& p, BucketType in, BucketType out, double* squares,
                       const Launch& launch) {
  const int64_t chunks = bucket_chunks_of(p.count);
  const LaunchShape shape = bucket_shape(chunks, kBucketSumBytes);
  if (chunks > 0) {
    switch (in) {
      case BucketType::f32: launch_bucket_sum_of<float>(p, out, shape, launch); break;
      case BucketType::bf16: launch_bucket_sum_of<bf16>(p, out, shape, launch); break;
      default: launch_bucket_sum_of<f16>(p, out, shape, launch); break;
    }
  }
  BucketFinish finish{};
  finish.table.tensors = 1;
  finish.table.inline_entries[0] = {nullptr, 0, p.count, 0, out};
  finish.partial = p.partial;
  finish.out = squares;
  launch(&bucket_finish_kernel, bucket_shape(1, kBucketSumBytes), finish);
}

// Blocks of elements up to this length are left to a warp each.
constexpr int64_t kBucketWarpBlock = 1024;

template <class T, class Launch>
void launch_bucket_quantize_of(const BucketQuantize& p, const Launch& launch) {
  const int64_t blocks = ceil_div(p.count, p.block);
  if (p.block <= kBucketWarpBlock) {
    const LaunchShape shape = bucket_shape(ceil_div<int64_t>(blocks, kBucketThreads / 32));
    if (p.fp8) return launch(&bucket_quantize_kernel<T, true, true>, shape, p);
    return launch(&bucket_quantize_kernel<T, false, true>, shape, p);
  }
  const LaunchShape shape = bucket_shape(blocks, kBucketThreads / 32 * 4);
  if (p.fp8) return launch(&bucket_quantize_kernel<T, true, false>, shape, p);
  return launch(&bucket_quantize_kernel<T, false, false>, shape, p);
}

template <class Launch>
void launch_bucket_quantize(const BucketQuantize& p, const Launch& launch) {
  if (p.count == 0) return;
  switch (p.type) {
    case BucketType::f32: return launch_bucket_quantize_of<float>(p, launch);
    case BucketType::bf16: return launch_bucket_quantize_of<bf16>(p, launch);
    default: return launch_bucket_quantize_of<f16>(p, launch);
  }
}

template <class T, class Launch>
void launch_bucket_dequantize_of(const BucketDequantize& p, const Launch& launch) {
  const LaunchShape shape = bucket_shape(ceil_div<int64_t>(p.count, 8 * kBucketThreads));
  if (p.fp8) return launch(&bucket_dequantize_kernel<T, true>, shape, p);
  return launch(&bucket_dequantize_kernel<T, false>, shape, p);
}

template <class Launch>
void launch_bucket_dequantize(const BucketDequantize& p, const Launch& launch) {
  if (p.count == 0) return;
  switch (p.type) {
    case BucketType::f32: return launch_bucket_dequantize_of<float>(p, launch);
    case BucketType::bf16: return launch_bucket_dequantize_of<bf16>(p, launch);
    default: return launch_bucket_dequantize_of<f16>(p, launch);
  }
}

}  // namespace lepton
