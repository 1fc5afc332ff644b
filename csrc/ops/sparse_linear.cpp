// Torch side of sparse_linear on the CPU.
#include <cstring>

#include "cpu/sparse_kernels.h"
#include "ops/finish_arguments.h"
#include "ops/int8_arguments.h"
#include "ops/int8_common.h"

namespace lepton {
namespace {

constexpr const char* kOp = "sparse_linear";
constexpr int64_t kOperandBytes = 32 << 20;
constexpr int64_t kRowsOfTile = 16;

// The header of a packed weight; lepton_kernels/reference/sparse_weight.py describes the format.
struct SparseHeader {
  int64_t magic, version, layout, dtype, out_features, in_features, n, m, count;
  int64_t zeros[7];

  static constexpr int64_t kMagic = 0x455352534E54504C;  // "LPTNSRSE"
  static constexpr int64_t kVersion = 1;

  bool is_block() const { return layout == static_cast<int64_t>(SparseLayout::block); }
  bool is_int8() const { return dtype == 3; }
  int64_t value_bytes() const { return dtype == 0 ? 4 : dtype == 3 ? 1 : 2; }
  int64_t strips() const { return round_up(out_features, 16) / 16; }
  int64_t in_padded() const { return round_up(in_features, 64); }
};
static_assert(sizeof(SparseHeader) == 128, "the format has a header of 128 bytes");

struct Sections {
  int64_t scale, sums, offsets, pattern, values, bytes;

  explicit Sections(const SparseHeader& h) {
    const int64_t per_row = h.is_int8() ? round_up(64 * h.strips(), 64) : 0;
    scale = sizeof(SparseHeader);
    sums = scale + per_row;
    offsets = sums + per_row;
    pattern = offsets + round_up(8 * (h.strips() + 1), 64);
    values = pattern + round_up(2 * (h.is_block() ? h.count : h.strips() * h.in_padded()), 64);
    bytes = values + round_up(h.count * (h.is_block() ? 64 : 1) * h.value_bytes(), 64) + 64;
  }
};

SparseHeader read_header(const Tensor& packed) {
  LEPTON_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1 &&
                   packed.is_contiguous() &&
                   packed.size(0) >= static_cast<int64_t>(sizeof(SparseHeader)),
               kOp, ": weight must come from pack_sparse");
  SparseHeader h;
  std::memcpy(&h, packed.const_data_ptr(), sizeof h);
  LEPTON_CHECK(h.magic == SparseHeader::kMagic, kOp, ": weight was not made by pack_sparse");
  LEPTON_CHECK(h.version == SparseHeader::kVersion, kOp, ": weight was packed as version ",
               h.version, ", this release reads version ", SparseHeader::kVersion);
  constexpr int64_t kMost = int64_t{1} << 40;
  const auto within = [](int64_t value, int64_t end) { return value >= 0 && value < end; };
  const bool sane = within(h.layout, 3) && within(h.dtype, 4) && within(h.out_features, kMost) &&
                    within(h.in_features, kMost) && within(h.count, kMost);
  LEPTON_CHECK(sane && Sections(h).bytes == packed.size(0), kOp,
               ": packed weight is truncated or damaged");
  return h;
}

// Offsets must lead into the values; what a mask or an index says is checked when a SparseWeight is
// made, as reading all of it here would cost as much as the product.
void check_offsets(const SparseHeader& h, const int64_t* offsets) {
  bool good = offsets[0] == 0 && offsets[h.strips()] == h.count;
  for (int64_t s = 0; s < h.strips(); ++s) good = good && offsets[s] <= offsets[s + 1];
  LEPTON_CHECK(good, kOp, ": packed weight is damaged: its offsets do not match its values");
}

const SparseKernels& choose_sparse_kernels() {
#if defined(__x86_64__)
  static const Candidate<const SparseKernels*> candidates[] = {
      {isa::kVbmi2Level, &kSparseVbmi2},
      {isa::kAvx2Level, &kSparseAvx2},
      {isa::kGeneric, &kSparseGeneric},
  };
  return *choose(candidates, isa::allowed());
#else
  return kSparseGeneric;
#endif
}

// Null where the CPU has no tiles.
const SparseTileKernels* choose_tile_kernels() {
#if defined(__x86_64__)
  static const Candidate<const SparseTileKernels*> candidates[] = {
      {isa::kAmxVbmi2Level, &kSparseAmx},
      {isa::kGeneric, nullptr},
  };
  return choose(candidates, isa::allowed());
#else
  return nullptr;
#endif
}

// How one product runs: what its rows are, and what each task does with its part of the outputs.
struct Plan {
  void (*prepare)(const Int8Quantize&, int64_t, int64_t);
  int64_t operand_bytes;
  int64_t row_slack;         // zero rows that may be read behind the last one
  int64_t task_bytes;        // scratch per task
  const Int8Kernels* tiles;  // set: strips are expanded for these dense kernels
  int64_t strips_at_once;
  const SparseTileKernels* blocks = nullptr;   // set: rows are packed 16 at a time for these
  const SparseTileKernels* bitmask = nullptr;  // set: weights are expanded tile by tile
  const SparseTileKernels* whole = nullptr;    // set: blocks lie together and are tiles as stored
};

Plan make_plan(const SparseKernels& kernels, const SparseHeader& h, const SparseLinear& p) {
  const Int8RowLayout& layout = p.dense.layout;
  const int64_t m = p.dense.m;
  if (!h.is_int8()) {
    const int64_t scratch = h.is_block() ? kPanelBytes : std::max(kPanelBytes, kFloatScratchBytes);
    return {kernels.rows->widen, 4, 0, scratch, nullptr, 0};
  }
  const SparseTileKernels* on_tiles = choose_tile_kernels();
  if (h.is_block()) {
    if (on_tiles && m >= kRowsOfTile && on_tiles->tiles_pay(p)) {
      const int64_t scratch = on_tiles->tiles_scratch_bytes(layout.row_padded);
      return {on_tiles->rows->quantize,
              1,
              kRowsOfTile,
              scratch,
              nullptr,
              0,
              nullptr,
              nullptr,
              on_tiles};
    }
    if (on_tiles && m >= kRowsOfTile) {
      const int64_t scratch = on_tiles->scratch_bytes(layout.row_padded);
      return {on_tiles->rows->quantize, 1, 0, scratch, nullptr, 0, on_tiles};
    }
    return {
        kernels.rows->quantize_operands, kernels.rows->operand_bytes, 0, kPanelBytes, nullptr, 0};
  }
  // Four products a vector of weights keep the ports busy that spread them; tiles leave them free,
  // but their stores cost more than that where memory is the limit.
  const bool few_are_bound = m == kFewInt8Rows && 5 * h.count <= 2 * h.out_features * h.in_features;
  if (on_tiles && (m > kFewInt8Rows || few_are_bound) && m <= kTileRowsAtOnce) {
    return {on_tiles->rows->quantize, 1, 0, 0, nullptr, 0, nullptr, on_tiles};
  }
  if (m <= kFewInt8Rows) {
    if (kernels.few_takes_int8) return {kernels.rows->quantize, 1, 0, 0, nullptr, 0};
    return {kernels.rows->quantize_operands, kernels.rows->operand_bytes, 0, 0, nullptr, 0};
  }
  const Int8Kernels& dense = choose_int8_kernels(m, layout);
  // Half of a small L2 for the expanded weights.
  const int64_t strip_bytes = std::max<int64_t>(16 * layout.row_padded, 1);
  const int64_t strips = std::clamp<int64_t>((256 << 10) / strip_bytes, 1, 4);
  return {dense.quantize_operands,
          dense.operand_bytes,
          dense.row_slack,
          strips * strip_bytes,
          &dense,
          strips};
}

void expand_and_multiply(const SparseKernels& kernels, const Plan& plan, const SparseLinear& p,
                         const Int8Block& block, uint8_t* scratch) {
  const int64_t strip_bytes = 16 * p.dense.layout.row_padded;
  auto* tiles = reinterpret_cast<int8_t*>(scratch);
  for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += 16 * plan.strips_at_once) {
    const int64_t n1 = std::min(block.n_end, n0 + 16 * plan.strips_at_once);
    for (int64_t n = n0; n < n1; n += 16) {
      kernels.expand_int8(p, n / 16, tiles + (n - n0) / 16 * strip_bytes);
    }
    Int8Linear dense = p.dense;
    // Strip numbers are those of the whole weight: the base pointer is moved back.
    dense.tiles = tiles - n0 / 16 * strip_bytes;
    plan.tiles->linear(dense, {block.m_begin, block.m_end, n0, n1});
  }
}

void multiply(const SparseKernels& kernels, const Plan& plan, const SparseHeader& h,
              const SparseLinear& p, const Int8Block& block, uint8_t* scratch) {
  if (block.m_begin == block.m_end || block.n_begin >= block.n_end) return;
  if (h.is_int8()) {
    if (plan.blocks) return plan.blocks->int8_block(p, block, scratch);
    if (plan.bitmask) return plan.bitmask->int8_bitmask(p, block);
    if (plan.whole) return plan.whole->int8_tiles(p, block, scratch);
    if (h.is_block()) return kernels.int8_block(p, block, scratch);
    if (plan.tiles) return expand_and_multiply(kernels, plan, p, block, scratch);
    return kernels.int8_few(p, block);
  }
  const auto run = h.is_block() ? kernels.float_block : kernels.float_bitmask;
  run(p, block, scratch);
}

// Quantises rows m0 to m0 + count and packs them, 16 at a time.
void prepare_tiles(const SparseTileKernels& kernels, const Int8Quantize& quantize, int64_t m0,
                   int64_t count, int64_t grain, const uint8_t* operands, int8_t* packed) {
  const int64_t k = quantize.layout.row_padded;
  const int64_t tiles = (count + kRowsOfTile - 1) / kRowsOfTile;
  const int64_t tile_grain = std::max<int64_t>(1, grain / kRowsOfTile);
  torch::stable::parallel_for(0, tiles, tile_grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = t * kRowsOfTile, rows = std::min(kRowsOfTile, count - row);
      kernels.rows->quantize(quantize, m0 + row, m0 + row + rows);
      kernels.pack_rows(reinterpret_cast<const int8_t*>(operands) + row * quantize.q_stride,
                        quantize.q_stride, rows, k, packed + row * k);
    }
  });
}

void run_sparse_linear(const SparseKernels& kernels, const SparseHeader& h, Int8Quantize quantize,
                       SparseLinear p) {
  const int64_t rows = p.dense.m;
  if (rows == 0 || p.dense.n == 0) return;
  const Plan plan = make_plan(kernels, h, p);
  // A stride of a multiple of 4096 bytes would put the rows of a tile into one set of the L1.
  int64_t stride = p.dense.layout.row_padded;
  if (stride * plan.operand_bytes % 512 == 0) stride += 64 / plan.operand_bytes;
  const int64_t row_bytes = stride * plan.operand_bytes;
  int64_t chunk =
      std::clamp<int64_t>(kOperandBytes / (row_bytes + 8), std::min<int64_t>(rows, 96), rows);
  if (plan.blocks) chunk = round_up(chunk, kRowsOfTile);
  const int64_t buffered = chunk + plan.row_slack;

  const int64_t strips = h.strips();
  const int64_t threads = torch::stable::get_num_threads();
  const bool small = chunk * h.count * (h.is_block() ? 64 : 1) < 8192;
  const int64_t across = small ? 1 : std::min(threads, strips);
  const int64_t down = small || plan.blocks ? 1
                                            : std::clamp<int64_t>(threads / across, 1,
                                                                  std::max<int64_t>(chunk / 8, 1));
  // Strips that kernels take together go to one task.
  const int64_t unit = strips >= 8 * across ? 4 : 1;
  const int64_t units = (strips + unit - 1) / unit;

  const int64_t operands_at = round_up(buffered * 8, 64);
  const int64_t packed_at = operands_at + round_up(buffered * row_bytes, 64);
  const int64_t packed_bytes = plan.blocks ? chunk * p.dense.layout.row_padded : 0;
  const int64_t tasks_at = packed_at + round_up(packed_bytes, 64);
  const int64_t task_bytes = round_up(plan.task_bytes, 64);
  const Scratch scratch(tasks_at + across * down * task_bytes);
  auto* row_scale = reinterpret_cast<float*>(scratch.data());
  auto* row_zero = reinterpret_cast<int32_t*>(row_scale + buffered);
  uint8_t* operands = scratch.data() + operands_at;
  auto* packed = reinterpret_cast<int8_t*>(scratch.data() + packed_at);

  for (int64_t m0 = 0; m0 < rows; m0 += chunk) {
    const int64_t count = std::min(chunk, rows - m0);
    // Row numbers are those of the whole matrix: base pointers are moved back by m0 rows.
    quantize.q = operands - m0 * row_bytes;
    quantize.q_stride = p.dense.a_stride = stride;
    quantize.row_scale = row_scale - m0;
    quantize.row_zero = row_zero - m0;
    p.dense.a = quantize.q;
    p.dense.row_scale = quantize.row_scale;
    p.dense.row_zero = quantize.row_zero;
    std::memset(operands + count * row_bytes, 0, static_cast<size_t>(plan.row_slack * row_bytes));

    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(stride, 1));
    if (plan.blocks) {
      prepare_tiles(*plan.blocks, quantize, m0, count, grain, operands, packed);
      p.dense.a = packed - m0 * p.dense.layout.row_padded;
    } else {
      torch::stable::parallel_for(m0, m0 + count, grain, [&](int64_t begin, int64_t end) {
        plan.prepare(quantize, begin, end);
      });
    }
    torch::stable::parallel_for(0, across * down, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t i = task % across, j = task / across;
        const Int8Block block{m0 + count * j / down, m0 + count * (j + 1) / down,
                              units * i / across * unit * 16,
                              std::min(units * (i + 1) / across * unit * 16, p.dense.n)};
        multiply(kernels, plan, h, p, block, scratch.data() + tasks_at + task * task_bytes);
      }
    });
  }
}

Tensor sparse_linear(const Tensor& x, const Tensor& packed, std::optional<Tensor> bias,
                     std::optional<Tensor> residual, int64_t out_features, int64_t activation,
                     ScalarType out_dtype) {
  LEPTON_CHECK(x.dim() >= 1, kOp, ": x must have shape (..., in_features), got ()");
  const DType x_dtype = kernel_dtype(kOp, "x", x.scalar_type());
  LEPTON_CHECK(x_dtype != DType::i8, kOp, ": x must be float, got int8");
  const SparseHeader h = read_header(packed);
  const Rows rows = as_rows(x);
  LEPTON_CHECK(h.in_features == rows.columns && h.out_features == out_features, kOp,
               ": weight has shape (", h.out_features, ", ", h.in_features, "), x asks for (",
               out_features, ", ", rows.columns, ")");
  LEPTON_CHECK(!h.is_int8() || h.in_features <= kMostInt8Products, kOp, ": ", h.in_features,
               " input features can overflow int32");

  const Sections at(h);
  const auto* bytes = static_cast<const uint8_t*>(packed.const_data_ptr());
  SparseLinear p{};
  p.value_dtype = h.dtype == 0 ? DType::f32 : h.dtype == 1 ? DType::bf16 : DType::f16;
  p.offsets = reinterpret_cast<const int64_t*>(bytes + at.offsets);
  p.pattern = bytes + at.pattern;
  p.values = bytes + at.values;
  check_offsets(h, p.offsets);

  Int8Linear& dense = p.dense;
  dense.m = rows.count;
  dense.n = out_features;
  dense.layout = {h.in_features, h.in_features, 1, round_up(h.in_features, 4), h.in_padded()};
  dense.weight_sum = reinterpret_cast<const int32_t*>(bytes + at.sums);
  dense.n_padded = h.strips() * 16;
  dense.weight_scale = reinterpret_cast<const float*>(bytes + at.scale);
  dense.weight_scale_stride = 1;

  Int8Quantize quantize{};
  quantize.x = rows.tensor.const_data_ptr();
  quantize.x_stride = rows.stride;
  quantize.x_dtype = x_dtype;
  quantize.layout = dense.layout;
  quantize.symmetric = true;

  const FinishInputs kept = set_finish_inputs(dense, kOp, kernel_dtype, x, out_features, bias,
                                              residual, activation, out_dtype);
  LEPTON_CHECK(dense.out_dtype != DType::i8, kOp, ": out_dtype must be float, got int8");
  Tensor out = new_tensor(kept.out_sizes, out_dtype);
  dense.out = out.mutable_data_ptr();
  run_sparse_linear(choose_sparse_kernels(), h, quantize, p);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CPU, m) { m.impl("sparse_linear", TORCH_BOX(&sparse_linear)); }

}  // namespace lepton
