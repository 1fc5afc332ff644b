// Gradient buckets: sums of squares, one partial sum a chunk, in an order that does not depend on
// the run; sums of tensors.
#pragma once

#include "cuda/bucket_table.cuh"

namespace lepton {

// Sum over the block in a fixed order; valid in thread 0. Uses 8 doubles of shared memory.
__device__ inline double bucket_block_sum(double sum) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
  const Shared<double> partial(0);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (lane_index() == 0) partial.store(warp, sum);
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < kBucketThreads / 32; ++w) total += partial.load(w);
  }
  return total;
}
constexpr uint32_t kBucketSumBytes = kBucketThreads / 32 * 8;

template <class T>
__device__ inline double bucket_squares_chunk(const BucketEntry& entry, int64_t begin, int count) {
  const Global<const T> x = Global<const T>::of(entry.address) + begin;
  double sum = 0.0;
  constexpr int kWidth = bucket_width<T>;
  bucket_share<kWidth>(count, aligned16(x.raw()), [&](int i, bool group) {
    if (group) {
      float v[kWidth];
      load_floats(x, i, v);
#pragma unroll
      for (float element : v) sum += static_cast<double>(element) * static_cast<double>(element);
    } else {
      const double element = static_cast<double>(to_float(x.load(i)));
      sum += element * element;
    }
  });
  return sum;
}

static __global__ void __launch_bounds__(kBucketThreads)
    bucket_squares_kernel(const __grid_constant__ BucketSquares p) {
  const BucketEntry entry = bucket_entry(p.table, bucket_find(p.table, blockIdx.x));
  const int64_t begin = static_cast<int64_t>(blockIdx.x - entry.first_chunk) * kBucketChunk;
  const int64_t left = entry.count - begin;
  const int count = left < kBucketChunk ? static_cast<int>(left) : kBucketChunk;
  const double sum =
      entry.type == BucketType::f32    ? bucket_squares_chunk<float>(entry, begin, count)
      : entry.type == BucketType::bf16 ? bucket_squares_chunk<bf16>(entry, begin, count)
                                       : bucket_squares_chunk<f16>(entry, begin, count);
  const double total = bucket_block_sum(sum);
  if (threadIdx.x == 0) Global<double>(p.partial).store(blockIdx.x, total);
}

// Adds up each tensor's partial sums: a block a tensor.
static __global__ void __launch_bounds__(kBucketThreads)
    bucket_finish_kernel(const __grid_constant__ BucketFinish p) {
  const BucketEntry entry = bucket_entry(p.table, static_cast<int>(blockIdx.x));
  const int64_t chunks = (entry.count + kBucketChunk - 1) / kBucketChunk;
  const Global<const double> partial = Global<const double>(p.partial) + entry.first_chunk;
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < chunks; i += kBucketThreads) sum += partial.load(i);
  const double total = bucket_block_sum(sum);
  if (threadIdx.x == 0) Global<double>(p.out).store(blockIdx.x, total);
}

// ---- sum or mean of tensors of one shape, in their order ----

template <class In, class Out>
__global__ void __launch_bounds__(kBucketThreads)
    bucket_sum_kernel(const __grid_constant__ BucketSum p) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kBucketChunk;
  const int64_t left = p.count - begin;
  const int count = left < kBucketChunk ? static_cast<int>(left) : kBucketChunk;
  const auto input = [&](int t) {
    return Global<const In>::of(bucket_entry(p.table, t).address) + begin;
  };
  const Global<Out> out = Global<Out>::of(p.out) + begin;
  double squares = 0.0;
  constexpr int kWidth = bucket_width<In, Out>;
  bucket_share<kWidth>(count, p.vector, [&](int i, bool group) {
    if (group) {
      float total[kWidth], v[kWidth];
      load_floats(input(0), i, total);
      for (int t = 1; t < p.table.tensors; ++t) {
        load_floats(input(t), i, v);
#pragma unroll
        for (int e = 0; e < kWidth; ++e) total[e] = total[e] + v[e];
      }
#pragma unroll
      for (float& element : total) {
        element = element / p.divisor;
        squares += static_cast<double>(element) * static_cast<double>(element);
      }
      store_floats(out, i, total);
    } else {
      float total = to_float(input(0).load(i));
      for (int t = 1; t < p.table.tensors; ++t) {
        total = total + to_float(input(t).load(i));
      }
      total = total / p.divisor;
      squares += static_cast<double>(total) * static_cast<double>(total);
      out.store(i, from_float<Out>(total));
    }
  });
  const double sum = bucket_block_sum(squares);
  if (threadIdx.x == 0) Global<double>(p.partial).store(blockIdx.x, sum);
}

}  // namespace lepton
