// Panels of query rows: which keys each lane sees, scores, biases, dropout. Read behind
// attention_gemm.h and attention_transpose.h.
//
// Scores are kept in units of log2: the scale of the queries holds log2(e), and powers of two
// replace exponentials.
namespace {

using lepton::Attention;
using lepton::AttentionSequence;
using lepton::AttentionTask;
using lepton::HeadStrides;

constexpr int kBlockKeys = 128;
constexpr int kMaxPanels = kBlockRows / kLanes;

// Hands out pieces of the scratch memory, or only counts them.
struct Arena {
  char* at;
  int64_t used = 0;
  template <class T>
  T* take(int64_t count) {
    T* piece = at ? reinterpret_cast<T*>(at + used) : nullptr;
    used += padded_to(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
};

// One vector of the lanes of a panel at a time.
template <class F>
inline void each_vector(const F& f) {
  for (int v = 0; v < kVectors; ++v) f(v * F32::width);
}

inline int64_t row_query(const AttentionSequence& s, int64_t row) { return row % s.q_len; }
inline int64_t row_head(const Attention& p, const AttentionTask& t, int64_t row) {
  return t.kv_head * p.group + row / t.sequence->q_len;
}

inline int64_t offset_of(const HeadStrides& s, int64_t batch, int64_t row, int64_t head) {
  return batch * s.batch + row * s.row + head * s.head;
}

inline int64_t query_offset(const Attention& p, const AttentionTask& t, const HeadStrides& stride,
                            int64_t row) {
  const AttentionSequence& s = *t.sequence;
  return offset_of(stride, s.q_batch, s.q_begin + row_query(s, row), row_head(p, t, row));
}

inline int64_t key_offset(const Attention& p, const AttentionTask& t, const HeadStrides& stride,
                          int64_t key) {
  const AttentionSequence& s = *t.sequence;
  const int64_t row = s.k_begin + key;
  if (p.block_table == nullptr) return offset_of(stride, s.k_batch, row, t.kv_head);
  const int32_t page = p.block_table[s.k_batch * p.block_table_stride + row / p.page];
  return offset_of(stride, page, row % p.page, t.kv_head);
}

// Keys [lo, hi) that a query sees, of [t.k_begin, t.k_end).
struct KeyRange {
  int64_t lo, hi;
};

inline KeyRange seen_by(const Attention& p, const AttentionTask& t, int64_t query) {
  const AttentionSequence& s = *t.sequence;
  const int64_t middle = query + (p.bottom_right ? s.k_len - s.q_len : 0);
  KeyRange range{t.k_begin, t.k_end};
  if (p.window_left >= 0 && middle - p.window_left > range.lo) range.lo = middle - p.window_left;
  if (p.window_right >= 0 && middle + p.window_right + 1 < range.hi) {
    range.hi = middle + p.window_right + 1;
  }
  return range;
}

// Floats from one widened row to the next, an odd number of cache lines: rows a power of two apart
// would share few sets of the cache.
inline int64_t row_floats(int64_t dim) {
  const int64_t lines = (dim + 15) / 16;
  return 16 * (lines + 1 - lines % 2);
}

// What a panel knows about its lanes. Lanes behind the last row repeat it.
struct Lanes {
  int64_t rows;       // that exist
  KeyRange any, all;  // keys that some lane sees; keys that every lane sees
  bool same_bias;
  int64_t row[kLanes], head[kLanes];
  int64_t lo[kLanes], hi[kLanes];
  int64_t bias[kLanes];
  float slope[kLanes];
  float middle[kLanes];  // key at distance 0, for ALiBi
  uint32_t query[kLanes], plane[kLanes];
};

inline void describe(const Attention& p, const AttentionTask& t, int64_t first, int64_t end,
                     Lanes& lanes) {
  const AttentionSequence& s = *t.sequence;
  lanes.rows = end - first < kLanes ? end - first : kLanes;
  lanes.any = {t.k_end, t.k_begin};
  lanes.all = {t.k_begin, t.k_end};
  lanes.same_bias = true;
  int64_t query = row_query(s, first), head = row_head(p, t, first);
  for (int i = 0; i < kLanes; ++i) {
    // Divisions are slow: count on from the row before.
    if (i > 0 && i < lanes.rows && ++query == s.q_len) query = 0, ++head;
    const KeyRange seen = seen_by(p, t, query);
    lanes.row[i] = first + (i < lanes.rows ? i : lanes.rows - 1);
    lanes.head[i] = head;
    lanes.lo[i] = seen.lo;
    lanes.hi[i] = seen.hi;
    if (seen.lo < seen.hi) {
      if (seen.lo < lanes.any.lo) lanes.any.lo = seen.lo;
      if (seen.hi > lanes.any.hi) lanes.any.hi = seen.hi;
    }
    if (seen.lo > lanes.all.lo) lanes.all.lo = seen.lo;
    if (seen.hi < lanes.all.hi) lanes.all.hi = seen.hi;
    lanes.bias[i] = s.q_batch * p.bias_batch + head * p.bias_head + query * p.bias_row;
    lanes.same_bias = lanes.same_bias && lanes.bias[i] == lanes.bias[0];
    lanes.slope[i] = p.alibi ? -kLog2E * p.alibi[t.sequence_number * p.alibi_batch + head] : 0.0f;
    lanes.middle[i] = static_cast<float>(query + (p.bottom_right ? s.k_len - s.q_len : 0));
    lanes.query[i] = static_cast<uint32_t>(query);
    lanes.plane[i] = static_cast<uint32_t>(t.sequence_number * p.heads + head);
  }
}

// Where the row of a lane lies.
inline int64_t lane_offset(const AttentionTask& t, const HeadStrides& stride, const Lanes& lanes,
                           int64_t i) {
  const AttentionSequence& s = *t.sequence;
  return offset_of(stride, s.q_batch, s.q_begin + lanes.query[i], lanes.head[i]);
}

inline int64_t lane_lse(const Attention& p, const AttentionTask& t, const Lanes& lanes, int64_t i) {
  const AttentionSequence& s = *t.sequence;
  return s.q_batch * p.lse_batch + lanes.head[i] * p.lse_head + s.q_begin + lanes.query[i];
}

// n values of the bias in units of log2, -inf where hidden. A finite bias stays finite.
inline F32 bias_vector(const Attention& p, int64_t at, int n) {
  if (p.bias_is_mask) {
    const F32 seen = load_as_float_n<DType::i8>(p.bias, at, n);
    return f32_select_lt(f32_zero(), f32_abs(seen), f32_zero(), f32_set(kMinusInfinity));
  }
  F32 x = f32_zero();
  with_dtype(p.bias_dtype, [&](auto dtype) {
    x = n == F32::width ? load_as_float<dtype()>(p.bias, at)
                        : load_as_float_n<dtype()>(p.bias, at, n);
  });
  const F32 lowest = f32_set(-3.402823466e38f);
  const F32 scaled = f32_max(lowest, f32_mul(x, f32_set(kLog2E)));
  return f32_select_lt(x, lowest, x, scaled);
}

// The biases of keys [first, first + count) for one lane; returns whether any is above -inf.
inline bool bias_row(const Attention& p, int64_t offset, int64_t first, int64_t count, float* to) {
  F32 most = f32_set(kMinusInfinity);
  if (p.bias_column == 1) {
    for (int64_t j = 0; j < count; j += F32::width) {
      const int64_t left = count - j;
      const int n = left < F32::width ? static_cast<int>(left) : F32::width;
      const F32 x = bias_vector(p, offset + first + j, n);
      f32_store_n(to + j, x, n);
      if (n == F32::width) {
        most = f32_max(most, x);
        continue;
      }
      for (int i = 0; i < n; ++i) most = f32_max(most, f32_set(to[j + i]));
    }
  } else {
    for (int64_t j = 0; j < count; ++j) {
      f32_store_n(to + j, bias_vector(p, offset + (first + j) * p.bias_column, 1), 1);
      most = f32_max(most, f32_set(to[j]));
    }
  }
  return !(f32_reduce_max(most) == kMinusInfinity);
}

// Scores of the panels of one block of rows against one block of keys.
class Scorer {
 public:
  Scorer(const Attention& p, const AttentionTask& t, Arena& arena)
      : p_(p),
        t_(t),
        rows_(arena.take<float>(p.bias ? kLanes * kBlockKeys : 0)),
        bias_(arena.take<float>(p.bias ? kLanes * kBlockKeys : 0)) {}

  // The factor that queries carry.
  float query_scale() const {
    return p_.softcap > 0.0f ? p_.scale / p_.softcap : p_.scale * kLog2E;
  }

  // Fills s[key - block][lane] for keys [lo, hi) of the block at `block`, whose widened rows are
  // `keys`; false, with s untouched, if no lane sees any of them. `slope` takes the derivative of
  // the softcap.
  bool scores(const Lanes& lanes, const float* q, const float* keys, int64_t block, int64_t lo,
              int64_t hi, float* s, float* slope, RowsAhead& ahead) {
    if (p_.bias && !load_bias(lanes, lo, hi)) return false;
    const int64_t count = hi - lo;
    float* to = s + (lo - block) * kLanes;
    const int64_t stride = row_floats(p_.head_dim);
    rows_times_panel(keys + (lo - block) * stride, stride, count, p_.head_dim, q, to, ahead);
    if (p_.softcap > 0.0f) cap(to, count, slope ? slope + (lo - block) * kLanes : nullptr);
    if (p_.alibi) add_alibi(lanes, lo, count, to);
    if (p_.bias) add_bias(lanes, count, to);
    if (lo < lanes.all.lo || hi > lanes.all.hi) hide(lanes, lo, count, to);
    return true;
  }

  // Drops from, and scales, the panel x of keys [lo, hi).
  void drop(const Lanes& lanes, int64_t block, int64_t lo, int64_t hi, float* x) const {
    uint32_t words[4][kLanes];
    for (int64_t quad = lo / 4; quad * 4 < hi; ++quad) {
      philox<kLanes>(p_.seed, static_cast<uint32_t>(quad), lanes.query, lanes.plane, p_.offset,
                     words);
      for (int i = 0; i < 4; ++i) {
        const int64_t key = quad * 4 + i;
        if (key < lo || key >= hi) continue;
        float* row = x + (key - block) * kLanes;
        for (int lane = 0; lane < kLanes; ++lane) {
          row[lane] = words[i][lane] >= p_.dropout_below ? row[lane] * p_.dropout_scale : 0.0f;
        }
      }
    }
  }

 private:
  bool load_bias(const Lanes& lanes, int64_t lo, int64_t hi) {
    const int64_t count = hi - lo;
    if (lanes.same_bias) return bias_row(p_, lanes.bias[0], lo, count, rows_);
    bool any = false;
    for (int i = 0; i < kLanes; ++i) {
      any = bias_row(p_, lanes.bias[i], lo, count, rows_ + i * kBlockKeys) || any;
    }
    if (any) transpose(rows_, kBlockKeys, kLanes, count, bias_, kLanes);
    return any;
  }

  void add_bias(const Lanes& lanes, int64_t count, float* s) const {
    for (int64_t j = 0; j < count; ++j) {
      float* row = s + j * kLanes;
      each_vector([&](int v) {
        const F32 bias = lanes.same_bias ? f32_set(rows_[j]) : f32_load(bias_ + j * kLanes + v);
        f32_store(row + v, f32_add(f32_load(row + v), bias));
      });
    }
  }

  void cap(float* s, int64_t count, float* slope) const {
    const F32 height = f32_set(p_.softcap * kLog2E);
    for (int64_t i = 0; i < count * kLanes; i += F32::width) {
      const F32 x = tanh_f32(f32_load(s + i));
      f32_store(s + i, f32_mul(x, height));
      if (slope) f32_store(slope + i, f32_sub(f32_set(1.0f), f32_mul(x, x)));
    }
  }

  void add_alibi(const Lanes& lanes, int64_t first, int64_t count, float* s) const {
    for (int64_t j = 0; j < count; ++j) {
      const F32 key = f32_set(static_cast<float>(first + j));
      float* row = s + j * kLanes;
      each_vector([&](int v) {
        const F32 distance = f32_abs(f32_sub(key, f32_load(lanes.middle + v)));
        f32_store(row + v, multiply_add(distance, f32_load(lanes.slope + v), f32_load(row + v)));
      });
    }
  }

  void hide(const Lanes& lanes, int64_t first, int64_t count, float* s) const {
    float lo[kLanes], hi[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      // Only differences below the block's size matter, and those are exact.
      const int64_t from = lanes.lo[i] - first, to = lanes.hi[i] - first;
      lo[i] = static_cast<float>(from < 0 ? 0 : from > count ? count : from);
      hi[i] = static_cast<float>(to < 0 ? 0 : to > count ? count : to);
    }
    const F32 hidden = f32_set(kMinusInfinity);
    for (int64_t j = 0; j < count; ++j) {
      const F32 key = f32_set(static_cast<float>(j));
      float* row = s + j * kLanes;
      each_vector([&](int v) {
        const F32 x = f32_select_lt(key, f32_load(lo + v), hidden, f32_load(row + v));
        f32_store(row + v, f32_select_lt(key, f32_load(hi + v), x, hidden));
      });
    }
  }

  const Attention& p_;
  const AttentionTask& t_;
  float* rows_;
  float* bias_;
};

}  // namespace
