// Gradient buckets: copies between many tensors and one, sums of squares, sums of tensors, and
// quantisation by blocks with error feedback. Bound by memory: 16-byte accesses where addresses
// allow, one launch for any number of tensors.
#pragma once

#include "cuda/ptx.cuh"
#include "params/bucket_device.h"

namespace lepton {

constexpr int kBucketThreads = 256;
// Elements of one block's work.
constexpr int kBucketChunk = 32 * kBucketThreads;

__device__ inline BucketEntry bucket_entry(const BucketTable& table, int i) {
  if (table.entries == nullptr) return table.inline_entries[i];
  const Global<const int4> words = Global<const int4>::of(table.entries);
  const int4 low = words.load_constant(2 * i), high = words.load_constant(2 * i + 1);
  const auto join = [](int first, int second) {
    return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(second)) << 32 |
                                static_cast<uint32_t>(first));
  };
  return {reinterpret_cast<void*>(join(low.x, low.y)), join(low.z, low.w), join(high.x, high.y),
          static_cast<uint32_t>(high.z), static_cast<BucketType>(high.w)};
}

// The tensor that a chunk belongs to: the last one that begins at or before it. Empty tensors
// begin where the next one does, and are passed over.
__device__ inline int bucket_find(const BucketTable& table, uint32_t chunk) {
  int low = 0, high = table.tensors - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (bucket_entry(table, middle).first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

template <class T>
__device__ inline bool aligned16(const T* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// Elements that a thread moves at once: 16 bytes of the widest type, so that a warp's access is
// one run of memory whatever the types are.
template <class... Types>
constexpr int bucket_width = (... && (sizeof(Types) == 2)) ? 8 : 4;

// kWidth elements as fp32, from an address that is a multiple of their size.
template <int kWidth, class T>
__device__ inline void load_floats(Global<const T> x, int64_t i, float (&v)[kWidth]) {
  if constexpr (sizeof(T) == 4) {
    const auto four = x.template load_as<float4>(i);
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  } else {
    uint32_t words[kWidth / 2];
    if constexpr (kWidth == 8) {
      const auto packed = x.template load_as<uint4>(i);
      words[0] = packed.x, words[1] = packed.y, words[2] = packed.z, words[3] = packed.w;
    } else {
      const auto packed = x.template load_as<uint2>(i);
      words[0] = packed.x, words[1] = packed.y;
    }
#pragma unroll
    for (int w = 0; w < kWidth / 2; ++w) {
      const float2 pair = unpack2<T>(words[w]);
      v[2 * w] = pair.x, v[2 * w + 1] = pair.y;
    }
  }
}
template <int kWidth, class T>
__device__ inline void store_floats(Global<T> y, int64_t i, const float (&v)[kWidth]) {
  if constexpr (sizeof(T) == 4) {
    y.store_as(i, make_float4(v[0], v[1], v[2], v[3]));
  } else if constexpr (kWidth == 8) {
    y.store_as(i, make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]),
                             pack2<T>(v[6], v[7])));
  } else {
    y.store_as(i, make_uint2(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3])));
  }
}

// Calls body(i, true) for this thread's share of the groups of kWidth elements among `count` (of
// one chunk) where `vector` holds, and body(i, false) for its share of the elements that are left.
template <int kWidth, class Body>
__device__ inline void bucket_share(int count, bool vector, const Body& body) {
  const int groups = vector ? count / kWidth : 0;
#pragma unroll 2
  for (int g = static_cast<int>(threadIdx.x); g < groups; g += kBucketThreads) {
    body(g * kWidth, true);
  }
#pragma unroll 1
  for (int i = groups * kWidth + static_cast<int>(threadIdx.x); i < count; i += kBucketThreads) {
    body(i, false);
  }
}

// ---- flatten and unflatten: scaled and cast on the way ----

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

// ---- sums of squares: one partial sum a chunk, in an order that does not depend on the run ----

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

// ---- quantisation by blocks ----

constexpr float kBucketSmallest = 0x1p-110f;  // blocks below count as zeros

__device__ inline uint8_t e4m3_of(float x) {  // |x| <= 448; to the nearest, ties to even
  const uint32_t bits = __float_as_uint(x), magnitude = bits & 0x7fffffffu;
  uint32_t code;
  if (magnitude < 0x3c800000u) {  // below 2^-6: a multiple of 2^-9
    code = static_cast<uint32_t>(rintf(__uint_as_float(magnitude) * 512.0f));
  } else {
    code = ((magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20) - (120u << 3);
  }
  return static_cast<uint8_t>(((bits >> 24) & 0x80u) | code);
}
__device__ inline float float_of_e4m3(uint8_t code) {
  const uint32_t exponent = code >> 3 & 15u, fraction = code & 7u;
  float magnitude = __uint_as_float(((exponent + 120u) << 23) | (fraction << 20));
  if (exponent == 0) magnitude = static_cast<float>(fraction) * 0x1p-9f;
  if ((code & 0x7fu) == 0x7fu) magnitude = __uint_as_float(0x7fc00000u);
  return code & 0x80u ? -magnitude : magnitude;
}

// kWarp: a warp a block of elements, else a thread block each.
template <class T, bool kFp8, bool kWarp>
__global__ void __launch_bounds__(kBucketThreads)
    bucket_quantize_kernel(const __grid_constant__ BucketQuantize p) {
  constexpr int kWarps = kBucketThreads / 32;
  constexpr int kGroup = kWarp ? 32 : kBucketThreads;
  constexpr float kLevels = kFp8 ? 448.0f : 127.0f;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t block =
      kWarp ? static_cast<int64_t>(blockIdx.x) * kWarps + warp : static_cast<int64_t>(blockIdx.x);
  const int64_t begin = block * p.block;
  if (begin >= p.count) return;  // whole warps leave, and only where nothing meets beyond a warp
  const int64_t end = p.count < begin + p.block ? p.count : begin + p.block;
  const Global<const T> x = Global<const T>::of(p.x);
  const Global<float> residual(p.residual);
  const auto value = [&](int64_t i) {
    const float v = to_float(x.load(i));
    return residual.is_null() ? v : v + residual.load(i);
  };
  const int member = kWarp ? static_cast<int>(lane_index()) : static_cast<int>(threadIdx.x);
  // As bits magnitudes sort like numbers, infinities and NaN last.
  unsigned largest = 0;
  for (int64_t i = begin + member; i < end; i += kGroup) {
    const unsigned magnitude = __float_as_uint(value(i)) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = __reduce_max_sync(kFullWarp, largest);
  if constexpr (!kWarp) {
    const Shared<unsigned> of_warps(0);
    if (lane_index() == 0) of_warps.store(warp, largest);
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      const unsigned other = of_warps.load(w);
      largest = other > largest ? other : largest;
    }
  }
  const float amax = __uint_as_float(largest);
  const bool finite = largest < 0x7f800000u;
  const bool zero = !finite || amax < kBucketSmallest;
  const float scale = !finite ? __uint_as_float(0x7fc00000u) : zero ? 1.0f : amax / kLevels;
  const float inverse = zero ? 0.0f : kLevels / amax;
  if (member == 0) Global<float>(p.scale).store(block, scale);
  const Global<int8_t> q(p.q);
  for (int64_t i = begin + member; i < end; i += kGroup) {
    const float v = finite ? value(i) : 0.0f;
    const float scaled = fminf(fmaxf(v * inverse, -kLevels), kLevels);
    float decoded;
    if constexpr (kFp8) {
      const uint8_t code = e4m3_of(scaled);
      decoded = float_of_e4m3(code);
      q.store(i, static_cast<int8_t>(code));
    } else {
      decoded = rintf(scaled);
      q.store(i, static_cast<int8_t>(decoded));
    }
    if (!residual.is_null()) residual.store(i, finite ? v - decoded * scale : 0.0f);
  }
}

template <class T, bool kFp8>
__global__ void __launch_bounds__(kBucketThreads)
    bucket_dequantize_kernel(const __grid_constant__ BucketDequantize p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBucketThreads;
  const Global<const int8_t> q(p.q);
  const Global<const float> scale(p.scale);
  const Global<T> out = Global<T>::of(p.out);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kBucketThreads + threadIdx.x; i < p.count;
       i += step) {
    const int8_t code = q.load(i);
    const float level = kFp8 ? float_of_e4m3(static_cast<uint8_t>(code)) : static_cast<float>(code);
    float value = level * scale.load(i / p.block) * p.factor;
    if (p.accumulate) value = to_float(out.load(i)) + value;
    out.store(i, from_float<T>(value));
  }
}

}  // namespace lepton
