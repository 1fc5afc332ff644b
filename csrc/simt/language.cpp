#include "simt/language.h"

namespace lepton::simt {

void shuffle(Warp& warp, uint32_t mask, const Place& place) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1u)) continue;
    Exchange& mine = exchange_of(warp, lane);
    if (!(mask >> mine.source & 1u)) {
      report.finding(Kind::divergence, place,
                     "lane " + std::to_string(lane) + " shuffles from lane " +
                         std::to_string(mine.source) + ", which is not in the mask");
    }
    mine.result = exchange_of(warp, mine.source).value;
  }
}

void vote(Warp& warp, uint32_t mask, const Place&) {
  uint32_t ballot = 0;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) && exchange_of(warp, lane).value != 0) ballot |= 1u << lane;
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1u) exchange_of(warp, lane).result = ballot;
  }
}

void sync_lanes(Warp& warp, uint32_t mask, const Place&) {
  std::vector<uint32_t> threads;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1u) threads.push_back(warp.first_thread + lane);
  }
  machine.clocks.meet(threads);
}

}  // namespace lepton::simt
