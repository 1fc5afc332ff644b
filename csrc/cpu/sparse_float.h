// Float values times float32 activations, once for every instruction set. Every output adds its
// products in the order of k with one rounding each, so the bits depend neither on the vector width
// nor on the layout (a product with zero changes nothing). Read inside a target region, behind
// sparse_panel.h; before it, the file defines
//   template <DType> void expand_strip_column(uint32_t mask, const uint8_t*& values, F32* w)
// which spreads the next values over 16 rows and moves the pointer on.
namespace {

constexpr int kVectors = kStrip / F32::width;

inline uint32_t mask_of(const uint8_t* pattern, int64_t k) {
  uint16_t mask;
  std::memcpy(&mask, pattern + 2 * k, sizeof mask);
  return mask;
}

template <int rows>
struct FloatSums {
  F32 at[rows][kVectors];

  void load(const float* c, int ldc) {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) at[r][v] = f32_load(c + r * ldc + v * F32::width);
    }
  }
  void store(float* c, int ldc) const {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) f32_store(c + r * ldc + v * F32::width, at[r][v]);
    }
  }
  void clear() {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) at[r][v] = f32_zero();
    }
  }
  // Adds the products of column k of x with a column of the strip.
  void add(const float* x, int64_t x_stride, const F32* w) {
    for (int r = 0; r < rows; ++r) {
      const F32 xr = f32_set(x[r * x_stride]);
      for (int v = 0; v < kVectors; ++v) at[r][v] = f32_fma(xr, w[v], at[r][v]);
    }
  }
};

struct BitmaskState {
  const uint8_t* pattern;
  const uint8_t* values;

  template <DType dtype>
  static BitmaskState of(const SparseLinear& p, int64_t strip) {
    return {p.pattern + strip * 2 * p.dense.layout.row_padded,
            static_cast<const uint8_t*>(p.values) + p.offsets[strip] * bytes_of(dtype)};
  }
};

// More rows than one tile holds: a chunk is expanded once, into the L1.
template <DType dtype>
struct BitmaskSource {
  using value = float;
  using State = BitmaskState;
  static constexpr int64_t k_chunk = 256;

  static State start(const SparseLinear& p, int64_t strip) {
    return BitmaskState::of<dtype>(p, strip);
  }
  static void chunk(const SparseLinear& p, State& state, int64_t m0, int64_t rows, int64_t k_begin,
                    int64_t k_end, float* c) {
    alignas(64) float strip[k_chunk * kStrip];
    for (int64_t k = k_begin; k < k_end; ++k) {
      F32 w[kVectors];
      expand_strip_column<dtype>(mask_of(state.pattern, k), state.values, w);
      for (int v = 0; v < kVectors; ++v) {
        f32_store(strip + (k - k_begin) * kStrip + v * F32::width, w[v]);
      }
    }
    const int64_t stride = p.dense.a_stride;
    const float* x = static_cast<const float*>(p.dense.a) + m0 * stride + k_begin;
    for_each_tile(rows, [&](auto height, int64_t r) {
      FloatSums<height()> sums;
      sums.load(c + r * kPanelColumns, kPanelColumns);
      const float* row = x + r * stride;
      for (int64_t k = 0; k < k_end - k_begin; ++k) {
        F32 w[kVectors];
        for (int v = 0; v < kVectors; ++v) w[v] = f32_load(strip + k * kStrip + v * F32::width);
        sums.add(row + k, stride, w);
      }
      sums.store(c + r * kPanelColumns, kPanelColumns);
    });
  }
  static void finish(const SparseLinear& p, int64_t m0, int rows, int64_t n, int columns,
                     const float* c) {
    with_activation(p.dense.activation, [&](auto activation) {
      finish_scaled<activation()>(p.dense, m0, rows, n, columns, c, kPanelColumns);
    });
  }
};

template <DType dtype>
struct FloatBlockSource : BitmaskSource<dtype> {
  using State = BlockList;
  static constexpr int64_t kBlockBytes = 64 * bytes_of(dtype);

  static State start(const SparseLinear& p, int64_t strip) {
    return BlockList::of(p, strip, kBlockBytes);
  }
  static void chunk(const SparseLinear& p, State& list, int64_t m0, int64_t rows, int64_t,
                    int64_t k_end, float* c) {
    const int64_t blocks = list.below(k_end);
    if (blocks == 0) return;
    const int64_t stride = p.dense.a_stride;
    const float* x = static_cast<const float*>(p.dense.a) + m0 * stride;
    for_each_tile(rows, [&](auto height, int64_t r) {
      FloatSums<height()> sums;
      sums.load(c + r * kPanelColumns, kPanelColumns);
      const float* row = x + r * stride;
      for (int64_t b = 0; b < blocks; ++b) {
        const float* column = row + int64_t{list.index[b]} * 4;
        for (int t = 0; t < 4; ++t) {
          F32 w[kVectors];
          for (int v = 0; v < kVectors; ++v) {
            w[v] = load_float(list.values, dtype, b * 64 + t * kStrip + v * F32::width, F32::width);
          }
          sums.add(column + t, stride, w);
        }
      }
      sums.store(c + r * kPanelColumns, kPanelColumns);
    });
    list.skip(blocks, kBlockBytes);
  }
};

// As many rows as a tile holds: weights go from the registers straight into the sums. A sum waits
// for the one before it, so several strips go side by side, as far as there are registers.
template <DType dtype, int rows, int strips>
void bitmask_strips(const SparseLinear& p, int64_t n, const Int8Block& block) {
  constexpr int64_t kValuesAhead = 1024;
  const int64_t stride = p.dense.a_stride;
  const float* x = static_cast<const float*>(p.dense.a) + block.m_begin * stride;
  BitmaskState state[strips];
  FloatSums<rows> sums[strips];
  for (int s = 0; s < strips; ++s) {
    state[s] = BitmaskState::of<dtype>(p, n / kStrip + s);
    sums[s].clear();
  }
  for (int64_t k = 0; k < p.dense.layout.row_padded; ++k) {
    for (int s = 0; s < strips; ++s) {
      F32 w[kVectors];
      __builtin_prefetch(state[s].values + kValuesAhead);
      expand_strip_column<dtype>(mask_of(state[s].pattern, k), state[s].values, w);
      sums[s].add(x + k, stride, w);
    }
  }
  with_activation(p.dense.activation, [&](auto activation) {
    for (int s = 0; s < strips; ++s) {
      alignas(64) float c[rows * kStrip];
      const int64_t at = n + s * kStrip;
      sums[s].store(c, kStrip);
      finish_scaled<activation()>(p.dense, block.m_begin, rows, at, columns_of(block, at), c,
                                  kStrip);
    }
  });
}

template <DType dtype>
void bitmask_few(const SparseLinear& p, const Int8Block& block) {
  with_rows(block.m_end - block.m_begin, [&](auto height) {
    constexpr int rows = height();
    constexpr int strips = kVectors == 1 || rows == 1 ? 4 : rows <= 3 ? 2 : 1;
    int64_t n = block.n_begin;
    for (; n + (strips - 1) * kStrip < block.n_end; n += strips * kStrip) {
      bitmask_strips<dtype, rows, strips>(p, n, block);
    }
    for (; n < block.n_end; n += kStrip) bitmask_strips<dtype, rows, 1>(p, n, block);
  });
}

inline void float_block(const SparseLinear& p, const Int8Block& block, void* panel) {
  switch (p.value_dtype) {
    case DType::f32: return run_panels<FloatBlockSource<DType::f32>>(p, block, panel);
    case DType::bf16: return run_panels<FloatBlockSource<DType::bf16>>(p, block, panel);
    default: return run_panels<FloatBlockSource<DType::f16>>(p, block, panel);
  }
}

}  // namespace
