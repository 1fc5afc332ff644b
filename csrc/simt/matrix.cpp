#include "simt/matrix.h"

#include <cstring>

#include "simt/number.h"

namespace lepton::simt {

// ---- cp.async ----

void copy_async(uint32_t destination, Buffer* buffer, const void* source, uint32_t bytes,
                uint32_t valid_bytes, const Place& place) {
  if (valid_bytes > bytes) {
    report.finding(Kind::out_of_bounds, place,
                   "cp.async of " + std::to_string(bytes) + " bytes with " +
                       std::to_string(valid_bytes) + " valid");
  }
  const auto* from = static_cast<const uint8_t*>(source);
  if (valid_bytes > 0) {
    if (reinterpret_cast<uintptr_t>(source) % bytes != 0) {
      report.finding(Kind::misaligned, place,
                     "cp.async of " + std::to_string(bytes) + " bytes from an address at " +
                         std::to_string(reinterpret_cast<uintptr_t>(source) % bytes) +
                         " beyond a multiple of them");
    }
    // By words of a size that the valid bytes allow: the tail is not read.
    uint32_t width = valid_bytes == bytes ? bytes : 1;
    if (width == 1 && valid_bytes % 4 == 0) width = 4;
    if (width == 1 && valid_bytes % 2 == 0) width = 2;
    for (uint32_t i = 0; i < valid_bytes; i += width) {
      global_memory.access(buffer, from + i, width, AccessKind::read, place);
    }
  }
  const Copy copy{destination, from, bytes, valid_bytes, place};
  machine.shared.copy_begins(copy);
  current->copies.open.push_back(copy);
}

void copy_commit() {
  current->copies.committed.push_back(std::move(current->copies.open));
  current->copies.open.clear();
}

void copy_wait(size_t pending) {
  auto& groups = current->copies.committed;
  while (groups.size() > pending) {
    for (const Copy& copy : groups.front()) machine.shared.copy_ends(copy);
    groups.erase(groups.begin());
  }
}

// ---- ldmatrix, movmatrix ----

namespace {

struct MatrixLoad {
  uint32_t address;
  int count;
  bool transpose;
  uint32_t* r;
};

MatrixLoad& load_of(Warp& warp, uint32_t lane) {
  return *static_cast<MatrixLoad*>(warp.argument[lane]);
}

void do_load(Warp& warp, uint32_t, const Place& place) {
  const int count = load_of(warp, 0).count;
  std::array<uint32_t, 32> address;
  for (uint32_t lane = 0; lane < 32; ++lane) address[lane] = load_of(warp, lane).address;
  SharedMemory& shared = machine.shared;
  for (int matrix = 0; matrix < count; ++matrix) {
    uint16_t element[8][8];
    for (uint32_t row = 0; row < 8; ++row) {
      const uint32_t at = address[static_cast<uint32_t>(matrix) * 8 + row];
      shared.check(at, 16, place);
      // Each word is read by the lanes that receive it.
      for (uint32_t word = 0; word < 4; ++word) {
        if (!load_of(warp, 0).transpose) {
          shared.touch(at + 4 * word, 4, AccessKind::read, warp.first_thread + 4 * row + word,
                       place);
        } else {
          shared.touch(at + 4 * word, 2, AccessKind::read, warp.first_thread + 8 * word + row / 2,
                       place);
          shared.touch(at + 4 * word + 2, 2, AccessKind::read,
                       warp.first_thread + 8 * word + 4 + row / 2, place);
        }
      }
      std::memcpy(element[row], shared.at(at), 16);
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
      const uint32_t row = lane / 4, pair = 2 * (lane % 4);
      MatrixLoad& load = load_of(warp, lane);
      const uint32_t low = load.transpose ? element[pair][row] : element[row][pair];
      const uint32_t high = load.transpose ? element[pair + 1][row] : element[row][pair + 1];
      load.r[matrix] = high << 16 | low;
    }
  }
  WarpTraffic::matrices(place, address, count);
}

void do_transpose(Warp& warp, uint32_t, const Place&) {
  uint16_t element[8][8];
  auto value = [&](uint32_t lane) -> uint32_t& {
    return *static_cast<uint32_t*>(warp.argument[lane]);
  };
  for (uint32_t lane = 0; lane < 32; ++lane) {
    element[lane / 4][2 * (lane % 4)] = static_cast<uint16_t>(value(lane));
    element[lane / 4][2 * (lane % 4) + 1] = static_cast<uint16_t>(value(lane) >> 16);
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t row = 2 * (lane % 4), column = lane / 4;
    value(lane) = uint32_t{element[row + 1][column]} << 16 | element[row][column];
  }
}

}  // namespace

void load_matrices(uint32_t (&r)[4], uint32_t address, int count, bool transpose,
                   const Place& place) {
  MatrixLoad load{address, count, transpose, r};
  machine.meet(Meeting::ldmatrix, 0xffffffffu, place, &load, &do_load);
}

uint32_t transpose_matrix(uint32_t fragment, const Place& place) {
  machine.meet(Meeting::movmatrix, 0xffffffffu, place, &fragment, &do_transpose);
  return fragment;
}

// ---- mma ----
//
// With g = lane / 4 and t = lane % 4, and k the number of elements in a register (2 or 4):
//   a: register r holds rows g + 8 (r % 2), columns k t + i + 4k (r / 2)
//   b: register r holds rows k t + i + 4k r, column g
//   d: element r is row g + 8 (r / 2), column 2 t + r % 2
// (PTX ISA 9.0, 9.7.14.5.8 for m16n8k16 and 9.7.14.5.10 for m16n8k32.) A sparse a has the same
// layout over its kept columns (9.7.14.6.2); b has registers 0 to 3.

namespace {

Mma& mma_of(Warp& warp, uint32_t lane) { return *static_cast<Mma*>(warp.argument[lane]); }

// Which of its four columns each kept element of row `row` is in: kept column -> column.
void columns_of(Warp& warp, uint32_t row, uint32_t kept, const Place& place, uint32_t* column) {
  const bool bytes = mma_of(warp, 0).type == MmaType::s8;
  const auto selector = static_cast<uint32_t>(mma_of(warp, 0).selector);
  for (uint32_t group = 0; group < kept / 2; ++group) {
    // 16-bit: lane 4g + 2 selector + (half of the columns), rows g and g + 8 in its halves.
    // 8-bit: lane 4g + 2 (half of the columns) + (row >= 8), all 32 bits.
    uint32_t lane, bit;
    if (bytes) {
      lane = 4 * (row % 8) + 2 * (group / 8) + row / 8;
      bit = 4 * (group % 8);
    } else {
      lane = 4 * (row % 8) + 2 * selector + group / 4;
      bit = 16 * (row / 8) + 4 * (group % 4);
    }
    const uint32_t pair = mma_of(warp, lane).metadata >> bit & 15u;
    const uint32_t first = pair & 3u, second = pair >> 2;
    if (first >= second) {
      report.finding(Kind::invalid_metadata, place,
                     "row " + std::to_string(row) + ", columns from " + std::to_string(4 * group) +
                         ": kept columns " + std::to_string(first) + " and " +
                         std::to_string(second) + " are not in rising order");
    }
    column[2 * group] = 4 * group + first;
    column[2 * group + 1] = 4 * group + second;
  }
}

float half_of(MmaType type, uint32_t word, uint32_t i) {
  const auto bits = static_cast<uint16_t>(word >> (16 * i));
  return type == MmaType::f16 ? float_of_f16(bits) : float_of_bf16(bits);
}

int byte_of(MmaType, uint32_t word, uint32_t i) { return static_cast<int8_t>(word >> (8 * i)); }

template <class Element, class Sum, int kKept, class Decode>
void product(Warp& warp, const Place& place, const Decode& decode) {
  const Mma& first = mma_of(warp, 0);
  const bool sparse = first.sparse;
  constexpr uint32_t kPack = kKept / 8;  // elements of a register
  Element a[16][kKept], b[8][2 * kKept];
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const Mma& mma = mma_of(warp, lane);
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t r = 0; r < 4; ++r) {
      for (uint32_t i = 0; i < kPack; ++i) {
        a[g + 8 * (r % 2)][kPack * t + i + 4 * kPack * (r / 2)] = decode(first.type, mma.a[r], i);
        b[g][kPack * t + i + 4 * kPack * r] = decode(first.type, mma.b[r], i);
      }
    }
  }
  Sum sum[16][8];
  for (uint32_t row = 0; row < 16; ++row) {
    uint32_t column[kKept];
    if (sparse) columns_of(warp, row, kKept, place, column);
    for (uint32_t n = 0; n < 8; ++n) {
      Sum total = 0;
      if (sparse) {
        for (uint32_t k = 0; k < kKept; ++k) {
          total += static_cast<Sum>(a[row][k]) * static_cast<Sum>(b[n][column[k]]);
        }
      } else {
        for (uint32_t k = 0; k < kKept; ++k) {
          total += static_cast<Sum>(a[row][k]) * static_cast<Sum>(b[n][k]);
        }
      }
      sum[row][n] = total;
    }
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, t = lane % 4;
    for (uint32_t r = 0; r < 4; ++r) {
      const Sum total = sum[g + 8 * (r / 2)][2 * t + r % 2];
      if constexpr (std::is_same_v<Sum, double>) {
        float& d = static_cast<float*>(mma_of(warp, lane).d)[r];
        d = truncated(static_cast<double>(d) + total);
      } else {
        int32_t& d = static_cast<int32_t*>(mma_of(warp, lane).d)[r];
        d = static_cast<int32_t>(static_cast<uint32_t>(d) + static_cast<uint32_t>(total));
      }
    }
  }
}

void do_multiply(Warp& warp, uint32_t, const Place& place) {
  if (mma_of(warp, 0).type == MmaType::s8) {
    product<int, int, 32>(warp, place, byte_of);
  } else {
    product<float, double, 16>(warp, place, half_of);
  }
}

}  // namespace

void multiply(Mma mma, const Place& place) {
  machine.meet(Meeting::mma, 0xffffffffu, place, &mma, &do_multiply);
}

}  // namespace lepton::simt
