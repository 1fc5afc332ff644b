// Happens-before order of a block's threads, and the accesses that it does not order.
//
// A block barrier orders everything: it begins a new phase, and only accesses of the same phase
// can race. Within a phase a thread has a clock, and knows the clocks of others that it learned
// at __syncwarp and at named barriers (vector clocks; per-location lists as in FastTrack,
// Flanagan and Freund 2009).
#pragma once

#include <cstdint>
#include <vector>

namespace lepton::simt {

class Clocks {
 public:
  void reset(uint32_t threads);
  void block_barrier();
  // All of `threads` learn what each knew; their later accesses are after it.
  void meet(const std::vector<uint32_t>& threads);
  // What `thread` knows is added to `pool` / taken from it: the halves of a named barrier.
  void release(uint32_t thread, std::vector<uint32_t>& pool);
  void acquire(uint32_t thread, const std::vector<uint32_t>& pool);

  uint32_t phase() const { return phase_; }
  uint16_t clock(uint32_t thread) const { return clock_[thread]; }
  // Whether an access by `thread` at `clock` in this phase is before whatever `reader` does now.
  bool before(uint32_t thread, uint16_t clock, uint32_t reader) const {
    if (thread == reader) return true;
    const std::vector<uint16_t>& known = known_[reader];
    return known_phase_[reader] == phase_ && known[thread] >= clock;
  }

 private:
  std::vector<uint16_t>& known(uint32_t thread);
  void advance(uint32_t thread);
  uint32_t threads_ = 0, phase_ = 0;
  std::vector<uint16_t> clock_;
  std::vector<uint32_t> clock_phase_, known_phase_;
  std::vector<std::vector<uint16_t>> known_;
};

enum class AccessKind : uint8_t { read, write, atomic };

inline bool conflict(AccessKind a, AccessKind b) {
  if (a == AccessKind::atomic && b == AccessKind::atomic) return false;
  return a != AccessKind::read || b != AccessKind::read;
}

// The accesses of the present phase to four neighbouring bytes.
class Cell {
 public:
  struct Access {
    uint16_t thread, clock;
    uint8_t bytes;  // bit i: byte i
    AccessKind kind;
    int32_t line;
  };
  // Adds an access; returns an earlier one that races with it, or null.
  const Access* touch(const Clocks& clocks, const Access& access);

 private:
  uint32_t phase_ = 0;
  std::vector<Access> accesses_;
};

}  // namespace lepton::simt
