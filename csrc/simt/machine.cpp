#include "simt/machine.h"

#include <algorithm>
#include <exception>
#include <numeric>

namespace lepton::simt {

Machine machine;
Thread* current = nullptr;

const char* name_of(Meeting kind) {
  switch (kind) {
    case Meeting::none: return "nothing";
    case Meeting::sync: return "__syncwarp";
    case Meeting::shuffle: return "a shuffle";
    case Meeting::vote: return "a vote";
    case Meeting::reduce: return "a reduction";
    case Meeting::ldmatrix: return "ldmatrix";
    case Meeting::movmatrix: return "movmatrix";
    case Meeting::mma: return "mma";
  }
  return "?";
}

void Machine::launch(const std::string& kernel, const LaunchShape& shape,
                     const std::function<void()>& body) {
  grid = shape.grid;
  block = shape.block;
  report.begin_launch(
      {kernel, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shape.shared_bytes, {}, {}});
  const uint32_t count = block.x * block.y * block.z;
  if (count == 0 || count % 32 != 0 || count > 1024) {
    report.finding(Kind::divergence, Place::here(),
                   "a block of " + std::to_string(count) +
                       " threads: the kernels here use whole warps, at most 1024 threads");
  }
  threads = std::vector<Thread>(count);
  warps = std::vector<Warp>(count / 32);
  body_ = &body;
  stopped_ = false;
  global_memory.begin_launch();

  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random_);
  for (uint32_t linear : order) {
    block_linear = linear;
    block_index = {linear % grid.x, linear / grid.x % grid.y, linear / grid.x / grid.y};
    acquired_blocks.assign(blocks, false);
    clocks.reset(count);
    shared.reset(shape.shared_bytes);
    run_block();
  }
}

void Machine::run_block() {
  const auto count = static_cast<uint32_t>(threads.size());
  for (uint32_t i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.thread_index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    thread.linear = i;
    thread.lane = i % 32;
    thread.warp = &warps[i / 32];
    thread.exited = thread.fenced = false;
    thread.waits_for = nullptr;
    thread.copies = {};
    thread.fibre.start(stacks_.stack(i), StackPool::kBytes, &thread_main);
  }
  for (uint32_t w = 0; w < warps.size(); ++w) {
    warps[w].first_thread = w * 32;
    warps[w].runnable = 0xffffffffu;
    warps[w].exited = warps[w].waiting = 0;
  }
  live_ = count;
  at_barrier_ = 0;
  for (NamedBarrier& barrier : named_) barrier = {};

  while (live_ > 0) {
    Warp* warp = draw_warp();
    if (warp == nullptr) report_deadlock();
    // Every runnable lane of the warp, from a lane drawn by the seed.
    const auto first = static_cast<uint32_t>(random_() % 32);
    for (uint32_t i = 0; i < 32; ++i) {
      const uint32_t lane = (first + i) % 32;
      if (!(warp->runnable >> lane & 1u)) continue;
      current = &threads[warp->first_thread + lane];
      current->fibre.resume(scheduler_);
      current = nullptr;
      if (stopped_) throw Stop{};
    }
  }
  for (Warp& warp : warps) warp.traffic.flush();
}

Warp* Machine::draw_warp() {
  const auto first = static_cast<size_t>(random_() % warps.size());
  for (size_t i = 0; i < warps.size(); ++i) {
    Warp& warp = warps[(first + i) % warps.size()];
    if (warp.runnable != 0) return &warp;
  }
  return nullptr;
}

void Machine::thread_main() {
  try {
    (*machine.body_)();
    machine.thread_ends();
  } catch (const Stop&) {
    machine.stopped_ = true;
  }
  Fibre dead;
  machine.scheduler_.resume(dead);
  std::terminate();
}

void Machine::thread_ends() {
  Thread& self = *current;
  self.exited = true;
  --live_;
  self.warp->exited |= 1u << self.lane;
  self.warp->runnable &= ~(1u << self.lane);
  if (at_barrier_ > 0 && at_barrier_ == live_) release_block_barrier();
}

void Machine::wait(const char* reason, const Place& place) {
  Thread& self = *current;
  self.waits_for = reason;
  self.waits_at = place;
  self.warp->runnable &= ~(1u << self.lane);
  scheduler_.resume(self.fibre);
  self.waits_for = nullptr;
}

void Machine::wake(uint32_t thread) {
  Thread& sleeper = threads[thread];
  sleeper.warp->runnable |= 1u << sleeper.lane;
}

void Machine::meet(Meeting kind, uint32_t mask, const Place& place, void* argument,
                   void (*act)(Warp&, uint32_t, const Place&)) {
  Warp& warp = *current->warp;
  const uint32_t lane = current->lane;
  const std::string at = std::string(" at ") + name_of(kind);
  if (!(mask >> lane & 1u)) {
    report.finding(Kind::divergence, place,
                   "lane " + std::to_string(lane) + " is not in its own mask" + at);
  }
  if ((mask & warp.exited) != 0) {
    report.finding(Kind::divergence, place, "the mask names lanes that have ended" + at);
  }
  warp.meeting[lane] = kind;
  warp.mask[lane] = mask;
  warp.place[lane] = place;
  warp.argument[lane] = argument;
  warp.waiting |= 1u << lane;
  if ((warp.waiting & mask) != mask) {
    wait(name_of(kind), place);
    return;
  }
  for (uint32_t other = 0; other < 32; ++other) {
    if (!(mask >> other & 1u)) continue;
    if (warp.mask[other] != mask || warp.meeting[other] != kind || warp.place[other] != place) {
      report.finding(Kind::divergence, place,
                     "lane " + std::to_string(lane) + " is" + at + ", lane " +
                         std::to_string(other) + " at " + name_of(warp.meeting[other]) + " in " +
                         warp.place[other].text());
    }
  }
  if (mask == 0xffffffffu) warp.traffic.flush();
  act(warp, mask, place);
  warp.waiting &= ~mask;
  warp.runnable |= mask;
}

void Machine::block_barrier(const Place& place) {
  if (at_barrier_ > 0 && barrier_place_ != place) {
    report.finding(Kind::divergence, place,
                   "thread " + std::to_string(current->linear) +
                       " is at this __syncthreads, others at the one in " + barrier_place_.text());
  }
  barrier_place_ = place;
  if (++at_barrier_ == live_) {
    release_block_barrier();
  } else {
    wait("__syncthreads", place);
  }
}

void Machine::release_block_barrier() {
  at_barrier_ = 0;
  clocks.block_barrier();
  for (Warp& warp : warps) {
    warp.traffic.flush();
    warp.runnable |= ~warp.exited;  // every thread that lives is at the barrier
  }
}

void Machine::named_barrier(uint32_t id, uint32_t count, bool waits, const Place& place) {
  if (id == 0 || id > 15 || count == 0 || count % 32 != 0) {
    report.finding(Kind::divergence, place,
                   "named barrier " + std::to_string(id) + " for " + std::to_string(count) +
                       " threads: ids are 1 to 15, counts multiples of 32");
  }
  NamedBarrier& barrier = named_[id];
  if (barrier.arrived > 0 && barrier.expected != count) {
    report.finding(Kind::divergence, place,
                   "named barrier " + std::to_string(id) + " is given " + std::to_string(count) +
                       " threads here and " + std::to_string(barrier.expected) + " in " +
                       barrier.place.text());
  }
  if (barrier.phase != clocks.phase()) {  // what was known then, everyone knows by now
    barrier.phase = clocks.phase();
    barrier.pool.clear();
  }
  barrier.expected = count;
  barrier.place = place;
  clocks.release(current->linear, barrier.pool);
  ++barrier.arrived;
  if (waits) barrier.waiting.push_back(current->linear);
  if (barrier.arrived < count) {
    if (waits) wait("a named barrier", place);
    return;
  }
  const std::vector<uint32_t> sleepers = std::move(barrier.waiting);
  const std::vector<uint32_t> pool = std::move(barrier.pool);
  barrier = {};
  for (uint32_t thread : sleepers) {
    clocks.acquire(thread, pool);
    threads[thread].warp->traffic.flush();
    wake(thread);
  }
}

void Machine::report_deadlock() {
  std::string text;
  const char* last = nullptr;
  Place last_place;
  uint32_t run = 0;
  auto flush = [&] {
    if (run > 0) {
      text += (text.empty() ? "" : "; ") + std::to_string(run) + " threads wait for " + last +
              " in " + last_place.text();
    }
    run = 0;
  };
  for (const Thread& thread : threads) {
    if (thread.exited) continue;
    if (run > 0 && (thread.waits_for != last || thread.waits_at != last_place)) flush();
    last = thread.waits_for;
    last_place = thread.waits_at;
    ++run;
  }
  flush();
  report.finding(Kind::deadlock, last_place,
                 "no thread of block " + std::to_string(block_linear) + " can go on: " + text);
  throw Stop{};
}

}  // namespace lepton::simt
