// Which gradient goes into which bucket.
#pragma once

#include <cstdint>
#include <vector>

namespace lepton {

struct PlannedBucket {
  std::vector<int64_t> members;  // indices of gradients, in the order given
  std::vector<int64_t> offsets;  // element at which each begins
  int64_t elements;              // of all members with their padding
};

// Fills buckets in `order` (indices of gradients as they become ready), one open bucket per dtype.
// A bucket is closed once it holds `cap_bytes`, the first of all once it holds `first_bytes`:
// small, so that communication starts early. A gradient larger than the cap gets a bucket of its
// own. Every gradient begins at a multiple of `align_bytes`. Returns buckets in the order in which
// they fill; throws std::invalid_argument.
std::vector<PlannedBucket> plan_buckets(const std::vector<int64_t>& elements,
                                        const std::vector<int64_t>& element_bytes,
                                        const std::vector<int64_t>& dtypes,
                                        const std::vector<int64_t>& order, int64_t first_bytes,
                                        int64_t cap_bytes, int64_t align_bytes);

// Bytes at which sending costs `overhead` more than the bandwidth alone would: latency seconds a
// message, `bandwidth` bytes a second. Between 256 KiB and 64 MiB.
int64_t tuned_bucket_bytes(double latency, double bandwidth, double overhead);

}  // namespace lepton
