// What happens to a block of scores between its products: softcap, ALiBi, bias, masks, dropout,
// powers of two. Scores lie in tiles (attention_amx_products.h). Read behind
// attention_amx_pack.h.
namespace {

static_assert(kLanes == kStrip, "a strip is described as a panel");

// Steps [from, to) of 32 keys of the block at `first`, for one strip.
struct Block {
  int64_t first;
  int from, to;
  bool hides;  // some row does not see all of its keys
};

// Relative error 3e-6, for results that become bfloat16; 0 at -inf, 1 at 0.
inline F32 exp2_low(F32 x) {
  constexpr int kFloor = 1;
  const F32 f{_mm512_reduce_ps(x.v, kFloor)};
  F32 p = f32_set(0x1.b7fd2ep-7f);
  p = f32_fma(p, f, f32_set(0x1.abf55ep-5f));
  p = f32_fma(p, f, f32_set(0x1.ee24ccp-3f));
  p = f32_fma(p, f, f32_set(0x1.62d6c0p-1f));
  p = f32_fma(p, f, f32_set(1.0f));
  return {_mm512_scalef_ps(p.v, x.v)};
}

// Bit i is set for lo <= i < hi.
inline uint32_t bits_between(int64_t lo, int64_t hi) {
  const auto below = [](int64_t n) { return n <= 0 ? 0u : n >= 16 ? 0xFFFFu : (1u << n) - 1u; };
  return below(hi) & ~below(lo);
}

// Every fourth bit of 64, from 16.
inline uint64_t spread_bits(uint64_t x) {
  x = (x | x << 24) & 0x000000FF000000FFu;
  x = (x | x << 12) & 0x000F000F000F000Fu;
  x = (x | x << 6) & 0x0303030303030303u;
  return (x | x << 3) & 0x1111111111111111u;
}

struct WidePair {
  __m512i low, high;
};

// Low and high words of the 64-bit products with a constant.
inline WidePair multiply_wide(__m512i x, uint32_t constant) {
  const __m512i c = _mm512_set1_epi64(constant);
  const __m512i even = _mm512_mul_epu32(x, c);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), c);
  return {_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32)),
          _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd)};
}

// Which of the 64 keys from 4 * quad are kept: the words of `philox`, 16 counters at a time.
inline uint64_t kept_keys(const Attention& p, uint32_t quad, uint32_t row, uint32_t plane) {
  __m512i c0 =
      _mm512_add_epi32(_mm512_set1_epi32(static_cast<int32_t>(quad)),
                       _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  __m512i c1 = _mm512_set1_epi32(static_cast<int32_t>(row));
  __m512i c2 = _mm512_set1_epi32(static_cast<int32_t>(plane));
  __m512i c3 = _mm512_set1_epi32(static_cast<int32_t>(p.offset));
  uint32_t key0 = static_cast<uint32_t>(p.seed), key1 = static_cast<uint32_t>(p.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const WidePair a = multiply_wide(c0, 0xD2511F53u), b = multiply_wide(c2, 0xCD9E8D57u);
    const __m512i k0 = _mm512_set1_epi32(static_cast<int32_t>(key0));
    const __m512i k1 = _mm512_set1_epi32(static_cast<int32_t>(key1));
    c0 = _mm512_xor_si512(_mm512_xor_si512(b.high, c1), k0);
    c1 = b.low;
    c2 = _mm512_xor_si512(_mm512_xor_si512(a.high, c3), k1);
    c3 = a.low;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  const __m512i below = _mm512_set1_epi32(static_cast<int32_t>(p.dropout_below));
  const __m512i words[4] = {c0, c1, c2, c3};
  uint64_t kept = 0;
  for (int i = 0; i < 4; ++i) {
    kept |= spread_bits(_mm512_cmpge_epu32_mask(words[i], below)) << i;
  }
  return kept;
}

class AmxScores {
 public:
  AmxScores(const Attention& p, const AttentionTask& t, Arena& arena)
      : p_(p), t_(t), bias_(arena.take<float>(p.bias ? kKeys : 0)) {
    const float scale = p.softcap > 0.0f ? p.scale / p.softcap : p.scale * kLog2E;
    changes_ = p.softcap > 0.0f || p.alibi || p.bias || !(std::fabs(scale) > 0.0f);
    negative_ = scale < 0.0f;
    scale_ = std::fabs(scale);
  }

  // Queries carry the sign of the scale, which is positive from then on.
  uint16_t query_sign() const { return negative_ ? 0x8000 : 0; }
  // Factor of the products after `adjust`, to units of log2.
  float factor() const { return changes_ ? 1.0f : scale_; }
  bool changes() const { return changes_; }

  // The part of the block at `first` that the strip sees; false if there is none.
  bool block(const Lanes& lanes, int64_t first, Block& block) const {
    const int64_t lo = lanes.any.lo > first ? lanes.any.lo - first : 0;
    const int64_t hi = lanes.any.hi - first < kKeys ? lanes.any.hi - first : kKeys;
    if (lo >= hi) return false;
    block.first = first;
    block.from = static_cast<int>(lo / 32);
    block.to = static_cast<int>((hi + 31) / 32);
    block.hides = first + block.from * 32 < lanes.all.lo || first + block.to * 32 > lanes.all.hi;
    return !p_.bias || any_seen(lanes, first + lo, hi - lo);
  }

  // Turns products into scores; `slope` takes the derivative of the softcap.
  void adjust(const Lanes& lanes, const Block& block, float* s, float* slope) const {
    // A derivative must be a number also where there is no row.
    const int rows = slope ? kStrip : static_cast<int>(lanes.rows);
    for (int r = 0; r < rows; ++r) {
      const int64_t at = r / 16 * kKeyTiles * kTileFloats + r % 16 * 16;
      if (changes_) change_row(lanes, block, r, s + at, slope ? slope + at : nullptr);
      if (block.hides) hide_row(lanes, block, r, s + at);
    }
  }

 private:
  bool any_seen(const Lanes& lanes, int64_t first, int64_t count) const {
    if (p_.bias_column == 0) return true;
    const bool one_row = lanes.same_bias;
    if (!one_row && !p_.bias_is_mask) return true;
    const int rows = one_row ? 1 : static_cast<int>(lanes.rows);
    for (int r = 0; r < rows; ++r) {
      if (bias_row(p_, lanes.bias[r], first, count, bias_)) return true;
    }
    return false;
  }

  void change_row(const Lanes& lanes, const Block& block, int r, float* s, float* slope) const {
    const int from = 2 * block.from, to = 2 * block.to;
    if (p_.bias) {
      const int64_t first = block.first + from * 16;
      const int64_t left = t_.sequence->k_len - first;
      const int64_t count = (to - from) * 16 < left ? (to - from) * 16 : left;
      bias_row(p_, lanes.bias[r], first, count, bias_ + from * 16);
    }
    const F32 scale = f32_set(scale_), one = f32_set(1.0f);
    const F32 height = f32_set(p_.softcap * kLog2E);
    const F32 lane = {_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)};
    const F32 steep = f32_set(lanes.slope[r]), middle = f32_set(lanes.middle[r]);
    for (int n = from; n < to; ++n) {
      F32 x = f32_mul(f32_load(s + n * kTileFloats), scale);
      if (p_.softcap > 0.0f) {
        x = tanh_f32(x);
        if (slope) f32_store(slope + n * kTileFloats, f32_sub(one, f32_mul(x, x)));
        x = f32_mul(x, height);
      }
      if (p_.alibi) {
        const F32 key = f32_add(f32_set(static_cast<float>(block.first + n * 16)), lane);
        x = f32_fma(f32_abs(f32_sub(key, middle)), steep, x);
      }
      if (p_.bias) x = f32_add(x, f32_load(bias_ + n * 16));
      f32_store(s + n * kTileFloats, x);
    }
  }

  void hide_row(const Lanes& lanes, const Block& block, int r, float* s) const {
    for (int n = 2 * block.from; n < 2 * block.to; ++n) {
      const int64_t first = block.first + n * 16;
      const uint32_t seen = bits_between(lanes.lo[r] - first, lanes.hi[r] - first);
      if (seen == 0xFFFFu) continue;
      float* at = s + n * kTileFloats;
      f32_store(at, {_mm512_mask_blend_ps(static_cast<__mmask16>(seen),
                                          _mm512_set1_ps(kMinusInfinity), f32_load(at).v)});
    }
  }

  const Attention& p_;
  const AttentionTask& t_;
  float* bias_;
  float scale_;
  bool changes_, negative_;
};

}  // namespace
