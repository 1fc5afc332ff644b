// Forward kernel in bfloat16 tiles: strips of 32 rows, blocks of 128 keys. Read behind
// attention_forward.h and attention_amx_scores.h.
namespace {

class AmxForward {
 public:
  AmxForward(const Attention& p, const AttentionTask& t, Arena arena)
      : p_(p),
        t_(t),
        head_steps_(steps_of(p.head_dim)),
        value_steps_(steps_of(p.value_dim)),
        scores_(p, t, arena),
        s_(arena.take<float>(kStrip * kKeys)),
        q_(arena.take<uint16_t>(kBlockRows * 32 * head_steps_)),
        out_(arena.take<float>(kBlockRows * 32 * value_steps_)),
        most_(arena.take<float>(kBlockRows)),
        base_(arena.take<float>(kBlockRows)),
        limit_(arena.take<float>(kBlockRows)),
        sum_(arena.take<float>(kBlockRows * 16)),
        lanes_(arena.take<Lanes>(kStrips)),
        own_(arena.take<uint16_t>(kChunk * block_halves(p))),
        used_(arena.used) {}

  int64_t scratch_bytes() const { return used_; }

  static int64_t block_halves(const Attention& p) {
    return key_block_halves(p.head_dim) + key_block_halves(p.value_dim);
  }

  static void pack(const Attention& p, const AttentionTask& t, int64_t first, int64_t end,
                   uint16_t* to) {
    const int64_t left = end - first;
    for (int step = 0; step < kKeySteps && step * kStrip < left; ++step) {
      pack_keys_across(p, t, p.k, p.k_stride, p.head_dim, first, step, to);
      pack_keys_along(p, t, p.v, p.v_stride, p.value_dim, first, step,
                      to + key_block_halves(p.head_dim));
    }
  }

  void run() {
    const TileScope tiles(kTileRows16);
    for (int64_t row = t_.row_begin; row < t_.row_end; row += kBlockRows) {
      const int64_t left = t_.row_end - row;
      rows(row, row + (left < kBlockRows ? left : kBlockRows));
    }
  }

 private:
  static constexpr int kStrips = kBlockRows / kStrip;
  static constexpr int kChunk = 4;  // blocks that all strips pass over before the next
  // Sums are kept relative to a score that may lie this far (in log2) below the largest.
  static constexpr float kSlack = 8.0f;

  struct Item {
    int strip;
    Block block;
    const uint16_t* packed;
  };

  void rows(int64_t begin, int64_t end) {
    strips_ = static_cast<int>((end - begin + kStrip - 1) / kStrip);
    lo_ = t_.k_end, hi_ = t_.k_begin;
    for (int i = 0; i < strips_; ++i) {
      describe(p_, t_, begin + i * kStrip, end, lanes_[i]);
      if (lanes_[i].any.lo < lo_) lo_ = lanes_[i].any.lo;
      if (lanes_[i].any.hi > hi_) hi_ = lanes_[i].any.hi;
      load_queries(i);
      started_[i] = false;
    }
    for (int i = 0; i < strips_ * kStrip; ++i) {
      most_[i] = limit_[i] = kMinusInfinity;
      base_[i] = 0.0f;
    }
    std::memset(sum_, 0, sizeof(float) * static_cast<size_t>(strips_ * kStrip * 16));
    if (lo_ < hi_) chunks();
    for (int i = 0; i < strips_; ++i) finish(i);
  }

  void chunks() {
    const int64_t first_block = lo_ / kKeys, end_block = (hi_ + kKeys - 1) / kKeys;
    for (int64_t chunk = first_block; chunk < end_block; chunk += kChunk) {
      const int64_t chunk_end = chunk + kChunk < end_block ? chunk + kChunk : end_block;
      const uint16_t* packed = static_cast<const uint16_t*>(t_.packed);
      if (packed) {
        packed += chunk * block_halves(p_);
      } else {
        for (int64_t b = chunk; b < chunk_end; ++b) {
          pack(p_, t_, b * kKeys, t_.sequence->k_len, own_ + (b - chunk) * block_halves(p_));
        }
        tiles_read_memory();
        packed = own_;
      }
      for (int i = 0; i < strips_; ++i) {
        for (int64_t b = chunk; b < chunk_end; ++b) {
          Item next{i, {}, packed + (b - chunk) * block_halves(p_)};
          if (!scores_.block(lanes_[i], b * kKeys, next.block)) continue;
          if (lanes_[i].rows > 16) {
            item<2>(next);
          } else {
            item<1>(next);
          }
        }
      }
    }
  }

  template <int tiles>
  void item(const Item& x) {
    tiles_read_memory();
    rows_by_keys<tiles>(q_ + x.strip * kStrip * 32 * head_steps_, x.packed, head_steps_,
                        x.block.from, x.block.to, s_);
    if (scores_.changes() || x.block.hides) {
      scores_.adjust(lanes_[x.strip], x.block, s_, nullptr);
    }
    if (p_.dropout_below) {
      softmax<0, true>(x, tiles * 16);
    } else if (x.block.to - x.block.from == kKeySteps) {
      softmax<kKeySteps, false>(x, tiles * 16);
    } else {
      softmax<0, false>(x, tiles * 16);
    }
    values<tiles>(x);
  }

  void load_queries(int i) {
    const Lanes& lanes = lanes_[i];
    const uint16_t* rows[kStrip];
    for (int r = 0; r < kStrip; ++r) {
      rows[r] = r < lanes.rows
                    ? static_cast<const uint16_t*>(p_.q) + lane_offset(t_, p_.q_stride, lanes, r)
                    : nullptr;
    }
    uint16_t* to = q_ + i * kStrip * 32 * head_steps_;
    pack_rows(rows, p_.head_dim, scores_.query_sign(), to);
    pack_rows(rows + 16, p_.head_dim, scores_.query_sign(), to + head_steps_ * kTileHalves);
  }

  float* out(int strip) { return out_ + strip * kStrip * 32 * value_steps_; }

  template <int tiles>
  void values(const Item& x) {
    tiles_read_memory();
    const Product product{reinterpret_cast<const uint16_t*>(s_),
                          kKeyTiles * 2 * kTileFloats,
                          4 * kTileFloats,
                          x.packed + key_block_halves(p_.head_dim),
                          kKeySteps * 2 * kTileHalves,
                          2 * kTileHalves,
                          out(x.strip),
                          2 * value_steps_ * kTileFloats,
                          value_steps_,
                          x.block.from,
                          x.block.to};
    multiply_tiles<tiles>(product, started_[x.strip]);
    started_[x.strip] = true;
  }

  static int64_t row_at(int r) { return r / 16 * kKeyTiles * kTileFloats + r % 16 * 16; }

  // Takes a row to a new largest score, and what has been summed with it.
  void grow(int strip, int r, float now) {
    const int at = strip * kStrip + r;
    const float before = most_[at];
    most_[at] = base_[at] = now;
    limit_[at] = now + kSlack;
    if (!started_[strip]) return;
    const F32 shrink = f32_set(std::exp2(before - now));
    float* sum = sum_ + at * 16;
    f32_store(sum, f32_mul(f32_load(sum), shrink));
    float* o = out(strip) + r / 16 * 2 * value_steps_ * kTileFloats + r % 16 * 16;
    for (int64_t n = 0; n < 2 * value_steps_; ++n) {
      f32_store(o + n * kTileFloats, f32_mul(f32_load(o + n * kTileFloats), shrink));
    }
  }

  // Scores to weights in bfloat16, in the place of every other tile; `steps` of 32 keys from 0 on,
  // or those of the block.
  template <int steps, bool drops>
  void softmax(const Item& x, int rows) {
    const int from = steps ? 0 : x.block.from, to = steps ? steps : x.block.to;
    const Lanes& lanes = lanes_[x.strip];
    const F32 factor = f32_set(scores_.factor()), scale = f32_set(p_.dropout_scale);
    for (int row = 0; row < rows; ++row) {
      float* s = s_ + row_at(row);
      const int at = x.strip * kStrip + row;
      F32 a[steps ? steps : 1] = {}, b[steps ? steps : 1] = {};
      F32 top = f32_set(kMinusInfinity), other = top;
      for (int t = from; t < to; ++t) {
        const F32 first = f32_load(s + 2 * t * kTileFloats);
        const F32 second = f32_load(s + (2 * t + 1) * kTileFloats);
        top = f32_max(top, first);
        other = f32_max(other, second);
        if constexpr (steps != 0) a[t] = first, b[t] = second;
      }
      top = f32_mul(f32_max(top, other), factor);
      if (_mm512_cmp_ps_mask(top.v, _mm512_set1_ps(limit_[at]), _CMP_GT_OQ)) {
        grow(x.strip, row, f32_reduce_max(top));
      }
      const F32 base = f32_set(base_[at]);
      F32 sum = f32_load(sum_ + at * 16), sum_other = f32_zero();
      uint64_t kept = 0;
      for (int t = from; t < to; ++t) {
        float* pair = s + 2 * t * kTileFloats;
        F32 first = exp2_low(subtracted(steps ? a[t] : f32_load(pair), factor, base));
        F32 second =
            exp2_low(subtracted(steps ? b[t] : f32_load(pair + kTileFloats), factor, base));
        sum = f32_add(sum, first);
        sum_other = f32_add(sum_other, second);
        if (drops) {
          if (t % 2 == 0 || t == from) {
            kept = kept_keys(p_, static_cast<uint32_t>((x.block.first + t / 2 * 64) / 4),
                             lanes.query[row], lanes.plane[row]);
          }
          const auto bits = static_cast<uint32_t>(kept >> (t % 2 * 32));
          first = {_mm512_maskz_mul_ps(static_cast<__mmask16>(bits), first.v, scale.v)};
          second = {_mm512_maskz_mul_ps(static_cast<__mmask16>(bits >> 16), second.v, scale.v)};
        }
        store_pair(pair, first, second);
      }
      f32_store(sum_ + at * 16, f32_add(sum, sum_other));
    }
  }

  static F32 subtracted(F32 x, F32 factor, F32 base) {
    return {_mm512_fmsub_ps(x.v, factor.v, base.v)};
  }

  static void store_pair(float* to, F32 first, F32 second) {
    const __m512bh pair = _mm512_cvtne2ps_pbh(second.v, first.v);
    std::memcpy(to, &pair, sizeof pair);
  }

  void finish(int i) {
    const Lanes& lanes = lanes_[i];
    for (int first = 0; first < static_cast<int>(lanes.rows); first += 16) {
      const int at = i * kStrip + first;
      const int rows = least(lanes.rows - first);
      const F32 sum = started_[i] ? sums_of_rows(sum_ + at * 16) : f32_zero();
      float sums[16], weights[16], lse[16];
      f32_store(sums, sum);
      const F32 one = f32_set(1.0f), none = f32_set(kMinusInfinity);
      const F32 most = f32_load(most_ + at);
      const F32 log = f32_mul(f32_add(most, log2_f32(sum)), f32_set(kLn2));
      const __mmask16 empty = _mm512_cmp_ps_mask(sum.v, f32_zero().v, _CMP_EQ_OQ);
      f32_store(weights, {_mm512_mask_blend_ps(empty, f32_div(one, sum).v, f32_zero().v)});
      f32_store(lse, {_mm512_mask_blend_ps(empty, log.v, none.v)});
      for (int r = 0; r < rows; ++r) {
        finish_row_of(i, first + r, sums[r], weights[r], lse[r]);
      }
    }
  }

  // Sums of 16 vectors.
  static F32 sums_of_rows(const float* vectors) {
    __m512i rows[16];
    for (int r = 0; r < 16; ++r) rows[r] = _mm512_loadu_si512(vectors + r * 16);
    transpose_dwords(rows);
    F32 sum = f32_zero();
    for (int r = 0; r < 16; ++r) sum = f32_add(sum, {_mm512_castsi512_ps(rows[r])});
    return sum;
  }

  void finish_row_of(int i, int r, float sum, float weight, float lse) {
    const Lanes& lanes = lanes_[i];
    const int64_t dim = p_.value_dim;
    const int at = i * kStrip + r;
    const float* o = out(i) + r / 16 * 2 * value_steps_ * kTileFloats + r % 16 * 16;
    if (t_.partial) {
      float* to = t_.partial + (lanes.row[r] - t_.row_begin) * (dim + 2);
      for (int64_t d = 0; d < dim; d += 16) {
        f32_store_n(to + d, out_part(i, o, d), least(dim - d));
      }
      to[dim] = most_[at], to[dim + 1] = sum;
      return;
    }
    if (p_.sinks) {
      weight = finish_softmax(p_, t_, lanes.query[r], lanes.head[r], most_[at], sum);
    } else {
      const AttentionSequence& s = *t_.sequence;
      p_.lse[s.q_batch * p_.lse_batch + lanes.head[r] * p_.lse_head + s.q_begin + lanes.query[r]] =
          lse;
    }
    auto* to = static_cast<uint16_t*>(p_.out) + lane_offset(t_, p_.out_stride, lanes, r);
    int64_t d = 0;
    for (; d + 32 <= dim; d += 32) {
      const F32 w = f32_set(weight);
      float pair[16];
      store_pair(pair, f32_mul(out_part(i, o, d), w), f32_mul(out_part(i, o, d + 16), w));
      std::memcpy(to + d, pair, sizeof pair);
    }
    for (; d < dim; d += 16) {
      f32_store_bf16_n(to + d, f32_mul(out_part(i, o, d), f32_set(weight)), least(dim - d));
    }
  }

  static int least(int64_t left) { return left < 16 ? static_cast<int>(left) : 16; }

  // 16 elements of a row whose tiles start at `o`.
  F32 out_part(int strip, const float* o, int64_t d) const {
    return started_[strip] ? f32_load(o + d / 16 * kTileFloats) : f32_zero();
  }

  const Attention& p_;
  const AttentionTask& t_;
  const int64_t head_steps_, value_steps_;
  AmxScores scores_;
  float* s_;
  uint16_t* q_;
  float *out_, *most_, *base_, *limit_, *sum_;
  Lanes* lanes_;
  uint16_t* own_;
  int64_t used_;
  int strips_ = 0;
  int64_t lo_ = 0, hi_ = 0;
  bool started_[kStrips];
};

inline int64_t amx_forward_scratch(const Attention& p) {
  static constexpr AttentionTask none{};
  const int64_t own = AmxForward(p, none, Arena{nullptr}).scratch_bytes();
  const int64_t others = forward_scratch(p);
  return own > others ? own : others;
}

inline void amx_forward(const Attention& p, const AttentionTask& t) {
  AmxForward(p, t, Arena{static_cast<char*>(t.scratch)}).run();
}

inline int64_t amx_forward_packed(const Attention& p, int64_t k_len) {
  return (k_len + kKeys - 1) / kKeys * AmxForward::block_halves(p) * 2;
}

inline void amx_forward_pack(const Attention& p, const AttentionTask& t, void* to) {
  for (int64_t key = t.k_begin; key < t.k_end; key += kKeys) {
    AmxForward::pack(p, t, key, t.sequence->k_len,
                     static_cast<uint16_t*>(to) + key / kKeys * AmxForward::block_halves(p));
  }
}

}  // namespace
