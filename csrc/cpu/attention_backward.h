// Backward kernel. Blocks of rows pass over all their keys: the gradient of the queries stays in
// the scratch, those of keys and values are added to float32 rows that belong to the task alone.
// Read behind attention_keys.h.
namespace {

class Backward {
 public:
  static constexpr int kRows = kBackwardRows;
  static constexpr int kPanels = kRows / kLanes;

  Backward(const Attention& p, const AttentionTask& t, Arena arena)
      : p_(p),
        t_(t),
        head_padded_(padded_to(p.head_dim, kLanes)),
        value_padded_(padded_to(p.value_dim, kLanes)),
        scorer_(p, t, arena),
        blocks_(p, t, arena),
        q_rows_(arena.take<float>(kRows * head_padded_)),
        grad_rows_(arena.take<float>(kRows * value_padded_)),
        q_(arena.take<float>(kRows * p.head_dim)),
        grad_(arena.take<float>(kRows * p.value_dim)),
        grad_q_(arena.take<float>(kRows * p.head_dim)),
        p_panels_(arena.take<float>(kPanels * kPanelSize)),
        s_panels_(arena.take<float>(kPanels * kPanelSize)),
        slope_(arena.take<float>(p.softcap > 0.0f ? kPanelSize : 0)),
        rows_(arena.take<float>(kLanes * head_padded_)),
        out_row_(arena.take<float>(value_padded_)),
        lse_(arena.take<float>(kRows)),
        delta_(arena.take<float>(kRows)),
        lanes_(arena.take<Lanes>(kPanels)),
        used_(arena.used) {}

  int64_t scratch_bytes() const { return used_; }

  // Gradients of queries, keys and values, or of the bias alone.
  void run(bool of_bias) {
    for (int64_t row = t_.row_begin; row < t_.row_end; row += kRows) {
      const int64_t left = t_.row_end - row;
      block(row, row + (left < kRows ? left : kRows), of_bias);
    }
  }

 private:
  static constexpr int64_t kPanelSize = kBlockKeys * kLanes;
  static constexpr int kPanelsAtOnce = 4;

  void block(int64_t begin, int64_t end, bool of_bias) {
    const int panels = static_cast<int>((end - begin + kLanes - 1) / kLanes);
    KeyRange range{t_.k_end, t_.k_begin};
    for (int i = 0; i < panels; ++i) {
      describe(p_, t_, begin + i * kLanes, end, lanes_[i]);
      if (lanes_[i].any.lo < range.lo) range.lo = lanes_[i].any.lo;
      if (lanes_[i].any.hi > range.hi) range.hi = lanes_[i].any.hi;
      load_panel(i);
    }
    std::memset(grad_q_, 0, sizeof(float) * static_cast<size_t>(panels * kLanes * p_.head_dim));
    for (int64_t key = range.lo; key < range.hi; key += kBlockKeys) {
      const int64_t left = range.hi - key;
      const int64_t count = left < kBlockKeys ? left : kBlockKeys;
      blocks_.load(key, count);
      ahead_.clear();
      if (!of_bias) ask_ahead(begin, end, key, count, left - count);
      int first = panels, last = -1;  // panels that see a key of the block
      for (int i = 0; i < panels; ++i) {
        if (!panel(i, key, count, of_bias)) continue;
        first = first < i ? first : i;
        last = i;
      }
      if (!of_bias) add_gradients(first, last + 1, key, count);
    }
    if (!of_bias) {
      for (int i = 0; i < panels; ++i) finish(i);
    }
  }

  float* grad_key(int64_t key) const { return t_.grad_keys + key * head_padded_; }
  float* grad_value(int64_t key) const {
    return t_.grad_keys + t_.sequence->k_len * head_padded_ + key * value_padded_;
  }

  // What is wanted behind `count` keys from `key` on: the next keys and their sums, or rows.
  void ask_ahead(int64_t begin, int64_t end, int64_t key, int64_t count, int64_t left) {
    if (left > 0) {
      const int64_t next = left < kBlockKeys ? left : kBlockKeys;
      blocks_.ask_ahead(count, next, ahead_);
      ahead_.add(grad_key(key + count), next, 4 * head_padded_, 4 * head_padded_);
      ahead_.add(grad_value(key + count), next, 4 * value_padded_, 4 * value_padded_);
    } else {
      ask_behind(p_, t_, begin, end, kRows, ahead_);
    }
    const int64_t panels = (end - begin + kLanes - 1) / kLanes;
    ahead_.spread(panels * (2 * tiles_of(count) + tiles_of(p_.head_dim)));
  }

  // A few panels at a time, so that their rows stay in the first cache for all keys.
  void add_gradients(int first, int end, int64_t key, int64_t count) {
    for (int i = first; i < end; i += kPanelsAtOnce) {
      const int64_t together = end - i < kPanelsAtOnce ? end - i : kPanelsAtOnce;
      panels_times_rows(p_panels_ + i * kPanelSize, kPanelSize, together, count,
                        group(grad_rows_, i * kLanes, 0), kRows * kLanes, value_padded_,
                        grad_value(key), ahead_);
      panels_times_rows(s_panels_ + i * kPanelSize, kPanelSize, together, count,
                        group(q_rows_, i * kLanes, 0), kRows * kLanes, head_padded_, grad_key(key),
                        ahead_);
    }
  }

  // Rows lie in groups of kLanes columns, so that products over the rows read them one by one.
  static float* group(float* rows, int64_t row, int64_t column) {
    return rows + column * kRows + row * kLanes;
  }

  template <DType dtype>
  static void load_row(const void* from, int64_t at, int64_t dim, float* rows, int64_t row) {
    for (int64_t c = 0; c < dim; c += kLanes) {
      widen_row<dtype>(element(from, dtype, at + c), dim - c < kLanes ? dim - c : kLanes, 1.0f,
                       group(rows, row, c), kLanes);
    }
  }

  static void transpose_rows(float* rows, int64_t row, int64_t dim, float* panel) {
    for (int64_t c = 0; c < dim; c += kLanes) {
      transpose(group(rows, row, c), kLanes, kLanes, dim - c < kLanes ? dim - c : kLanes,
                panel + c * kLanes, kLanes);
    }
  }

  // Rows of queries and output gradients, their transposes, and delta.
  void load_panel(int i) {
    const Lanes& lanes = lanes_[i];
    with_dtype(p_.dtype, [&](auto dtype) {
      for (int r = 0; r < kLanes; ++r) {
        const int64_t row = i * kLanes + r;
        if (r >= lanes.rows) {
          constexpr size_t kBytes = sizeof(float) * kLanes;
          for (int64_t c = 0; c < p_.head_dim; c += kLanes) {
            std::memset(group(q_rows_, row, c), 0, kBytes);
          }
          for (int64_t c = 0; c < p_.value_dim; c += kLanes) {
            std::memset(group(grad_rows_, row, c), 0, kBytes);
          }
          // A lane without a row gives probabilities of zero, as a row that sees no key does.
          lse_[row] = -kMinusInfinity;
          delta_[row] = 0.0f;
          continue;
        }
        load_row<dtype()>(p_.q, lane_offset(t_, p_.q_stride, lanes, r), p_.head_dim, q_rows_, row);
        load_row<dtype()>(p_.grad_out, lane_offset(t_, p_.grad_out_stride, lanes, r), p_.value_dim,
                          grad_rows_, row);
        widen_row<dtype()>(element(p_.out, dtype(), lane_offset(t_, p_.out_stride, lanes, r)),
                           p_.value_dim, 1.0f, out_row_, value_padded_);
        F32 sum = f32_zero();
        for (int64_t c = 0; c < value_padded_; c += kLanes) {
          each_vector([&](int v) {
            sum = multiply_add(f32_load(group(grad_rows_, row, c) + v), f32_load(out_row_ + c + v),
                               sum);
          });
        }
        float delta = f32_reduce_add(sum);
        if (p_.grad_lse) delta -= p_.grad_lse[lane_offset(t_, p_.grad_lse_stride, lanes, r)];
        const int64_t at = lane_lse(p_, t_, lanes, r);
        const float lse = p_.lse[at];
        p_.delta[at] = delta;
        delta_[row] = delta;
        lse_[row] = lse == kMinusInfinity ? -kMinusInfinity : lse * kLog2E;
      }
    });
    transpose_rows(grad_rows_, i * kLanes, p_.value_dim, grad_ + i * kLanes * p_.value_dim);
    float* panel = q_ + i * kLanes * p_.head_dim;
    transpose_rows(q_rows_, i * kLanes, p_.head_dim, panel);
    const F32 scale = f32_set(scorer_.query_scale());
    for (int64_t k = 0; k < p_.head_dim * kLanes; k += F32::width) {
      f32_store(panel + k, f32_mul(f32_load(panel + k), scale));
    }
  }

  // Probabilities and gradients of scores of one panel; false if no lane sees a key of the block.
  bool panel(int i, int64_t block, int64_t count, bool of_bias) {
    const Lanes& lanes = lanes_[i];
    float* prob = p_panels_ + i * kPanelSize;
    float* grad_s = s_panels_ + i * kPanelSize;
    const int64_t lo = lanes.any.lo > block ? lanes.any.lo : block;
    const int64_t hi = lanes.any.hi < block + count ? lanes.any.hi : block + count;
    if (lo >= hi || !scorer_.scores(lanes, q_ + i * kLanes * p_.head_dim, blocks_.keys, block, lo,
                                    hi, prob, p_.softcap > 0.0f ? slope_ : nullptr, ahead_)) {
      clear(prob, 0, count);
      clear(grad_s, 0, count);
      return false;
    }
    const int64_t from = (lo - block) * kLanes, to = (hi - block) * kLanes;
    const int64_t k_row = blocks_.key_row, v_row = blocks_.value_row;
    rows_times_panel(blocks_.values + (lo - block) * v_row, v_row, hi - lo, p_.value_dim,
                     grad_ + i * kLanes * p_.value_dim, grad_s + from, ahead_);
    if (p_.dropout_below) scorer_.drop(lanes, block, lo, hi, grad_s);
    F32 lse[kVectors], delta[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      lse[v] = f32_load(lse_ + i * kLanes + v * F32::width);
      delta[v] = f32_load(delta_ + i * kLanes + v * F32::width);
    }
    for (int64_t j = from; j < to; j += kLanes) {
      for (int v = 0; v < kVectors; ++v) {
        float *p_at = prob + j + v * F32::width, *s_at = grad_s + j + v * F32::width;
        const F32 x = exp2_f32(f32_sub(f32_load(p_at), lse[v]));
        f32_store(p_at, x);
        f32_store(s_at, f32_mul(x, f32_sub(f32_load(s_at), delta[v])));
      }
    }
    if (of_bias) {
      add_bias_gradient(lanes, lo, hi, grad_s + from);
      return true;
    }
    if (p_.dropout_below) scorer_.drop(lanes, block, lo, hi, prob);
    if (p_.softcap > 0.0f) {
      for (int64_t j = from; j < to; j += F32::width) {
        f32_store(grad_s + j, f32_mul(f32_load(grad_s + j), f32_load(slope_ + j)));
      }
    }
    columns_times_panel(blocks_.keys + (lo - block) * k_row, k_row, p_.head_dim, hi - lo,
                        grad_s + from, grad_q_ + i * kLanes * p_.head_dim, ahead_);
    clear(prob, 0, lo - block);
    clear(grad_s, 0, lo - block);
    clear(prob, hi - block, count);
    clear(grad_s, hi - block, count);
    return true;
  }

  static void clear(float* panel, int64_t begin, int64_t end) {
    if (begin >= end) return;
    std::memset(panel + begin * kLanes, 0,
                sizeof(float) * static_cast<size_t>((end - begin) * kLanes));
  }

  // What is broadcast is summed in double first: those sums are long and nearly cancel.
  void add_bias_gradient(const Lanes& lanes, int64_t lo, int64_t hi, const float* grad_s) {
    const AttentionSequence& s = *t_.sequence;
    const int64_t rows = p_.grad_bias_row ? 1 : lanes.rows;
    const int64_t keys = p_.grad_bias_column ? 1 : hi - lo;
    for (int64_t r = 0; r < lanes.rows; r += rows) {
      const int64_t row = lanes.row[r];
      float* to = p_.grad_bias + s.q_batch * p_.grad_bias_batch +
                  row_head(p_, t_, row) * p_.grad_bias_head + row_query(s, row) * p_.grad_bias_row +
                  lo * p_.grad_bias_column;
      for (int64_t j = 0; j < hi - lo; j += keys) {
        double sum = 0.0;
        for (int64_t k = j; k < j + keys; ++k) {
          for (int64_t i = r; i < r + rows; ++i) sum += static_cast<double>(grad_s[k * kLanes + i]);
        }
        to[j * p_.grad_bias_column] += static_cast<float>(sum);
      }
    }
  }

  void finish(int i) {
    const Lanes& lanes = lanes_[i];
    const int64_t dim = p_.head_dim;
    transpose(grad_q_ + i * kLanes * dim, kLanes, dim, kLanes, rows_, head_padded_);
    for (int64_t r = 0; r < lanes.rows; ++r) {
      const int64_t at = lane_offset(t_, p_.grad_q_stride, lanes, r);
      narrow_row(rows_ + r * head_padded_, dim, p_.scale,
                 const_cast<void*>(element(p_.grad_q, p_.dtype, at)), p_.dtype);
    }
  }

  const Attention& p_;
  const AttentionTask& t_;
  const int64_t head_padded_, value_padded_;
  Scorer scorer_;
  KeyBlocks blocks_;
  RowsAhead ahead_;
  float *q_rows_, *grad_rows_, *q_, *grad_, *grad_q_;
  float *p_panels_, *s_panels_, *slope_, *rows_, *out_row_, *lse_, *delta_;
  Lanes* lanes_;
  int64_t used_;
};

inline int64_t backward_scratch(const Attention& p) {
  static constexpr AttentionTask none{};
  return Backward(p, none, Arena{nullptr}).scratch_bytes();
}

inline void backward(const Attention& p, const AttentionTask& t) {
  Backward(p, t, Arena{static_cast<char*>(t.scratch)}).run(false);
}

inline void backward_bias(const Attention& p, const AttentionTask& t) {
  Backward(p, t, Arena{static_cast<char*>(t.scratch)}).run(true);
}

inline void finish_row(const float* from, int64_t count, int64_t stride, float scale, int64_t n,
                       void* to, DType dtype) {
  constexpr int width = F32::width;
  for (int64_t i = 0; i < n; i += width) {
    const int left = n - i < width ? static_cast<int>(n - i) : width;
    F32 sum = f32_zero();
    for (int64_t c = 0; c < count; ++c) {
      sum = f32_add(sum, f32_load_n(from + c * stride + i, left));
    }
    store_as(dtype, to, i, f32_mul(sum, f32_set(scale)), left);
  }
}

// Sums of a sequence: (k_len, padded head_dim), then (k_len, padded value_dim).
inline int64_t gradient_floats(const Attention& p, int64_t k_len) {
  return k_len * (padded_to(p.head_dim, kLanes) + padded_to(p.value_dim, kLanes));
}

inline void finish_keys(const Attention& p, const AttentionTask& t, const float* sums,
                        int64_t count, int64_t stride) {
  const int64_t head_padded = padded_to(p.head_dim, kLanes);
  const int64_t value_padded = padded_to(p.value_dim, kLanes);
  const float* values = sums + t.sequence->k_len * head_padded;
  for (int64_t key = t.k_begin; key < t.k_end; ++key) {
    const int64_t k = key_offset(p, t, p.grad_k_stride, key);
    const int64_t v = key_offset(p, t, p.grad_v_stride, key);
    finish_row(sums + key * head_padded, count, stride, p.scale, p.head_dim,
               const_cast<void*>(element(p.grad_k, p.dtype, k)), p.dtype);
    finish_row(values + key * value_padded, count, stride, 1.0f, p.value_dim,
               const_cast<void*>(element(p.grad_v, p.dtype, v)), p.dtype);
  }
}

}  // namespace
