// Tiles and shared memory of the blocks of backward attention.
#pragma once

#include "cuda/attention_tile.cuh"

namespace lepton {

// kParts: 1 gradients of values, 2 of keys, 3 both. Both do not fit registers above 128 columns.
template <class T_, int kDim_, bool kGeneral_, int kParts_>
struct BackwardKeysConfig {
  using T = T_;
  static constexpr int kDim = kDim_, kParts = kParts_;
  static constexpr bool kGeneral = kGeneral_;
  static constexpr bool kValues = (kParts & 1) != 0, kKeyGradient = (kParts & 2) != 0;
  static constexpr int kWarps = kDim <= 128 ? 8 : 4, kThreads = 32 * kWarps;
  static constexpr int kKeys = 16 * kWarps;
  static constexpr int kQueries = kDim <= 64 ? 64 : 32;
  static constexpr int kStages = kDim <= 128 ? 2 : 1;
  // What stays in registers.
  static constexpr bool kHoldKeys = kDim <= 64 && !kGeneral, kHoldValues = kHoldKeys;
  using KeyTile = Tile<kKeys, kDim>;
  using QueryTile = Tile<kQueries, kDim>;
  static constexpr uint32_t kValueAt = KeyTile::kBytes, kStageAt = 2 * KeyTile::kBytes;
  static constexpr uint32_t kGradAt = QueryTile::kBytes;  // of a stage: queries, grad_out, stats
  static constexpr uint32_t kStatsAt = 2 * QueryTile::kBytes;
  static constexpr uint32_t kStageBytes = kStatsAt + kQueries * 8;
  static constexpr uint32_t kPlaceAt = kStageAt + kStages * kStageBytes;
  static constexpr uint32_t kSharedBytes = kPlaceAt + 64;
};

// Gradients of queries.
template <class T_, int kDim_, bool kGeneral_>
struct BackwardQueriesConfig {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr bool kGeneral = kGeneral_;
  static constexpr int kWarps = kDim > 64 && kDim <= 128 ? 8 : 4, kThreads = 32 * kWarps;
  static constexpr int kRows16 = kDim <= 64 && !kGeneral ? 2 : 1;
  static constexpr int kRows = 16 * kRows16 * kWarps;
  static constexpr int kKeys = 32;
  static constexpr int kStages = kDim <= 128 ? 2 : 1;
  // What stays in registers.
  static constexpr bool kHoldQueries = kDim <= 128, kHoldGrads = kDim <= 128 && kRows16 == 1;
  using QueryTile = Tile<kRows, kDim>;
  using KeyTile = Tile<kKeys, kDim>;
  static constexpr uint32_t kGradAt = QueryTile::kBytes, kStageAt = 2 * QueryTile::kBytes;
  static constexpr uint32_t kValueAt = KeyTile::kBytes;  // of a stage
  static constexpr uint32_t kStageBytes = 2 * KeyTile::kBytes;
  static constexpr uint32_t kPlaceAt = kStageAt + kStages * kStageBytes;
  static constexpr uint32_t kSharedBytes = kPlaceAt + 64;
};

}  // namespace lepton
