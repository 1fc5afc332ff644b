// How the processes of one host agree, over memory that all of them map. No Python, no kernels.
//
// Every collective has a number, counted from 1, the same on every rank. A rank announces it in two
// steps, each a counter of its own that only it writes and that only grows:
//   arrived = n   its data for collective n and its descriptor are in memory
//   done = n      it has read and written all it will for collective n
// A rank works on n once all have arrived at n, and may touch the memory of n again once all are
// done with n. As counters only grow, a rank that is ahead never has to be waited for twice, and
// no state is ever reset. Data is published by a release store and taken by an acquire load.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <string>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace lepton::shm {

constexpr uint32_t kMagic = 0x4C50534D;  // "LPSM"
constexpr int kMaxRanks = 128;
constexpr int64_t kWhole = -1;
constexpr uint64_t kSlots = 64;  // collectives between the slowest and the fastest rank

// What a rank brings to a collective; equal on all ranks or the collective fails on all of them.
struct Descriptor {
  uint32_t kind, op, type, root;
  uint64_t count;
  uint64_t place;                 // where in shared memory, or ~0
  uint64_t columns, left, right;  // of a product of factors: its width, and where the factors are

  bool operator==(const Descriptor& other) const {
    return kind == other.kind && op == other.op && type == other.type && root == other.root &&
           count == other.count && place == other.place && columns == other.columns &&
           left == other.left && right == other.right;
  }
};

// A counter with the number of those who sleep until it grows, on one cache line.
struct alignas(64) Counter {
  std::atomic<uint64_t> value;
  std::atomic<uint32_t> sleepers;
};

struct alignas(64) Slot {
  Descriptor descriptor;
  int64_t terms;  // of this rank's factors; 0: it brings nothing; kWhole: the whole product
  // Of the slice that this rank wrote: written once all have arrived, so after who begins the
  // collective kSlots later has read it.
  double squares;
};

struct alignas(64) RankState {
  Counter arrived;
  Counter done;
  std::atomic<uint32_t> left;  // 1: closed its communicator in good order
  Slot slots[kSlots];
};

struct alignas(64) Control {
  uint32_t magic;
  uint32_t ranks;
  std::atomic<uint32_t> failed;  // 1 + the rank that some rank found at fault
  RankState rank[1];             // `ranks` of them

  static size_t bytes(int ranks) {
    return sizeof(Control) + sizeof(RankState) * static_cast<size_t>(ranks - 1);
  }
};

static_assert(std::atomic<uint64_t>::is_always_lock_free, "counters are shared between processes");

inline double seconds_now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

// A futex is 32 bits: the low half of the counter, which stands first on a little-endian machine.
inline uint32_t* futex_word(Counter& counter) {
  return reinterpret_cast<uint32_t*>(&counter.value);
}

inline void wake(Counter& counter) {
  syscall(SYS_futex, futex_word(counter), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// Sequentially consistent on both sides: either the sleeper sees the new value before it sleeps, or
// this sees the sleeper. The futex itself compares again.
inline void publish(Counter& counter, uint64_t value) {
  counter.value.store(value, std::memory_order_seq_cst);
  if (counter.sleepers.load(std::memory_order_seq_cst) != 0) wake(counter);
}

inline bool reached(const Counter& counter, uint64_t target) {
  return counter.value.load(std::memory_order_acquire) >= target;
}

// Sleeps until the counter moves from `seen`, for at most `seconds`.
inline void sleep_on(Counter& counter, uint64_t seen, double seconds) {
  counter.sleepers.fetch_add(1, std::memory_order_seq_cst);
  if (counter.value.load(std::memory_order_seq_cst) == seen) {
    timespec slice;
    slice.tv_sec = static_cast<time_t>(seconds);
    slice.tv_nsec = static_cast<long>((seconds - static_cast<double>(slice.tv_sec)) * 1e9);
    syscall(SYS_futex, futex_word(counter), FUTEX_WAIT, static_cast<uint32_t>(seen), &slice,
            nullptr, 0);
  }
  counter.sleepers.fetch_sub(1, std::memory_order_seq_cst);
}

// Waits until counter >= target: spins for `spin` seconds, as a peer that runs is a few
// microseconds away, then sleeps, as a peer that waits for this core never is. Between naps calls
// idle(seconds waited), which throws to give up.
template <class Idle>
void wait_for(Counter& counter, uint64_t target, double spin, const Idle& idle) {
  if (reached(counter, target)) return;
  const double begin = seconds_now();
  double waited = 0.0;
  do {
    for (int i = 0; i < 64; ++i) {
      relax();
      if (reached(counter, target)) return;
    }
    waited = seconds_now() - begin;
  } while (waited < spin);
  constexpr double kNap = 0.02;
  for (;;) {
    const uint64_t seen = counter.value.load(std::memory_order_acquire);
    if (seen >= target) return;
    idle(seconds_now() - begin);
    sleep_on(counter, seen, kNap);
  }
}

}  // namespace lepton::shm
