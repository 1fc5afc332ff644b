// Bank conflicts and coalescing.
//
// Lanes run apart from one another, so a warp's instruction is put together afterwards: the n-th
// time that each lane passes a line of code since the warp last met. Where active lanes passed a
// line unequally often, nobody can say which belong together, and they are only counted.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "simt/report.h"

namespace lepton::simt {

// Passes that 32-bank shared memory needs for the accesses of a warp, one address a lane, and
// the fewest for their width. `active` marks lanes.
struct Wavefronts {
  uint32_t taken = 0, least = 0;
};
Wavefronts shared_wavefronts(const std::array<uint32_t, 32>& address, uint32_t active,
                             uint32_t bytes);

class WarpTraffic {
 public:
  void shared(const Place& place, uint32_t lane, uint32_t address, uint32_t bytes) {
    log(place, lane, address, bytes, true);
  }
  void global(const Place& place, uint32_t lane, uint64_t address, uint32_t bytes) {
    log(place, lane, address, bytes, false);
  }
  // The eight rows of each matrix of an ldmatrix.
  static void matrices(const Place& place, const std::array<uint32_t, 32>& address, int count);
  // The warp has met: counts what was logged.
  void flush();

 private:
  struct Line {
    Place place;
    uint32_t bytes;
    bool shared;
    std::array<std::vector<uint64_t>, 32> lanes;
    bool used = false;
  };
  void log(const Place& place, uint32_t lane, uint64_t address, uint32_t bytes, bool shared);
  static void count(const Line& line);
  std::vector<Line> lines_;
  size_t last_ = 0;
};

}  // namespace lepton::simt
