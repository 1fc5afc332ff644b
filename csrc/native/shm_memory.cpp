#include "native/shm_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace lepton::shm {
namespace {

constexpr size_t kPage = 4096, kHugePage = size_t{2} << 20;

// Maps at a multiple of the size of a huge page: only there can one be mapped as a whole. Null
// where it fails, with errno.
uint8_t* map_aligned(int fd, size_t bytes, int flags) {
  bytes = (bytes + kPage - 1) / kPage * kPage;
  const size_t reserved = bytes + kHugePage;
  void* hole =
      mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (hole == MAP_FAILED) return nullptr;
  auto* begin = static_cast<uint8_t*>(hole);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(hole) % kHugePage) % kHugePage;
  void* at =
      mmap(begin + before, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | flags, fd, 0);
  if (at == MAP_FAILED) {
    const int reason = errno;
    munmap(hole, reserved);
    errno = reason;
    return nullptr;
  }
  if (before != 0) munmap(begin, before);
  munmap(begin + before + bytes, kHugePage - before);
  return begin + before;
}

}  // namespace

bool back_by_huge_pages(int fd, size_t bytes) {
  const size_t whole = bytes / kHugePage * kHugePage;
  if (whole == 0) return false;
  uint8_t* data = map_aligned(fd, whole, 0);
  if (data == nullptr) return false;
  const bool done = madvise(data, whole, MADV_COLLAPSE) == 0;
  munmap(data, whole);
  return done;
}

Mapping::Mapping(int fd, size_t bytes)
    : data_(map_aligned(fd, bytes, MAP_POPULATE)), bytes_(bytes) {
  if (data_ == nullptr) {
    throw ShmError("cannot map " + std::to_string(bytes) +
                   " bytes of shared memory: " + std::strerror(errno));
  }
}

Mapping::~Mapping() { munmap(data_, bytes_); }

}  // namespace lepton::shm
