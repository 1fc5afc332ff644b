#include "simt/race.h"

#include <algorithm>

namespace lepton::simt {

void Clocks::reset(uint32_t threads) {
  threads_ = threads;
  ++phase_;  // cells of an earlier block are of an earlier phase
  clock_.assign(threads, 1);
  clock_phase_.assign(threads, phase_);
  known_phase_.assign(threads, 0);
  known_.resize(threads);
}

void Clocks::block_barrier() {
  ++phase_;
  std::fill(clock_.begin(), clock_.end(), uint16_t{1});
}

std::vector<uint16_t>& Clocks::known(uint32_t thread) {
  if (known_phase_[thread] != phase_) {
    known_phase_[thread] = phase_;
    known_[thread].assign(threads_, 0);
  }
  return known_[thread];
}

void Clocks::advance(uint32_t thread) {
  if (clock_[thread] < UINT16_MAX) ++clock_[thread];
}

void Clocks::meet(const std::vector<uint32_t>& threads) {
  std::vector<uint32_t> pool;
  for (uint32_t thread : threads) release(thread, pool);
  for (uint32_t thread : threads) acquire(thread, pool);
}

void Clocks::release(uint32_t thread, std::vector<uint32_t>& pool) {
  pool.resize(threads_, 0);
  if (known_phase_[thread] == phase_) {
    const std::vector<uint16_t>& mine = known_[thread];
    for (uint32_t i = 0; i < threads_; ++i) pool[i] = std::max<uint32_t>(pool[i], mine[i]);
  }
  pool[thread] = std::max<uint32_t>(pool[thread], clock_[thread]);
  advance(thread);
}

void Clocks::acquire(uint32_t thread, const std::vector<uint32_t>& pool) {
  std::vector<uint16_t>& mine = known(thread);
  for (uint32_t i = 0; i < threads_; ++i) {
    mine[i] = std::max(mine[i], static_cast<uint16_t>(pool[i]));
  }
}

const Cell::Access* Cell::touch(const Clocks& clocks, const Access& access) {
  static thread_local Access racing;
  const Access* found = nullptr;
  if (phase_ != clocks.phase()) {
    phase_ = clocks.phase();
    accesses_.clear();
  }
  bool merged = false;
  size_t kept = 0;
  for (size_t i = 0; i < accesses_.size(); ++i) {
    Access earlier = accesses_[i];
    const bool overlaps = (earlier.bytes & access.bytes) != 0;
    const bool ordered = clocks.before(earlier.thread, earlier.clock, access.thread);
    if (overlaps && !ordered && conflict(earlier.kind, access.kind)) {
      racing = earlier;
      found = &racing;
    }
    // What a later access must respect is already respected by one that respects this.
    if (ordered && (access.kind == AccessKind::write || access.kind == earlier.kind)) {
      earlier.bytes &= static_cast<uint8_t>(~access.bytes);
    }
    if (earlier.thread == access.thread && earlier.clock == access.clock &&
        earlier.kind == access.kind) {
      earlier.bytes |= access.bytes;
      merged = true;
    }
    if (earlier.bytes != 0) accesses_[kept++] = earlier;
  }
  accesses_.resize(kept);
  if (!merged) accesses_.push_back(access);
  return found;
}

}  // namespace lepton::simt
