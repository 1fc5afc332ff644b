// float32 activations times int8 weights. Every output adds its products in the order of k with one
// rounding each, so the bits do not depend on the vector width. Read inside a target region, behind
// int8_epilogue.h.
namespace {

using lepton::Int8Block;

struct FloatOperand {
  using type = float;
};

// Rows of x as float32 in the layout of the packed weight.
inline void widen_rows(const Int8Quantize& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* q = static_cast<float*>(p.q) + row * p.q_stride;
    p.row_scale[row] = 1.0f;
    p.row_zero[row] = 0;
    for (int64_t i = 0; i < p.layout.row_padded; ++i) q[i] = 0.0f;
    for (int64_t g = 0; g < p.layout.groups; ++g) {
      float* group = q + g * p.layout.group_padded;
      const int64_t source = row * p.x_stride + g * p.layout.group_size;
      for (int64_t i = 0; i < p.layout.group_size; i += F32::width) {
        const int n = lanes_left(i, p.layout.group_size);
        const F32 v = load_float(p.x, p.x_dtype, source + i, n);
        n == F32::width ? f32_store(group + i, v) : f32_store_n(group + i, v, n);
      }
    }
  }
}

// Byte `byte` of each 32-bit lane, sign-extended.
template <int byte>
inline F32 weight_lane(I32 quad) {
  return f32_from_i32(i32_sra<24>(i32_shl<24 - 8 * byte>(quad)));
}

constexpr int kVectors = kStrip / F32::width;

// y (+)= x * w for `rows` <= max_rows rows, one strip and `k` (a multiple of 4) columns.
template <int max_rows>
void weight_only_rows(const float* x, int64_t x_stride, const int8_t* strip, int64_t k, float* y) {
  F32 sum[max_rows][kVectors];
  for (int r = 0; r < max_rows; ++r) {
    for (int v = 0; v < kVectors; ++v) sum[r][v] = f32_zero();
  }
  for (int64_t i = 0; i < k; i += 4) {
    const int32_t* quads = reinterpret_cast<const int32_t*>(strip + i * kStrip);
    for (int v = 0; v < kVectors; ++v) {
      const I32 quad = i32_load(quads + v * F32::width);
      const F32 w[4] = {weight_lane<0>(quad), weight_lane<1>(quad), weight_lane<2>(quad),
                        weight_lane<3>(quad)};
      for (int r = 0; r < max_rows; ++r) {
        const float* row = x + r * x_stride + i;
        for (int b = 0; b < 4; ++b) sum[r][v] = f32_fma(f32_set(row[b]), w[b], sum[r][v]);
      }
    }
  }
  for (int r = 0; r < max_rows; ++r) {
    for (int v = 0; v < kVectors; ++v) f32_store(y + r * kStrip + v * F32::width, sum[r][v]);
  }
}

inline void weight_only_block(const Int8Linear& p, const Int8Block& block) {
  const int64_t strip_bytes = kStrip * p.layout.row_padded;
  const float* x = static_cast<const float*>(p.a);
  for (int64_t n0 = block.n_begin; n0 < block.n_end; n0 += kStrip) {
    const int8_t* strip = p.tiles + n0 / kStrip * strip_bytes;
    const int columns = static_cast<int>(block.n_end - n0 < kStrip ? block.n_end - n0 : kStrip);
    for (int64_t m0 = block.m_begin; m0 < block.m_end;) {
      const int rows = block.m_end - m0 >= 4 ? 4 : 1;
      alignas(64) float part[4 * kStrip], y[4 * kStrip];
      for (int64_t g = 0; g < p.layout.groups; ++g) {
        alignas(64) float scale[kStrip];
        load_weight_scale(p, n0, columns, g, scale);
        const int64_t k = g * p.layout.group_padded;
        const float* from = x + m0 * p.a_stride + k;
        if (rows == 4) {
          weight_only_rows<4>(from, p.a_stride, strip + k * kStrip, p.layout.group_padded, part);
        } else {
          weight_only_rows<1>(from, p.a_stride, strip + k * kStrip, p.layout.group_padded, part);
        }
        for (int i = 0; i < rows * kStrip; i += F32::width) {
          const F32 scaled = f32_mul(f32_load(part + i), f32_load(scale + i % kStrip));
          f32_store(y + i, g == 0 ? scaled : f32_add(f32_load(y + i), scaled));
        }
      }
      with_activation(p.activation, [&](auto activation) {
        finish_scaled<activation()>(p, m0, rows, n0, columns, y, kStrip);
      });
      m0 += rows;
    }
  }
}

}  // namespace
