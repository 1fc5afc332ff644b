// Float bitmask weights times many rows. The kept weights are listed row by row, and each is
// multiplied by its input feature in many rows of x at once: zeros cost nothing. x is transposed a
// piece at a time, which stays in the L1: a product loads its operand from there. Every output adds
// its products in the order of k with one rounding each, as in sparse_float.h. Read inside a target
// region, behind sparse_float.h and attention_transpose.h.
namespace {

constexpr int kListVectors = F32::width >= 16 ? 4 : 8;  // sums of one weight row in registers
constexpr int kListRows = kListVectors * F32::width;
constexpr int64_t kListInputs = 128;  // of x, transposed, in the L1
constexpr int kListStrips = 32;
constexpr int kListColumns = kListStrips * kStrip;
constexpr int kListBlocks = 4;  // of kListRows rows that one list serves

// Scratch of one task. Lists and sums stay in the L2.
struct ListBuffers {
  float x[kListInputs][kListRows];
  float strip[kListInputs][kStrip];
  float rows[kStrip][kListInputs];
  float y[kListRows][kStrip];
  float sums[kListBlocks][kListColumns][kListRows];
  // Weights of row j of the columns: [begin[j], begin[j + 1]).
  int32_t begin[kListColumns + 16];
  float value[kListColumns * kListInputs + 16];
  int32_t at[kListColumns * kListInputs + 16];  // where x begins for it
};
static_assert(sizeof(ListBuffers) <= lepton::kFloatScratchBytes, "does not fit the scratch");

// A file with a faster one defines LEPTON_LIST_ROW and declares it before.
#ifndef LEPTON_LIST_ROW
// Lists what is not zero in a row of kListInputs weights; returns how many there are. May write 16
// entries more than that.
inline int list_row(const float* row, float* value, int32_t* at) {
  int count = 0;
  for (int k = 0; k < kListInputs; ++k) {
    value[count] = row[k];
    at[count] = k * kListRows;
    count += row[k] != 0.0f;
  }
  return count;
}
#endif

// Lists the weights of all strips in columns [k_begin, k_end).
template <DType dtype>
inline void list_weights(BitmaskState* state, int strips, int64_t k_begin, int64_t k_end,
                         ListBuffers& to) {
  int count = 0;
  for (int64_t k = k_end - k_begin; k < kListInputs; ++k) {
    for (float& w : to.strip[k]) w = 0.0f;
  }
  for (int s = 0; s < strips; ++s) {
    for (int64_t k = k_begin; k < k_end; ++k) {
      F32 w[kVectors];
      expand_strip_column<dtype>(mask_of(state[s].pattern, k), state[s].values, w);
      for (int v = 0; v < kVectors; ++v) f32_store(to.strip[k - k_begin] + v * F32::width, w[v]);
    }
    transpose(to.strip[0], kStrip, kListInputs, kStrip, to.rows[0], kListInputs);
    for (int j = 0; j < kStrip; ++j) {
      to.begin[s * kStrip + j] = count;
      count += list_row(to.rows[j], to.value + count, to.at + count);
    }
  }
  to.begin[strips * kStrip] = count;
}

// Adds the products of `count` listed weights of `outputs` rows to their sums. A sum waits for the
// one before it: two rows side by side fill the wait.
template <int vectors, int outputs>
inline void add_products(const float* const (&value)[outputs], const int32_t* const (&at)[outputs],
                         int begin, int end, const float* x, F32 (&sum)[outputs][vectors]) {
  for (int i = begin; i < end; ++i) {
    for (int o = 0; o < outputs; ++o) {
      const F32 w = f32_set(value[o][i]);
      const float* row = x + at[o][i];
      for (int v = 0; v < vectors; ++v) {
        sum[o][v] = f32_fma(f32_load(row + v * F32::width), w, sum[o][v]);
      }
    }
  }
}

template <int vectors, int outputs>
inline void add_listed(const ListBuffers& from, int j, float (*sums)[kListRows]) {
  F32 sum[outputs][vectors];
  const float* value[outputs];
  const int32_t* at[outputs];
  int count[outputs], least = INT32_MAX;
  for (int o = 0; o < outputs; ++o) {
    const int begin = from.begin[j + o];
    value[o] = from.value + begin;
    at[o] = from.at + begin;
    count[o] = from.begin[j + o + 1] - begin;
    least = count[o] < least ? count[o] : least;
    for (int v = 0; v < vectors; ++v) sum[o][v] = f32_load(sums[j + o] + v * F32::width);
  }
  add_products<vectors, outputs>(value, at, 0, least, from.x[0], sum);
  for (int o = 0; o < outputs; ++o) {
    const float* const rest_value[1] = {value[o]};
    const int32_t* const rest_at[1] = {at[o]};
    F32 rest[1][vectors];
    for (int v = 0; v < vectors; ++v) rest[0][v] = sum[o][v];
    add_products<vectors, 1>(rest_value, rest_at, least, count[o], from.x[0], rest);
    for (int v = 0; v < vectors; ++v) f32_store(sums[j + o] + v * F32::width, rest[0][v]);
  }
}

template <class Body>
inline void with_vectors(int vectors, const Body& body) {
  switch (vectors) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
    case 6: return body(std::integral_constant<int, 6>{});
    case 7: return body(std::integral_constant<int, 7>{});
    default: return body(std::integral_constant<int, 8>{});
  }
}

// x of some rows and inputs as [input][row]; rows that fill the last vector up are zero.
inline void transpose_inputs(const SparseLinear& p, int64_t m0, int rows, int64_t k_begin,
                             int64_t inputs, float (*to)[kListRows]) {
  const float* x = static_cast<const float*>(p.dense.a) + m0 * p.dense.a_stride + k_begin;
  transpose(x, p.dense.a_stride, rows, inputs, to[0], kListRows);
  if (rows % F32::width == 0) return;
  for (int64_t k = 0; k < inputs; ++k) {
    for (int r = rows; r % F32::width; ++r) to[k][r] = 0.0f;
  }
}

template <DType dtype>
void bitmask_lists(const SparseLinear& p, const Int8Block& block, void* scratch) {
  auto& buffers = *static_cast<ListBuffers*>(scratch);
  const int64_t k_all = p.dense.layout.columns;
  for (int64_t m0 = block.m_begin; m0 < block.m_end; m0 += kListBlocks * kListRows) {
    const int64_t m1 =
        block.m_end - m0 < kListBlocks * kListRows ? block.m_end : m0 + kListBlocks * kListRows;
    const int blocks = static_cast<int>((m1 - m0 + kListRows - 1) / kListRows);
    const auto rows_of = [&](int b) {
      const int64_t left = m1 - m0 - b * kListRows;
      return static_cast<int>(left < kListRows ? left : kListRows);
    };
    for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += kListColumns) {
      const int64_t n1 = block.n_end - n0 < kListColumns ? block.n_end : n0 + kListColumns;
      const int strips = static_cast<int>((n1 - n0 + kStrip - 1) / kStrip);
      BitmaskState state[kListStrips];
      for (int s = 0; s < strips; ++s) state[s] = BitmaskState::of<dtype>(p, n0 / kStrip + s);
      for (int b = 0; b < blocks; ++b) {
        std::memset(buffers.sums[b], 0,
                    sizeof buffers.sums[b][0] * static_cast<size_t>(strips * kStrip));
      }
      for (int64_t k = 0; k < k_all; k += kListInputs) {
        const int64_t k_end = k_all - k < kListInputs ? k_all : k + kListInputs;
        list_weights<dtype>(state, strips, k, k_end, buffers);
        for (int b = 0; b < blocks; ++b) {
          const int rows = rows_of(b);
          transpose_inputs(p, m0 + b * kListRows, rows, k, k_end - k, buffers.x);
          with_vectors((rows + F32::width - 1) / F32::width, [&](auto vectors) {
            constexpr int outputs = vectors() <= 4 ? 2 : 1;
            for (int j = 0; j < strips * kStrip; j += outputs) {
              add_listed<vectors(), outputs>(buffers, j, buffers.sums[b]);
            }
          });
        }
      }
      with_activation(p.dense.activation, [&](auto activation) {
        for (int b = 0; b < blocks; ++b) {
          const int rows = rows_of(b);
          for (int s = 0; s < strips; ++s) {
            const int64_t n = n0 + s * kStrip;
            transpose(buffers.sums[b][s * kStrip], kListRows, kStrip, rows, buffers.y[0], kStrip);
            finish_scaled<activation()>(p.dense, m0 + b * kListRows, rows, n, columns_of(block, n),
                                        buffers.y[0], kStrip);
          }
        }
      });
    }
  }
}

// Whether lists take less time than products with all weights. In 1/32 of a cycle on AVX-512:
// listing a weight takes some 96 and its products 5/4 of a row; spreading takes 12 and a product
// with 16 rows 16.
inline bool worth_lists(const SparseLinear& p, const Int8Block& block) {
  const int64_t rows = block.m_end - block.m_begin;
  const int64_t first = block.n_begin / kStrip, last = (block.n_end + kStrip - 1) / kStrip;
  const int64_t kept = p.offsets[last] - p.offsets[first];
  const int64_t all = (last - first) * kStrip * p.dense.layout.columns;
  return kept * (96 + rows + rows / 4) < all * (rows + 12);
}

template <DType dtype>
void float_bitmask_of(const SparseLinear& p, const Int8Block& block, void* scratch) {
  if (block.m_end - block.m_begin <= kTileRows) return bitmask_few<dtype>(p, block);
  if (worth_lists(p, block)) return bitmask_lists<dtype>(p, block, scratch);
  run_panels<BitmaskSource<dtype>>(p, block, scratch);
}

inline void float_bitmask(const SparseLinear& p, const Int8Block& block, void* scratch) {
  switch (p.value_dtype) {
    case DType::f32: return float_bitmask_of<DType::f32>(p, block, scratch);
    case DType::bf16: return float_bitmask_of<DType::bf16>(p, block, scratch);
    default: return float_bitmask_of<DType::f16>(p, block, scratch);
  }
}

}  // namespace
