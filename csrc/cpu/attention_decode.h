// Decoding: a few rows against many keys. The time is that of reading keys and values once, so they
// go from memory, in their own dtype, straight into the products. The rows of one head lie a page
// or so apart, which no hardware prefetcher follows: the next block is prefetched row by row while
// this one is worked on. Read behind attention_forward.h.
namespace {

constexpr int kDecodeKeys = 64;
constexpr int kFewRows = 8;
constexpr int kRowsAtOnce = 4;

template <DType dtype>
class Decode {
 public:
  Decode(const Attention& p, const AttentionTask& t, Arena arena)
      : p_(p),
        t_(t),
        rows_(static_cast<int>(t.row_end - t.row_begin)),
        q_(arena.take<float>(kFewRows * p.head_dim)),
        out_(arena.take<float>(kFewRows * p.value_dim)),
        scores_(arena.take<float>(kFewRows * kDecodeKeys)),
        bias_(arena.take<float>(kDecodeKeys)),
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
      load_query(r);
      most_[r] = kMinusInfinity;
      sum_[r] = 0.0f;
    }
    std::memset(out_, 0, sizeof(float) * static_cast<size_t>(rows_ * p_.value_dim));
    int count = point(range.lo, range.hi, k_next_, v_next_);
    for (int64_t key = range.lo; key < range.hi; key += kDecodeKeys) {
      std::memcpy(k_, k_next_, sizeof k_);
      std::memcpy(v_, v_next_, sizeof v_);
      const int now = count;
      count = next_ = point(key + kDecodeKeys, range.hi, k_next_, v_next_);
      block(key, now);
    }
    for (int r = 0; r < rows_; ++r) finish(r);
  }

 private:
  void load_query(int r) {
    const int64_t at = query_offset(p_, t_, p_.q_stride, t_.row_begin + r);
    const float scale = p_.softcap > 0.0f ? p_.scale / p_.softcap : p_.scale * kLog2E;
    with_dtype(p_.dtype, [&](auto q_dtype) {
      widen_row<q_dtype()>(element(p_.q, q_dtype(), at), p_.head_dim, scale, q_ + r * p_.head_dim,
                           p_.head_dim);
    });
  }

  // Where the rows of a block are; how many there are.
  int point(int64_t first, int64_t end, const void** k, const void** v) const {
    const int64_t left = end - first;
    const int count = left <= 0 ? 0 : static_cast<int>(left < kDecodeKeys ? left : kDecodeKeys);
    for (int j = 0; j < count; ++j) {
      k[j] = element(p_.k, dtype, key_offset(p_, t_, p_.k_stride, first + j));
      v[j] = element(p_.v, dtype, key_offset(p_, t_, p_.v_stride, first + j));
    }
    return count;
  }

  void prefetch(const void* row, int64_t dim) const {
    const char* at = static_cast<const char*>(row);
    for (int64_t i = 0; i < dim * element_bytes(dtype); i += 64) __builtin_prefetch(at + i);
  }

  void block(int64_t first, int count) {
    for (int r = 0; r < rows_; r += kRowsAtOnce) {
      with_rows(rows_ - r, [&](auto rows) { dot<rows()>(r, count); });
    }
    for (int r = 0; r < rows_; ++r) softmax(r, first, count);
    for (int r = 0; r < rows_; r += kRowsAtOnce) {
      with_rows(rows_ - r, [&](auto rows) { add_values<rows()>(r, count); });
    }
  }

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
  void dot(int first_row, int count) {
    const float* q = q_ + first_row * p_.head_dim;
    const int64_t dim = p_.head_dim;
    for (int j = 0; j < count; j += 2) {
      // An odd last key is multiplied twice.
      const void* k0 = k_[j];
      const void* k1 = k_[j + 1 < count ? j + 1 : j];
      for (int i = j; first_row == 0 && i < j + 2 && i < next_; ++i) {
        prefetch(k_next_[i], dim);
      }
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
        float* s = scores_ + (first_row + r) * kDecodeKeys + j;
        s[0] = f32_reduce_add(a[r]);
        if (j + 1 < count) s[1] = f32_reduce_add(b[r]);
      }
    }
  }

  // Scores of one row to weights of the values, relative to the largest score so far.
  void softmax(int r, int64_t first, int count) {
    float* s = scores_ + r * kDecodeKeys;
    const int64_t row = t_.row_begin + r, head = row_head(p_, t_, row);
    if (dtype == DType::i8) {
      for (int j = 0; j < count; ++j)
        s[j] *= p_.k_scale[key_offset(p_, t_, p_.k_scale_stride, first + j)];
    }
    for (int j = count; j % F32::width != 0; ++j) s[j] = 0.0f;
    if (p_.softcap > 0.0f) {
      const F32 height = f32_set(p_.softcap * kLog2E);
      for (int j = 0; j < count; j += F32::width) {
        f32_store(s + j, f32_mul(tanh_f32(f32_load(s + j)), height));
      }
    }
    const AttentionSequence& q = *t_.sequence;
    if (p_.alibi) {
      const float slope = -kLog2E * p_.alibi[t_.sequence_number * p_.alibi_batch + head];
      const int64_t middle = row_query(q, row) + (p_.bottom_right ? q.k_len - q.q_len : 0);
      for (int j = 0; j < count; ++j) {
        s[j] += slope * std::fabs(static_cast<float>(first + j - middle));
      }
    }
    if (p_.bias) {
      bias_row(p_,
               q.q_batch * p_.bias_batch + head * p_.bias_head + row_query(q, row) * p_.bias_row,
               first, count, bias_);
      for (int j = 0; j < count; ++j) s[j] += bias_[j];
    }
    const bool all_seen = first >= seen_[r].lo && first + count <= seen_[r].hi;
    for (int j = 0; j < count && !all_seen; ++j) {
      if (first + j < seen_[r].lo || first + j >= seen_[r].hi) s[j] = kMinusInfinity;
    }
    for (int j = count; j % F32::width != 0; ++j) s[j] = kMinusInfinity;
    F32 top = f32_set(most_[r]);
    for (int j = 0; j < count; j += F32::width) top = f32_max(top, f32_load(s + j));
    const float most = f32_reduce_max(top);
    const float base = most == kMinusInfinity ? 0.0f : most;
    const float shrink = most_[r] == kMinusInfinity ? 0.0f : std::exp2(most_[r] - base);
    F32 total = f32_zero();
    for (int j = 0; j < count; j += F32::width) {
      const F32 x = exp2_f32(f32_sub(f32_load(s + j), f32_set(base)));
      f32_store(s + j, x);
      total = f32_add(total, x);
    }
    sum_[r] = sum_[r] * shrink + f32_reduce_add(total);
    most_[r] = most;
    if (shrink != 1.0f) {
      for (int64_t d = 0; d < p_.value_dim; ++d) out_[r * p_.value_dim + d] *= shrink;
    }
    if (dtype == DType::i8) {
      for (int j = 0; j < count; ++j)
        s[j] *= p_.v_scale[key_offset(p_, t_, p_.v_scale_stride, first + j)];
    }
  }

  template <int rows>
  void add_values(int first_row, int count) {
    const int64_t dim = p_.value_dim;
    float* out = out_ + first_row * dim;
    const float* weight = scores_ + first_row * kDecodeKeys;
    constexpr int width = F32::width;
    int64_t d = 0;
    for (; d + 2 * width <= dim; d += 2 * width) {
      F32 a[rows], b[rows];
      for (int r = 0; r < rows; ++r) {
        a[r] = f32_load(out + r * dim + d), b[r] = f32_load(out + r * dim + d + width);
      }
      for (int j = 0; j < count; ++j) {
        if (d == 0 && first_row == 0 && j < next_) prefetch(v_next_[j], dim);
        const F32 x = load_as_float<dtype>(v_[j], d), y = load_as_float<dtype>(v_[j], d + width);
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
      for (int j = 0; j < count; ++j) {
        const F32 x = load_as_float_n<dtype>(v_[j], d, n);
        for (int r = 0; r < rows; ++r) {
          a[r] = multiply_add(f32_set(weight[r * kDecodeKeys + j]), x, a[r]);
        }
      }
      for (int r = 0; r < rows; ++r) f32_store_n(out + r * dim + d, a[r], n);
    }
  }

  void finish(int r) {
    const int64_t row = t_.row_begin + r, dim = p_.value_dim;
    const float* out = out_ + r * dim;
    if (t_.partial) {
      float* to = t_.partial + r * (dim + 2);
      std::memcpy(to, out, sizeof(float) * static_cast<size_t>(dim));
      to[dim] = most_[r], to[dim + 1] = sum_[r];
      return;
    }
    const float weight = finish_softmax(p_, t_, row_query(*t_.sequence, row), row_head(p_, t_, row),
                                        most_[r], sum_[r]);
    const int64_t at = query_offset(p_, t_, p_.out_stride, row);
    narrow_row(out, dim, weight, const_cast<void*>(element(p_.out, p_.dtype, at)), p_.dtype);
  }

  const Attention& p_;
  const AttentionTask& t_;
  const int rows_;
  float *q_, *out_, *scores_, *bias_;
  int64_t used_;
  KeyRange seen_[kFewRows];
  float most_[kFewRows], sum_[kFewRows];
  const void *k_[kDecodeKeys], *v_[kDecodeKeys];
  const void *k_next_[kDecodeKeys], *v_next_[kDecodeKeys];
  int next_ = 0;  // rows of the next block
};

inline void decode(const Attention& p, const AttentionTask& t) {
  with_dtype(p.kv_dtype, [&](auto dtype) {
    Decode<dtype()>(p, t, Arena{static_cast<char*>(t.scratch)}).run();
  });
}

}  // namespace
