// Sums over ranks, casts and norms of buckets, once for every instruction set. Memory bound: what
// counts is that each byte passes once. Read inside a target region, behind a simd_*.h.
namespace {

using lepton::BucketReduce;
using lepton::BucketType;

template <BucketType type>
struct Element;

template <>
struct Element<BucketType::f32> {
  using value = float;
  static F32 load(const value* p) { return f32_load(p); }
  static F32 load_n(const value* p, int n) { return f32_load_n(p, n); }
  static void store(value* p, F32 a) { f32_store(p, a); }
  static void store_n(value* p, F32 a, int n) { f32_store_n(p, a, n); }
};

template <>
struct Element<BucketType::bf16> {
  using value = uint16_t;
  static F32 load(const value* p) { return f32_load_bf16(p); }
  static F32 load_n(const value* p, int n) { return f32_load_bf16_n(p, n); }
  static void store(value* p, F32 a) { f32_store_bf16(p, a); }
  static void store_n(value* p, F32 a, int n) { f32_store_bf16_n(p, a, n); }
};

template <>
struct Element<BucketType::f16> {
  using value = uint16_t;
  static F32 load(const value* p) { return f32_load_fp16(p); }
  static F32 load_n(const value* p, int n) { return f32_load_fp16_n(p, n); }
  static void store(value* p, F32 a) { f32_store_fp16(p, a); }
  static void store_n(value* p, F32 a, int n) { f32_store_fp16_n(p, a, n); }
};

template <BucketType type>
struct TypeTag {
  static constexpr BucketType value = type;
};

// Calls body(TypeTag<type>) for a float type.
template <class Body>
auto with_float(BucketType type, const Body& body) {
  if (type == BucketType::bf16) return body(TypeTag<BucketType::bf16>());
  if (type == BucketType::f16) return body(TypeTag<BucketType::f16>());
  return body(TypeTag<BucketType::f32>());
}

constexpr int kUnroll = 4;
constexpr int64_t kStep = int64_t{kUnroll} * F32::width;
// Floats that squares are added up over before they move to a double.
constexpr int64_t kNormChunk = 4096;

inline int lanes(int64_t i, int64_t end) {
  const int64_t left = end - i;
  return left < F32::width ? static_cast<int>(left) : F32::width;
}

inline F32 divided(F32 sum, F32 factor, bool exact, bool divides) {
  if (!divides) return sum;
  return exact ? f32_mul(sum, factor) : f32_div(sum, factor);
}

// Dividing by a power of two is multiplying by its inverse, to the bit.
struct Divisor {
  explicit Divisor(float by) : divides(by != 1.0f) {
    int32_t bits;
    std::memcpy(&bits, &by, sizeof bits);
    exact = (bits & 0x7FFFFF) == 0;
    factor = f32_set(exact ? 1.0f / by : by);
  }
  bool divides, exact;
  F32 factor;
};

template <class In, class Out, bool squares>
double reduce_floats(const BucketReduce& p, int64_t begin, int64_t end) {
  using InValue = typename In::value;
  using OutValue = typename Out::value;
  const Divisor by(p.divisor);
  double total = 0.0;
  for (int64_t chunk = begin; chunk < end; chunk += kNormChunk) {
    const int64_t stop = end - chunk < kNormChunk ? end : chunk + kNormChunk;
    F32 norm = f32_zero();
    int64_t i = chunk;
    for (; i + kStep <= stop; i += kStep) {
      F32 sum[kUnroll];
      const InValue* first = static_cast<const InValue*>(p.in[0]) + i;
      for (int u = 0; u < kUnroll; ++u) sum[u] = In::load(first + u * F32::width);
      for (int32_t r = 1; r < p.inputs; ++r) {
        const InValue* from = static_cast<const InValue*>(p.in[r]) + i;
        for (int u = 0; u < kUnroll; ++u) sum[u] = f32_add(sum[u], In::load(from + u * F32::width));
      }
      for (int u = 0; u < kUnroll; ++u) {
        sum[u] = divided(sum[u], by.factor, by.exact, by.divides);
        if (squares) norm = f32_fma(sum[u], sum[u], norm);
      }
      for (int32_t o = 0; o < p.outputs; ++o) {
        OutValue* to = static_cast<OutValue*>(p.out[o]) + i;
        for (int u = 0; u < kUnroll; ++u) Out::store(to + u * F32::width, sum[u]);
      }
    }
    for (; i < stop; i += F32::width) {
      const int n = lanes(i, stop);
      F32 sum = In::load_n(static_cast<const InValue*>(p.in[0]) + i, n);
      for (int32_t r = 1; r < p.inputs; ++r) {
        sum = f32_add(sum, In::load_n(static_cast<const InValue*>(p.in[r]) + i, n));
      }
      sum = divided(sum, by.factor, by.exact, by.divides);
      if (squares) norm = f32_fma(sum, sum, norm);
      for (int32_t o = 0; o < p.outputs; ++o) {
        Out::store_n(static_cast<OutValue*>(p.out[o]) + i, sum, n);
      }
    }
    if (squares) total += static_cast<double>(f32_reduce_add(norm));
  }
  return total;
}

// bf16 to bf16: pairs spare the widening and narrowing, which cost more than memory does. What is
// left of that fills the time in which the hardware would ask for lines to come: they are asked for
// here.
template <bool squares>
double reduce_bf16(const BucketReduce& p, int64_t begin, int64_t end) {
  constexpr int64_t kPair = 2 * F32::width, kPairs = 2, kStepBf16 = kPairs * kPair;
  constexpr int64_t kAheadBf16 = 512;  // elements: 1 KiB
  const Divisor by(p.divisor);
  double total = 0.0;
  const int64_t whole = begin + (end - begin) / kStepBf16 * kStepBf16;
  for (int64_t chunk = begin; chunk < whole; chunk += kNormChunk) {
    const int64_t stop = whole - chunk < kNormChunk ? whole : chunk + kNormChunk;
    F32 norm = f32_zero();
    for (int64_t i = chunk; i < stop; i += kStepBf16) {
      for (int32_t r = 0; r < p.inputs; ++r) {
        const uint16_t* ahead = static_cast<const uint16_t*>(p.in[r]) + i + kAheadBf16;
        for (int64_t line = 0; line < kStepBf16; line += 32) __builtin_prefetch(ahead + line, 1);
      }
      F32 even[kPairs], odd[kPairs];
      const uint16_t* first = static_cast<const uint16_t*>(p.in[0]) + i;
      for (int u = 0; u < kPairs; ++u) f32_load_bf16_pair(first + u * kPair, even[u], odd[u]);
      for (int32_t r = 1; r < p.inputs; ++r) {
        const uint16_t* from = static_cast<const uint16_t*>(p.in[r]) + i;
        for (int u = 0; u < kPairs; ++u) {
          F32 more_even, more_odd;
          f32_load_bf16_pair(from + u * kPair, more_even, more_odd);
          even[u] = f32_add(even[u], more_even);
          odd[u] = f32_add(odd[u], more_odd);
        }
      }
      for (int u = 0; u < kPairs; ++u) {
        even[u] = divided(even[u], by.factor, by.exact, by.divides);
        odd[u] = divided(odd[u], by.factor, by.exact, by.divides);
        if (squares) norm = f32_fma(odd[u], odd[u], f32_fma(even[u], even[u], norm));
      }
      for (int32_t o = 0; o < p.outputs; ++o) {
        uint16_t* to = static_cast<uint16_t*>(p.out[o]) + i;
        for (int u = 0; u < kPairs; ++u) f32_store_bf16_pair(to + u * kPair, even[u], odd[u]);
      }
    }
    if (squares) total += static_cast<double>(f32_reduce_add(norm));
  }
  using Bf16 = Element<BucketType::bf16>;
  return total + reduce_floats<Bf16, Bf16, squares>(p, whole, end);
}

// Unsigned, so that sums wrap. Plain loops: the compiler vectorises them for the region's ISA.
template <class Value>
void reduce_integers(const BucketReduce& p, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 2048 / sizeof(Value);
  Value sum[kBlock];
  for (int64_t i = begin; i < end; i += kBlock) {
    const int64_t n = end - i < kBlock ? end - i : kBlock;
    std::memcpy(sum, static_cast<const Value*>(p.in[0]) + i,
                static_cast<size_t>(n) * sizeof(Value));
    for (int32_t r = 1; r < p.inputs; ++r) {
      const Value* from = static_cast<const Value*>(p.in[r]) + i;
      for (int64_t j = 0; j < n; ++j) sum[j] = static_cast<Value>(sum[j] + from[j]);
    }
    for (int32_t o = 0; o < p.outputs; ++o) {
      std::memcpy(static_cast<Value*>(p.out[o]) + i, sum, static_cast<size_t>(n) * sizeof(Value));
    }
  }
}

double reduce(const BucketReduce& p, int64_t begin, int64_t end, bool squares) {
  if (p.in_type == BucketType::i8) return reduce_integers<uint8_t>(p, begin, end), 0.0;
  if (p.in_type == BucketType::i64) return reduce_integers<uint64_t>(p, begin, end), 0.0;
  if (p.in_type == BucketType::bf16 && p.out_type == BucketType::bf16) {
    return squares ? reduce_bf16<true>(p, begin, end) : reduce_bf16<false>(p, begin, end);
  }
  return with_float(p.in_type, [&](auto in) {
    return with_float(p.out_type, [&](auto out) {
      using In = Element<decltype(in)::value>;
      using Out = Element<decltype(out)::value>;
      return squares ? reduce_floats<In, Out, true>(p, begin, end)
                     : reduce_floats<In, Out, false>(p, begin, end);
    });
  });
}

constexpr int32_t kNotFinite = 0x7F800000;

template <class Type>
bool unscale_floats(typename Type::value* x, float factor, int64_t count) {
  const F32 by = f32_set(factor);
  const I32 magnitude = i32_set(0x7FFFFFFF);
  I32 largest = i32_set(0);
  for (int64_t i = 0; i < count; i += F32::width) {
    const int n = lanes(i, count);
    const bool full = n == F32::width;
    const F32 y = f32_mul(full ? Type::load(x + i) : Type::load_n(x + i, n), by);
    largest = i32_max(largest, i32_and(f32_bits(y), magnitude));
    full ? Type::store(x + i, y) : Type::store_n(x + i, y, n);
  }
  return i32_reduce_max(largest) < kNotFinite;
}

bool unscale(void* x, BucketType type, float factor, int64_t count) {
  return with_float(type, [&](auto tag) {
    using Type = Element<decltype(tag)::value>;
    return unscale_floats<Type>(static_cast<typename Type::value*>(x), factor, count);
  });
}

double squares(const void* x, BucketType type, int64_t count) {
  return with_float(type, [&](auto tag) {
    using Type = Element<decltype(tag)::value>;
    const auto* from = static_cast<const typename Type::value*>(x);
    double total = 0.0;
    for (int64_t chunk = 0; chunk < count; chunk += kNormChunk) {
      const int64_t stop = count - chunk < kNormChunk ? count : chunk + kNormChunk;
      F32 norm = f32_zero();
      for (int64_t i = chunk; i < stop; i += F32::width) {
        const int n = lanes(i, stop);
        const F32 v = n == F32::width ? Type::load(from + i) : Type::load_n(from + i, n);
        norm = f32_fma(v, v, norm);
      }
      total += static_cast<double>(f32_reduce_add(norm));
    }
    return total;
  });
}

void convert(const void* x, BucketType from, void* out, BucketType to, float factor,
             int64_t count) {
  if (from == to && factor == 1.0f) {
    std::memcpy(out, x, static_cast<size_t>(count * lepton::bytes_of(from)));
    return;
  }
  const F32 by = f32_set(factor);
  with_float(from, [&](auto in_tag) {
    with_float(to, [&](auto out_tag) {
      using In = Element<decltype(in_tag)::value>;
      using Out = Element<decltype(out_tag)::value>;
      const auto* a = static_cast<const typename In::value*>(x);
      auto* b = static_cast<typename Out::value*>(out);
      for (int64_t i = 0; i < count; i += F32::width) {
        const int n = lanes(i, count);
        if (n == F32::width) {
          Out::store(b + i, f32_mul(In::load(a + i), by));
        } else {
          Out::store_n(b + i, f32_mul(In::load_n(a + i, n), by), n);
        }
      }
    });
  });
}

}  // namespace
