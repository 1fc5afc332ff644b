// Quantisation of rows, once for every instruction set: the vector width does not change a bit.
// Read inside a target region, behind a simd_*.h.
//
// An operand policy stores quantised lanes: `type`, `store(type*, I32)`, `store_n(type*, I32, n)`,
// `store_x4(type*, I32, I32, I32, I32)`.
namespace {

using lepton::DType;
using lepton::Int8Quantize;
using lepton::Int8RowLayout;

// Rows below this magnitude count as zeros: 127 / amax would overflow. 2^-120.
constexpr float kSmallestRange = 7.52316384526264e-37f;
constexpr int32_t kInfinityBits = 0x7F800000;

struct Int8Operand {
  using type = int8_t;
  static void store(type* p, I32 q) { i32_store_i8(p, q); }
  static void store_n(type* p, I32 q, int n) { i32_store_i8_n(p, q, n); }
  static void store_x4(type* p, I32 a, I32 b, I32 c, I32 d) { i32_store_i8_x4(p, a, b, c, d); }
};

inline F32 load_float(const void* base, DType dtype, int64_t i, int n) {
  const bool full = n >= F32::width;
  if (dtype == DType::f32) {
    const float* p = static_cast<const float*>(base) + i;
    return full ? f32_load(p) : f32_load_n(p, n);
  }
  const uint16_t* p = static_cast<const uint16_t*>(base) + i;
  if (dtype == DType::bf16) return full ? f32_load_bf16(p) : f32_load_bf16_n(p, n);
  return full ? f32_load_fp16(p) : f32_load_fp16_n(p, n);
}

inline int lanes_left(int64_t i, int64_t end) {
  const int64_t left = end - i;
  return left < F32::width ? static_cast<int>(left) : F32::width;
}

struct RowExtent {
  int32_t magnitude_bits;  // of the largest |x|; NaN and infinity order above every finite value
  float low, high;
};

template <DType dtype, bool with_bounds>
RowExtent measure_row(const void* x, int64_t begin, int64_t columns) {
  const I32 magnitude = i32_set(0x7FFFFFFF);
  I32 bits = i32_set(0);
  F32 low = f32_zero(), high = f32_zero();
  const auto take = [&](F32 v) {
    bits = i32_max(bits, i32_and(f32_bits(v), magnitude));
    if (with_bounds) {
      low = f32_min(v, low);
      high = f32_max(v, high);
    }
  };
  int64_t i = 0;
  for (; i + F32::width <= columns; i += F32::width) {
    take(load_float(x, dtype, begin + i, F32::width));
  }
  if (i < columns) take(load_float(x, dtype, begin + i, lanes_left(i, columns)));
  RowExtent extent{i32_reduce_max(bits), 0.0f, 0.0f};
  if (with_bounds) {
    extent.low = f32_reduce_min(low);
    extent.high = f32_reduce_max(high);
  }
  return extent;
}

template <class Operand>
void fill(typename Operand::type* q, int64_t count, int32_t value) {
  const I32 lanes = i32_set(value);
  for (int64_t i = 0; i < count; i += F32::width) {
    const int n = lanes_left(i, count);
    n == F32::width ? Operand::store(q + i, lanes) : Operand::store_n(q + i, lanes, n);
  }
}

// Calls body(source column, operand index, count) for each group, then zeroes the padding.
template <class Operand, class Body>
void for_each_group(const Int8RowLayout& layout, typename Operand::type* q, const Body& body) {
  for (int64_t g = 0; g < layout.groups; ++g) {
    typename Operand::type* group = q + g * layout.group_padded;
    body(g * layout.group_size, group, layout.group_size);
    fill<Operand>(group + layout.group_size, layout.group_padded - layout.group_size, 0);
  }
  const int64_t used = layout.groups * layout.group_padded;
  fill<Operand>(q + used, layout.row_padded - used, 0);
}

struct Quantizer {
  float inverse;
  int32_t zero_point;
  float low, high;  // of x * inverse: integers, so clamping before rounding is clamping after it
};

template <class Operand, DType dtype>
void quantize_row(const void* x, int64_t row_begin, const Int8RowLayout& layout,
                  const Quantizer& by, typename Operand::type* q) {
  const F32 inverse = f32_set(by.inverse), low = f32_set(by.low), high = f32_set(by.high);
  const I32 zero_point = i32_set(by.zero_point);
  for_each_group<Operand>(
      layout, q, [&](int64_t column, typename Operand::type* group, int64_t count) {
        constexpr int width = F32::width;
        const auto level = [&](int64_t i, int n) {
          const F32 v = f32_mul(load_float(x, dtype, row_begin + column + i, n), inverse);
          return i32_add(f32_to_i32(f32_min(f32_max(v, low), high)), zero_point);
        };
        int64_t i = 0;
        for (; i + 4 * width <= count; i += 4 * width) {
          Operand::store_x4(group + i, level(i, width), level(i + width, width),
                            level(i + 2 * width, width), level(i + 3 * width, width));
        }
        for (; i < count; i += width) {
          const int n = lanes_left(i, count);
          n == width ? Operand::store(group + i, level(i, n))
                     : Operand::store_n(group + i, level(i, n), n);
        }
      });
}

inline Quantizer static_quantizer(float scale, int32_t zero_point) {
  const float zero = static_cast<float>(zero_point);
  return {1.0f / scale, zero_point, -128.0f - zero, 127.0f - zero};
}

// The formulas of lepton_kernels.quantize_int8. Returns the scale.
inline float dynamic_quantizer(bool symmetric, const RowExtent& extent, Quantizer& by) {
  float range;
  if (symmetric) {
    const I32 bits = i32_set(extent.magnitude_bits);
    float lanes[F32::width];
    f32_store(lanes, f32_from_bits(bits));
    range = lanes[0];
  } else {
    range = extent.high - extent.low;
  }
  const float steps = symmetric ? 127.0f : 255.0f;
  if (range < kSmallestRange) {
    by = {0.0f, 0, symmetric ? -127.0f : -128.0f, 127.0f};
    return 1.0f;
  }
  by.inverse = steps / range;
  float zero = 0.0f;
  if (!symmetric) {
    float lanes[F32::width];
    f32_store(lanes, f32_round(f32_set(extent.low * by.inverse)));
    zero = -128.0f - lanes[0];
  }
  by.zero_point = static_cast<int32_t>(zero);
  by.low = (symmetric ? -127.0f : -128.0f) - zero;
  by.high = 127.0f - zero;
  return range / steps;
}

inline bool finite_range(bool symmetric, const RowExtent& extent) {
  if (extent.magnitude_bits >= kInfinityBits) return false;
  // The difference of two finite values can overflow.
  return symmetric || extent.high - extent.low <= 3.402823466e38f;
}

template <class Operand, DType dtype>
void quantize_float_rows(const Int8Quantize& p, int64_t begin, int64_t end) {
  constexpr float kNan = __builtin_nanf("");
  for (int64_t row = begin; row < end; ++row) {
    auto* q = static_cast<typename Operand::type*>(p.q) + row * p.q_stride;
    const int64_t row_begin = row * p.x_stride;
    const bool fixed = p.scale != nullptr;
    const bool bounds = !fixed && !p.symmetric;
    const RowExtent extent = bounds ? measure_row<dtype, true>(p.x, row_begin, p.layout.columns)
                                    : measure_row<dtype, false>(p.x, row_begin, p.layout.columns);
    Quantizer by{};
    float scale;
    bool finite;
    if (fixed) {
      scale = p.scale[row * p.scale_stride];
      by = static_quantizer(scale, p.zero_point ? p.zero_point[row * p.zero_point_stride] : 0);
      finite = extent.magnitude_bits < kInfinityBits;
    } else {
      finite = finite_range(p.symmetric, extent);
      scale = finite ? dynamic_quantizer(p.symmetric, extent, by) : kNan;
    }
    p.row_zero[row] = by.zero_point;
    if (finite) {
      p.row_scale[row] = scale;
      quantize_row<Operand, dtype>(p.x, row_begin, p.layout, by, q);
    } else {
      p.row_scale[row] = kNan;
      fill<Operand>(q, p.layout.row_padded, 0);
    }
  }
}

template <class Operand>
void copy_int8_rows(const Int8Quantize& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    auto* q = static_cast<typename Operand::type*>(p.q) + row * p.q_stride;
    const int8_t* x = static_cast<const int8_t*>(p.x) + row * p.x_stride;
    p.row_scale[row] = p.scale ? p.scale[row * p.scale_stride] : 1.0f;
    p.row_zero[row] = p.zero_point ? p.zero_point[row * p.zero_point_stride] : 0;
    for_each_group<Operand>(p.layout, q,
                            [&](int64_t column, typename Operand::type* group, int64_t count) {
                              for (int64_t i = 0; i < count; i += F32::width) {
                                const int n = lanes_left(i, count);
                                if (n == F32::width) {
                                  Operand::store(group + i, i32_load_i8(x + column + i));
                                } else {
                                  Operand::store_n(group + i, i32_load_i8_n(x + column + i, n), n);
                                }
                              }
                            });
  }
}

template <class Operand>
void quantize_rows(const Int8Quantize& p, int64_t begin, int64_t end) {
  switch (p.x_dtype) {
    case DType::f32: return quantize_float_rows<Operand, DType::f32>(p, begin, end);
    case DType::bf16: return quantize_float_rows<Operand, DType::bf16>(p, begin, end);
    case DType::f16: return quantize_float_rows<Operand, DType::f16>(p, begin, end);
    default: return copy_int8_rows<Operand>(p, begin, end);
  }
}

}  // namespace
