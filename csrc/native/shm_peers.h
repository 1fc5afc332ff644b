// The processes behind the ranks: whether they still run.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace lepton::shm {

// Time at which a process began, in clock ticks since boot; 0 if there is none, or only a zombie.
uint64_t process_start_time(pid_t pid);

class Peer {
 public:
  // Watches process `pid` as long as it is the one that began at `start_time`.
  Peer(pid_t pid, uint64_t start_time);
  ~Peer();
  Peer(Peer&& other) noexcept;
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  Peer& operator=(Peer&&) = delete;

  bool alive() const;
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
  uint64_t start_time_;
  int fd_;  // pidfd, or -1 where the kernel has none
};

}  // namespace lepton::shm
