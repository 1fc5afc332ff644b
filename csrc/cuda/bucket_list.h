// Host side of a list of tensors: where each lies in the bucket, and which chunks it gets.
#pragma once

#include <algorithm>
#include <vector>

#include "params/bucket_device.h"

namespace lepton {

constexpr int64_t kBucketAlignBytes = 64;
constexpr int64_t kBucketChunkElements = 8192;  // as kBucketChunk of the kernels

struct BucketList {
  std::vector<BucketEntry> entries;
  int64_t length = 0;  // elements of the flat bucket
  int64_t chunks = 0;

  // `align` elements of the flat dtype are 64 bytes.
  void add(void* address, int64_t count, BucketType type, int64_t align) {
    entries.push_back({address, length, count, static_cast<uint32_t>(chunks), type});
    length += (count + align - 1) / align * align;
    chunks += (count + kBucketChunkElements - 1) / kBucketChunkElements;
  }
  bool fits_inline() const { return entries.size() <= BucketTable::kInline; }
  // `device_entries` is used where the list does not fit into the parameters.
  BucketTable table(const void* device_entries) const {
    BucketTable table{};
    table.tensors = static_cast<int32_t>(entries.size());
    if (fits_inline()) {
      std::copy(entries.begin(), entries.end(), table.inline_entries);
    } else {
      table.entries = static_cast<const BucketEntry*>(device_entries);
    }
    return table;
  }
};

}  // namespace lepton
