#include "native/shm_peers.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace lepton::shm {
namespace {

// Field 22 of /proc/<pid>/stat. The name in field 2 may hold spaces and brackets, so count from
// its last bracket, behind which field 3, the state, follows.
uint64_t parse_start_time(char* text) {
  char* rest = std::strrchr(text, ')');
  if (rest == nullptr || rest[1] == '\0') return 0;
  rest += 2;
  if (*rest == 'Z' || *rest == 'X') return 0;
  for (int field = 3; field < 22; ++field) {
    rest = std::strchr(rest, ' ');
    if (rest == nullptr) return 0;
    ++rest;
  }
  return std::strtoull(rest, nullptr, 10);
}

}  // namespace

uint64_t process_start_time(pid_t pid) {
  char path[64], text[1024];
  std::snprintf(path, sizeof path, "/proc/%d/stat", static_cast<int>(pid));
  std::FILE* file = std::fopen(path, "re");
  if (file == nullptr) return 0;
  const size_t size = std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  text[size] = '\0';
  return parse_start_time(text);
}

Peer::Peer(pid_t pid, uint64_t start_time) : pid_(pid), start_time_(start_time), fd_(-1) {
#ifdef SYS_pidfd_open
  fd_ = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  // The number may have passed to another process before the descriptor was opened.
  if (fd_ >= 0 && process_start_time(pid) != start_time) {
    close(fd_);
    fd_ = -1;
  }
#endif
}

Peer::Peer(Peer&& other) noexcept
    : pid_(other.pid_), start_time_(other.start_time_), fd_(other.fd_) {
  other.fd_ = -1;
}

Peer::~Peer() {
  if (fd_ >= 0) close(fd_);
}

bool Peer::alive() const {
  if (fd_ >= 0) {
    pollfd query{fd_, POLLIN, 0};
    return poll(&query, 1, 0) == 0;  // readable: the process has ended
  }
  return process_start_time(pid_) == start_time_;
}

}  // namespace lepton::shm
