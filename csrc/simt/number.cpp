#include "simt/number.h"

#include <cmath>
#include <cstring>
#include <memory>

namespace lepton::simt {

namespace {

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

float decode_f16(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = fraction == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

struct Table {
  std::unique_ptr<float[]> values{new float[65536]};
  Table() {
    for (uint32_t i = 0; i < 65536; ++i) values[i] = decode_f16(static_cast<uint16_t>(i));
  }
};

}  // namespace

float float_of_f16(uint16_t bits) {
  static const Table table;
  return table.values[bits];
}

float float_of_bf16(uint16_t bits) { return float_of(uint32_t{bits} << 16); }

uint16_t f16_of_float(float x) {
  const auto sign = static_cast<uint16_t>(bits_of(x) >> 16 & 0x8000u);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const uint32_t b = bits_of(magnitude);
  const uint32_t rounded = b + 0xfffu + (b >> 13 & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

uint16_t bf16_of_float(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint32_t b = bits_of(x);
  return static_cast<uint16_t>((b + 0x7fffu + (b >> 16 & 1u)) >> 16);
}

float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

float tanh_11_bits(float x) {
  const float y = std::tanh(x);
  return float_of(bits_of(y) & ~0x7ffu);
}

float truncated(double x) {
  const auto y = static_cast<float>(x);
  return std::isfinite(y) && std::fabs(static_cast<double>(y)) > std::fabs(x)
             ? std::nextafter(y, 0.0f)
             : y;
}

}  // namespace lepton::simt
