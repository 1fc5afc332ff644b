// Forward kernel in bfloat16 tiles: strips of 32 rows, blocks of 128 keys. The softmax of one block
// runs beside the scores of the next, and the largest scores of the next are found beside the
// product with the values. Read behind attention_forward.h and attention_amx_scores.h.
namespace {

class AmxForward {
 public:
  AmxForward(const Attention& p, const AttentionTask& t, Arena arena)
      : p_(p),
        t_(t),
        head_steps_(steps_of(p.head_dim)),
        value_steps_(steps_of(p.value_dim)),
        scores_(p, t, arena),
        s_{arena.take<float>(kStrip * kKeys), arena.take<float>(kStrip * kKeys)},
        q_(arena.take<uint16_t>(kBlockRows * 32 * head_steps_)),
        out_(arena.take<float>(kBlockRows * 32 * value_steps_)),
        most_(arena.take<float>(kBlockRows)),
        base_(arena.take<float>(kBlockRows)),
        limit_(arena.take<float>(kBlockRows)),
        sum_(arena.take<float>(kBlockRows * 16)),
        row_(arena.take<float>(32 * value_steps_)),
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
    float* s;
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
    buffer_ = 0;
    any_ = false;
    if (lo_ < hi_) chunks();
    if (any_) {
      // The last block has no other to run beside.
      with_tiles(now_.strip, [&](auto tiles) {
        exponentials<tiles()>(now_, 0, tiles() * 16);
        values<tiles()>(now_, NoWork{});
      });
    }
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
        // The block under way still wants the values of the last chunk.
        if (any_) {
          with_tiles(now_.strip, [&](auto tiles) {
            exponentials<tiles()>(now_, 0, tiles() * 16);
            values<tiles()>(now_, NoWork{});
          });
          any_ = false;
        }
        for (int64_t b = chunk; b < chunk_end; ++b) {
          pack(p_, t_, b * kKeys, t_.sequence->k_len, own_ + (b - chunk) * block_halves(p_));
        }
        tiles_read_memory();
        packed = own_;
      }
      for (int i = 0; i < strips_; ++i) {
        for (int64_t b = chunk; b < chunk_end; ++b) {
          Item next{i, {}, packed + (b - chunk) * block_halves(p_), s_[buffer_]};
          if (scores_.block(lanes_[i], b * kKeys, next.block)) item(next);
        }
      }
    }
  }

  template <class F>
  void with_tiles(int strip, const F& f) {
    if (lanes_[strip].rows > 16) {
      f(std::integral_constant<int, 2>{});
    } else {
      f(std::integral_constant<int, 1>{});
    }
  }

  void item(const Item& next) {
    with_tiles(next.strip, [&](auto tiles) {
      if (!any_) {
        products<tiles()>(next, NoWork{});
        adjust(next);
        seen_ = 0;
        largest<tiles()>(next, 0, tiles() * 16);
      } else {
        with_tiles(now_.strip, [&](auto before) { beside<before(), tiles()>(next); });
      }
      grow<tiles()>(next);
    });
    any_ = true;
    now_ = next;
    buffer_ ^= 1;
  }

  // Finishes the block under way and starts the next.
  template <int before, int after>
  [[gnu::noinline]] void beside(const Item& next) {
    constexpr int kRowsNow = before * 16, kRowsNext = after * 16;
    const int64_t calls = (next.block.to - next.block.from) * head_steps_;
    int done = 0;
    products<after>(next, [&](int64_t call) {
      const int until = static_cast<int>((call + 1) * kRowsNow / calls);
      exponentials<before>(now_, done, until);
      done = until;
    });
    adjust(next);
    seen_ = 0;
    done = 0;
    const int64_t value_calls = (now_.block.to - now_.block.from) * value_steps_;
    values<before>(now_, [&](int64_t call) {
      const int until = static_cast<int>((call + 1) * kRowsNext / value_calls);
      largest<after>(next, done, until);
      done = until;
    });
  }

  void load_queries(int i) {
    const Lanes& lanes = lanes_[i];
    const uint16_t* rows[kStrip];
    for (int r = 0; r < kStrip; ++r) {
      rows[r] = r < lanes.rows ? static_cast<const uint16_t*>(p_.q) +
                                     query_offset(p_, t_, p_.q_stride, lanes.row[r])
                               : nullptr;
    }
    uint16_t* to = q_ + i * kStrip * 32 * head_steps_;
    pack_rows(rows, p_.head_dim, scores_.query_sign(), to);
    pack_rows(rows + 16, p_.head_dim, scores_.query_sign(), to + head_steps_ * kTileHalves);
  }

  template <int tiles, class Work>
  void products(const Item& x, const Work& work) {
    tiles_read_memory();
    rows_by_keys<tiles>(q_ + x.strip * kStrip * 32 * head_steps_, x.packed, head_steps_,
                        x.block.from, x.block.to, x.s, work);
  }

  void adjust(const Item& x) {
    if (scores_.changes() || x.block.hides) {
      scores_.adjust(lanes_[x.strip], x.block, x.s, nullptr);
    }
  }

  float* out(int strip) { return out_ + strip * kStrip * 32 * value_steps_; }

  template <int tiles, class Work>
  void values(const Item& x, const Work& work) {
    tiles_read_memory();
    const Product product{reinterpret_cast<const uint16_t*>(x.s),
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
    multiply_tiles<tiles>(product, started_[x.strip], work);
    started_[x.strip] = true;
  }

  static int64_t row_at(int r) { return r / 16 * kKeyTiles * kTileFloats + r % 16 * 16; }

  // Marks the rows with a score above their limit, and keeps the largest of each lane.
  template <int tiles>
  void largest(const Item& x, int row, int end) {
    const F32 factor = f32_set(scores_.factor());
    for (; row < end; ++row) {
      const float* s = x.s + row_at(row);
      F32 a = f32_load(s + 2 * x.block.from * kTileFloats);
      F32 b = f32_load(s + (2 * x.block.from + 1) * kTileFloats);
      for (int n = 2 * x.block.from + 2; n < 2 * x.block.to; n += 2) {
        a = f32_max(a, f32_load(s + n * kTileFloats));
        b = f32_max(b, f32_load(s + (n + 1) * kTileFloats));
      }
      a = f32_mul(f32_max(a, b), factor);
      const F32 limit = f32_set(limit_[x.strip * kStrip + row]);
      if (_mm512_cmp_ps_mask(a.v, limit.v, _CMP_GT_OQ)) {
        seen_ |= 1u << row;
        new_most_[row] = f32_reduce_max(a);
      }
    }
  }

  // Takes the marked rows to their new largest score, and what has been summed with them.
  template <int tiles>
  void grow(const Item& x) {
    for (uint32_t rows = seen_; rows; rows &= rows - 1) {
      const int r = __builtin_ctz(rows);
      const int at = x.strip * kStrip + r;
      const float before = most_[at], now = new_most_[r];
      most_[at] = base_[at] = now;
      limit_[at] = now + kSlack;
      if (!started_[x.strip]) continue;
      const F32 shrink = f32_set(std::exp2(before - now));
      float* sum = sum_ + at * 16;
      f32_store(sum, f32_mul(f32_load(sum), shrink));
      float* o = out(x.strip) + r / 16 * 2 * value_steps_ * kTileFloats + r % 16 * 16;
      for (int64_t n = 0; n < 2 * value_steps_; ++n) {
        f32_store(o + n * kTileFloats, f32_mul(f32_load(o + n * kTileFloats), shrink));
      }
    }
  }

  // Scores to weights in bfloat16, in the place of every other tile.
  template <int tiles>
  void exponentials(const Item& x, int row, int end) {
    if (p_.dropout_below) return dropped_exponentials(x, row, end);
    const F32 factor = f32_set(scores_.factor());
    for (; row < end; ++row) {
      float* s = x.s + row_at(row);
      const int at = x.strip * kStrip + row;
      const F32 base = f32_set(base_[at]);
      F32 a = f32_load(sum_ + at * 16), b = f32_zero();
      for (int n = 2 * x.block.from; n < 2 * x.block.to; n += 2) {
        float* to = s + n * kTileFloats;
        const F32 first = exp2_low(subtracted(f32_load(to), factor, base));
        const F32 second = exp2_low(subtracted(f32_load(to + kTileFloats), factor, base));
        a = f32_add(a, first);
        b = f32_add(b, second);
        store_pair(to, first, second);
      }
      f32_store(sum_ + at * 16, f32_add(a, b));
    }
  }

  void dropped_exponentials(const Item& x, int row, int end) {
    const Lanes& lanes = lanes_[x.strip];
    const F32 factor = f32_set(scores_.factor()), scale = f32_set(p_.dropout_scale);
    for (; row < end; ++row) {
      float* s = x.s + row_at(row);
      const int at = x.strip * kStrip + row;
      const F32 base = f32_set(base_[at]);
      F32 sum = f32_load(sum_ + at * 16);
      uint64_t kept = 0;
      for (int n = 2 * x.block.from; n < 2 * x.block.to; n += 2) {
        if (n % 4 == 0 || n == 2 * x.block.from) {
          kept = kept_keys(p_, static_cast<uint32_t>((x.block.first + n / 4 * 64) / 4),
                           lanes.query[row], lanes.plane[row]);
        }
        const auto bits = static_cast<uint32_t>(kept >> (n % 4 * 16));
        float* to = s + n * kTileFloats;
        const F32 first = exp2_low(subtracted(f32_load(to), factor, base));
        const F32 second = exp2_low(subtracted(f32_load(to + kTileFloats), factor, base));
        sum = f32_add(sum, f32_add(first, second));
        store_pair(to, {_mm512_maskz_mul_ps(static_cast<__mmask16>(bits), first.v, scale.v)},
                   {_mm512_maskz_mul_ps(static_cast<__mmask16>(bits >> 16), second.v, scale.v)});
      }
      f32_store(sum_ + at * 16, sum);
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
    const int64_t dim = p_.value_dim;
    for (int r = 0; r < static_cast<int>(lanes.rows); ++r) {
      const int at = i * kStrip + r;
      const float sum = started_[i] ? f32_reduce_add(f32_load(sum_ + at * 16)) : 0.0f;
      const float* o = out(i) + r / 16 * 2 * value_steps_ * kTileFloats + r % 16 * 16;
      float* to = row_;
      if (t_.partial) to = t_.partial + (lanes.row[r] - t_.row_begin) * (dim + 2);
      for (int64_t n = 0; n * 16 < dim; ++n) {
        const int count = dim - n * 16 < 16 ? static_cast<int>(dim - n * 16) : 16;
        f32_store_n(to + n * 16, started_[i] ? f32_load(o + n * kTileFloats) : f32_zero(), count);
      }
      if (t_.partial) {
        to[dim] = most_[at], to[dim + 1] = sum;
        continue;
      }
      const float weight = finish_softmax(p_, t_, lanes.row[r], most_[at], sum);
      narrow_row(to, dim, weight,
                 const_cast<void*>(
                     element(p_.out, p_.dtype, query_offset(p_, t_, p_.out_stride, lanes.row[r]))),
                 p_.dtype);
    }
  }

  const Attention& p_;
  const AttentionTask& t_;
  const int64_t head_steps_, value_steps_;
  AmxScores scores_;
  float* s_[2];
  uint16_t* q_;
  float *out_, *most_, *base_, *limit_, *sum_, *row_;
  Lanes* lanes_;
  uint16_t* own_;
  int64_t used_;
  int strips_ = 0, buffer_ = 0;
  int64_t lo_ = 0, hi_ = 0;
  bool any_ = false;  // a block is under way
  Item now_{};
  bool started_[kStrips];
  uint32_t seen_ = 0;
  float new_most_[kStrip];
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
