// Backward kernel in bfloat16 tiles: blocks of 128 rows pass over blocks of 128 keys. The sums of
// keys and values are kept transposed, as tiles of 16 elements x 16 keys, so that weights need to
// be laid out only in pairs of rows. Read behind attention_amx_forward.h.
namespace {

// A block of keys for the backward kernel.
inline int64_t backward_block_halves(const Attention& p) {
  return 2 * key_block_halves(p.head_dim) + key_block_halves(p.value_dim);
}
// Sums of a block of keys: (elements, keys) of the keys, then of the values.
inline int64_t head_sum_floats(const Attention& p) { return kKeys * 32 * steps_of(p.head_dim); }
inline int64_t block_sum_floats(const Attention& p) {
  return head_sum_floats(p) + kKeys * 32 * steps_of(p.value_dim);
}

class AmxBackward {
 public:
  AmxBackward(const Attention& p, const AttentionTask& t, Arena arena)
      : p_(p),
        t_(t),
        head_steps_(steps_of(p.head_dim)),
        value_steps_(steps_of(p.value_dim)),
        scores_(p, t, arena),
        s_(arena.take<float>(kStripScores)),
        d_(arena.take<float>(kStripScores)),
        slope_(arena.take<float>(p.softcap > 0.0f ? kStripScores : 0)),
        grad_s_(arena.take<uint16_t>(kStripScores)),
        p_pairs_(arena.take<uint16_t>(kStrips * kStripScores)),
        s_pairs_(arena.take<uint16_t>(kStrips * kStripScores)),
        q_rows_(arena.take<uint16_t>(kRows * 32 * head_steps_)),
        q_columns_(arena.take<uint16_t>(kRows * 32 * head_steps_)),
        grad_rows_(arena.take<uint16_t>(kRows * 32 * value_steps_)),
        grad_columns_(arena.take<uint16_t>(kRows * 32 * value_steps_)),
        grad_q_(arena.take<float>(kRows * 32 * head_steps_)),
        row_(arena.take<float>(32 * head_steps_)),
        lse_(arena.take<float>(kRows)),
        delta_(arena.take<float>(kRows)),
        lanes_(arena.take<Lanes>(kStrips)),
        used_(arena.used) {}

  int64_t scratch_bytes() const { return used_; }

  void run() {
    const TileScope tiles(kTileRows16);
    for (int64_t row = t_.row_begin; row < t_.row_end; row += kRows) {
      const int64_t left = t_.row_end - row;
      rows(row, row + (left < kRows ? left : kRows));
    }
  }

 private:
  static constexpr int kRows = 128;
  static constexpr int kStrips = kRows / kStrip;
  static constexpr int64_t kStripScores = kStrip * kKeys;

  struct Item {
    int strip;
    Block block;
    const uint16_t* packed;
  };

  void rows(int64_t begin, int64_t end) {
    const int strips = static_cast<int>((end - begin + kStrip - 1) / kStrip);
    int64_t lo = t_.k_end, hi = t_.k_begin;
    for (int i = 0; i < strips; ++i) {
      describe(p_, t_, begin + i * kStrip, end, lanes_[i]);
      if (lanes_[i].any.lo < lo) lo = lanes_[i].any.lo;
      if (lanes_[i].any.hi > hi) hi = lanes_[i].any.hi;
      load_rows(i);
      started_[i] = false;
    }
    for (int64_t first = lo / kKeys * kKeys; first < hi; first += kKeys) {
      const uint16_t* packed =
          static_cast<const uint16_t*>(t_.packed) + first / kKeys * backward_block_halves(p_);
      for (int i = 0; i < strips; ++i) {
        Item next{i, {}, packed};
        if (scores_.block(lanes_[i], first, next.block)) item(next);
      }
      finish_block(first);
    }
    for (int i = 0; i < strips; ++i) finish(i);
  }

  void load_rows(int i) {
    const Lanes& lanes = lanes_[i];
    const uint16_t *q[kStrip], *grad[kStrip];
    for (int r = 0; r < kStrip; ++r) {
      q[r] = grad[r] = nullptr;
      // A row that is not there gives weights of zero, as one that sees no key does.
      lse_[i * kStrip + r] = -kMinusInfinity;
      delta_[i * kStrip + r] = 0.0f;
      if (r >= lanes.rows) continue;
      q[r] = halves(p_.q, lane_offset(t_, p_.q_stride, lanes, r));
      grad[r] = halves(p_.grad_out, lane_offset(t_, p_.grad_out_stride, lanes, r));
      const uint16_t* out = halves(p_.out, lane_offset(t_, p_.out_stride, lanes, r));
      F32 sum = f32_zero();
      for (int64_t d = 0; d < p_.value_dim; d += 16) {
        const int n = p_.value_dim - d < 16 ? static_cast<int>(p_.value_dim - d) : 16;
        sum = f32_fma(f32_load_bf16_n(grad[r] + d, n), f32_load_bf16_n(out + d, n), sum);
      }
      float delta = f32_reduce_add(sum);
      const AttentionSequence& s = *t_.sequence;
      const int64_t query = s.q_begin + lanes.query[r], head = lanes.head[r];
      if (p_.grad_lse) {
        delta -= p_.grad_lse[offset_of(p_.grad_lse_stride, s.q_batch, query, head)];
      }
      const int64_t at = s.q_batch * p_.lse_batch + head * p_.lse_head + query;
      p_.delta[at] = delta_[i * kStrip + r] = delta;
      if (p_.lse[at] != kMinusInfinity) lse_[i * kStrip + r] = p_.lse[at] * kLog2E;
    }
    const int64_t pair = kStrips * 2 * kTileHalves;
    pack_rows(q, p_.head_dim, scores_.query_sign(), q_rows(i));
    pack_rows(q + 16, p_.head_dim, scores_.query_sign(), q_rows(i) + head_steps_ * kTileHalves);
    pack_columns(q, p_.head_dim, q_columns_ + i * 2 * kTileHalves, pair);
    pack_rows(grad, p_.value_dim, 0, grad_rows(i));
    pack_rows(grad + 16, p_.value_dim, 0, grad_rows(i) + value_steps_ * kTileHalves);
    pack_columns(grad, p_.value_dim, grad_columns_ + i * 2 * kTileHalves, pair);
  }

  static const uint16_t* halves(const void* base, int64_t at) {
    return static_cast<const uint16_t*>(base) + at;
  }
  uint16_t* q_rows(int strip) { return q_rows_ + strip * kStrip * 32 * head_steps_; }
  uint16_t* grad_rows(int strip) { return grad_rows_ + strip * kStrip * 32 * value_steps_; }
  float* grad_q(int strip) { return grad_q_ + strip * kStrip * 32 * head_steps_; }

  void item(const Item& x) {
    tiles_read_memory();
    rows_by_keys<2>(q_rows(x.strip), x.packed, head_steps_, x.block.from, x.block.to, s_);
    rows_by_keys<2>(grad_rows(x.strip), x.packed + key_block_halves(p_.head_dim), value_steps_,
                    x.block.from, x.block.to, d_);
    if (scores_.changes() || x.block.hides) {
      scores_.adjust(lanes_[x.strip], x.block, s_, p_.softcap > 0.0f ? slope_ : nullptr);
    }
    weights(x);
    add_to_queries(x);
  }

  struct Row {
    __m512i weights, grad;
  };

  // Weights of 32 keys of a row, and gradients of their scores.
  Row row(const Item& x, int r, int n, F32 factor, uint32_t kept) const {
    const int64_t at = r / 16 * kKeyTiles * kTileFloats + n * kTileFloats + r % 16 * 16;
    const F32 lse = f32_set(lse_[x.strip * kStrip + r]);
    const F32 delta = f32_set(delta_[x.strip * kStrip + r]);
    const F32 scale = f32_set(p_.dropout_scale);
    F32 weight[2], grad[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t tile = at + i * kTileFloats;
      F32 w = exp2_low({_mm512_fmsub_ps(f32_load(s_ + tile).v, factor.v, lse.v)});
      F32 d = f32_load(d_ + tile);
      const auto bits = static_cast<__mmask16>(kept >> (16 * i));
      if (p_.dropout_below) d = {_mm512_maskz_mul_ps(bits, d.v, scale.v)};
      grad[i] = f32_mul(w, f32_sub(d, delta));
      if (p_.dropout_below) w = {_mm512_maskz_mul_ps(bits, w.v, scale.v)};
      if (p_.softcap > 0.0f) grad[i] = f32_mul(grad[i], f32_load(slope_ + tile));
      weight[i] = w;
    }
    return {both(weight), both(grad)};
  }

  static __m512i both(const F32* x) {
    const __m512bh pair = _mm512_cvtne2ps_pbh(x[1].v, x[0].v);
    __m512i bits;
    std::memcpy(&bits, &pair, sizeof bits);
    return bits;
  }

  uint64_t kept(const Item& x, int r, int n) const {
    const Lanes& lanes = lanes_[x.strip];
    return kept_keys(p_, static_cast<uint32_t>((x.block.first + n / 4 * 64) / 4), lanes.query[r],
                     lanes.plane[r]) >>
           (n % 4 * 16);
  }

  // Rows in pairs: gradients of scores as rows, and both as pairs of rows. Within 32 keys
  // the pairs come as the unpack instructions leave them (see key_of_column).
  void weights(const Item& x) {
    const F32 factor = f32_set(scores_.factor());
    for (int r = 0; r < kStrip; r += 2) {
      for (int t = x.block.from; t < x.block.to; ++t) {
        const bool drops = p_.dropout_below != 0;
        const Row a =
            row(x, r, 2 * t, factor, drops ? static_cast<uint32_t>(kept(x, r, 2 * t)) : 0);
        const Row b =
            row(x, r + 1, 2 * t, factor, drops ? static_cast<uint32_t>(kept(x, r + 1, 2 * t)) : 0);
        uint16_t* rows = grad_s_ + (r / 16 * kKeySteps + t) * kTileHalves + r % 16 * 32;
        _mm512_storeu_si512(rows, a.grad);
        _mm512_storeu_si512(rows + 32, b.grad);
        const int64_t pair = (t * kStrips + x.strip) * 2 * kTileHalves + r / 2 * 32;
        store_pairs(p_pairs_ + pair, a.weights, b.weights);
        store_pairs(s_pairs_ + pair, a.grad, b.grad);
      }
    }
  }

  static void store_pairs(uint16_t* to, __m512i a, __m512i b) {
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(a, b));
    _mm512_storeu_si512(to + kTileHalves, _mm512_unpackhi_epi16(a, b));
  }

  void add_to_queries(const Item& x) {
    tiles_read_memory();
    const Product product{grad_s_,
                          kKeySteps * kTileHalves,
                          kTileHalves,
                          x.packed + key_block_halves(p_.head_dim) + key_block_halves(p_.value_dim),
                          kKeySteps * 2 * kTileHalves,
                          2 * kTileHalves,
                          grad_q(x.strip),
                          2 * head_steps_ * kTileFloats,
                          head_steps_,
                          x.block.from,
                          x.block.to};
    multiply_tiles<2>(product, started_[x.strip]);
    started_[x.strip] = true;
    for (int t = x.block.from; t < x.block.to; ++t) in_block_[t] |= 1u << x.strip;
  }

  // Adds to the sums of the block's keys, 32 at a time over the strips that see them.
  void finish_block(int64_t first) {
    float* sums = t_.grad_keys + first / kKeys * block_sum_floats(p_);
    for (int t = 0; t < kKeySteps; ++t) {
      const uint32_t strips = in_block_[t];
      in_block_[t] = 0;
      if (strips == 0) continue;
      const int from = __builtin_ctz(strips), to = 32 - __builtin_clz(strips);
      for (int i = from; i < to; ++i) {
        if (strips >> i & 1) continue;
        const int64_t pair = (t * kStrips + i) * 2 * kTileHalves;
        std::memset(p_pairs_ + pair, 0, static_cast<size_t>(4 * kTileHalves));
        std::memset(s_pairs_ + pair, 0, static_cast<size_t>(4 * kTileHalves));
      }
      tiles_read_memory();
      add(q_columns_, s_pairs_, head_steps_, t, from, to, sums);
      add(grad_columns_, p_pairs_, value_steps_, t, from, to, sums + head_sum_floats(p_));
    }
  }

  static void add(const uint16_t* columns, const uint16_t* pairs, int64_t steps, int t, int from,
                  int to, float* sums) {
    for (int64_t step = 0; step < steps; ++step) {
      const Product product{columns + step * kStrips * 2 * kTileHalves,
                            kTileHalves,
                            2 * kTileHalves,
                            pairs + t * kStrips * 2 * kTileHalves,
                            0,
                            2 * kTileHalves,
                            sums + (step * 2 * kKeyTiles + 2 * t) * kTileFloats,
                            kKeyTiles * kTileFloats,
                            1,
                            from,
                            to};
      multiply_tiles<2>(product, true);
    }
  }

  void finish(int i) {
    const Lanes& lanes = lanes_[i];
    const int64_t dim = p_.head_dim;
    for (int r = 0; r < static_cast<int>(lanes.rows); ++r) {
      const float* from = grad_q(i) + r / 16 * 2 * head_steps_ * kTileFloats + r % 16 * 16;
      for (int64_t n = 0; n < 2 * head_steps_; ++n) {
        f32_store(row_ + n * 16, started_[i] ? f32_load(from + n * kTileFloats) : f32_zero());
      }
      const int64_t at = lane_offset(t_, p_.grad_q_stride, lanes, r);
      narrow_row(row_, dim, p_.scale, const_cast<void*>(element(p_.grad_q, p_.dtype, at)),
                 p_.dtype);
    }
  }

  const Attention& p_;
  const AttentionTask& t_;
  const int64_t head_steps_, value_steps_;
  AmxScores scores_;
  float *s_, *d_, *slope_;
  uint16_t *grad_s_, *p_pairs_, *s_pairs_, *q_rows_, *q_columns_, *grad_rows_, *grad_columns_;
  float *grad_q_, *row_, *lse_, *delta_;
  Lanes* lanes_;
  int64_t used_;
  bool started_[kStrips];
  uint32_t in_block_[kKeySteps] = {};  // strips that see each 32 keys of the block under way
};

inline int64_t amx_backward_scratch(const Attention& p) {
  static constexpr AttentionTask none{};
  const int64_t own = AmxBackward(p, none, Arena{nullptr}).scratch_bytes();
  const int64_t others = backward_scratch(p);  // of the gradient of the bias
  return own > others ? own : others;
}

inline void amx_backward(const Attention& p, const AttentionTask& t) {
  AmxBackward(p, t, Arena{static_cast<char*>(t.scratch)}).run();
}

inline int64_t amx_backward_packed(const Attention& p, int64_t k_len) {
  return (k_len + kKeys - 1) / kKeys * backward_block_halves(p) * 2;
}

inline void amx_backward_pack(const Attention& p, const AttentionTask& t, void* to) {
  const int64_t keys = key_block_halves(p.head_dim);
  const int64_t values = key_block_halves(p.value_dim);
  for (int64_t first = t.k_begin; first < t.k_end; first += kKeys) {
    uint16_t* block = static_cast<uint16_t*>(to) + first / kKeys * backward_block_halves(p);
    for (int step = 0; step < kKeySteps && first + step * kStrip < t.sequence->k_len; ++step) {
      pack_keys_across(p, t, p.k, p.k_stride, p.head_dim, first, step, block);
      pack_keys_across(p, t, p.v, p.v_stride, p.value_dim, first, step, block + keys);
      pack_keys_along(p, t, p.k, p.k_stride, p.head_dim, first, step, block + keys + values);
    }
  }
}

inline int64_t amx_gradient_floats(const Attention& p, int64_t k_len) {
  return (k_len + kKeys - 1) / kKeys * block_sum_floats(p);
}

// Which of 32 keys column `c` of the first (half 0) or second of a pair of tiles is.
inline int key_of_column(int half, int c) { return c / 4 * 8 + half * 4 + c % 4; }

// Sums of `count` shares of (elements, keys), times scale, to rows of keys.
inline void finish_sums(const float* sums, int64_t count, int64_t stride, int64_t keys, float scale,
                        int64_t dim, void* to, int64_t row_stride, DType dtype) {
  for (int64_t first = 0; first < padded_to(keys, 32); first += 16) {
    const int half = static_cast<int>(first / 16 % 2);
    for (int64_t m = 0; m * 16 < dim; ++m) {
      const float* tile = sums + (m * kKeyTiles + first / 16) * kTileFloats;
      __m512i rows[16];
      for (int i = 0; i < 16; ++i) {
        F32 sum = f32_load(tile + i * 16);
        for (int64_t c = 1; c < count; ++c) {
          sum = f32_add(sum, f32_load(tile + c * stride + i * 16));
        }
        rows[i] = _mm512_castps_si512(f32_mul(sum, f32_set(scale)).v);
      }
      transpose_dwords(rows);
      const int n = dim - m * 16 < 16 ? static_cast<int>(dim - m * 16) : 16;
      for (int i = 0; i < 16; ++i) {
        const int64_t key = first / 32 * 32 + key_of_column(half, i);
        if (key >= keys) continue;
        store_as(dtype, to, key * row_stride + m * 16, {_mm512_castsi512_ps(rows[i])}, n);
      }
    }
  }
}

inline void amx_finish_keys(const Attention& p, const AttentionTask& t, const float* sums,
                            int64_t count, int64_t stride) {
  for (int64_t first = t.k_begin; first < t.k_end; first += kKeys) {
    const int64_t keys = t.k_end - first < kKeys ? t.k_end - first : kKeys;
    const float* block = sums + first / kKeys * block_sum_floats(p);
    finish_sums(
        block, count, stride, keys, p.scale, p.head_dim,
        const_cast<void*>(element(p.grad_k, p.dtype, key_offset(p, t, p.grad_k_stride, first))),
        p.grad_k_stride.row, p.dtype);
    finish_sums(
        block + head_sum_floats(p), count, stride, keys, 1.0f, p.value_dim,
        const_cast<void*>(element(p.grad_v, p.dtype, key_offset(p, t, p.grad_v_stride, first))),
        p.grad_v_stride.row, p.dtype);
  }
}

}  // namespace
