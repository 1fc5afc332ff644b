// The blocking collectives on any memory, and the ones that start on a bucket.
#include <algorithm>

#include "native/shm_communicator.h"

namespace lepton::shm {
namespace {

// Up to here a copy through the stage is cheaper than the second wait of a bucket in place.
constexpr int64_t kStageReduceBytes = 64 * 1024;

}  // namespace

Communicator::Place Communicator::place_of(const void* data, int64_t count, BucketType type) const {
  Place place{};
  if (!locate(data, static_cast<size_t>(count * bytes_of(type)), place.segment, place.offset)) {
    throw ShmError("the tensor does not lie in this rank's shared memory");
  }
  return place;
}

Communicator::Work Communicator::bucket_work(Kind kind, const void* bucket, int64_t count,
                                             BucketType type) const {
  Work work{};
  work.kind = kind;
  if (count > 0) {
    const Place place = place_of(bucket, count, type);
    work.segment = place.segment;
    work.offset = place.offset;
  }
  work.type = type;
  work.count = count;
  return work;
}

uint64_t Communicator::start_all_reduce(const void* bucket, int64_t count, BucketType type, Op op,
                                        int64_t squared) {
  Work work = bucket_work(Kind::bucket_reduce, bucket, count, type);
  work.op = op;
  work.squared = squared;
  return begin(work);
}

uint64_t Communicator::start_outer(const OuterWork& outer, BucketType type) {
  Work work = bucket_work(Kind::bucket_outer, outer.product, outer.rows * outer.columns, type);
  const int64_t terms = std::max<int64_t>(outer.terms, 0);
  work.left = place_of(outer.left, terms * outer.rows, type);
  work.right = place_of(outer.right, terms * outer.columns, type);
  work.outer = outer;
  return begin(work);
}

void Communicator::outer_bucket(const Work& work) {
  BucketFactors source[kMaxRanks];
  void* out[kMaxRanks];
  int64_t terms = 0;
  bool any = false;
  for (int r = 0; r < ranks_; ++r) {
    const int64_t brought = control_->rank[r].slots[work.number % kSlots].terms;
    out[r] = region(work.segment, r) + work.offset;
    source[r] = {at(work.left, r), at(work.right, r), std::max<int64_t>(brought, 0),
                 brought == kWhole ? out[r] : nullptr};
    terms += source[r].terms;
    any = any || brought != 0;
  }
  *work.outer.contributed = any ? 1.0f : 0.0f;
  const int64_t scratch = outer_scratch_count(terms, work.outer.columns);
  if (outer_scratch_.size() < static_cast<size_t>(scratch)) {
    outer_scratch_.resize(static_cast<size_t>(scratch));
  }
  const BucketOuter p{source,
                      ranks_,
                      out,
                      ranks_,
                      work.outer.rows,
                      work.outer.columns,
                      work.type,
                      work.outer.divisor,
                      outer_scratch_.data(),
                      scratch};
  const int64_t begin = work.outer.rows * rank_ / ranks_;
  const int64_t end = work.outer.rows * (rank_ + 1) / ranks_;
  mine().slots[work.number % kSlots].squares = kernels_()->outer(p, begin, end);
}

void Communicator::gather_slices(const void* bucket, int64_t count, BucketType type) {
  wait(begin(bucket_work(Kind::bucket_gather, bucket, count, type)));
}

// Works off everything started, but does not wait for others to be done: enough where the result
// was read from the stage.
void Communicator::finish_own_part() {
  while (!pending_.empty()) {
    const Work work = pending_.front();
    wait_all(&RankState::arrived, work.number, kind_name(static_cast<uint32_t>(work.kind)));
    pending_.pop_front();
    work_on(work);
  }
}

// `count` elements, as many at a time as the stage holds; `parts` of them share it.
void Communicator::through_stage(Work work, const void* from, void* to, int64_t count,
                                 int64_t parts) {
  const int64_t size = bytes_of(work.type);
  const int64_t most = std::max<int64_t>(static_cast<int64_t>(stage_bytes_) / size / parts, 1);
  for (int64_t i = 0; i == 0 || i < count; i += most) {
    work.count = std::min(most, count - i);
    work.from = static_cast<const uint8_t*>(from) + i * size;
    work.to = static_cast<uint8_t*>(to) + i * size;
    begin(work);
    finish_own_part();
  }
}

void Communicator::all_reduce(void* data, int64_t count, BucketType type, Op op) {
  const int64_t size = bytes_of(type);
  int segment;
  size_t offset;
  if (count * size > kStageReduceBytes &&
      locate(data, static_cast<size_t>(count * size), segment, offset)) {
    wait(start_all_reduce(data, count, type, op, 0));
    return;
  }
  Work work{};
  work.kind = Kind::stage_reduce;
  work.type = type;
  work.op = op;
  through_stage(work, data, data, count, 1);
}

void Communicator::reduce_scatter(const void* in, void* out, int64_t count, BucketType type,
                                  Op op) {
  Work work{};
  work.kind = Kind::stage_scatter;
  work.type = type;
  work.op = op;
  work.stride = count;
  through_stage(work, in, out, count, ranks_);
}

void Communicator::all_gather(const void* in, void* out, int64_t count, BucketType type) {
  Work work{};
  work.kind = Kind::stage_gather;
  work.type = type;
  work.stride = count;
  through_stage(work, in, out, count, 1);
}

void Communicator::broadcast(void* data, int64_t count, BucketType type, int root) {
  if (root < 0 || root >= ranks_) {
    throw ShmError("broadcast: root must be a rank below " + std::to_string(ranks_) + ", got " +
                   std::to_string(root));
  }
  Work work{};
  work.kind = Kind::stage_broadcast;
  work.type = type;
  work.root = root;
  through_stage(work, data, data, count, 1);
}

void Communicator::barrier() {
  Work work{};
  work.kind = Kind::barrier;
  begin(work);
  finish_own_part();
}

}  // namespace lepton::shm
