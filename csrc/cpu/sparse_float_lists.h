// Float bitmask weights times many rows. The kept weights of a strip are listed row by row, and
// each is multiplied by its input feature in many rows of x at once: zeros cost nothing. Every
// output adds its products in the order of k with one rounding each, as in sparse_float.h. Read
// inside a target region, behind sparse_float.h and attention_transpose.h.
namespace {

struct ListedWeight {
  int32_t k;
  float value;
};

constexpr int kListVectors = 8;  // sums of one weight row in registers
constexpr int kListRows = kListVectors * F32::width;
constexpr int64_t kListInputs = 512;  // of x, transposed, in the L2
constexpr int kListStrips = 64;

// Scratch of one task.
struct ListBuffers {
  float sums[kListStrips * kStrip][kListRows];
  float x[kListInputs][kListRows];
  ListedWeight list[kStrip][kListInputs];
  float y[kListRows][kStrip];
};
static_assert(sizeof(ListBuffers) <= lepton::kFloatScratchBytes, "does not fit the scratch");

// Lists the weights of columns [k_begin, k_end); returns how many there are in each row.
template <DType dtype>
inline void list_weights(BitmaskState& state, int64_t k_begin, int64_t k_end,
                         ListedWeight (&list)[kStrip][kListInputs], int (&count)[kStrip]) {
  for (int& n : count) n = 0;
  for (int64_t k = k_begin; k < k_end; ++k) {
    uint32_t mask = mask_of(state.pattern, k);
    alignas(64) float value[kStrip];
    F32 w[kVectors];
    const uint32_t all = mask;
    expand_strip_column<dtype>(all, state.values, w);
    for (int v = 0; v < kVectors; ++v) f32_store(value + v * F32::width, w[v]);
    for (; mask; mask &= mask - 1) {
      const int j = __builtin_ctz(mask);
      list[j][count[j]++] = {static_cast<int32_t>(k - k_begin), value[j]};
    }
  }
}

template <int vectors>
inline void add_listed(const ListedWeight* list, int count, const float (*x)[kListRows],
                       float* sums) {
  F32 sum[vectors];
  for (int v = 0; v < vectors; ++v) sum[v] = f32_load(sums + v * F32::width);
  for (int i = 0; i < count; ++i) {
    const F32 w = f32_set(list[i].value);
    const float* row = x[list[i].k];
    for (int v = 0; v < vectors; ++v) {
      sum[v] = f32_fma(f32_load(row + v * F32::width), w, sum[v]);
    }
  }
  for (int v = 0; v < vectors; ++v) f32_store(sums + v * F32::width, sum[v]);
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
  constexpr int64_t kColumns = kListStrips * kStrip;
  for (int64_t m0 = block.m_begin; m0 < block.m_end; m0 += kListRows) {
    const int rows = static_cast<int>(block.m_end - m0 < kListRows ? block.m_end - m0 : kListRows);
    for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += kColumns) {
      const int64_t n1 = block.n_end - n0 < kColumns ? block.n_end : n0 + kColumns;
      const int strips = static_cast<int>((n1 - n0 + kStrip - 1) / kStrip);
      BitmaskState state[kListStrips];
      for (int s = 0; s < strips; ++s) state[s] = BitmaskState::of<dtype>(p, n0 / kStrip + s);
      std::memset(buffers.sums, 0, sizeof buffers.sums[0] * static_cast<size_t>(strips * kStrip));
      for (int64_t k = 0; k < k_all; k += kListInputs) {
        const int64_t k_end = k_all - k < kListInputs ? k_all : k + kListInputs;
        transpose_inputs(p, m0, rows, k, k_end - k, buffers.x);
        with_vectors((rows + F32::width - 1) / F32::width, [&](auto vectors) {
          for (int s = 0; s < strips; ++s) {
            int count[kStrip];
            list_weights<dtype>(state[s], k, k_end, buffers.list, count);
            for (int j = 0; j < kStrip; ++j) {
              add_listed<vectors()>(buffers.list[j], count[j], buffers.x,
                                    buffers.sums[s * kStrip + j]);
            }
          }
        });
      }
      with_activation(p.dense.activation, [&](auto activation) {
        for (int s = 0; s < strips; ++s) {
          const int64_t n = n0 + s * kStrip;
          transpose(buffers.sums[s * kStrip], kListRows, kStrip, rows, buffers.y[0], kStrip);
          finish_scaled<activation()>(p.dense, m0, rows, n, columns_of(block, n), buffers.y[0],
                                      kStrip);
        }
      });
    }
  }
}

// Below, lists cost more than the products with zeros that they save.
constexpr int64_t kFewestListRows = 3 * F32::width;

inline bool worth_lists(const SparseLinear& p, const Int8Block& block) {
  if (block.m_end - block.m_begin < kFewestListRows) return false;
  const int64_t first = block.n_begin / kStrip, last = (block.n_end + kStrip - 1) / kStrip;
  const int64_t kept = p.offsets[last] - p.offsets[first];
  return 2 * kept <= (last - first) * kStrip * p.dense.layout.columns;
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
