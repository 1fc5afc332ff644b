// One instruction a kernel, registers in and out: for tests against the tables of the PTX ISA.
#include "cuda/ptx.cuh"
#include "simt/entry.h"

namespace lepton {
namespace {

// Register r of lane l is at 32 r + l.
struct Registers {
  const uint32_t* a;
  const uint32_t* b;
  const uint32_t* metadata;
  uint32_t* d;
};

struct Operands {
  uint32_t a[4], b[4], metadata;
  __device__ explicit Operands(const Registers& p) {
    for (int r = 0; r < 4; ++r) {
      a[r] = Global<const uint32_t>(p.a).load(32 * r + threadIdx.x);
      b[r] = Global<const uint32_t>(p.b).load(32 * r + threadIdx.x);
    }
    metadata = Global<const uint32_t>(p.metadata).load(threadIdx.x);
  }
};

template <class T>
__device__ void load_d(const Registers& p, T (&d)[4]) {
  for (int r = 0; r < 4; ++r) d[r] = Global<T>::of(p.d).load(32 * r + threadIdx.x);
}
template <class T>
__device__ void store_d(const Registers& p, const T (&d)[4]) {
  for (int r = 0; r < 4; ++r) Global<T>::of(p.d).store(32 * r + threadIdx.x, d[r]);
}

template <class T>
__global__ void dense_16(Registers p) {
  const Operands in(p);
  float d[4];
  load_d(p, d);
  mma_m16n8k16<T>(d, in.a, in.b[0], in.b[1]);
  store_d(p, d);
}
__global__ void dense_s8(Registers p) {
  const Operands in(p);
  int32_t d[4];
  load_d(p, d);
  mma_m16n8k32_s8(d, in.a, in.b[0], in.b[1]);
  store_d(p, d);
}
template <class T, int kSelector>
__global__ void sparse_16(Registers p) {
  const Operands in(p);
  float d[4];
  load_d(p, d);
  mma_sp_m16n8k32<T, kSelector>(d, in.a, in.b, in.metadata);
  store_d(p, d);
}
__global__ void sparse_s8(Registers p) {
  const Operands in(p);
  int32_t d[4];
  load_d(p, d);
  mma_sp_m16n8k64_s8(d, in.a, in.b, in.metadata);
  store_d(p, d);
}

// 32 rows of 16 bytes come from `a`; lane l's row address is row l.
template <int kCount, bool kTranspose>
__global__ void load_matrix(Registers p) {
  Shared<uint32_t> rows(0);
  for (int i = 0; i < 4; ++i) {
    const int at = 32 * i + static_cast<int>(threadIdx.x);
    rows.store(at, Global<const uint32_t>(p.a).load(at));
  }
  __syncwarp();
  uint32_t r[4] = {};
  const uint32_t address = rows.address(4 * static_cast<int>(threadIdx.x));
  if constexpr (kCount == 1) ldmatrix_x1<kTranspose>(r[0], address);
  if constexpr (kCount == 2) ldmatrix_x2<kTranspose>(r[0], r[1], address);
  if constexpr (kCount == 4) ldmatrix_x4<kTranspose>(r, address);
  store_d(p, r);
}

__global__ void transpose_matrix(Registers p) {
  const Operands in(p);
  const uint32_t d[4] = {movmatrix(in.a[0]), movmatrix(in.a[1]), movmatrix(in.a[2]),
                         movmatrix(in.a[3])};
  store_d(p, d);
}

// Conversions of `a` taken as floats, and warp functions.
__global__ void convert(Registers p) {
  const Operands in(p);
  const float x = __uint_as_float(in.a[0]);
  const uint32_t d[4] = {pack2<f16>(x, -x), pack2<bf16>(x, -x),
                         __float_as_uint(unpack2<f16>(in.a[1]).x),
                         __float_as_uint(unpack2<bf16>(in.a[1]).y)};
  store_d(p, d);
}
__global__ void warp_functions(Registers p) {
  const Operands in(p);
  const int lane = static_cast<int>(threadIdx.x);
  const uint32_t d[4] = {
      __shfl_xor_sync(kFullWarp, in.a[0], 5), __shfl_down_sync(kFullWarp, in.a[0], 3, 8),
      __ballot_sync(kFullWarp, (in.a[0] & 1u) != 0),
      __shfl_sync(kFullWarp, in.a[0], lane + 1, 4) + __reduce_add_sync(kFullWarp, in.a[1])};
  store_d(p, d);
}

int launch(void (*kernel)(Registers), const Registers& p) {
  return simt::run([&] { simt::Launcher{}(kernel, LaunchShape{{1, 1, 1}, {32, 1, 1}, 512}, p); });
}

}  // namespace
}  // namespace lepton

#define LEPTON_INSTRUCTION(name, ...)                                                           \
  LEPTON_SIMT_ENTRY simt_##name(const uint32_t* a, const uint32_t* b, const uint32_t* metadata, \
                                uint32_t* d) {                                                  \
    using namespace lepton;                                                                     \
    return launch(&__VA_ARGS__, {a, b, metadata, d});                                           \
  }
LEPTON_INSTRUCTION(mma_f16, dense_16<f16>)
LEPTON_INSTRUCTION(mma_bf16, dense_16<bf16>)
LEPTON_INSTRUCTION(mma_s8, dense_s8)
LEPTON_INSTRUCTION(mma_sp_f16_0, sparse_16<f16, 0>)
LEPTON_INSTRUCTION(mma_sp_f16_1, sparse_16<f16, 1>)
LEPTON_INSTRUCTION(mma_sp_bf16_0, sparse_16<bf16, 0>)
LEPTON_INSTRUCTION(mma_sp_bf16_1, sparse_16<bf16, 1>)
LEPTON_INSTRUCTION(mma_sp_s8, sparse_s8)
LEPTON_INSTRUCTION(ldmatrix_1, load_matrix<1, false>)
LEPTON_INSTRUCTION(ldmatrix_2, load_matrix<2, false>)
LEPTON_INSTRUCTION(ldmatrix_4, load_matrix<4, false>)
LEPTON_INSTRUCTION(ldmatrix_1_trans, load_matrix<1, true>)
LEPTON_INSTRUCTION(ldmatrix_2_trans, load_matrix<2, true>)
LEPTON_INSTRUCTION(ldmatrix_4_trans, load_matrix<4, true>)
LEPTON_INSTRUCTION(movmatrix, transpose_matrix)
LEPTON_INSTRUCTION(convert, convert)
LEPTON_INSTRUCTION(warp_functions, warp_functions)
