// Kernels with one fault each, and their sound twins: what the emulator must find and must not.
#include "cuda/ptx.cuh"
#include "simt/entry.h"

namespace lepton {
namespace {

struct Planted {
  const float* x;
  float* y;
  int64_t count;
  bool fault;
};

// Each thread passes a value to its mirror through shared memory.
__global__ void mirror(Planted p) {
  Shared<float> box(0);
  const int i = static_cast<int>(threadIdx.x);
  box.store(i, Global<const float>(p.x).load(i));
  if (!p.fault) __syncthreads();
  Global<float>(p.y).store(i, box.load(static_cast<int>(blockDim.x) - 1 - i));
}

// A buffer is written again while others may still read it.
__global__ void reuse(Planted p) {
  Shared<float> box(0);
  const int i = static_cast<int>(threadIdx.x);
  float sum = 0.0f;
  for (int round = 0; round < 3; ++round) {
    box.store(i, Global<const float>(p.x).load(i) * static_cast<float>(round));
    __syncthreads();
    sum += box.load((i + 1) % static_cast<int>(blockDim.x));
    if (!p.fault) __syncthreads();
  }
  Global<float>(p.y).store(i, sum);
}

// As `mirror`, within a warp.
__global__ void warp_mirror(Planted p) {
  Shared<float> box(0);
  const int i = static_cast<int>(threadIdx.x);
  box.store(i, Global<const float>(p.x).load(i));
  if (!p.fault) __syncwarp();
  Global<float>(p.y).store(i, box.load(i ^ 31));
}

// Two stages of cp.async; with the fault it waits for one group too few.
__global__ void pipeline(Planted p) {
  Shared<float> stage(0);
  Global<const float> x(p.x);
  const int i = 4 * static_cast<int>(threadIdx.x), step = 4 * static_cast<int>(blockDim.x);
  float sum = 0.0f;
  cp_async<16>(stage.address(i), x + i);
  cp_async_commit();
  for (int round = 0; round < 4; ++round) {
    if (round + 1 < 4) {
      cp_async<16>(stage.address((round + 1) % 2 * step + i), x + ((round + 1) * step + i));
    }
    cp_async_commit();
    if (p.fault) {
      cp_async_wait<2>();
    } else {
      cp_async_wait<1>();
    }
    __syncthreads();
    sum += stage.load(round % 2 * step + step - 1 - i / 4);
    __syncthreads();
  }
  Global<float>(p.y).store(static_cast<int>(threadIdx.x), sum);
}

// A wait orders nothing between threads: the barrier after it is missing.
__global__ void wait_without_barrier(Planted p) {
  Shared<float> stage(0);
  const int i = 4 * static_cast<int>(threadIdx.x), step = 4 * static_cast<int>(blockDim.x);
  cp_async<16>(stage.address(i), Global<const float>(p.x) + i);
  cp_async_commit();
  cp_async_wait<0>();
  if (!p.fault) __syncthreads();
  Global<float>(p.y).store(threadIdx.x, stage.load(static_cast<int>(threadIdx.x + 64) % step));
}

__global__ void beyond_global(Planted p) {
  const int64_t i = threadIdx.x;
  if (i < p.count + (p.fault ? 1 : 0)) {
    Global<float>(p.y).store(i, Global<const float>(p.x).load(i));
  }
}

__global__ void beyond_shared(Planted p) {
  Shared<float> box(0);
  const int i = static_cast<int>(threadIdx.x);
  box.store(i + (p.fault ? 1 : 0), 1.0f);
}

__global__ void unwritten(Planted p) {
  Shared<float> box(0);
  const int i = static_cast<int>(threadIdx.x);
  if (!p.fault || i % 2 == 0) box.store(i, 1.0f);
  Global<float>(p.y).store(i, box.load(i));
}

__global__ void column_access(Planted p) {
  const int pitch = p.fault ? 32 : 33, i = static_cast<int>(threadIdx.x);
  Shared<float> box(0);
  box.store(i * pitch, Global<const float>(p.x).load(i));
  Global<float>(p.y).store(i, box.load(i * pitch));
}

__global__ void rows_for_ldmatrix(Planted p) {
  const int pitch = p.fault ? 64 : 72, i = static_cast<int>(threadIdx.x);
  Shared<uint16_t> box(0);
  for (int row = 0; row < 32; ++row) {
    for (int column = i; column < pitch; column += 32) box.store(row * pitch + column, 1);
  }
  __syncwarp();
  uint32_t r[4];
  ldmatrix_x4(r, box.address(i * pitch));
  Global<float>(p.y).store(i, static_cast<float>(r[0] + r[1] + r[2] + r[3]));
}

// Half of the block never comes to the barrier, but waits for the other half elsewhere.
__global__ void split_barrier(Planted p) {
  if (p.fault && threadIdx.x < 32) {
    named_barrier_sync(1, blockDim.x);
  } else {
    __syncthreads();
  }
}

__global__ void two_barriers(Planted p) {
  if (p.fault && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void divergent_shuffle(Planted p) {
  float v = static_cast<float>(threadIdx.x);
  if (p.fault && threadIdx.x % 2 == 0) {
    v += __shfl_xor_sync(kFullWarp, v, 1);
  } else {
    v += __shfl_xor_sync(kFullWarp, v, 2);
  }
  Global<float>(p.y).store(threadIdx.x, v);
}

__global__ void lane_that_left(Planted p) {
  if (p.fault && threadIdx.x == 7) return;
  const unsigned vote = __ballot_sync(kFullWarp, threadIdx.x % 2 == 0);
  Global<float>(p.y).store(threadIdx.x, static_cast<float>(vote & 1u));
}

__global__ void misaligned_vector(Planted p) {
  const int64_t i = 4 * static_cast<int64_t>(threadIdx.x) + (p.fault ? 1 : 0);
  if (i + 4 > p.count) return;
  const auto v = Global<const float>(p.x).load_as<float4>(i);
  Global<float>(p.y).store(threadIdx.x, v.x + v.w);
}

__global__ void writes_input(Planted p) {
  Global<float> target = p.fault ? Global<float>(const_cast<float*>(p.x)) : Global<float>(p.y);
  target.store(threadIdx.x, 1.0f);
}

// Blocks add up in one place.
__global__ void blocks_collide(Planted p) {
  Global<float> y(p.y);
  if (threadIdx.x != 0) return;
  if (p.fault) {
    y.store(0, y.load(0) + 1.0f);
  } else {
    y.atomic_add(0, 1.0f);
  }
}

// The last block to come adds up what the others left, published by a fence.
__global__ void last_block_reduces(Planted p) {
  Global<float> y(p.y);
  const int blocks = static_cast<int>(gridDim.x);
  Shared<int> last(0);
  if (threadIdx.x == 0) {
    y.store(2 + blockIdx.x, 1.0f);
    if (!p.fault) __threadfence();
    last.store(0, y.atomic_add(0, 1.0f) == static_cast<float>(blocks - 1) ? 1 : 0);
  }
  __syncthreads();
  if (last.load(0) != 0 && threadIdx.x == 0) {
    float sum = 0.0f;
    for (int i = 0; i < blocks; ++i) sum += y.load(2 + i);
    y.store(1, sum);
  }
}

// One warp fills, the other drains, through named barriers.
__global__ void producer_consumer(Planted p) {
  Shared<float> box(0);
  const int lane = static_cast<int>(lane_index());
  float sum = 0.0f;
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x < 32) {
      if (round > 0 && !p.fault) named_barrier_sync(2, 64);
      box.store(lane, Global<const float>(p.x).load(lane) + static_cast<float>(round));
      named_barrier_arrive(1, 64);
    } else {
      named_barrier_sync(1, 64);
      sum += box.load(31 - lane);
      if (round < 2 && !p.fault) named_barrier_arrive(2, 64);
    }
  }
  if (threadIdx.x >= 32) Global<float>(p.y).store(lane, sum);
}

template <class Kernel>
int plant(Kernel* kernel, uint32_t blocks, uint32_t threads, uint32_t shared_bytes,
          const Planted& p) {
  return simt::run([&] {
    simt::Launcher{}(kernel, LaunchShape{{blocks, 1, 1}, {threads, 1, 1}, shared_bytes}, p);
  });
}

}  // namespace
}  // namespace lepton

#define LEPTON_PLANT(name, blocks, threads, shared_bytes)                                          \
  LEPTON_SIMT_ENTRY simt_planted_##name(const float* x, float* y, int64_t count, int64_t fault) {  \
    return lepton::plant(&lepton::name, blocks, threads, shared_bytes, {x, y, count, fault != 0}); \
  }
LEPTON_PLANT(mirror, 1, 64, 256)
LEPTON_PLANT(reuse, 1, 64, 256)
LEPTON_PLANT(warp_mirror, 1, 32, 128)
LEPTON_PLANT(pipeline, 1, 64, 2048)
LEPTON_PLANT(wait_without_barrier, 1, 64, 1024)
LEPTON_PLANT(beyond_global, 1, 256, 0)
LEPTON_PLANT(beyond_shared, 1, 64, 256)
LEPTON_PLANT(unwritten, 1, 64, 256)
LEPTON_PLANT(column_access, 1, 32, 33 * 32 * 4)
LEPTON_PLANT(rows_for_ldmatrix, 1, 32, 32 * 72 * 2)
LEPTON_PLANT(split_barrier, 1, 64, 0)
LEPTON_PLANT(two_barriers, 1, 64, 0)
LEPTON_PLANT(divergent_shuffle, 1, 32, 0)
LEPTON_PLANT(lane_that_left, 1, 32, 0)
LEPTON_PLANT(misaligned_vector, 1, 32, 0)
LEPTON_PLANT(writes_input, 1, 32, 0)
LEPTON_PLANT(blocks_collide, 4, 32, 0)
LEPTON_PLANT(last_block_reduces, 5, 32, 16)
LEPTON_PLANT(producer_consumer, 1, 64, 128)
