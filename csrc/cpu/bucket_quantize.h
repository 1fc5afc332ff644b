// Block quantisation of buckets with error feedback, once for every instruction set.
// Read inside a target region, behind a simd_*.h and bucket_reduce.h.
namespace {

using lepton::BucketDequantize;
using lepton::BucketQuantize;

// Blocks below this magnitude count as zeros: levels / amax would overflow. 2^-110.
constexpr float kSmallestBlock = 7.703719777548943e-34f;
constexpr float kFp8Largest = 448.0f;  // of e4m3, which has no infinities
constexpr float kFp8Normal = 0x1p-6f;  // the smallest normal

// Levels of int8, symmetric.
struct Int8Levels {
  static constexpr float largest = 127.0f;
  static I32 encode(F32 v) {
    const F32 low = f32_set(-largest), high = f32_set(largest);
    return f32_to_i32(f32_min(f32_max(v, low), high));
  }
  static F32 decode(I32 q) { return f32_from_i32(q); }
};

// OCP fp8 e4m3: 1 sign, 4 exponent bits of bias 7, 3 fraction bits; to nearest, ties to even.
struct Fp8Levels {
  static constexpr float largest = kFp8Largest;
  static I32 encode(F32 v) {
    const F32 a = f32_min(f32_abs(v), f32_set(kFp8Largest));
    const I32 bits = f32_bits(a);
    const I32 odd = i32_and(i32_srl<20>(bits), i32_set(1));
    const I32 rounded = i32_srl<20>(i32_add(bits, i32_add(odd, i32_set(0x7FFFF))));
    const I32 normal = i32_sub(rounded, i32_set(120 << 3));
    const I32 small = f32_to_i32(f32_mul(a, f32_set(0x1p9f)));
    const F32 code =
        f32_select_lt(a, f32_set(kFp8Normal), f32_from_i32(small), f32_from_i32(normal));
    const I32 sign = i32_and(i32_srl<24>(f32_bits(v)), i32_set(0x80));
    // Sign-extended, so that the saturating store keeps the byte.
    return i32_sra<24>(i32_shl<24>(i32_add(f32_to_i32(code), sign)));
  }
  static F32 decode(I32 q) {
    const I32 code = i32_and(q, i32_set(0x7F));
    const I32 fields = i32_shl<20>(code);
    const F32 normal = f32_from_bits(i32_add(fields, i32_set(120 << 23)));
    const F32 small = f32_mul(f32_from_i32(code), f32_set(0x1p-9f));
    const F32 magnitude = f32_select_lt(f32_from_i32(code), f32_set(8.0f), small, normal);
    return f32_copysign(magnitude, f32_from_bits(i32_shl<24>(i32_and(q, i32_set(0x80)))));
  }
};

template <class Type>
F32 input(const BucketQuantize& p, int64_t i, int n) {
  const auto* x = static_cast<const typename Type::value*>(p.x) + i;
  const bool full = n == F32::width;
  const F32 v = full ? Type::load(x) : Type::load_n(x, n);
  if (p.residual == nullptr) return v;
  return f32_add(v, full ? f32_load(p.residual + i) : f32_load_n(p.residual + i, n));
}

template <class Type>
float largest_of(const BucketQuantize& p, int64_t begin, int64_t end) {
  const I32 magnitude = i32_set(0x7FFFFFFF);
  I32 bits = i32_set(0);
  for (int64_t i = begin; i < end; i += F32::width) {
    bits = i32_max(bits, i32_and(f32_bits(input<Type>(p, i, lanes(i, end))), magnitude));
  }
  const int32_t top = i32_reduce_max(bits);
  float value;
  std::memcpy(&value, &top, sizeof value);
  return value;
}

template <class Levels, class Type>
void quantize_block(const BucketQuantize& p, int64_t block) {
  const int64_t begin = block * p.block;
  const int64_t end = begin + p.block < p.count ? begin + p.block : p.count;
  const float amax = largest_of<Type>(p, begin, end);
  // NaN compares false. A poisoned block carries a NaN scale; its residual starts anew.
  const bool finite = amax <= 3.402823466e38f;
  const bool zero = !finite || amax < kSmallestBlock;
  const float scale = finite ? (zero ? 1.0f : amax / Levels::largest) : __builtin_nanf("");
  p.scale[block] = scale;
  const F32 inverse = f32_set(zero ? 0.0f : Levels::largest / amax), by = f32_set(scale);
  for (int64_t i = begin; i < end; i += F32::width) {
    const int n = lanes(i, end);
    const bool full = n == F32::width;
    const F32 v = finite ? input<Type>(p, i, n) : f32_zero();
    const I32 q = Levels::encode(f32_mul(v, inverse));
    full ? i32_store_i8(p.q + i, q) : i32_store_i8_n(p.q + i, q, n);
    if (p.residual == nullptr) continue;
    const F32 left = finite ? f32_sub(v, f32_mul(Levels::decode(q), by)) : f32_zero();
    full ? f32_store(p.residual + i, left) : f32_store_n(p.residual + i, left, n);
  }
}

template <class Levels, class Type>
void dequantize_block(const BucketDequantize& p, int64_t block) {
  const int64_t begin = block * p.block;
  const int64_t end = begin + p.block < p.count ? begin + p.block : p.count;
  const F32 by = f32_set(p.scale[block]), factor = f32_set(p.factor);
  auto* out = static_cast<typename Type::value*>(p.out);
  for (int64_t i = begin; i < end; i += F32::width) {
    const int n = lanes(i, end);
    const bool full = n == F32::width;
    const I32 q = full ? i32_load_i8(p.q + i) : i32_load_i8_n(p.q + i, n);
    F32 y = f32_mul(f32_mul(Levels::decode(q), by), factor);
    if (p.accumulate) y = f32_add(full ? Type::load(out + i) : Type::load_n(out + i, n), y);
    full ? Type::store(out + i, y) : Type::store_n(out + i, y, n);
  }
}

void quantize(const BucketQuantize& p, int64_t begin, int64_t end) {
  with_float(p.type, [&](auto tag) {
    using Type = Element<decltype(tag)::value>;
    for (int64_t b = begin; b < end; ++b) {
      p.fp8 ? quantize_block<Fp8Levels, Type>(p, b) : quantize_block<Int8Levels, Type>(p, b);
    }
  });
}

void dequantize(const BucketDequantize& p, int64_t begin, int64_t end) {
  with_float(p.type, [&](auto tag) {
    using Type = Element<decltype(tag)::value>;
    for (int64_t b = begin; b < end; ++b) {
      p.fp8 ? dequantize_block<Fp8Levels, Type>(p, b) : dequantize_block<Int8Levels, Type>(p, b);
    }
  });
}

}  // namespace
