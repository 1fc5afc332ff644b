// Parameters of the CUDA bucket kernels: lists of tensors, and what is done with them.
#pragma once

#include <cstdint>

#include "params/bucket.h"

namespace lepton {

// One tensor of a list. `begin` is where it lies in the flat bucket.
struct alignas(16) BucketEntry {
  void* address;
  int64_t begin;
  int64_t count;
  uint32_t first_chunk;
  BucketType type;
};
static_assert(sizeof(BucketEntry) == 32, "two words of 16 bytes");

// A list of tensors: short ones travel in the kernel's parameters (4 KB in all), long ones in
// device memory.
struct BucketTable {
  static constexpr int kInline = 112;
  const BucketEntry* entries;  // null: inline_entries
  int32_t tensors;
  BucketEntry inline_entries[kInline];
};

// flat[...] = tensors * factor, or the reverse; cast.
struct BucketCopy {
  BucketTable table;
  void* flat;
  float factor;
};

// In place: tensors *= inverse; found_inf becomes 1 where a product is not finite.
struct BucketUnscale {
  BucketTable table;
  const float* inverse;
  float* found_inf;
};

// Sum of squares of each chunk.
struct BucketSquares {
  BucketTable table;
  double* partial;
};

// Adds up the chunks of each tensor.
struct BucketFinish {
  BucketTable table;
  const double* partial;
  double* out;
};

// out = (tensors[0] + tensors[1] + ...) / divisor, and the sum of squares of each chunk of it.
struct BucketSum {
  BucketTable table;
  void* out;
  double* partial;
  int64_t count;
  float divisor;
  bool vector;  // every address is a multiple of 16 bytes
};

}  // namespace lepton
