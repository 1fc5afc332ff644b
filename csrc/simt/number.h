// Sixteen-bit floats and the rounding of approximate instructions.
#pragma once

#include <cstdint>

namespace lepton::simt {

float float_of_f16(uint16_t bits);
float float_of_bf16(uint16_t bits);
uint16_t f16_of_float(float x);   // to the nearest, ties to even
uint16_t bf16_of_float(float x);  // the same; NaN as the instruction gives it, 0x7fff
float flushed(float x);           // subnormals to zero, as .ftz does
float tanh_11_bits(float x);      // tanh.approx has a relative error of 2^-11
// The value nearest to zero: tensor cores cut, they do not round.
float truncated(double x);

}  // namespace lepton::simt
