// Tiles and shared memory of a block of forward attention.
#pragma once

#include "cuda/attention_tile.cuh"

namespace lepton {

// kGeneral: any option, any layout of keys, any share of the keys. Without it only the window, and
// rows at multiples of 16 bytes.
template <class T_, int kDim_, bool kGeneral_>
struct ForwardConfig {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr bool kGeneral = kGeneral_;
  static constexpr int kWarps = 4, kThreads = 32 * kWarps;
  static constexpr int kRows16 = kDim <= 128 && !kGeneral ? 2 : 1;  // blocks of 16 rows of a warp
  static constexpr int kRows = 16 * kRows16 * kWarps;
  static constexpr int kKeys = 64;
  static constexpr bool kHoldQuery = kDim <= 64;  // in registers
  // Two stages: the next keys and values arrive during a whole iteration. One: values arrive while
  // scores are computed and keys while values are summed, which leaves room for two blocks.
  static constexpr bool kTwoStages = kDim <= 64;
  using QueryTile = Tile<kRows, kDim>;
  using KeyTile = Tile<kKeys, kDim>;
  static constexpr uint32_t kKeyAt = QueryTile::kBytes;
  static constexpr uint32_t kStageBytes = 2 * KeyTile::kBytes;  // keys, then values
  static constexpr uint32_t kPlaceAt = kKeyAt + kStageBytes * (kTwoStages ? 2 : 1);
  static constexpr uint32_t kSharedBytes = kPlaceAt + 80;
};

}  // namespace lepton
