// Collectives between the processes of one host over memory that all of them map.
//
// Buckets live in segments: one mapping that holds a region of the same size for every rank. A
// bucket starts at the same offset of every region. Reducing one takes one pass: each rank adds up
// its slice over all regions and writes the sum to all of them, 2 S bytes of traffic a rank for a
// bucket of S bytes and two ranks.
//
// A linear layer's gradient is a product of two factors, smaller than itself where a batch has few
// rows. Then ranks leave their factors in a segment, and each computes its rows of the sum of all
// products and writes them to all: no rank computes a gradient of its own, and no sum is left.
//
// Data anywhere else passes through a stage of two buffers a rank, in pieces.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "native/shm_peers.h"
#include "native/shm_protocol.h"
#include "params/bucket.h"

namespace lepton::shm {

// A peer died, hung, left or brought something else; or this process may not take part.
class ShmError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class Op : uint32_t { sum, avg };

// Name of a collective in messages.
const char* kind_name(uint32_t kind);

struct Member {
  pid_t pid;
  uint64_t start_time;
};

// The sum over ranks of left^T right by a divisor, written to `product`; all three lie in segments.
struct OuterWork {
  const void* product;  // (rows, columns)
  const void* left;     // (at least terms, rows)
  const void* right;    // (at least terms, columns)
  int64_t rows, columns;
  int64_t terms;  // this rank's: 0 where it has no gradient, kWhole where `product` holds it
  float divisor;
  float* contributed;  // set to 1 if any rank has one, else 0, before the collective is done
};

// A mapping that every rank holds, unmapped with its last user.
class Mapping {
 public:
  Mapping(int fd, size_t bytes);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_;
  size_t bytes_;
};

struct Segment {
  std::shared_ptr<Mapping> mapping;
  size_t region_bytes;
};

class Communicator {
 public:
  // `fd` holds control_bytes(members.size(), stage_bytes) zeroes. Names in errors are `names`, the
  // ranks that the user knows.
  Communicator(int rank, std::vector<Member> members, std::vector<int> names, int fd,
               size_t stage_bytes, double timeout, double spin, const BucketKernels* (*kernels)());
  ~Communicator();

  static size_t control_bytes(int ranks, size_t stage_bytes);

  // Maps a segment of `region_bytes` a rank and fills the own region with zeroes.
  int add_segment(int fd, size_t region_bytes);
  const Segment& segment(int index) const { return segments_.at(static_cast<size_t>(index)); }
  uint8_t* region(int segment, int rank) const;
  // Gives a segment up; its memory lives on while a tensor uses it.
  void drop_segment(int index);

  // In place on a bucket of `count` elements in a segment. Starts and returns the number to wait
  // for; every rank starts the same collectives in the same order. `squared` elements at the start
  // are squared and added up on the way.
  uint64_t start_all_reduce(const void* bucket, int64_t count, BucketType type, Op op,
                            int64_t squared);
  // As start_all_reduce, of products (rows, columns); see OuterWork.
  uint64_t start_outer(const OuterWork& outer, BucketType type);
  // Elements [first, second) of a bucket of `count` that this rank is in charge of.
  std::pair<int64_t, int64_t> slice(int64_t count) const;
  // In place on a bucket in a segment: every rank's slice is copied to all. Blocking.
  void gather_slices(const void* bucket, int64_t count, BucketType type);
  // Works off what all ranks have arrived at; never waits. Returns whether nothing is left to do.
  bool progress();
  // Waits until all ranks are done with collective `number`.
  void wait(uint64_t number);
  // Sum over ranks of the squares of collective `number`, over which all are done; kept for the
  // last 65536.
  double squares(uint64_t number) const;

  // On any memory, blocking.
  void all_reduce(void* data, int64_t count, BucketType type, Op op);
  void reduce_scatter(const void* in, void* out, int64_t count, BucketType type, Op op);
  void all_gather(const void* in, void* out, int64_t count, BucketType type);
  void broadcast(void* data, int64_t count, BucketType type, int root);
  void barrier();

  // This rank takes part no longer. Others that wait for it then fail at once.
  void close();

  int rank() const { return rank_; }
  int size() const { return ranks_; }
  size_t stage_bytes() const { return stage_bytes_; }
  // Seconds spent waiting for others and working, since the start.
  double seconds_waited() const { return seconds_waited_; }
  double seconds_worked() const { return seconds_worked_; }

 private:
  enum class Kind : uint32_t {
    barrier,
    bucket_reduce,
    stage_reduce,
    stage_scatter,
    stage_gather,
    stage_broadcast,
    bucket_gather,
    bucket_outer
  };
  struct Place {
    int segment;
    size_t offset;
    uint64_t word() const { return static_cast<uint64_t>(segment) << 48 | offset; }
  };
  struct Work {
    uint64_t number;
    Descriptor descriptor;
    Kind kind;
    BucketType type;
    Op op;
    int64_t count;
    int64_t squared;
    int segment;
    size_t offset;        // in the region; for what passes through the stage: which buffer
    const uint8_t* from;  // own data, for what passes through the stage
    uint8_t* to;
    int64_t stride;  // elements between the ranks' pieces of `from` or `to`
    int root;
    OuterWork outer;
    Place left, right;
  };

  void check_usable() const;
  uint64_t begin(Work work);
  void work_on(const Work& work);
  void finish_own_part();
  void through_stage(Work work, const void* from, void* to, int64_t count, int64_t parts);
  void check_descriptors(const Work& work);
  static bool in_bucket(Kind kind) {
    return kind == Kind::bucket_reduce || kind == Kind::bucket_gather || kind == Kind::bucket_outer;
  }
  Work bucket_work(Kind kind, const void* bucket, int64_t count, BucketType type) const;
  void reduce_bucket(const Work& work);
  void gather_bucket(const Work& work);
  void outer_bucket(const Work& work);
  void reduce_stage(const Work& work);
  void copy_from_stage(const Work& work);
  bool all_reached(Counter RankState::* counter, uint64_t number) const;
  void wait_all(Counter RankState::* counter, uint64_t number, const char* what);
  void idle(int peer, const Counter& counter, double waited, const char* what, uint64_t number);
  double shared_squares(uint64_t number) const;
  [[noreturn]] void fail(int culprit, const std::string& message);
  bool locate(const void* data, size_t bytes, int& segment, size_t& offset) const;
  Place place_of(const void* data, int64_t count, BucketType type) const;
  const uint8_t* at(const Place& place, int rank) const {
    return region(place.segment, rank) + place.offset;
  }
  uint8_t* stage(int rank, uint64_t buffer) const;
  RankState& mine() const { return control_->rank[rank_]; }
  std::string name(int rank) const;

  int rank_;
  int ranks_;
  std::vector<int> names_;
  std::vector<Peer> peers_;
  std::shared_ptr<Mapping> control_mapping_;
  Control* control_;
  size_t stage_bytes_;
  double timeout_;
  double spin_;
  const BucketKernels* (*kernels_)();
  pid_t owner_;
  bool closed_ = false;
  std::string broken_;
  std::vector<Segment> segments_;
  std::deque<Work> pending_;
  std::deque<double> kept_squares_;  // of the collectives up to started_ - kSlots
  std::vector<float> outer_scratch_;
  uint64_t started_ = 0;
  uint64_t staged_ = 0;          // collectives that used the stage
  uint64_t stage_user_[2] = {};  // the last collective that used each buffer
  double seconds_waited_ = 0.0;
  double seconds_worked_ = 0.0;
};

}  // namespace lepton::shm
