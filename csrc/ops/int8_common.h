// What the int8 ops share: the packed weight's layout, the choice of a kernel, the split of work.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "cpu/dispatch.h"
#include "cpu/int8_kernels.h"
#include "ops/tensor.h"
#include "params/packed_weight.h"

namespace lepton {

// Fewer page faults and address translations, where Linux grants huge pages on request. Only before
// the pages are touched.
void ask_for_huge_pages(void* data, int64_t bytes);

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
