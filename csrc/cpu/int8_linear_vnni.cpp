// int8 kernels for AVX-512 VNNI. vpdpbusd multiplies unsigned by signed bytes: activations carry an
// offset of 128, which the epilogue takes out again by the sums of the weights.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/int8_kernels.h"
#include "cpu/intrinsics.h"
#include "cpu/target.h"

#if defined(__x86_64__)

LEPTON_TARGET_BEGIN_AVX512
#include "cpu/int8_avx512.h"

#include "cpu/int8_driver.h"

#include "cpu/int8_weight_only.h"

namespace lepton {
namespace {

constexpr int32_t kOffset = 128;
constexpr int64_t kPrefetchBytes = 4096;

struct OffsetOperand {
  using type = uint8_t;
  // The low byte of q + 128, sign-extended so that the saturating store keeps it.
  static I32 low_byte(I32 q) { return i32_sra<24>(i32_shl<24>(i32_add(q, i32_set(kOffset)))); }
  static void store(uint8_t* p, I32 q) { i32_store_i8(reinterpret_cast<int8_t*>(p), low_byte(q)); }
  static void store_n(uint8_t* p, I32 q, int n) {
    i32_store_i8_n(reinterpret_cast<int8_t*>(p), low_byte(q), n);
  }
  // Adding 128 to a byte turns its top bit.
  static void store_x4(uint8_t* p, I32 a, I32 b, I32 c, I32 d) {
    _mm512_storeu_si512(p, _mm512_xor_si512(i32_narrow_x4(a, b, c, d), _mm512_set1_epi8(-128)));
  }
};

// height rows x 16 * strips columns; at most 6 x 4 sums stay in registers.
template <int height, int strips>
void multiply_rows(const uint8_t* a, int64_t a_stride, const int8_t* b, int64_t strip_bytes,
                   int64_t k, int32_t* c, int ldc, bool accumulate) {
  __m512i sum[height][strips];
  for (int r = 0; r < height; ++r) {
    for (int s = 0; s < strips; ++s) {
      sum[r][s] =
          accumulate ? _mm512_loadu_si512(c + r * ldc + s * kStrip) : _mm512_setzero_si512();
    }
  }
  for (int64_t i = 0; i < k; i += 4) {
    __m512i w[strips];
    for (int s = 0; s < strips; ++s) {
      const int8_t* line = b + s * strip_bytes + i * kStrip;
      _mm_prefetch(reinterpret_cast<const char*>(line + kPrefetchBytes), _MM_HINT_T0);
      w[s] = _mm512_loadu_si512(line);
    }
    for (int r = 0; r < height; ++r) {
      int32_t quad;
      std::memcpy(&quad, a + r * a_stride + i, sizeof quad);
      const __m512i x = _mm512_set1_epi32(quad);
      for (int s = 0; s < strips; ++s) sum[r][s] = _mm512_dpbusd_epi32(sum[r][s], x, w[s]);
    }
  }
  for (int r = 0; r < height; ++r) {
    for (int s = 0; s < strips; ++s) _mm512_storeu_si512(c + r * ldc + s * kStrip, sum[r][s]);
  }
}

struct VnniTile {
  using operand = uint8_t;
  static constexpr int strips = 4;
  static constexpr int64_t k_chunk = 512;  // 32 KiB of weights
  static constexpr int32_t zero_shift = kOffset;
  static constexpr int64_t block_bytes = 512 * 1024;
  static int rows() { return 6; }

  static void tile(const uint8_t* a, int64_t a_stride, int rows, const int8_t* b,
                   int64_t strip_bytes, int strips, int64_t k, int32_t* c, int ldc,
                   bool accumulate) {
    switch (strips) {
      case 1: return with_rows<1>(a, a_stride, rows, b, strip_bytes, k, c, ldc, accumulate);
      case 2: return with_rows<2>(a, a_stride, rows, b, strip_bytes, k, c, ldc, accumulate);
      case 3: return with_rows<3>(a, a_stride, rows, b, strip_bytes, k, c, ldc, accumulate);
      default: return with_rows<4>(a, a_stride, rows, b, strip_bytes, k, c, ldc, accumulate);
    }
  }

 private:
  template <int strips>
  static void with_rows(const uint8_t* a, int64_t a_stride, int rows, const int8_t* b,
                        int64_t strip_bytes, int64_t k, int32_t* c, int ldc, bool accumulate) {
    switch (rows) {
      case 1: return multiply_rows<1, strips>(a, a_stride, b, strip_bytes, k, c, ldc, accumulate);
      case 2: return multiply_rows<2, strips>(a, a_stride, b, strip_bytes, k, c, ldc, accumulate);
      case 3: return multiply_rows<3, strips>(a, a_stride, b, strip_bytes, k, c, ldc, accumulate);
      case 4: return multiply_rows<4, strips>(a, a_stride, b, strip_bytes, k, c, ldc, accumulate);
      case 5: return multiply_rows<5, strips>(a, a_stride, b, strip_bytes, k, c, ldc, accumulate);
      default: return multiply_rows<6, strips>(a, a_stride, b, strip_bytes, k, c, ldc, accumulate);
    }
  }
};

void linear(const Int8Linear& p, const Int8Block& block) {
  VnniTile tile;
  Int8Driver<VnniTile>(p, block, tile).run();
}

}  // namespace

const Int8Kernels kInt8Vnni = {
    "vnni",
    1,
    0,
    quantize_rows<OffsetOperand>,
    quantize_rows<Int8Operand>,
    widen_rows,
    linear,
    weight_only_block,
};

}  // namespace lepton
LEPTON_TARGET_END

#endif
