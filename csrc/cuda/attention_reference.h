// Calls an op of the reference, plain torch on the GPU, for what no kernel takes.
#pragma once

#include <array>
#include <string>
#include <tuple>

#include "cuda/on_device.h"

namespace lepton {

template <class... Values, size_t... kIndices>
std::tuple<Values...> values_of(const StableIValue* stack, std::index_sequence<kIndices...>,
                                std::tuple<Values...>*) {
  return {torch::stable::detail::to<Values>(stack[kIndices])...};
}

template <class Tuple, class... Arguments>
Tuple call_reference(const char* op, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  const std::string name = std::string("lepton_reference::") + op;
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher(name.c_str(), "", stack.data(), TORCH_ABI_VERSION));
  return values_of(stack.data(), std::make_index_sequence<std::tuple_size_v<Tuple>>{},
                   static_cast<Tuple*>(nullptr));
}

}  // namespace lepton
