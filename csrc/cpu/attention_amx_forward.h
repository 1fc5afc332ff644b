// Forward kernel in bfloat16 tiles: strips of 32 rows pass over blocks of 128 keys. Scores become
// weights 64 keys at a time, which fit L1 with all they come from: a store to a line that L1 lacks
// takes four times as long. Tile and vector work come one after another: for some 200 cycles after
// any tile instruction a core issues one instruction on 512 bits a cycle instead of two, so that
// vector work beside tile work gains nothing. Read behind attention_forward.h and
// attention_amx_scores.h.
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
        weights_(arena.take<uint16_t>(kStrip * kKeys)),
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
  // Weights are kept relative to a score that is the largest of a row's first keys. Where 16 sums
  // of an item's weights exceed this, a larger score takes its place.
  static constexpr float kMostWeight = 256.0f;
  static constexpr int kPart = 2;            // steps whose scores become weights together
  static constexpr float kNoWeight = -1.0f;  // of a row that has seen no key

  struct Item {
    int strip, rows;
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
      started_[i] = based_[i] = false;
    }
    for (int i = 0; i < strips_ * kStrip; ++i) {
      most_[i] = kMinusInfinity;
      base_[i] = 0.0f;
      limit_[i] = kNoWeight;
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
          Item next{i, lanes_[i].rows > 16 ? 32 : 16, {}, packed + (b - chunk) * block_halves(p_)};
          if (!scores_.block(lanes_[i], b * kKeys, next.block)) continue;
          if (next.rows > 16) {
            item<2>(next);
          } else {
            item<1>(next);
          }
        }
      }
    }
  }

  static bool hides(const Lanes& lanes, const Block& block) {
    return block.first + block.from * 32 < lanes.all.lo ||
           block.first + block.to * 32 > lanes.all.hi;
  }

  template <int tiles>
  void item(const Item& x) {
    int values_from = x.block.from;
    for (Item part = x; part.block.from < x.block.to; part.block.from = part.block.to) {
      Block& block = part.block;
      block.to = (block.from / kPart + 1) * kPart;
      if (block.to > x.block.to) block.to = x.block.to;
      block.hides = x.block.hides && hides(lanes_[x.strip], block);
      tiles_read_memory();
      rows_by_keys<tiles>(q_ + x.strip * kStrip * 32 * head_steps_, x.packed, head_steps_,
                          block.from, block.to, scores_of(block));
      if (scores_.changes() || block.hides) {
        scores_.adjust(lanes_[x.strip], block, scores_of(block), nullptr);
      }
      if (!based_[x.strip]) first_base(part);
      uint32_t grown = weigh(part, 0, x.rows);
      if (grown && values_from < block.from) {
        values<tiles>(x, values_from, block.from);
        values_from = block.from;
      }
      for (; grown; grown &= grown - 1) grow(part, __builtin_ctz(grown));
    }
    values<tiles>(x, values_from, x.block.to);
  }

  // All parts of a block take the same place.
  float* scores_of(const Block& block) const {
    return s_ + (kKeySteps - kPart - block.from / kPart * kPart) * 2 * kTileFloats;
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
  void values(const Item& x, int from, int to) {
    tiles_read_memory();
    const Product product{weights_,
                          kKeySteps * kTileHalves,
                          kTileHalves,
                          x.packed + key_block_halves(p_.head_dim),
                          kKeySteps * 2 * kTileHalves,
                          2 * kTileHalves,
                          out(x.strip),
                          2 * value_steps_ * kTileFloats,
                          value_steps_,
                          from,
                          to};
    multiply_tiles<tiles>(product, started_[x.strip]);
    started_[x.strip] = true;
  }

  // Largest scores of a row in 16 lanes.
  F32 largest(const Item& x, int row) const {
    const float* s = scores_of(x.block) + row / 16 * kKeyTiles * kTileFloats + row % 16 * 16;
    F32 top = f32_load(s + 2 * x.block.from * kTileFloats);
    for (int n = 2 * x.block.from + 1; n < 2 * x.block.to; ++n) {
      top = f32_max(top, f32_load(s + n * kTileFloats));
    }
    return f32_mul(top, f32_set(scores_.factor()));
  }

  // What the weights of a strip are relative to: the largest scores of its first item.
  void first_base(const Item& x) {
    based_[x.strip] = true;
    for (int first = 0; first < x.rows; first += 16) {
      const int at = x.strip * kStrip + first;
      __m512i rows[16];
      for (int r = 0; r < 16; ++r) rows[r] = _mm512_castps_si512(largest(x, first + r).v);
      transpose_dwords(rows);
      F32 top{_mm512_castsi512_ps(rows[0])};
      for (int r = 1; r < 16; ++r) top = f32_max(top, {_mm512_castsi512_ps(rows[r])});
      const __mmask16 seen = _mm512_cmp_ps_mask(top.v, _mm512_set1_ps(kMinusInfinity), _CMP_GT_OQ);
      _mm512_mask_storeu_ps(most_ + at, seen, top.v);
      _mm512_mask_storeu_ps(base_ + at, seen, top.v);
      _mm512_mask_storeu_ps(limit_ + at, seen, _mm512_set1_ps(kMostWeight));
    }
  }

  // Takes a row to a new largest score, and what has been summed with it; then weighs it.
  void grow(const Item& x, int r) {
    const int at = x.strip * kStrip + r;
    const float now = f32_reduce_max(largest(x, r)), before = most_[at];
    if (now > before) {
      most_[at] = base_[at] = now;
      if (started_[x.strip]) shrink(x.strip, r, f32_set(std::exp2(before - now)));
    }
    limit_[at] = -kMinusInfinity;
    weigh(x, r, r + 1);
    limit_[at] = most_[at] > kMinusInfinity ? kMostWeight : kNoWeight;
  }

  void shrink(int strip, int r, F32 factor) {
    float* sum = sum_ + (strip * kStrip + r) * 16;
    f32_store(sum, f32_mul(f32_load(sum), factor));
    float* o = out(strip) + r / 16 * 2 * value_steps_ * kTileFloats + r % 16 * 16;
    for (int64_t n = 0; n < 2 * value_steps_; ++n) {
      f32_store(o + n * kTileFloats, f32_mul(f32_load(o + n * kTileFloats), factor));
    }
  }

  // Rows [begin, end) to weights. Returns those whose sums grow too large, to be left to `grow`.
  uint32_t weigh(const Item& x, int begin, int end) {
    if (p_.dropout_below) return weigh_rows<0, true>(x, begin, end);
    if (x.block.to - x.block.from == kPart) return weigh_rows<kPart, false>(x, begin, end);
    return weigh_rows<0, false>(x, begin, end);
  }

  // `steps` of 32 keys, or those of the block; weights take the place of every other tile of
  // scores.
  template <int steps, bool drops>
  uint32_t weigh_rows(const Item& x, int begin, int end) {
    const int from = x.block.from, count = steps ? steps : x.block.to - from;
    const Lanes& lanes = lanes_[x.strip];
    const F32 factor = f32_set(scores_.factor()), scale = f32_set(p_.dropout_scale);
    const float* scores = scores_of(x.block) + 2 * from * kTileFloats;
    uint32_t grown = 0;
    for (int row = begin; row < end; ++row) {
      const float* s = scores + row / 16 * kKeyTiles * kTileFloats + row % 16 * 16;
      uint16_t* to = weights_ + (row / 16 * kKeySteps + from) * kTileHalves + row % 16 * 32;
      const int at = x.strip * kStrip + row;
      const F32 base = f32_set(base_[at]);
      F32 sum = f32_zero(), other = f32_zero();
      uint64_t kept = 0;
      for (int t = 0; t < count; ++t) {
        F32 first = exp2_low(subtracted(f32_load(s + 2 * t * kTileFloats), factor, base));
        F32 second = exp2_low(subtracted(f32_load(s + (2 * t + 1) * kTileFloats), factor, base));
        sum = f32_add(sum, first);
        other = f32_add(other, second);
        if (drops) {
          const int step = from + t;
          if (step % 2 == 0 || t == 0) {
            kept = kept_keys(p_, static_cast<uint32_t>((x.block.first + step / 2 * 64) / 4),
                             lanes.query[row], lanes.plane[row]);
          }
          const auto bits = static_cast<uint32_t>(kept >> (step % 2 * 32));
          first = {_mm512_maskz_mul_ps(static_cast<__mmask16>(bits), first.v, scale.v)};
          second = {_mm512_maskz_mul_ps(static_cast<__mmask16>(bits >> 16), second.v, scale.v)};
        }
        store_pair(to + t * kTileHalves, first, second);
      }
      sum = f32_add(sum, other);
      if (_mm512_cmp_ps_mask(sum.v, _mm512_set1_ps(limit_[at]), _CMP_GT_OQ)) {
        grown |= 1u << row;
      } else {
        f32_store(sum_ + at * 16, f32_add(f32_load(sum_ + at * 16), sum));
      }
    }
    return grown;
  }

  static F32 subtracted(F32 x, F32 factor, F32 base) {
    return {_mm512_fmsub_ps(x.v, factor.v, base.v)};
  }

  static void store_pair(void* to, F32 first, F32 second) {
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
  uint16_t *weights_, *q_;
  float *out_, *most_, *base_, *limit_, *sum_;
  Lanes* lanes_;
  uint16_t* own_;
  int64_t used_;
  int strips_ = 0;
  int64_t lo_ = 0, hi_ = 0;
  bool started_[kStrips], based_[kStrips];  // output was written; scores to subtract are known
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
