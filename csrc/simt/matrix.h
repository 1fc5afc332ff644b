// Instructions that a warp does together on matrices, and asynchronous copies.
#pragma once

#include <cstdint>

#include "simt/machine.h"

namespace lepton::simt {

void copy_async(uint32_t destination, Buffer* buffer, const void* source, uint32_t bytes,
                uint32_t valid_bytes, const Place& place);
void copy_commit();
void copy_wait(size_t pending);

void load_matrices(uint32_t (&r)[4], uint32_t address, int count, bool transpose,
                   const Place& place);
uint32_t transpose_matrix(uint32_t fragment, const Place& place);

enum class MmaType : uint8_t { f16, bf16, s8 };

// One lane's share of d += a b: m16n8k16 (f16, bf16) or m16n8k32 (s8); twice that k where sparse.
struct Mma {
  MmaType type;
  bool sparse;
  int selector;
  void* d;  // float[4] or int32_t[4]
  const uint32_t* a;
  uint32_t b[4];
  uint32_t metadata;
};
void multiply(Mma mma, const Place& place);

}  // namespace lepton::simt
