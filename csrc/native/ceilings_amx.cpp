// Ceilings of AMX: products of tiles that stay in registers. A product has a latency of about 52
// cycles and takes 16, so four accumulators keep the unit busy.
#include <cstdint>

#include "cpu/intrinsics.h"
#include "cpu/target.h"
#include "native/ceilings.h"

#if defined(__x86_64__) && !defined(LEPTON_EMULATE_ISA)

LEPTON_TARGET_BEGIN_AMX
#include "cpu/amx_tiles.h"

namespace lepton::ceilings {
namespace {

void zero_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

constexpr double kOpsPerByteProduct = 2.0 * 16 * 16 * 64;

double int8_amx(int64_t steps) {
  const TileScope full(kTileRows16);
  zero_tiles();
  for (int64_t step = 0; step < steps; ++step) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  return 4 * kOpsPerByteProduct * static_cast<double>(steps);
}

double bf16_amx(int64_t steps) {
  const TileScope full(kTileRows16);
  zero_tiles();
  for (int64_t step = 0; step < steps; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  return 4 * (kOpsPerByteProduct / 2) * static_cast<double>(steps);
}

}  // namespace
}  // namespace lepton::ceilings
LEPTON_TARGET_END

namespace lepton::ceilings {
// fp32 and reads have no form of their own on AMX: the caller takes those of AVX-512.
const Level kAmxLevel = {"amx", isa::kAmxLevel, nullptr, bf16_amx, int8_amx, nullptr};
}  // namespace lepton::ceilings

#else

namespace lepton::ceilings {
const Level kAmxLevel = {"amx", isa::kAmxLevel, nullptr, nullptr, nullptr, nullptr};
}  // namespace lepton::ceilings

#endif
