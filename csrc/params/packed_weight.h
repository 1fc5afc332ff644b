// The header of a packed int8 weight, and what follows from it. No torch, no intrinsics.
#pragma once

#include "params/int8_linear.h"

namespace lepton {

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The header of a packed weight; lepton_kernels/reference/packed_weight.py describes the format.
struct PackedHeader {
  int64_t magic, version, out_features, in_features, group_size;
  int64_t group_padded, in_padded, out_padded;

  static constexpr int64_t kMagic = 0x38544E494E54504C;  // "LPTNINT8"
  static constexpr int64_t kVersion = 1;

  static PackedHeader make(int64_t out_features, int64_t in_features, int64_t group_size) {
    const int64_t group = group_size ? group_size : in_features;
    const int64_t groups = in_features ? in_features / group : 1;
    const int64_t group_padded = round_up(group, 4);
    return {kMagic,
            kVersion,
            out_features,
            in_features,
            group,
            group_padded,
            round_up(groups * group_padded, 64),
            round_up(out_features, 16)};
  }

  int64_t groups() const { return in_features ? in_features / group_size : 1; }
  int64_t tiles_offset() const {
    return static_cast<int64_t>(sizeof(PackedHeader)) + round_up(4 * groups() * out_padded, 64);
  }
  int64_t bytes() const { return tiles_offset() + out_padded * in_padded; }
  Int8RowLayout layout() const {
    return {in_features, group_size, groups(), group_padded, in_padded};
  }
  bool same_shape(const PackedHeader& other) const {
    return out_features == other.out_features && in_features == other.in_features &&
           group_size == other.group_size && group_padded == other.group_padded &&
           in_padded == other.in_padded && out_padded == other.out_padded;
  }
};
static_assert(sizeof(PackedHeader) == 64, "the format has a header of 64 bytes");

}  // namespace lepton
