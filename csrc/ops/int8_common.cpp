#include "ops/int8_common.h"

#include <sys/mman.h>

#include <cstring>

namespace lepton {
namespace {

constexpr int64_t kKeptBytes = 8 << 20;
constexpr int64_t kScratchBytes = 32 << 20;
constexpr int64_t kHugePage = 2 << 20;

// One strip of 16 rows of the weight: its tiles, and its sums per group.
void pack_strip(const int8_t* weight, int64_t n_stride, int64_t k_stride,
                const PackedHeader& header, int64_t strip, int8_t* tiles, int32_t* sums) {
  int8_t* to = tiles + strip * 16 * header.in_padded;
  std::memset(to, 0, static_cast<size_t>(16 * header.in_padded));
  for (int64_t j = 0; j < 16; ++j) {
    const int64_t n = strip * 16 + j;
    for (int64_t g = 0; g < header.groups(); ++g) {
      int32_t& sum = sums[g * header.out_padded + n];
      sum = 0;
      if (n >= header.out_features) continue;
      const int8_t* from = weight + n * n_stride + g * header.group_size * k_stride;
      // Element k of the group lies in quad k / 4 of the strip, 64 bytes apart.
      int8_t* quads = to + g * header.group_padded * 16 + j * 4;
      for (int64_t k = 0; k < header.group_size; ++k) {
        const int8_t value = from[k * k_stride];
        quads[(k & ~int64_t{3}) * 16 + (k & 3)] = value;
        sum += value;
      }
    }
  }
}

// Threads along n and m so that the largest share is smallest; strips of weights are never split.
struct Grid {
  int64_t n, m;
};

Grid split(int64_t strips, int64_t rows, int64_t threads) {
  Grid best{1, 1};
  double best_cost = 1e300;
  for (int64_t n = 1; n <= std::min(threads, std::max<int64_t>(strips, 1)); ++n) {
    const int64_t m = std::min(threads / n, std::max<int64_t>(rows / 8, 1));
    const double share =
        static_cast<double>((strips + n - 1) / n) * static_cast<double>((rows + m - 1) / m);
    // Splitting rows makes every thread read the weights: prefer columns unless it costs balance.
    const double cost = share * (1.0 + 0.02 * static_cast<double>(m - 1));
    if (cost < best_cost) best_cost = cost, best = {n, m};
  }
  return best;
}

}  // namespace

void ask_for_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const auto begin = round_up(reinterpret_cast<int64_t>(data), kHugePage);
  const auto end = (reinterpret_cast<int64_t>(data) + bytes) / kHugePage * kHugePage;
  if (end > begin) {
    madvise(reinterpret_cast<void*>(begin), static_cast<size_t>(end - begin), MADV_HUGEPAGE);
  }
#else
  (void)data, (void)bytes;
#endif
}

void pack_weight(const int8_t* weight, int64_t n_stride, int64_t k_stride,
                 const PackedHeader& header, uint8_t* packed) {
  ask_for_huge_pages(packed, header.bytes());
  std::memcpy(packed, &header, sizeof header);
  auto* sums = reinterpret_cast<int32_t*>(packed + sizeof header);
  const int64_t sums_end =
      static_cast<int64_t>(sizeof header) + 4 * header.groups() * header.out_padded;
  std::memset(packed + sums_end, 0, static_cast<size_t>(header.tiles_offset() - sums_end));
  auto* tiles = reinterpret_cast<int8_t*>(packed + header.tiles_offset());
  const int64_t strips = header.out_padded / 16;
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(16 * header.in_padded, 1));
  torch::stable::parallel_for(0, strips, grain, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      pack_strip(weight, n_stride, k_stride, header, s, tiles, sums);
    }
  });
}

Tensor pack_for_call(const Tensor& weight, int64_t n_dim, int64_t k_dim, int64_t group_size) {
  const auto header = PackedHeader::make(weight.size(n_dim), weight.size(k_dim), group_size);
  Tensor packed = new_tensor({header.bytes()}, ScalarType::Byte);
  pack_weight(static_cast<const int8_t*>(weight.const_data_ptr()), weight.stride(n_dim),
              weight.stride(k_dim), header, static_cast<uint8_t*>(packed.mutable_data_ptr()));
  return packed;
}

Scratch::Buffer Scratch::allocate(int64_t bytes) {
  return Buffer(
      static_cast<uint8_t*>(::operator new[](static_cast<size_t>(bytes), std::align_val_t{64})));
}

Scratch::Scratch(int64_t bytes) {
  if (bytes > kKeptBytes) {
    own_ = allocate(bytes);
    data_ = own_.get();
    return;
  }
  thread_local Buffer kept;
  thread_local int64_t kept_bytes = 0;
  if (kept_bytes < bytes) {
    kept.reset();
    kept = allocate(round_up(bytes, 4096));
    kept_bytes = round_up(bytes, 4096);
  }
  data_ = kept.get();
}

const Int8Kernels& choose_int8_kernels(int64_t m, const Int8RowLayout& layout) {
#if defined(__x86_64__)
  static const Candidate<const Int8Kernels*> candidates[] = {
      {isa::kAmxLevel, &kInt8Amx},
      {isa::kVnniLevel, &kInt8Vnni},
      {isa::kAvx2Level, &kInt8Avx2},
      {isa::kGeneric, &kInt8Generic},
  };
  // A tile product costs what its 64 columns of k cost: few rows, or groups that are no multiple of
  // 64, are vector work.
  constexpr int64_t kFewestAmxRows = 5;
  const bool whole_tiles = layout.groups == 1 || layout.group_padded % 64 == 0;
  isa::Features allowed = isa::allowed();
  if (m < kFewestAmxRows || !whole_tiles) allowed &= ~isa::Features{isa::kAmxTile};
  return *choose(candidates, allowed);
#else
  (void)m, (void)layout;
  return kInt8Generic;
#endif
}

void run_int8_linear(const Int8Kernels& kernels, Int8Quantize quantize, Int8Linear p,
                     bool weight_only) {
  const int64_t rows = p.m;
  if (rows == 0 || p.n == 0) return;
  const int64_t operand = weight_only ? 4 : kernels.operand_bytes;
  // A stride of a multiple of 4096 bytes would put the rows of a tile into one set of the L1.
  int64_t stride = p.layout.row_padded;
  if (stride * operand % 512 == 0) stride += 64 / operand;
  const int64_t row_bytes = stride * operand + 8;
  const int64_t chunk = std::clamp<int64_t>(kScratchBytes / row_bytes, 96, rows > 96 ? rows : 96);
  const int64_t buffered = std::min(chunk, rows) + kernels.row_slack;
  const Scratch scratch(buffered * row_bytes + 128);
  auto* row_scale = reinterpret_cast<float*>(scratch.data());
  auto* row_zero = reinterpret_cast<int32_t*>(row_scale + buffered);
  const int64_t operands_at = round_up(buffered * 8, 64);
  uint8_t* operands = scratch.data() + operands_at;

  const int64_t threads = torch::stable::get_num_threads();
  const int64_t strips = p.n_padded / 16;
  const auto linear = weight_only ? kernels.linear_weight_only : kernels.linear;
  const auto prepare = weight_only ? kernels.widen : kernels.quantize_operands;

  for (int64_t m0 = 0; m0 < rows; m0 += chunk) {
    const int64_t count = std::min(chunk, rows - m0);
    // Row numbers are those of the whole matrix: base pointers are moved back by m0 rows.
    quantize.q = operands - m0 * stride * operand;
    quantize.q_stride = stride;
    quantize.row_scale = row_scale - m0;
    quantize.row_zero = row_zero - m0;
    p.a = quantize.q;
    p.a_stride = stride;
    p.row_scale = quantize.row_scale;
    p.row_zero = quantize.row_zero;
    std::memset(operands + count * stride * operand, 0,
                static_cast<size_t>(kernels.row_slack * stride * operand));

    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(p.layout.row_padded, 1));
    torch::stable::parallel_for(m0, m0 + count, grain,
                                [&](int64_t begin, int64_t end) { prepare(quantize, begin, end); });

    // Below some thousands of products a second thread costs more than it brings.
    const bool small = count * strips * p.layout.row_padded < 12288;
    const Grid grid = small ? Grid{1, 1} : split(strips, count, threads);
    torch::stable::parallel_for(0, grid.n * grid.m, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t i = task % grid.n, j = task / grid.n;
        const Int8Block block{m0 + count * j / grid.m, m0 + count * (j + 1) / grid.m,
                              strips * i / grid.n * 16,
                              std::min(strips * (i + 1) / grid.n * 16, p.n)};
        linear(p, block);
      }
    });
  }
}

}  // namespace lepton
