// What the emulator has to tell about a launch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace lepton::simt {

// A line of device code.
struct Place {
  const char* file = "";
  int line = 0;
  static constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Place& other) const { return line == other.line && file == other.file; }
  bool operator!=(const Place& other) const { return !(*this == other); }
  std::string text() const;
};

// Kinds of findings; `stops` tells which end the launch.
enum class Kind {
  race,             // two accesses, one of them a write, with nothing that orders them
  missing_wait,     // read or overwritten while a cp.async is under way
  uninitialised,    // shared memory that nobody has written
  out_of_bounds,    // stops
  misaligned,       // stops
  read_only,        // stops: a write to a buffer given as input
  divergence,       // stops: lanes or threads that meet at different instructions
  deadlock,         // stops
  invalid_metadata  // stops: 2:4 metadata that the instruction does not define
};
const char* name_of(Kind kind);

// Thrown through the fibre of the thread at fault, and ends the launch.
struct Stop {};

struct Traffic {
  uint64_t shared_accesses = 0;    // warp-wide instructions on shared memory
  uint64_t shared_wavefronts = 0;  // passes that they take
  uint64_t shared_conflicts = 0;   // passes beyond the fewest for the width of the access
  uint64_t global_accesses = 0;
  uint64_t global_sectors = 0;        // 32-byte sectors moved
  uint64_t global_sectors_ideal = 0;  // fewest that hold the bytes asked for
  uint64_t unmatched = 0;  // lane accesses left out, where lanes ran a line unequally often
};

struct LaunchRecord {
  std::string kernel;
  uint32_t grid[3], block[3], shared_bytes;
  Traffic traffic;
  std::map<std::string, uint64_t> conflicts;  // by place
};

class Report {
 public:
  void clear();
  // Notes a finding; throws Stop where the kind ends the launch.
  void finding(Kind kind, const Place& place, const std::string& message);
  uint64_t count() const { return count_; }
  LaunchRecord& launch() { return launches_.back(); }
  void begin_launch(LaunchRecord record) { launches_.push_back(std::move(record)); }
  std::string json() const;

 private:
  struct Entry {
    Kind kind;
    std::string place, kernel, message;
    uint64_t count;
  };
  std::vector<Entry> entries_;
  std::map<std::tuple<Kind, const char*, int>, size_t> index_;
  std::vector<LaunchRecord> launches_;
  uint64_t count_ = 0;
};

extern Report report;

}  // namespace lepton::simt
