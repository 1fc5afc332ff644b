// Gradients of linear layers from their factors: sums over ranks of left^T right. Every element is
// added up term by term, in rank order, with one fused multiply-add each: the same bits on every
// vector width. Read inside a target region, behind bucket_reduce.h.
namespace {

using lepton::BucketFactors;
using lepton::BucketOuter;

// Sums that stay in registers: all of the register file but the vectors of a panel and one for
// spreading. Wide and low: the rows of all outputs then are few enough pages for the first TLB.
constexpr int kOuterRows = F32::width == 1 ? 4 : 6;
constexpr int kOuterVectors = F32::width == 16 ? 4 : 2;
constexpr int kOuterColumns = kOuterVectors * F32::width;

static_assert(kOuterRows <= BucketOuter::kMostRows && kOuterColumns <= BucketOuter::kMostColumns,
              "outer_scratch_count knows the largest tile");

// Columns [begin, end) of all right factors as panels: [panel][term][kOuterColumns], zero behind
// the last column. Rows of the factors lie a power of two apart as often as not, and would meet in
// one set of the cache.
template <class Type>
void pack_right(const BucketOuter& p, int64_t terms, int64_t begin, int64_t end, float* to) {
  using Value = typename Type::value;
  int64_t term = 0;
  for (int32_t s = 0; s < p.sources; ++s) {
    const BucketFactors& from = p.source[s];
    for (int64_t k = 0; k < from.terms; ++k, ++term) {
      const Value* row = static_cast<const Value*>(from.right) + k * p.columns;
      float* out = to + term * kOuterColumns;
      for (int64_t c = begin; c < end; c += kOuterColumns, out += terms * kOuterColumns) {
        for (int v = 0; v < kOuterVectors; ++v) {
          const int64_t at = c + v * F32::width;
          const int n = at < end ? lanes(at, end) : 0;
          const F32 x = n == F32::width ? Type::load(row + at)
                        : n > 0         ? Type::load_n(row + at, n)
                                        : f32_zero();
          f32_store(out + v * F32::width, x);
        }
      }
    }
  }
}

// Columns [row, row + count) of all left factors, which are rows of the product:
// [term][kOuterRows].
template <class Type>
void pack_left(const BucketOuter& p, int64_t row, int count, float* to) {
  using Value = typename Type::value;
  for (int32_t s = 0; s < p.sources; ++s) {
    const BucketFactors& from = p.source[s];
    for (int64_t k = 0; k < from.terms; ++k, to += kOuterRows) {
      const Value* values = static_cast<const Value*>(from.left) + k * p.rows + row;
      for (int r = 0; r < kOuterRows; r += F32::width) {
        const int left = count - r, room = kOuterRows - r;
        const int n = left < F32::width ? (left > 0 ? left : 0) : F32::width;
        const F32 x = n > 0 ? Type::load_n(values + r, n) : f32_zero();
        f32_store_n(to + r, x, room < F32::width ? room : F32::width);
      }
    }
  }
}

// Where a tile of the product lies.
struct OuterTile {
  int64_t row, column;
  int rows, columns;
};

using OuterSums = F32[kOuterRows][kOuterVectors];

// Begins with the whole gradients of ranks that bring no factors.
template <class Type>
[[gnu::noinline]] void add_products(const BucketOuter& p, const OuterTile& tile, OuterSums& sum) {
  using Value = typename Type::value;
  for (int r = 0; r < kOuterRows; ++r) {
    for (int v = 0; v < kOuterVectors; ++v) sum[r][v] = f32_zero();
  }
  for (int32_t s = 0; s < p.sources; ++s) {
    if (p.source[s].product == nullptr) continue;
    const Value* from =
        static_cast<const Value*>(p.source[s].product) + tile.row * p.columns + tile.column;
    for (int r = 0; r < tile.rows; ++r) {
      for (int v = 0; v < kOuterVectors; ++v) {
        const int n = lanes(v * F32::width, tile.columns);
        if (n <= 0) continue;
        sum[r][v] = f32_add(sum[r][v], Type::load_n(from + r * p.columns + v * F32::width, n));
      }
    }
  }
}

// Writes a tile at the edge to every output.
template <class Type>
[[gnu::noinline]] void store_edge(const BucketOuter& p, const OuterTile& tile,
                                  const OuterSums& sum) {
  using Value = typename Type::value;
  for (int32_t o = 0; o < p.outputs; ++o) {
    Value* to = static_cast<Value*>(p.out[o]) + tile.row * p.columns + tile.column;
    for (int r = 0; r < tile.rows; ++r, to += p.columns) {
      for (int v = 0; v < kOuterVectors; ++v) {
        const int n = lanes(v * F32::width, tile.columns);
        if (n > 0) Type::store_n(to + v * F32::width, sum[r][v], n);
      }
    }
  }
}

// Sums stay in registers from the first term to the stores: only the rare cases above take their
// address, of a copy.
template <class Type>
void outer_tile(const BucketOuter& p, const OuterTile& tile, bool products, int64_t terms,
                const float* left, const float* right, const Divisor& by,
                F32 (&norm)[2][kOuterVectors]) {
  using Value = typename Type::value;
  F32 sum[kOuterRows][kOuterVectors];
  for (int r = 0; r < kOuterRows; ++r) {
    for (int v = 0; v < kOuterVectors; ++v) sum[r][v] = f32_zero();
  }
  if (products) {
    OuterSums begin;
    add_products<Type>(p, tile, begin);
    for (int r = 0; r < kOuterRows; ++r) {
      for (int v = 0; v < kOuterVectors; ++v) sum[r][v] = begin[r][v];
    }
  }
  for (int64_t k = 0; k < terms; ++k, left += kOuterRows, right += kOuterColumns) {
    F32 y[kOuterVectors];
    for (int v = 0; v < kOuterVectors; ++v) y[v] = f32_load(right + v * F32::width);
    for (int r = 0; r < kOuterRows; ++r) {
      const F32 x = f32_set(left[r]);
      for (int v = 0; v < kOuterVectors; ++v) sum[r][v] = f32_fma(x, y[v], sum[r][v]);
    }
  }
  if (by.divides) {
    for (int r = 0; r < kOuterRows; ++r) {
      for (int v = 0; v < kOuterVectors; ++v) {
        sum[r][v] = divided(sum[r][v], by.factor, by.exact, true);
      }
    }
  }
  // Two chains of sums a vector: one would last longer than all the rest. Lanes behind the last
  // column are zero.
  for (int r = 0; r < kOuterRows; ++r) {
    for (int v = 0; v < kOuterVectors; ++v) {
      norm[r % 2][v] = f32_fma(sum[r][v], sum[r][v], norm[r % 2][v]);
    }
  }
  if (tile.rows < kOuterRows || tile.columns < kOuterColumns) {
    OuterSums copy;
    for (int r = 0; r < kOuterRows; ++r) {
      for (int v = 0; v < kOuterVectors; ++v) copy[r][v] = sum[r][v];
    }
    return store_edge<Type>(p, tile, copy);
  }
  for (int32_t o = 0; o < p.outputs; ++o) {
    Value* to = static_cast<Value*>(p.out[o]) + tile.row * p.columns + tile.column;
    for (int r = 0; r < kOuterRows; ++r, to += p.columns) {
      for (int v = 0; v < kOuterVectors; ++v) Type::store(to + v * F32::width, sum[r][v]);
    }
  }
}

template <class Type>
double outer_floats(const BucketOuter& p, int64_t begin, int64_t end) {
  int64_t terms = 0;
  bool products = false;
  for (int32_t s = 0; s < p.sources; ++s) {
    terms += p.source[s].terms;
    products = products || p.source[s].product != nullptr;
  }
  const auto past = reinterpret_cast<uintptr_t>(p.scratch) % 64 / sizeof(float);
  float* left = p.scratch + (past == 0 ? 0 : 16 - past);
  float* right = left + (terms * kOuterRows + 15) / 16 * 16;
  const int64_t room = p.scratch + p.scratch_count - right;
  const int64_t wide = p.columns + kOuterColumns;
  const int64_t block = terms == 0 ? wide : room / terms / kOuterColumns * kOuterColumns;
  const Divisor by(p.divisor);
  double total = 0.0;
  for (int64_t first = 0; first < p.columns; first += block) {
    const int64_t last = p.columns - first < block ? p.columns : first + block;
    pack_right<Type>(p, terms, first, last, right);
    for (int64_t row = begin; row < end; row += kOuterRows) {
      const int rows = end - row < kOuterRows ? static_cast<int>(end - row) : kOuterRows;
      pack_left<Type>(p, row, rows, left);
      F32 norm[2][kOuterVectors];
      for (auto& chain : norm) {
        for (F32& part : chain) part = f32_zero();
      }
      const float* panel = right;
      for (int64_t c = first; c < last; c += kOuterColumns, panel += terms * kOuterColumns) {
        const int columns = last - c < kOuterColumns ? static_cast<int>(last - c) : kOuterColumns;
        outer_tile<Type>(p, {row, c, rows, columns}, products, terms, left, panel, by, norm);
      }
      for (const auto& chain : norm) {
        for (const F32& part : chain) total += static_cast<double>(f32_reduce_add(part));
      }
    }
  }
  return total;
}

double outer(const BucketOuter& p, int64_t begin, int64_t end) {
  return with_float(
      p.type, [&](auto tag) { return outer_floats<Element<decltype(tag)::value>>(p, begin, end); });
}

}  // namespace
