// Shared and global memory as device code sees them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "simt/race.h"
#include "simt/report.h"

namespace lepton::simt {

// One cp.async: takes effect when its thread waits for its group.
struct Copy {
  uint32_t destination;
  const uint8_t* source;
  uint32_t bytes, valid_bytes;
  Place place;
};

struct CopyGroups {
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> committed;  // oldest first
};

class SharedMemory {
 public:
  // Where the window begins: not 0, so that an offset taken for an address is out of bounds.
  static constexpr uint32_t kBase = 1024;

  // Poison: a NaN in every float format, -1 in integers.
  void reset(uint32_t bytes);
  // Checks an access of the present thread and returns where the bytes are.
  uint8_t* access(uint32_t address, uint32_t bytes, AccessKind kind, const Place& place);
  // The same for another lane's share of a warp's load, without its bounds and alignment.
  void touch(uint32_t address, uint32_t bytes, AccessKind kind, uint32_t thread,
             const Place& place);
  void check(uint32_t address, uint32_t bytes, const Place& place) const;
  const uint8_t* at(uint32_t address) const { return bytes_.data() + (address - kBase); }

  void copy_begins(const Copy& copy);
  void copy_ends(const Copy& copy);

 private:
  std::vector<uint8_t> bytes_;
  std::vector<bool> written_;
  std::vector<Cell> cells_;
  std::vector<uint8_t> under_way_;  // cp.async of each four bytes
};

// A tensor given to a launch.
struct Buffer {
  std::string name;
  uintptr_t begin = 0, end = 0;
  bool writable = false;
  std::vector<Cell> cells;
  struct Owner {
    int32_t writer = -1;  // block; -1: none
    int32_t reader = -1;  // block; -2: several
    bool atomic = false;  // the write was one
  };
  std::vector<Owner> owners;
};

class GlobalMemory {
 public:
  void clear() { buffers_.clear(); }
  void add(const void* begin, uint64_t bytes, bool writable, const std::string& name);
  // The buffer that an address belongs to, or null. Stays valid until `clear`.
  Buffer* find(const void* address);
  void begin_launch();
  // Checks an access of the present thread.
  void access(Buffer* buffer, const void* address, uint32_t bytes, AccessKind kind,
              const Place& place);
  // An atomic after a __threadfence publishes the block's writes; every atomic sees what was
  // published at its address.
  void publish(const void* address);

 private:
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<std::pair<const void*, std::vector<bool>>> published_;
};

extern GlobalMemory global_memory;

}  // namespace lepton::simt
