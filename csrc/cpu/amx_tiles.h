// The configuration of AMX tiles. Read inside an AMX target region, behind cpu/intrinsics.h.
namespace {

constexpr int kTileRows16 = 16;
constexpr int kTileBytes = 64;  // of a row

// Operand of ldtilecfg.
struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t column_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "ldtilecfg reads 64 bytes");

// Tiles 0-3 (sums) and 4-5 (first operands) of `rows` rows, 6-7 (second operands) of 16, for as
// long as it lives. Other libraries overwrite the configuration, so each call sets its own.
class TileScope {
 public:
  explicit TileScope(int rows) {
    TileConfig config{};
    config.palette = 1;
    for (int t = 0; t < 8; ++t) {
      config.column_bytes[t] = kTileBytes;
      config.rows[t] = static_cast<uint8_t>(t < 6 ? rows : kTileRows16);
    }
    // gcc's intrinsic claims to read 8 bytes: without this the stores above may be dropped.
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// gcc's tile loads don't show what they read: stores to it must come before this.
inline void tiles_read_memory() { __asm__ volatile("" : : : "memory"); }

}  // namespace
