// Threads, warps and barriers of the block that is running.
//
// Blocks run one after another, in an order shuffled by the seed; within a block each thread is a
// fibre. A thread runs until it must wait for others; which warp and which lane is next is drawn
// from the seed. Nothing here is safe to call from two operating-system threads at once.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "simt/fibre.h"
#include "simt/memory.h"
#include "simt/race.h"
#include "simt/report.h"
#include "simt/traffic.h"

namespace lepton::simt {

struct Warp;

struct Thread {
  Dim3 thread_index;
  uint32_t linear = 0;
  uint32_t lane = 0;
  Warp* warp = nullptr;
  bool exited = false;
  const char* waits_for = nullptr;  // for the report of a deadlock
  Place waits_at;
  bool fenced = false;  // __threadfence since the last store to global memory
  Fibre fibre;
  CopyGroups copies;
};

// What a lane brings to an instruction that the warp does together.
enum class Meeting : uint8_t { none, sync, shuffle, vote, reduce, ldmatrix, movmatrix, mma };
const char* name_of(Meeting kind);

struct Warp {
  uint32_t first_thread = 0;
  uint32_t runnable = 0;  // lanes, as bits
  uint32_t exited = 0;
  uint32_t waiting = 0;  // lanes in a meeting
  std::array<Meeting, 32> meeting{};
  std::array<uint32_t, 32> mask{};
  std::array<Place, 32> place{};
  std::array<void*, 32> argument{};
  WarpTraffic traffic;
};

class Machine {
 public:
  Dim3 grid, block, block_index;
  Clocks clocks;
  SharedMemory shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<bool> acquired_blocks;  // whose writes this block may read
  uint32_t block_linear = 0;

  // Runs `body` in every thread of every block.
  void launch(const std::string& kernel, const LaunchShape& shape,
              const std::function<void()>& body);
  void set_seed(uint64_t seed) { random_.seed(seed); }

  // The present thread meets the lanes of `mask` at an instruction; the last to come runs `act`,
  // which finds each lane's argument in warp.argument.
  void meet(Meeting kind, uint32_t mask, const Place& place, void* argument,
            void (*act)(Warp&, uint32_t mask, const Place&));
  void block_barrier(const Place& place);
  void named_barrier(uint32_t id, uint32_t count, bool waits, const Place& place);

 private:
  struct NamedBarrier {
    uint32_t expected = 0;
    uint32_t arrived = 0;
    uint32_t phase = 0;
    std::vector<uint32_t> waiting;  // threads
    std::vector<uint32_t> pool;     // clocks
    Place place;
  };

  static void thread_main();
  void run_block();
  Warp* draw_warp();
  void wait(const char* reason, const Place& place);
  void release_block_barrier();
  void wake(uint32_t thread);
  void thread_ends();
  [[noreturn]] void report_deadlock();

  std::mt19937_64 random_;
  StackPool stacks_;
  Fibre scheduler_;
  const std::function<void()>* body_ = nullptr;
  bool stopped_ = false;
  uint32_t live_ = 0;
  uint32_t at_barrier_ = 0;
  Place barrier_place_;
  std::array<NamedBarrier, 16> named_;
};

extern Machine machine;
extern Thread* current;

}  // namespace lepton::simt
