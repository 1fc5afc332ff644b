// Gradient buckets: flatten and unflatten, scaled and cast on the way; unscale in place.
#pragma once

#include "cuda/bucket_table.cuh"

namespace lepton {

template <class From, class To>
__device__ inline void bucket_copy(Global<const From> from, Global<To> to, float factor, int count,
                                   bool vector) {
  constexpr int kWidth = bucket_width<From, To>;
  bucket_share<kWidth>(count, vector, [&](int i, bool group) {
    if (group) {
      float v[kWidth];
      load_floats(from, i, v);
#pragma unroll
      for (float& x : v) x = x * factor;
      store_floats(to, i, v);
    } else {
      to.store(i, from_float<To>(to_float(from.load(i)) * factor));
    }
  });
}

template <bool kToFlat, class Flat, class Part>
__device__ inline void bucket_copy_chunk(const BucketCopy& p, const BucketEntry& entry,
                                         int64_t begin, int count) {
  const Global<Part> part = Global<Part>::of(entry.address);
  const Global<Flat> flat = Global<Flat>::of(p.flat);
  const bool vector = aligned16(part.raw()) && aligned16(flat.raw());
  if constexpr (kToFlat) {
    bucket_copy(Global<const Part>::of(entry.address) + begin, flat + (entry.begin + begin),
                p.factor, count, vector);
  } else {
    bucket_copy(Global<const Flat>::of(p.flat) + (entry.begin + begin), part + begin, p.factor,
                count, vector);
  }
}

template <bool kToFlat, class Flat>
__global__ void __launch_bounds__(kBucketThreads)
    bucket_copy_kernel(const __grid_constant__ BucketCopy p) {
  const BucketEntry entry = bucket_entry(p.table, bucket_find(p.table, blockIdx.x));
  const int64_t begin = static_cast<int64_t>(blockIdx.x - entry.first_chunk) * kBucketChunk;
  const int64_t left = entry.count - begin;
  const int count = left < kBucketChunk ? static_cast<int>(left) : kBucketChunk;
  if (entry.type == BucketType::f32) {
    bucket_copy_chunk<kToFlat, Flat, float>(p, entry, begin, count);
  } else if (entry.type == BucketType::bf16) {
    bucket_copy_chunk<kToFlat, Flat, bf16>(p, entry, begin, count);
  } else {
    bucket_copy_chunk<kToFlat, Flat, f16>(p, entry, begin, count);
  }
  // The gap up to the next multiple of 64 bytes is zero.
  if (kToFlat && left <= kBucketChunk) {
    constexpr int64_t kAlign = 64 / static_cast<int64_t>(sizeof(Flat));
    const int64_t gap = (entry.count + kAlign - 1) / kAlign * kAlign - entry.count;
    if (threadIdx.x < gap) {
      Global<Flat>::of(p.flat).store(entry.begin + entry.count + threadIdx.x,
                                     from_float<Flat>(0.0f));
    }
  }
}

// ---- unscale in place, and notice what is not finite ----

template <class T>
__device__ inline bool bucket_unscale_chunk(const BucketEntry& entry, int64_t begin, int count,
                                            float factor) {
  bool finite = true;
  const auto check = [&](float x) {
    finite = finite && (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
  };
  const Global<T> y = Global<T>::of(entry.address) + begin;
  const Global<const T> x = Global<const T>::of(entry.address) + begin;
  constexpr int kWidth = bucket_width<T>;
  bucket_share<kWidth>(count, aligned16(y.raw()), [&](int i, bool group) {
    if (group) {
      float v[kWidth];
      load_floats(x, i, v);
#pragma unroll
      for (float& element : v) check(element = element * factor);
      store_floats(y, i, v);
    } else {
      const float scaled = to_float(x.load(i)) * factor;
      check(scaled);
      y.store(i, from_float<T>(scaled));
    }
  });
  return finite;
}

static __global__ void __launch_bounds__(kBucketThreads)
    bucket_unscale_kernel(const __grid_constant__ BucketUnscale p) {
  const BucketEntry entry = bucket_entry(p.table, bucket_find(p.table, blockIdx.x));
  const int64_t begin = static_cast<int64_t>(blockIdx.x - entry.first_chunk) * kBucketChunk;
  const int64_t left = entry.count - begin;
  const int count = left < kBucketChunk ? static_cast<int>(left) : kBucketChunk;
  const float factor = Global<const float>(p.inverse).load();
  const bool finite =
      entry.type == BucketType::f32    ? bucket_unscale_chunk<float>(entry, begin, count, factor)
      : entry.type == BucketType::bf16 ? bucket_unscale_chunk<bf16>(entry, begin, count, factor)
                                       : bucket_unscale_chunk<f16>(entry, begin, count, factor);
  if (!__all_sync(kFullWarp, finite) && lane_index() == 0) {
    Global<float>(p.found_inf).atomic_exchange(0, 1.0f);
  }
}

}  // namespace lepton
