// What the int8 ops share: the packed weight's layout, the choice of a kernel, the split of work.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "cpu/dispatch.h"
#include "cpu/int8_kernels.h"
#include "ops/tensor.h"

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

// Packs weight element (n, k) at n * n_stride + k * k_stride into `packed` (header.bytes() bytes).
void pack_weight(const int8_t* weight, int64_t n_stride, int64_t k_stride,
                 const PackedHeader& header, uint8_t* packed);

// A packed weight for this call only.
Tensor pack_for_call(const Tensor& weight, int64_t n_dim, int64_t k_dim, int64_t group_size);

// Scratch of the calling thread, 64-byte aligned; kept for the next call while it is small.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  uint8_t* data() const { return data_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  using Buffer = std::unique_ptr<uint8_t[], Free>;
  static Buffer allocate(int64_t bytes);
  Buffer own_;
  uint8_t* data_;
};

// The kernels of the best instruction set for a product of this shape.
const Int8Kernels& choose_int8_kernels(int64_t m, const Int8RowLayout& layout);

// Quantises the rows of x and multiplies, on torch's threads. `p` lacks only the quantised rows.
void run_int8_linear(const Int8Kernels& kernels, Int8Quantize quantize, Int8Linear p,
                     bool weight_only);

}  // namespace lepton
