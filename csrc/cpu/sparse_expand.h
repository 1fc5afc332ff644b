// Spreads packed bytes by a mask. Read inside a target region with VBMI2.
namespace {

// Weights are read once, in streams that end at every strip: the hardware's prefetcher stops at
// pages and starts late. Addresses behind the weight are harmless.
constexpr int64_t kValuesAhead = 1024;
constexpr int64_t kPatternAhead = 512;

inline void prefetch(const void* line) {
  _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0);
}

// The next 64 weights; moves the pointer on. Moving a mask and spreading by it take port 5 for
// three cycles: that, not memory, is the limit from about 80 % of zeros on.
inline __m512i expand_quad(const uint8_t* pattern, const int8_t*& values) {
  uint64_t mask;
  std::memcpy(&mask, pattern, sizeof mask);
  const __m512i next = _mm512_loadu_si512(values);
  values += __builtin_popcountll(mask);
  return _mm512_maskz_expand_epi8(mask, next);
}

}  // namespace
