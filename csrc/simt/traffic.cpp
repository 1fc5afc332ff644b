#include "simt/traffic.h"

#include <algorithm>

namespace lepton::simt {

namespace {

void add_shared(const Place& place, const Wavefronts& w) {
  LaunchRecord& launch = report.launch();
  ++launch.traffic.shared_accesses;
  launch.traffic.shared_wavefronts += w.taken;
  if (w.taken > w.least) {
    launch.traffic.shared_conflicts += w.taken - w.least;
    launch.conflicts[place.text()] += w.taken - w.least;
  }
}

}  // namespace

Wavefronts shared_wavefronts(const std::array<uint32_t, 32>& address, uint32_t active,
                             uint32_t bytes) {
  // Wide accesses are served in halves (8 bytes) or quarters (16 bytes) of a warp.
  const uint32_t lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  Wavefronts w;
  for (uint32_t first = 0; first < 32; first += lanes) {
    std::array<std::array<uint32_t, 32>, 32> words;
    std::array<uint32_t, 32> count{};
    bool any = false;
    for (uint32_t lane = first; lane < first + lanes; ++lane) {
      if (!(active >> lane & 1u)) continue;
      any = true;
      for (uint32_t word = address[lane] / 4; word <= (address[lane] + bytes - 1) / 4; ++word) {
        const uint32_t bank = word % 32;
        auto* end = words[bank].data() + count[bank];
        if (std::find(words[bank].data(), end, word) == end) words[bank][count[bank]++] = word;
      }
    }
    if (!any) continue;
    w.taken += *std::max_element(count.begin(), count.end());
    ++w.least;
  }
  return w;
}

void WarpTraffic::matrices(const Place& place, const std::array<uint32_t, 32>& address, int count) {
  Wavefronts all;
  for (int matrix = 0; matrix < count; ++matrix) {
    const Wavefronts w = shared_wavefronts(address, 0xffu << (8 * matrix), 16);
    all.taken += w.taken;
    all.least += w.least;
  }
  add_shared(place, all);
}

void WarpTraffic::log(const Place& place, uint32_t lane, uint64_t address, uint32_t bytes,
                      bool shared) {
  auto matches = [&](const Line& line) {
    return line.place == place && line.bytes == bytes && line.shared == shared;
  };
  if (last_ >= lines_.size() || !matches(lines_[last_])) {
    last_ = 0;
    while (last_ < lines_.size() && !matches(lines_[last_])) ++last_;
    if (last_ == lines_.size()) lines_.push_back({place, bytes, shared, {}, false});
  }
  lines_[last_].lanes[lane].push_back(address);
  lines_[last_].used = true;
}

void WarpTraffic::flush() {
  for (Line& line : lines_) {
    if (!line.used) continue;
    count(line);
    for (auto& lane : line.lanes) lane.clear();
    line.used = false;
  }
}

void WarpTraffic::count(const Line& line) {
  Traffic& traffic = report.launch().traffic;
  uint32_t active = 0;
  size_t times = 0, accesses = 0;
  bool equal = true;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const size_t here = line.lanes[lane].size();
    if (here == 0) continue;
    if (active != 0 && here != times) equal = false;
    active |= 1u << lane;
    times = here;
    accesses += here;
  }
  if (!equal) {
    traffic.unmatched += accesses;
    return;
  }
  std::vector<uint64_t> sectors;
  for (size_t i = 0; i < times; ++i) {
    if (line.shared) {
      std::array<uint32_t, 32> address{};
      for (uint32_t lane = 0; lane < 32; ++lane) {
        if (active >> lane & 1u) address[lane] = static_cast<uint32_t>(line.lanes[lane][i]);
      }
      add_shared(line.place, shared_wavefronts(address, active, line.bytes));
      continue;
    }
    sectors.clear();
    std::vector<uint64_t> pieces;
    for (uint32_t lane = 0; lane < 32; ++lane) {
      if (!(active >> lane & 1u)) continue;
      sectors.push_back(line.lanes[lane][i] / 32);
      pieces.push_back(line.lanes[lane][i]);
    }
    auto distinct = [](std::vector<uint64_t>& values) {
      std::sort(values.begin(), values.end());
      values.erase(std::unique(values.begin(), values.end()), values.end());
      return values.size();
    };
    ++traffic.global_accesses;
    traffic.global_sectors += distinct(sectors);
    traffic.global_sectors_ideal += (distinct(pieces) * line.bytes + 31) / 32;
  }
}

}  // namespace lepton::simt
