// Forward kernel: panels of query rows, blocks of keys, softmax as it goes. Read behind
// attention_keys.h.
namespace {

// Output row, weight of the row's own sums, and lse, once all keys have been seen. `most` is the
// largest score and `sum` the sum of 2^(score - most).
inline float finish_softmax(const Attention& p, const AttentionTask& t, int64_t query, int64_t head,
                            float most, float sum) {
  float weight = sum == 0.0f ? 0.0f : 1.0f / sum;
  if (p.sinks) {
    const float sink = p.sinks[head] * kLog2E;
    const float top = most > sink ? most : sink;
    if (top > kMinusInfinity) {
      const float shrink = sum == 0.0f ? 0.0f : std::exp2(most - top);
      sum = sum * shrink + std::exp2(sink - top);
      weight = shrink / sum;
      most = top;
    }
  }
  const AttentionSequence& s = *t.sequence;
  const int64_t at = s.q_batch * p.lse_batch + head * p.lse_head + s.q_begin + query;
  p.lse[at] = sum == 0.0f ? kMinusInfinity : (most + std::log2(sum)) * kLn2;
  return weight;
}

class Forward {
 public:
  Forward(const Attention& p, const AttentionTask& t, Arena arena)
      : p_(p),
        t_(t),
        scorer_(p, t, arena),
        q_(arena.take<float>(kBlockRows * p.head_dim)),
        out_(arena.take<float>(kBlockRows * p.value_dim)),
        blocks_(p, t, arena),
        scores_(arena.take<float>(kBlockKeys * kLanes)),
        rows_(arena.take<float>(kLanes * (p.head_dim > p.value_dim ? p.head_dim : p.value_dim))),
        most_(arena.take<float>(kBlockRows)),
        sum_(arena.take<float>(kBlockRows)),
        lanes_(arena.take<Lanes>(kMaxPanels)),
        used_(arena.used) {}

  int64_t scratch_bytes() const { return used_; }

  void run() {
    for (int64_t row = t_.row_begin; row < t_.row_end; row += kBlockRows) {
      const int64_t left = t_.row_end - row;
      block(row, row + (left < kBlockRows ? left : kBlockRows));
    }
  }

 private:
  void block(int64_t begin, int64_t end) {
    const int panels = static_cast<int>((end - begin + kLanes - 1) / kLanes);
    KeyRange range{t_.k_end, t_.k_begin};
    for (int i = 0; i < panels; ++i) {
      describe(p_, t_, begin + i * kLanes, end, lanes_[i]);
      if (lanes_[i].any.lo < range.lo) range.lo = lanes_[i].any.lo;
      if (lanes_[i].any.hi > range.hi) range.hi = lanes_[i].any.hi;
      load_queries(i);
    }
    for (int i = 0; i < panels * kLanes; ++i) most_[i] = kMinusInfinity, sum_[i] = 0.0f;
    std::memset(out_, 0, sizeof(float) * static_cast<size_t>(panels * kLanes * p_.value_dim));
    for (int64_t key = range.lo; key < range.hi; key += kBlockKeys) {
      const int64_t left = range.hi - key;
      const int64_t count = left < kBlockKeys ? left : kBlockKeys;
      blocks_.load(key, count);
      ahead_.clear();
      if (count < left) {
        blocks_.ask_ahead(count, left - count < kBlockKeys ? left - count : kBlockKeys, ahead_);
      } else {
        ask_behind(p_, t_, begin, end, kBlockRows, ahead_);
      }
      ahead_.spread(panels * (tiles_of(count) + tiles_of(p_.value_dim)));
      for (int i = 0; i < panels; ++i) panel(i, key, key + count);
    }
    for (int i = 0; i < panels; ++i) finish(i);
  }

  void load_queries(int i) {
    const Lanes& lanes = lanes_[i];
    with_dtype(p_.dtype, [&](auto dtype) {
      for (int64_t r = 0; r < lanes.rows; ++r) {
        const int64_t at = lane_offset(t_, p_.q_stride, lanes, r);
        widen_row<dtype()>(element(p_.q, dtype(), at), p_.head_dim, scorer_.query_scale(),
                           rows_ + r * p_.head_dim, p_.head_dim);
      }
    });
    const int64_t missing = kLanes - lanes.rows;
    std::memset(rows_ + lanes.rows * p_.head_dim, 0,
                sizeof(float) * static_cast<size_t>(missing * p_.head_dim));
    transpose(rows_, p_.head_dim, kLanes, p_.head_dim, q_ + i * kLanes * p_.head_dim, kLanes);
  }

  void panel(int i, int64_t block, int64_t block_end) {
    const Lanes& lanes = lanes_[i];
    const int64_t lo = lanes.any.lo > block ? lanes.any.lo : block;
    const int64_t hi = lanes.any.hi < block_end ? lanes.any.hi : block_end;
    if (lo >= hi) return;
    const float* q = q_ + i * kLanes * p_.head_dim;
    if (!scorer_.scores(lanes, q, blocks_.keys, block, lo, hi, scores_, nullptr, ahead_)) return;
    float* s = scores_ + (lo - block) * kLanes;
    softmax(s, hi - lo, most_ + i * kLanes, sum_ + i * kLanes, out_ + i * kLanes * p_.value_dim);
    if (p_.dropout_below) scorer_.drop(lanes, block, lo, hi, scores_);
    const int64_t stride = blocks_.value_row;
    columns_times_panel(blocks_.values + (lo - block) * stride, stride, p_.value_dim, hi - lo, s,
                        out_ + i * kLanes * p_.value_dim, ahead_);
  }

  // top = the largest of `most` and `count` rows of scores. Several chains, as one would wait for
  // the latency of each maximum.
  static void largest(const float* s, int64_t count, const float* most, F32* top) {
    constexpr int kChains = 4;
    F32 chain[kChains][kVectors];
    for (int i = 0; i < kChains; ++i) {
      for (int v = 0; v < kVectors; ++v) chain[i][v] = f32_load(most + v * F32::width);
    }
    int64_t j = 0;
    for (; j + kChains <= count; j += kChains) {
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          chain[i][v] = f32_max(chain[i][v], f32_load(s + (j + i) * kLanes + v * F32::width));
        }
      }
    }
    for (; j < count; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        chain[0][v] = f32_max(chain[0][v], f32_load(s + j * kLanes + v * F32::width));
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      top[v] = f32_max(f32_max(chain[0][v], chain[1][v]), f32_max(chain[2][v], chain[3][v]));
    }
  }

  // Scores to powers relative to the largest so far; what has been summed shrinks where that grew.
  void softmax(float* s, int64_t count, float* most, float* sum, float* out) {
    F32 top[kVectors], base[kVectors], total[kVectors], shrink[kVectors];
    largest(s, count, most, top);
    F32 grew = f32_zero();
    for (int v = 0; v < kVectors; ++v) {
      const F32 before = f32_load(most + v * F32::width);
      // A lane that sees nothing yet has -inf, which must not be subtracted from itself.
      const F32 lowest = f32_set(-3.402823466e38f);
      base[v] = f32_select_lt(top[v], lowest, f32_zero(), top[v]);
      shrink[v] = exp2_f32(f32_sub(before, base[v]));
      grew = f32_select_lt(before, top[v], f32_set(1.0f), grew);
      f32_store(most + v * F32::width, top[v]);
      total[v] = f32_mul(f32_load(sum + v * F32::width), shrink[v]);
    }
    for (int64_t j = 0; j < count; ++j) {
      for (int v = 0; v < kVectors; ++v) {
        float* at = s + j * kLanes + v * F32::width;
        const F32 x = exp2_f32(f32_sub(f32_load(at), base[v]));
        f32_store(at, x);
        total[v] = f32_add(total[v], x);
      }
    }
    for (int v = 0; v < kVectors; ++v) f32_store(sum + v * F32::width, total[v]);
    if (f32_reduce_max(grew) == 0.0f) return;
    for (int64_t d = 0; d < p_.value_dim; ++d) {
      for (int v = 0; v < kVectors; ++v) {
        float* at = out + d * kLanes + v * F32::width;
        f32_store(at, f32_mul(f32_load(at), shrink[v]));
      }
    }
  }

  void finish(int i) {
    const Lanes& lanes = lanes_[i];
    const int64_t dim = p_.value_dim;
    const float *most = most_ + i * kLanes, *sum = sum_ + i * kLanes;
    transpose(out_ + i * kLanes * dim, kLanes, dim, kLanes, rows_, dim);
    if (t_.partial) {
      for (int64_t r = 0; r < lanes.rows; ++r) {
        float* to = t_.partial + (lanes.row[r] - t_.row_begin) * (dim + 2);
        std::memcpy(to, rows_ + r * dim, sizeof(float) * static_cast<size_t>(dim));
        to[dim] = most[r], to[dim + 1] = sum[r];
      }
      return;
    }
    float weight[kLanes], lse[kLanes];
    each_vector([&](int v) {
      // A sum is 0 where the lane saw no key, else at least 1, or NaN.
      const F32 x = f32_load(sum + v), half = f32_set(0.5f);
      const F32 all = f32_mul(f32_add(f32_load(most + v), log2_f32(x)), f32_set(kLn2));
      f32_store(lse + v, f32_select_lt(x, half, f32_set(kMinusInfinity), all));
      f32_store(weight + v, f32_select_lt(x, half, f32_zero(), f32_div(f32_set(1.0f), x)));
    });
    for (int64_t r = 0; r < lanes.rows; ++r) {
      if (p_.sinks) {
        weight[r] = finish_softmax(p_, t_, lanes.query[r], lanes.head[r], most[r], sum[r]);
      } else {
        p_.lse[lane_lse(p_, t_, lanes, r)] = lse[r];
      }
      const int64_t at = lane_offset(t_, p_.out_stride, lanes, r);
      narrow_row(rows_ + r * dim, dim, weight[r], const_cast<void*>(element(p_.out, p_.dtype, at)),
                 p_.dtype);
    }
  }

  const Attention& p_;
  const AttentionTask& t_;
  Scorer scorer_;
  float *q_, *out_;
  KeyBlocks blocks_;
  RowsAhead ahead_;
  float *scores_, *rows_, *most_, *sum_;
  Lanes* lanes_;
  int64_t used_;
};

inline int64_t forward_scratch(const Attention& p) {
  const AttentionTask none{};
  return Forward(p, none, Arena{nullptr}).scratch_bytes();
}

inline void forward(const Attention& p, const AttentionTask& t) {
  Forward(p, t, Arena{static_cast<char*>(t.scratch)}).run();
}

inline void merge(const Attention& p, const AttentionTask& t, const float* partial, int64_t count,
                  int64_t stride) {
  const int64_t dim = p.value_dim;
  auto* total = static_cast<float*>(t.scratch);
  for (int64_t row = t.row_begin; row < t.row_end; ++row) {
    const float* from = partial + (row - t.row_begin) * (dim + 2);
    float most = kMinusInfinity, sum = 0.0f;
    bool nan = false;
    for (int64_t i = 0; i < count; ++i) {
      most = from[i * stride + dim] > most ? from[i * stride + dim] : most;
      nan = nan || from[i * stride + dim + 1] != from[i * stride + dim + 1];
    }
    std::memset(total, 0, sizeof(float) * static_cast<size_t>(dim));
    for (int64_t i = 0; i < count; ++i) {
      const float* part = from + i * stride;
      if (part[dim + 1] == 0.0f) continue;  // saw no key
      const float shrink = nan ? __builtin_nanf("") : std::exp2(part[dim] - most);
      sum += part[dim + 1] * shrink;
      for (int64_t d = 0; d < dim; ++d) total[d] += part[d] * shrink;
    }
    const float weight =
        finish_softmax(p, t, row_query(*t.sequence, row), row_head(p, t, row), most, sum);
    const int64_t at = query_offset(p, t, p.out_stride, row);
    narrow_row(total, dim, weight, const_cast<void*>(element(p.out, p.dtype, at)), p.dtype);
  }
}

}  // namespace
