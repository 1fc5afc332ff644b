// Decoding: a few rows against many keys. The time is that of reading keys and values once, so they
// go from memory, in their own dtype, straight into the products. A task takes key heads whose rows
// lie behind each other, block of keys by block, and asks for the next block in the order of memory
// while it works on this one. Blocks are small: a core's prefetcher follows some 32 pages. Read
// behind attention_forward.h.
namespace {

constexpr int kDecodeKeys = 64;  // most of a block
constexpr int kFewRows = 8;
constexpr int kRowsAtOnce = 4;

// Where the rows of a block of keys lie, for the first head of a task.
struct DecodeBlock {
  int64_t first;
  int count;
  const char *k[kDecodeKeys], *v[kDecodeKeys];
};

// Asks for the rows of the next block: keys and values in turns, line by line, evenly over the work
// on this one, since only so many lines can be on their way at a time.
class Ahead {
 public:
  Ahead(const DecodeBlock& next, int64_t k_bytes, int64_t v_bytes, int64_t heads)
      : next_(next), bytes_{k_bytes, v_bytes} {
    share_ = (k_bytes + v_bytes + 63) / 64 * next.count / heads + 1;
  }
  // So many eighths of a head's share go out over the next `steps` calls of `step`.
  void begin(int eighths, int64_t steps) {
    lines_ = (share_ * eighths + 8 * steps - 1) / (8 * steps);
  }
  void step() {
    for (int64_t i = 0; i < lines_ && row_ < 2 * next_.count; ++i) {
      const char* const* rows = row_ % 2 ? next_.v : next_.k;
      __builtin_prefetch(rows[row_ / 2] + at_, 0, 2);
      at_ += 64;
      if (at_ >= bytes_[row_ % 2]) at_ = 0, ++row_;
    }
  }

 private:
  const DecodeBlock& next_;
  int64_t bytes_[2], share_, lines_ = 0, at_ = 0;
  int row_ = 0;
};

// A block as the products of one head see it: its rows are `offset` behind those of the first head.
struct DecodeKeys {
  const char* const* rows;
  int64_t offset;
  int count;
  const void* row(int j) const { return rows[j] + offset; }
};

// Products in float32, on vectors.
template <DType dtype_>
class VectorProducts {
 public:
  static constexpr DType dtype = dtype_;
  static constexpr int kKeys = 16;  // of a block

  VectorProducts(const Attention& p, int rows, Arena&)
      : dim_(p.head_dim), value_dim_(p.value_dim), rows_(rows) {}

  // Bytes of the queries of one head.
  static int64_t query_bytes(const Attention& p) { return kFewRows * p.head_dim * 4; }

  void load_query(int r, const void* from, DType q_dtype, float scale, void* query) const {
    with_dtype(q_dtype, [&](auto q) {
      widen_row<q()>(from, dim_, scale, static_cast<float*>(query) + r * dim_, dim_);
    });
  }

  // scores[r][key], rows kDecodeKeys apart.
  void dot(const void* query, const DecodeKeys& keys, float* scores, Ahead& ahead) const {
    ahead.begin(3, (keys.count + 1) / 2);
    for (int r = 0; r < rows_; r += kRowsAtOnce) {
      with_rows(rows_ - r, [&](auto rows) {
        dot_rows<rows()>(static_cast<const float*>(query) + r * dim_, keys,
                         scores + r * kDecodeKeys, r == 0, ahead);
      });
    }
  }

  // out[r] += sum over keys of weights[r][key] * value
  void add_values(const float* weights, const DecodeKeys& values, float* out, Ahead& ahead) const {
    ahead.begin(4, (value_dim_ / (2 * F32::width) + 1) * values.count);
    for (int r = 0; r < rows_; r += kRowsAtOnce) {
      with_rows(rows_ - r, [&](auto rows) {
        add_rows<rows()>(weights + r * kDecodeKeys, values, out + r * value_dim_, r == 0, ahead);
      });
    }
  }

  // The element of a value that stands at place i of the sums.
  static int64_t element_at(int64_t i) { return i; }

 private:
  template <class F>
  static void with_rows(int left, const F& f) {
    switch (left) {
      case 1: return f(std::integral_constant<int, 1>{});
      case 2: return f(std::integral_constant<int, 2>{});
      case 3: return f(std::integral_constant<int, 3>{});
      default: return f(std::integral_constant<int, kRowsAtOnce>{});
    }
  }

  template <int rows>
  void dot_rows(const float* q, const DecodeKeys& keys, float* scores, bool asks,
                Ahead& ahead) const {
    const int64_t dim = dim_;
    for (int j = 0; j < keys.count; j += 2) {
      // An odd last key is multiplied twice.
      const bool both = j + 1 < keys.count;
      const void *k0 = keys.row(j), *k1 = keys.row(both ? j + 1 : j);
      if (asks) ahead.step();
      F32 a[rows], b[rows];
      for (int r = 0; r < rows; ++r) a[r] = f32_zero(), b[r] = f32_zero();
      int64_t d = 0;
      for (; d + F32::width <= dim; d += F32::width) {
        const F32 x = load_as_float<dtype>(k0, d), y = load_as_float<dtype>(k1, d);
        for (int r = 0; r < rows; ++r) {
          const F32 z = f32_load(q + r * dim + d);
          a[r] = multiply_add(x, z, a[r]);
          b[r] = multiply_add(y, z, b[r]);
        }
      }
      if (d < dim) {
        const int n = static_cast<int>(dim - d);
        const F32 x = load_as_float_n<dtype>(k0, d, n), y = load_as_float_n<dtype>(k1, d, n);
        for (int r = 0; r < rows; ++r) {
          const F32 z = f32_load_n(q + r * dim + d, n);
          a[r] = multiply_add(x, z, a[r]);
          b[r] = multiply_add(y, z, b[r]);
        }
      }
      for (int r = 0; r < rows; ++r) {
        float* s = scores + r * kDecodeKeys + j;
        s[0] = f32_reduce_add(a[r]);
        if (both) s[1] = f32_reduce_add(b[r]);
      }
    }
  }

  template <int rows>
  void add_rows(const float* weight, const DecodeKeys& values, float* out, bool asks,
                Ahead& ahead) const {
    constexpr int width = F32::width;
    const int64_t dim = value_dim_;
    int64_t d = 0;
    for (; d + 2 * width <= dim; d += 2 * width) {
      F32 a[rows], b[rows];
      for (int r = 0; r < rows; ++r) {
        a[r] = f32_load(out + r * dim + d), b[r] = f32_load(out + r * dim + d + width);
      }
      for (int j = 0; j < values.count; ++j) {
        if (asks) ahead.step();
        const F32 x = load_as_float<dtype>(values.row(j), d);
        const F32 y = load_as_float<dtype>(values.row(j), d + width);
        for (int r = 0; r < rows; ++r) {
          const F32 w = f32_set(weight[r * kDecodeKeys + j]);
          a[r] = multiply_add(w, x, a[r]);
          b[r] = multiply_add(w, y, b[r]);
        }
      }
      for (int r = 0; r < rows; ++r) {
        f32_store(out + r * dim + d, a[r]), f32_store(out + r * dim + d + width, b[r]);
      }
    }
    for (; d < dim; d += width) {
      const int n = dim - d < width ? static_cast<int>(dim - d) : width;
      F32 a[rows];
      for (int r = 0; r < rows; ++r) a[r] = f32_load_n(out + r * dim + d, n);
      for (int j = 0; j < values.count; ++j) {
        const F32 x = load_as_float_n<dtype>(values.row(j), d, n);
        for (int r = 0; r < rows; ++r) {
          a[r] = multiply_add(f32_set(weight[r * kDecodeKeys + j]), x, a[r]);
        }
      }
      for (int r = 0; r < rows; ++r) f32_store_n(out + r * dim + d, a[r], n);
    }
  }

  int64_t dim_, value_dim_;
  int rows_;
};

template <class Products>
class Decode {
 public:
  Decode(const Attention& p, const AttentionTask& t, int64_t heads, Arena arena)
      : p_(p),
        t_(t),
        rows_(static_cast<int>(t.row_end - t.row_begin)),
        products_(p, rows_, arena),
        query_bytes_(padded_to(Products::query_bytes(p), 64)),
        heads_(arena.take<Head>(heads)),
        queries_(arena.take<char>(heads * query_bytes_)),
        out_(arena.take<float>(heads * kFewRows * p.value_dim)),
        scores_(arena.take<float>(kFewRows * kDecodeKeys)),
        row_(arena.take<float>(kDecodeKeys + p.value_dim)),
        scales_(arena.take<float>(2 * kDecodeKeys)),
        blocks_(arena.take<DecodeBlock>(2)),
        used_(arena.used) {}

  int64_t scratch_bytes() const { return used_; }

  void run() {
    KeyRange range{t_.k_end, t_.k_begin};
    for (int r = 0; r < rows_; ++r) {
      seen_[r] = seen_by(p_, t_, row_query(*t_.sequence, t_.row_begin + r));
      if (seen_[r].lo < seen_[r].hi) {
        range.lo = seen_[r].lo < range.lo ? seen_[r].lo : range.lo;
        range.hi = seen_[r].hi > range.hi ? seen_[r].hi : range.hi;
      }
    }
    for (int64_t h = 0; h < t_.decode_heads; ++h) start(h);
    DecodeBlock *now = blocks_, *next = blocks_ + 1;
    point(range.lo, range.hi, *now);
    for (int64_t key = range.lo; key < range.hi; key += Products::kKeys) {
      point(key + Products::kKeys, range.hi, *next);
      block(*now, *next);
      DecodeBlock* done = now;
      now = next, next = done;
    }
    for (int64_t h = 0; h < t_.decode_heads; ++h) {
      for (int r = 0; r < rows_; ++r) finish(heads_[h], r);
    }
  }

 private:
  struct Head {
    AttentionTask task;
    void* query;
    float* out;
    float most[kFewRows], sum[kFewRows];
  };

  void start(int64_t h) {
    Head& head = heads_[h];
    head.task = t_;
    head.task.kv_head += h;
    if (t_.partial) head.task.partial += h * t_.partial_head;
    head.query = queries_ + h * query_bytes_;
    head.out = out_ + h * kFewRows * p_.value_dim;
    std::memset(head.query, 0, static_cast<size_t>(query_bytes_));
    std::memset(head.out, 0, sizeof(float) * static_cast<size_t>(rows_ * p_.value_dim));
    const float scale = p_.softcap > 0.0f ? p_.scale / p_.softcap : p_.scale * kLog2E;
    for (int r = 0; r < rows_; ++r) {
      const int64_t at = query_offset(p_, head.task, p_.q_stride, t_.row_begin + r);
      products_.load_query(r, element(p_.q, p_.dtype, at), p_.dtype, scale, head.query);
      head.most[r] = kMinusInfinity;
      head.sum[r] = 0.0f;
    }
  }

  void point(int64_t first, int64_t end, DecodeBlock& block) const {
    const int64_t left = end - first;
    block.first = first;
    block.count = left <= 0 ? 0 : static_cast<int>(left < Products::kKeys ? left : Products::kKeys);
    for (int j = 0; j < block.count; ++j) {
      const int64_t k = key_offset(p_, t_, p_.k_stride, first + j);
      const int64_t v = key_offset(p_, t_, p_.v_stride, first + j);
      block.k[j] = static_cast<const char*>(element(p_.k, dtype, k));
      block.v[j] = static_cast<const char*>(element(p_.v, dtype, v));
    }
  }

  void block(const DecodeBlock& now, const DecodeBlock& next) {
    const int64_t size = element_bytes(dtype), heads = t_.decode_heads;
    Ahead ahead(next, heads * p_.head_dim * size, heads * p_.value_dim * size, heads);
    for (int64_t h = 0; h < heads; ++h) {
      Head& head = heads_[h];
      if (dtype == DType::i8) load_scales(head.task, now);
      products_.dot(head.query, {now.k, h * p_.k_stride.head * size, now.count}, scores_, ahead);
      ahead.begin(1, rows_);
      for (int r = 0; r < rows_; ++r) {
        ahead.step();
        softmax(head, r, now.first, now.count);
      }
      products_.add_values(scores_, {now.v, h * p_.v_stride.head * size, now.count}, head.out,
                           ahead);
    }
  }

  void load_scales(const AttentionTask& t, const DecodeBlock& now) {
    for (int j = 0; j < now.count; ++j) {
      scales_[j] = p_.k_scale[key_offset(p_, t, p_.k_scale_stride, now.first + j)];
      scales_[kDecodeKeys + j] = p_.v_scale[key_offset(p_, t, p_.v_scale_stride, now.first + j)];
    }
    for (int j = now.count; j % F32::width != 0; ++j) scales_[j] = scales_[kDecodeKeys + j] = 0.0f;
  }

  static void multiply_by(const float* factors, int count, float* s) {
    for (int j = 0; j < count; j += F32::width) {
      f32_store(s + j, f32_mul(f32_load(s + j), f32_load(factors + j)));
    }
  }

  // Scores of one row to weights of the values, relative to the largest score so far.
  void softmax(Head& of, int r, int64_t first, int count) {
    float* s = scores_ + r * kDecodeKeys;
    const AttentionTask& t = of.task;
    const int64_t row = t.row_begin + r, head = row_head(p_, t, row);
    if (dtype == DType::i8) multiply_by(scales_, count, s);
    for (int j = count; j % F32::width != 0; ++j) s[j] = 0.0f;
    if (p_.softcap > 0.0f) {
      const F32 height = f32_set(p_.softcap * kLog2E);
      for (int j = 0; j < count; j += F32::width) {
        f32_store(s + j, f32_mul(tanh_f32(f32_load(s + j)), height));
      }
    }
    const AttentionSequence& q = *t.sequence;
    if (p_.alibi) {
      const float slope = -kLog2E * p_.alibi[t.sequence_number * p_.alibi_batch + head];
      const int64_t middle = row_query(q, row) + (p_.bottom_right ? q.k_len - q.q_len : 0);
      for (int j = 0; j < count; ++j) {
        s[j] += slope * std::fabs(static_cast<float>(first + j - middle));
      }
    }
    if (p_.bias) {
      bias_row(p_,
               q.q_batch * p_.bias_batch + head * p_.bias_head + row_query(q, row) * p_.bias_row,
               first, count, row_);
      for (int j = 0; j < count; ++j) s[j] += row_[j];
    }
    const bool all_seen = first >= seen_[r].lo && first + count <= seen_[r].hi;
    for (int j = 0; j < count && !all_seen; ++j) {
      if (first + j < seen_[r].lo || first + j >= seen_[r].hi) s[j] = kMinusInfinity;
    }
    for (int j = count; j % F32::width != 0; ++j) s[j] = kMinusInfinity;
    F32 top = f32_set(of.most[r]);
    for (int j = 0; j < count; j += F32::width) top = f32_max(top, f32_load(s + j));
    const float most = f32_reduce_max(top);
    const float base = most == kMinusInfinity ? 0.0f : most;
    F32 total = f32_zero();
    for (int j = 0; j < count; j += F32::width) {
      const F32 x = exp2_f32(f32_sub(f32_load(s + j), f32_set(base)));
      f32_store(s + j, x);
      total = f32_add(total, x);
    }
    if (most != of.most[r]) {
      const float shrink = of.most[r] == kMinusInfinity ? 0.0f : std::exp2(of.most[r] - base);
      of.sum[r] *= shrink;
      for (int64_t d = 0; d < p_.value_dim; ++d) of.out[r * p_.value_dim + d] *= shrink;
      of.most[r] = most;
    }
    of.sum[r] += f32_reduce_add(total);
    if (dtype == DType::i8) multiply_by(scales_ + kDecodeKeys, count, s);
  }

  void finish(const Head& head, int r) {
    const AttentionTask& t = head.task;
    const int64_t row = t.row_begin + r, dim = p_.value_dim;
    for (int64_t i = 0; i < dim; ++i) row_[Products::element_at(i)] = head.out[r * dim + i];
    if (t.partial) {
      float* to = t.partial + r * (dim + 2);
      std::memcpy(to, row_, sizeof(float) * static_cast<size_t>(dim));
      to[dim] = head.most[r], to[dim + 1] = head.sum[r];
      return;
    }
    const float weight = finish_softmax(p_, t, row_query(*t.sequence, row), row_head(p_, t, row),
                                        head.most[r], head.sum[r]);
    const int64_t at = query_offset(p_, t, p_.out_stride, row);
    narrow_row(row_, dim, weight, const_cast<void*>(element(p_.out, p_.dtype, at)), p_.dtype);
  }

  static constexpr DType dtype = Products::dtype;

  const Attention& p_;
  const AttentionTask& t_;
  const int rows_;
  Products products_;
  const int64_t query_bytes_;
  Head* heads_;
  char* queries_;
  float *out_, *scores_, *row_, *scales_;
  DecodeBlock* blocks_;  // this one and the next
  int64_t used_;
  KeyRange seen_[kFewRows];
};

inline int64_t decode_scratch(const Attention& p, int64_t heads) {
  const AttentionTask none{};
  return Decode<VectorProducts<DType::f32>>(p, none, heads, Arena{nullptr}).scratch_bytes();
}

inline void decode(const Attention& p, const AttentionTask& t) {
  with_dtype(p.kv_dtype, [&](auto dtype) {
    Decode<VectorProducts<dtype()>>(p, t, t.decode_heads, Arena{static_cast<char*>(t.scratch)})
        .run();
  });
}

}  // namespace
