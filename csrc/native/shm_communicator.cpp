#include "native/shm_communicator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace lepton::shm {
namespace {

constexpr size_t kPage = 4096;
constexpr uint64_t kNowhere = ~uint64_t{0};
constexpr size_t kKeptSquares = 65536;

size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Slices begin at multiples of 64 elements: whole cache lines, whole vectors.
int64_t slice_begin(int64_t count, int rank, int ranks) {
  const int64_t lines = (count + 63) / 64;
  return std::min(lines * rank / ranks * 64, count);
}

const char* type_name(uint32_t type) {
  static const char* const names[] = {"float32", "bfloat16", "float16", "int8", "int64"};
  return type < 5 ? names[type] : "unknown";
}

std::string describe(const Descriptor& d) {
  std::string text = kind_name(d.kind);
  if (d.kind != 0) {
    text += " of " + std::to_string(d.count) + " " + type_name(d.type);
    if (d.kind <= 3) text += d.op == 0 ? " (sum)" : " (avg)";
    if (d.kind == 5) text += " from rank " + std::to_string(d.root);
    if (d.place != kNowhere) text += " at byte " + std::to_string(d.place & 0xFFFFFFFFFFFF);
  }
  return text;
}

}  // namespace

const char* kind_name(uint32_t kind) {
  static const char* const names[] = {"barrier",    "all_reduce", "all_reduce",    "reduce_scatter",
                                      "all_gather", "broadcast",  "gather_slices", "average_outer"};
  return kind < 8 ? names[kind] : "unknown collective";
}

Mapping::Mapping(int fd, size_t bytes) : data_(nullptr), bytes_(bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (at == MAP_FAILED) {
    throw ShmError("cannot map " + std::to_string(bytes) +
                   " bytes of shared memory: " + std::strerror(errno));
  }
  data_ = static_cast<uint8_t*>(at);
}

Mapping::~Mapping() { munmap(data_, bytes_); }

size_t Communicator::control_bytes(int ranks, size_t stage_bytes) {
  return round_up(Control::bytes(ranks), kPage) +
         2 * static_cast<size_t>(ranks) * round_up(stage_bytes, kPage);
}

Communicator::Communicator(int rank, std::vector<Member> members, std::vector<int> names, int fd,
                           size_t stage_bytes, double timeout, double spin,
                           const BucketKernels* (*kernels)())
    : rank_(rank),
      ranks_(static_cast<int>(members.size())),
      names_(std::move(names)),
      stage_bytes_(round_up(stage_bytes, kPage)),
      timeout_(timeout),
      spin_(spin),
      kernels_(kernels),
      owner_(getpid()) {
  if (ranks_ < 1 || ranks_ > kMaxRanks || rank < 0 || rank >= ranks_) {
    throw ShmError("a shared-memory communicator has 1 to " + std::to_string(kMaxRanks) +
                   " ranks, got rank " + std::to_string(rank) + " of " + std::to_string(ranks_));
  }
  for (const Member& member : members) peers_.emplace_back(member.pid, member.start_time);
  control_mapping_ = std::make_shared<Mapping>(fd, control_bytes(ranks_, stage_bytes_));
  control_ = reinterpret_cast<Control*>(control_mapping_->data());
}

Communicator::~Communicator() {
  if (getpid() == owner_) close();
}

void Communicator::close() {
  if (closed_) return;
  closed_ = true;
  pending_.clear();
  mine().left.store(1, std::memory_order_seq_cst);
  wake(mine().arrived);
  wake(mine().done);
  segments_.clear();
}

int Communicator::add_segment(int fd, size_t region_bytes) {
  check_usable();
  region_bytes = round_up(region_bytes, kPage);
  auto mapping = std::make_shared<Mapping>(fd, region_bytes * static_cast<size_t>(ranks_));
  std::memset(mapping->data() + region_bytes * static_cast<size_t>(rank_), 0, region_bytes);
  segments_.push_back({std::move(mapping), region_bytes});
  return static_cast<int>(segments_.size()) - 1;
}

uint8_t* Communicator::region(int index, int rank) const {
  const Segment& s = segment(index);
  return s.mapping->data() + s.region_bytes * static_cast<size_t>(rank);
}

void Communicator::drop_segment(int index) { segments_.at(static_cast<size_t>(index)) = {}; }

bool Communicator::locate(const void* data, size_t bytes, int& segment, size_t& offset) const {
  const auto* at = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i < segments_.size(); ++i) {
    if (!segments_[i].mapping) continue;
    const uint8_t* base = region(static_cast<int>(i), rank_);
    if (at >= base && at + bytes <= base + segments_[i].region_bytes) {
      segment = static_cast<int>(i);
      offset = static_cast<size_t>(at - base);
      return true;
    }
  }
  return false;
}

uint8_t* Communicator::stage(int rank, uint64_t buffer) const {
  const size_t index = 2 * static_cast<size_t>(rank) + buffer;
  return control_mapping_->data() + round_up(Control::bytes(ranks_), kPage) + index * stage_bytes_;
}

std::string Communicator::name(int rank) const {
  return "rank " + std::to_string(names_.at(static_cast<size_t>(rank))) + " (process " +
         std::to_string(peers_.at(static_cast<size_t>(rank)).pid()) + ")";
}

void Communicator::check_usable() const {
  if (getpid() != owner_) {
    throw ShmError("this process was forked from rank " +
                   std::to_string(names_.at(static_cast<size_t>(rank_))) +
                   " after its communicator was made; only the process that made it may use it "
                   "(start workers before, or with the spawn method)");
  }
  if (closed_) throw ShmError("the communicator is closed");
  if (!broken_.empty()) throw ShmError("the communicator has failed before: " + broken_);
}

void Communicator::fail(int culprit, const std::string& message) {
  broken_ = message;
  uint32_t none = 0;
  control_->failed.compare_exchange_strong(none, static_cast<uint32_t>(culprit) + 1);
  for (int r = 0; r < ranks_; ++r) {
    wake(control_->rank[r].arrived);
    wake(control_->rank[r].done);
  }
  throw ShmError(message);
}

void Communicator::idle(int peer, const Counter& counter, double waited, const char* what,
                        uint64_t number) {
  const std::string where = " (collective " + std::to_string(number) + ", " + what + ")";
  const bool left = control_->rank[peer].left.load(std::memory_order_seq_cst) != 0;
  const bool alive = peers_[static_cast<size_t>(peer)].alive();
  // After these: a rank that found another at fault says so before it ends, and is not to blame.
  const uint32_t failed = control_->failed.load(std::memory_order_acquire);
  if (failed != 0) {
    fail(static_cast<int>(failed) - 1,
         name(static_cast<int>(failed) - 1) + " has failed, as another rank found" + where);
  }
  // A peer publishes before it leaves or ends: the counter counts, looked at after that.
  if ((left || !alive) && !reached(counter, number)) {
    fail(peer, name(peer) + (left ? " has closed its communicator" : " has died") + where);
  }
  if (waited > timeout_) {
    fail(peer, "waited " + std::to_string(waited) + " s for " + name(peer) +
                   ", which runs but does not take part" + where);
  }
}

bool Communicator::all_reached(Counter RankState::* counter, uint64_t number) const {
  for (int r = 0; r < ranks_; ++r) {
    if (!reached(control_->rank[r].*counter, number)) return false;
  }
  return true;
}

void Communicator::wait_all(Counter RankState::* counter, uint64_t number, const char* what) {
  if (all_reached(counter, number)) return;
  const double begin = seconds_now();
  for (int r = 0; r < ranks_; ++r) {
    Counter& theirs = control_->rank[r].*counter;
    wait_for(theirs, number, spin_, [&](double waited) { idle(r, theirs, waited, what, number); });
  }
  seconds_waited_ += seconds_now() - begin;
}

uint64_t Communicator::begin(Work work) {
  check_usable();
  work.number = ++started_;
  const bool staged = work.kind != Kind::barrier && !in_bucket(work.kind);
  if (staged) {
    // The others may still read what the collective before the last left in this buffer.
    const uint64_t buffer = staged_++ % 2;
    if (stage_user_[buffer] != 0) wait(stage_user_[buffer]);
    stage_user_[buffer] = work.number;
    work.offset = buffer;
    const bool sends = work.kind != Kind::stage_broadcast || work.root == rank_;
    const int64_t pieces = work.kind == Kind::stage_scatter ? ranks_ : 1;
    const auto bytes = static_cast<size_t>(work.count * bytes_of(work.type));
    for (int64_t i = 0; sends && i < pieces; ++i) {
      std::memcpy(stage(rank_, buffer) + static_cast<size_t>(i) * bytes,
                  work.from + i * work.stride * bytes_of(work.type), bytes);
    }
  }
  if (work.number > kSlots) {
    wait(work.number - kSlots);
    kept_squares_.push_back(shared_squares(work.number - kSlots));
    if (kept_squares_.size() > kKeptSquares) kept_squares_.pop_front();
  }
  work.descriptor = {static_cast<uint32_t>(work.kind),
                     static_cast<uint32_t>(work.op),
                     static_cast<uint32_t>(work.type),
                     static_cast<uint32_t>(work.root),
                     static_cast<uint64_t>(work.count),
                     in_bucket(work.kind) ? Place{work.segment, work.offset}.word() : kNowhere,
                     static_cast<uint64_t>(work.outer.columns),
                     work.left.word(),
                     work.right.word()};
  mine().slots[work.number % kSlots].descriptor = work.descriptor;
  mine().slots[work.number % kSlots].terms = work.outer.terms;
  pending_.push_back(work);
  publish(mine().arrived, work.number);
  return work.number;
}

void Communicator::check_descriptors(const Work& work) {
  for (int r = 0; r < ranks_; ++r) {
    const Descriptor& other = control_->rank[r].slots[work.number % kSlots].descriptor;
    if (other == work.descriptor) continue;
    fail(r, "ranks disagree at collective " + std::to_string(work.number) + ": " + name(r) +
                " brings " + describe(other) + ", " + name(rank_) + " brings " +
                describe(work.descriptor));
  }
}

void Communicator::work_on(const Work& work) {
  check_descriptors(work);
  mine().slots[work.number % kSlots].squares = 0.0;
  const double begin = seconds_now();
  switch (work.kind) {
    case Kind::barrier: break;
    case Kind::bucket_reduce: reduce_bucket(work); break;
    case Kind::bucket_gather: gather_bucket(work); break;
    case Kind::bucket_outer: outer_bucket(work); break;
    case Kind::stage_reduce:
    case Kind::stage_scatter: reduce_stage(work); break;
    case Kind::stage_gather:
    case Kind::stage_broadcast: copy_from_stage(work); break;
  }
  seconds_worked_ += seconds_now() - begin;
  publish(mine().done, work.number);
}

void Communicator::reduce_bucket(const Work& work) {
  if (work.count == 0) return;
  const void* in[kMaxRanks];
  void* out[kMaxRanks];
  for (int r = 0; r < ranks_; ++r) in[r] = out[r] = region(work.segment, r) + work.offset;
  const BucketReduce p{in,
                       ranks_,
                       out,
                       ranks_,
                       work.type,
                       work.type,
                       work.op == Op::avg ? static_cast<float>(ranks_) : 1.0f};
  const auto [begin, end] = slice(work.count);
  const int64_t split = std::clamp(work.squared, begin, end);
  const BucketKernels& kernels = *kernels_();
  const double squares = kernels.reduce(p, begin, split, true);
  kernels.reduce(p, split, end, false);
  mine().slots[work.number % kSlots].squares = squares;
}

std::pair<int64_t, int64_t> Communicator::slice(int64_t count) const {
  return {slice_begin(count, rank_, ranks_), slice_begin(count, rank_ + 1, ranks_)};
}

void Communicator::gather_bucket(const Work& work) {
  const auto [begin, end] = slice(work.count);
  const int64_t size = bytes_of(work.type);
  const size_t at = work.offset + static_cast<size_t>(begin * size);
  for (int r = 0; r < ranks_; ++r) {
    if (r == rank_) continue;
    std::memcpy(region(work.segment, r) + at, region(work.segment, rank_) + at,
                static_cast<size_t>((end - begin) * size));
  }
}

void Communicator::reduce_stage(const Work& work) {
  const void* in[kMaxRanks];
  const size_t piece = work.kind == Kind::stage_scatter
                           ? static_cast<size_t>(rank_ * work.count * bytes_of(work.type))
                           : 0;
  for (int r = 0; r < ranks_; ++r) in[r] = stage(r, work.offset) + piece;
  void* out[1] = {work.to};
  const BucketReduce p{in,
                       ranks_,
                       out,
                       1,
                       work.type,
                       work.type,
                       work.op == Op::avg ? static_cast<float>(ranks_) : 1.0f};
  kernels_()->reduce(p, 0, work.count, false);
}

void Communicator::copy_from_stage(const Work& work) {
  const auto bytes = static_cast<size_t>(work.count * bytes_of(work.type));
  if (work.kind == Kind::stage_broadcast) {
    if (work.root != rank_) std::memcpy(work.to, stage(work.root, work.offset), bytes);
    return;
  }
  for (int r = 0; r < ranks_; ++r) {
    std::memcpy(work.to + r * work.stride * bytes_of(work.type), stage(r, work.offset), bytes);
  }
}

bool Communicator::progress() {
  check_usable();
  while (!pending_.empty()) {
    const Work work = pending_.front();
    if (!all_reached(&RankState::arrived, work.number)) return false;
    pending_.pop_front();
    work_on(work);
  }
  return true;
}

void Communicator::wait(uint64_t number) {
  check_usable();
  while (!pending_.empty() && pending_.front().number <= number) {
    const Work work = pending_.front();
    wait_all(&RankState::arrived, work.number, kind_name(work.descriptor.kind));
    pending_.pop_front();
    work_on(work);
  }
  wait_all(&RankState::done, number, "its end");
}

double Communicator::shared_squares(uint64_t number) const {
  double total = 0.0;
  for (int r = 0; r < ranks_; ++r) total += control_->rank[r].slots[number % kSlots].squares;
  return total;
}

double Communicator::squares(uint64_t number) const {
  if (number + kSlots > started_) return shared_squares(number);
  const uint64_t newest = started_ - kSlots;  // the last of those kept
  if (number == 0 || newest - number >= kept_squares_.size()) {
    throw ShmError("squares of collective " + std::to_string(number) + " are no longer kept");
  }
  return kept_squares_[kept_squares_.size() - 1 - static_cast<size_t>(newest - number)];
}

}  // namespace lepton::shm
