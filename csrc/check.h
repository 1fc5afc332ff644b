// Argument checks on the torch side: `op: argument must be what was expected, got what came`.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace lepton {

template <class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Shape or strides as Python prints a tuple.
template <class Sizes>
std::string tuple(const Sizes& sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << (sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

}  // namespace lepton

// The message is built only where the check fails.
#define LEPTON_CHECK(condition, ...)                                  \
  do {                                                                \
    if (__builtin_expect(!(condition), 0)) lepton::fail(__VA_ARGS__); \
  } while (false)
