// Memory that is wanted soon, asked for row by row between tiles of products: read in one go, it
// would cost its latency. Read behind simd_*.h.
namespace {

class RowsAhead {
 public:
  void clear() { count_ = area_ = 0, all_ = 0; }

  // `rows` rows of `bytes`, `stride` bytes apart.
  void add(const void* first, int64_t rows, int64_t bytes, int64_t stride) {
    if (rows <= 0 || bytes <= 0) return;
    areas_[count_++] = {static_cast<const char*>(first), rows, bytes, stride};
    all_ += rows;
  }

  // All of it in so many calls of `step`.
  void spread(int64_t steps) { share_ = (all_ + steps - 1) / steps; }

  void step() {
    for (int64_t i = 0; i < share_ && area_ < count_; ++i) {
      Area& a = areas_[area_];
      for (int64_t at = 0; at < a.bytes; at += 64) __builtin_prefetch(a.row + at, 0, 2);
      a.row += a.stride;
      if (--a.rows == 0) ++area_;
    }
  }

 private:
  struct Area {
    const char* row;
    int64_t rows, bytes, stride;
  };
  Area areas_[8];
  int count_ = 0, area_ = 0;
  int64_t all_ = 0, share_ = 0;
};

}  // namespace
