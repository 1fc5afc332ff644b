// Memory that all ranks map, and the error of all that uses it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace lepton::shm {

// A peer died, hung, left or brought something else; or this process may not take part.
class ShmError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Puts huge pages behind as much of the file as they fit, before anyone maps it. They spare most of
// the walks through page tables that a pass over a bucket takes. False where the kernel gives none
// (before Linux 6.1, or no such memory left): small pages do as well.
bool back_by_huge_pages(int fd, size_t bytes);

// A mapping that every rank holds, unmapped with its last user.
class Mapping {
 public:
  Mapping(int fd, size_t bytes);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_;
  size_t bytes_;
};

}  // namespace lepton::shm
