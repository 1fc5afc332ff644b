#include "simt/memory.h"

#include <algorithm>
#include <cstring>

#include "simt/machine.h"

namespace lepton::simt {

GlobalMemory global_memory;

namespace {

constexpr uint8_t kPoison = 0xff;

std::string who(uint32_t thread) {
  return "thread " + std::to_string(thread) + " of block " + std::to_string(machine.block_linear);
}

std::string verb(AccessKind kind) {
  return kind == AccessKind::read ? "reads" : kind == AccessKind::write ? "writes" : "updates";
}

}  // namespace

void SharedMemory::reset(uint32_t bytes) {
  bytes_.assign(bytes, kPoison);
  written_.assign(bytes, false);
  const size_t cells = (bytes + 3) / 4;
  if (cells_.size() < cells) cells_.resize(cells);
  under_way_.assign(cells, 0);
}

void SharedMemory::check(uint32_t address, uint32_t bytes, const Place& place) const {
  if (address < kBase || address - kBase + bytes > bytes_.size()) {
    report.finding(Kind::out_of_bounds, place,
                   who(current->linear) + " reaches shared byte " +
                       std::to_string(static_cast<int64_t>(address) - kBase) + " (" +
                       std::to_string(bytes) + " bytes) of " + std::to_string(bytes_.size()));
  }
  if (address % bytes != 0) {
    report.finding(Kind::misaligned, place,
                   who(current->linear) + " reaches shared byte " +
                       std::to_string(address - kBase) + " with a width of " +
                       std::to_string(bytes));
  }
}

void SharedMemory::touch(uint32_t address, uint32_t bytes, AccessKind kind, uint32_t thread,
                         const Place& place) {
  const uint32_t begin = address - kBase;
  for (uint32_t word = begin / 4; word <= (begin + bytes - 1) / 4; ++word) {
    uint8_t mask = 0xf;
    if (bytes < 4) mask = static_cast<uint8_t>(((1u << bytes) - 1) << (begin % 4));
    const Cell::Access access{static_cast<uint16_t>(thread), machine.clocks.clock(thread), mask,
                              kind, place.line};
    if (const Cell::Access* other = cells_[word].touch(machine.clocks, access)) {
      report.finding(Kind::race, place,
                     who(thread) + " " + verb(kind) + " shared byte " + std::to_string(word * 4) +
                         ", which thread " + std::to_string(other->thread) + " " +
                         verb(other->kind) + " at line " + std::to_string(other->line) +
                         ": nothing orders them");
    }
    if (under_way_[word] != 0) {
      report.finding(Kind::missing_wait, place,
                     who(thread) + " " + verb(kind) + " shared byte " + std::to_string(word * 4) +
                         " while a cp.async to it is under way");
    }
  }
  if (kind != AccessKind::write) {
    for (uint32_t i = begin; i < begin + bytes; ++i) {
      if (!written_[i]) {
        report.finding(Kind::uninitialised, place,
                       who(thread) + " reads shared byte " + std::to_string(i) +
                           ", which nothing has written");
        break;
      }
    }
  } else {
    for (uint32_t i = begin; i < begin + bytes; ++i) written_[i] = true;
  }
}

uint8_t* SharedMemory::access(uint32_t address, uint32_t bytes, AccessKind kind,
                              const Place& place) {
  check(address, bytes, place);
  touch(address, bytes, kind, current->linear, place);
  current->warp->traffic.shared(place, current->lane, address, bytes);
  return bytes_.data() + (address - kBase);
}

void SharedMemory::copy_begins(const Copy& copy) {
  check(copy.destination, copy.bytes, copy.place);
  touch(copy.destination, copy.bytes, AccessKind::write, current->linear, copy.place);
  current->warp->traffic.shared(copy.place, current->lane, copy.destination, copy.bytes);
  const uint32_t begin = copy.destination - kBase;
  std::memset(bytes_.data() + begin, kPoison, copy.bytes);
  for (uint32_t word = begin / 4; word < (begin + copy.bytes) / 4; ++word) ++under_way_[word];
}

void SharedMemory::copy_ends(const Copy& copy) {
  const uint32_t begin = copy.destination - kBase;
  for (uint32_t word = begin / 4; word < (begin + copy.bytes) / 4; ++word) --under_way_[word];
  touch(copy.destination, copy.bytes, AccessKind::write, current->linear, copy.place);
  std::memcpy(bytes_.data() + begin, copy.source, copy.valid_bytes);
  std::memset(bytes_.data() + begin + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
}

void GlobalMemory::add(const void* begin, uint64_t bytes, bool writable, const std::string& name) {
  auto buffer = std::make_unique<Buffer>();
  buffer->name = name;
  buffer->begin = reinterpret_cast<uintptr_t>(begin);
  buffer->end = buffer->begin + bytes;
  buffer->writable = writable;
  buffers_.push_back(std::move(buffer));
}

Buffer* GlobalMemory::find(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  for (const auto& buffer : buffers_) {
    if (at >= buffer->begin && at < buffer->end) return buffer.get();
  }
  return nullptr;
}

void GlobalMemory::begin_launch() {
  published_.clear();
  for (const auto& buffer : buffers_) {
    if (!buffer->writable) continue;
    const size_t words = buffer->end / 4 - buffer->begin / 4 + 1;
    buffer->cells.resize(words);
    buffer->owners.assign(words, {});
  }
}

void GlobalMemory::access(Buffer* buffer, const void* address, uint32_t bytes, AccessKind kind,
                          const Place& place) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (buffer == nullptr) {
    report.finding(Kind::out_of_bounds, place,
                   who(current->linear) + " " + verb(kind) + " global memory that belongs to no " +
                       "tensor of the call" + (at < 4096 ? " (null)" : ""));
  }
  const auto offset = static_cast<int64_t>(at) - static_cast<int64_t>(buffer->begin);
  if (at < buffer->begin || at + bytes > buffer->end) {
    report.finding(Kind::out_of_bounds, place,
                   who(current->linear) + " " + verb(kind) + " byte " + std::to_string(offset) +
                       " (" + std::to_string(bytes) + " bytes) of " + buffer->name +
                       ", which has " + std::to_string(buffer->end - buffer->begin));
  }
  if (at % bytes != 0) {
    report.finding(Kind::misaligned, place,
                   who(current->linear) + " " + verb(kind) + " byte " + std::to_string(offset) +
                       " of " + buffer->name + " with a width of " + std::to_string(bytes));
  }
  current->warp->traffic.global(place, current->lane, at, bytes);
  if (!buffer->writable) {
    if (kind != AccessKind::read) {
      report.finding(
          Kind::read_only, place,
          who(current->linear) + " " + verb(kind) + " " + buffer->name + ", an input of the call");
    }
    return;
  }
  if (kind != AccessKind::read) current->fenced = false;
  const auto block = static_cast<int32_t>(machine.block_linear);
  for (size_t word = at / 4; word <= (at + bytes - 1) / 4; ++word) {
    uint8_t mask = 0xf;
    if (bytes < 4) mask = static_cast<uint8_t>(((1u << bytes) - 1) << (at % 4));
    const size_t index = word - buffer->begin / 4;
    const Cell::Access access{static_cast<uint16_t>(current->linear),
                              machine.clocks.clock(current->linear), mask, kind, place.line};
    if (const Cell::Access* other = buffer->cells[index].touch(machine.clocks, access)) {
      report.finding(Kind::race, place,
                     who(current->linear) + " " + verb(kind) + " byte " + std::to_string(offset) +
                         " of " + buffer->name + ", which thread " + std::to_string(other->thread) +
                         " " + verb(other->kind) + " at line " + std::to_string(other->line) +
                         ": nothing orders them");
    }
    // Between blocks: bytes of a word are not told apart where the width is below four.
    Buffer::Owner& owner = buffer->owners[index];
    auto unordered = [&](int32_t other) {
      return other == -2 ||
             (other >= 0 && other != block && !machine.acquired_blocks[static_cast<size_t>(other)]);
    };
    const bool both_atomic = kind == AccessKind::atomic && owner.atomic;
    const bool write = kind != AccessKind::read;
    if (bytes >= 4 &&
        ((unordered(owner.writer) && !both_atomic) || (write && unordered(owner.reader)))) {
      report.finding(Kind::race, place,
                     who(current->linear) + " " + verb(kind) + " byte " + std::to_string(offset) +
                         " of " + buffer->name + ", which block " +
                         std::to_string(unordered(owner.writer) ? owner.writer : owner.reader) +
                         " uses too: nothing orders them");
    }
    if (write) {
      owner.writer = block;
      owner.atomic = kind == AccessKind::atomic;
    } else {
      owner.reader = owner.reader == -1 || owner.reader == block ? block : -2;
    }
  }
}

void GlobalMemory::publish(const void* address) {
  auto found = std::find_if(published_.begin(), published_.end(),
                            [&](const auto& entry) { return entry.first == address; });
  if (found == published_.end()) {
    published_.emplace_back(address, std::vector<bool>(machine.acquired_blocks.size(), false));
    found = published_.end() - 1;
  }
  std::vector<bool>& there = found->second;
  std::vector<bool>& here = machine.acquired_blocks;
  for (size_t i = 0; i < here.size(); ++i) {
    const bool any = here[i] || there[i];
    if (current->fenced) there[i] = there[i] || here[i];
    here[i] = any;
  }
  if (current->fenced) there[machine.block_linear] = true;
}

}  // namespace lepton::simt
