#include "native/bucket_planner.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>

#include "native/bindings.h"

namespace lepton {
namespace {

void check_order(const std::vector<int64_t>& order, size_t count) {
  std::vector<bool> seen(count, false);
  for (int64_t i : order) {
    if (i < 0 || static_cast<size_t>(i) >= count || seen[static_cast<size_t>(i)]) {
      throw std::invalid_argument("plan_buckets: order must name each of " + std::to_string(count) +
                                  " gradients once, got " + std::to_string(i) +
                                  " twice or out of range");
    }
    seen[static_cast<size_t>(i)] = true;
  }
  if (order.size() != count) {
    throw std::invalid_argument("plan_buckets: order must name each of " + std::to_string(count) +
                                " gradients once, got " + std::to_string(order.size()));
  }
}

}  // namespace

std::vector<PlannedBucket> plan_buckets(const std::vector<int64_t>& elements,
                                        const std::vector<int64_t>& element_bytes,
                                        const std::vector<int64_t>& dtypes,
                                        const std::vector<int64_t>& order, int64_t first_bytes,
                                        int64_t cap_bytes, int64_t align_bytes) {
  if (element_bytes.size() != elements.size() || dtypes.size() != elements.size()) {
    throw std::invalid_argument(
        "plan_buckets: elements, element_bytes and dtypes differ in length");
  }
  if (first_bytes <= 0 || cap_bytes <= 0 || align_bytes <= 0) {
    throw std::invalid_argument("plan_buckets: sizes must be positive");
  }
  check_order(order, elements.size());
  std::vector<PlannedBucket> done;
  std::map<int64_t, PlannedBucket> open;
  bool first = true;
  for (int64_t index : order) {
    const auto i = static_cast<size_t>(index);
    const int64_t size = element_bytes[i];
    const int64_t align = std::max<int64_t>(align_bytes / size, 1);
    const int64_t padded = (elements[i] + align - 1) / align * align;
    PlannedBucket& bucket = open.try_emplace(dtypes[i], PlannedBucket{{}, {}, 0}).first->second;
    const int64_t cap = first ? first_bytes : cap_bytes;
    if (!bucket.members.empty() && (bucket.elements + padded) * size > cap) {
      done.push_back(std::move(bucket));
      bucket = PlannedBucket{{}, {}, 0};
      first = false;
    }
    bucket.members.push_back(index);
    bucket.offsets.push_back(bucket.elements);
    bucket.elements += padded;
    if (bucket.elements * size >= (first ? first_bytes : cap_bytes)) {
      done.push_back(std::move(bucket));
      open.erase(dtypes[i]);
      first = false;
    }
  }
  // What stays open fills last; in the order of its last gradient.
  std::vector<PlannedBucket> rest;
  for (auto& [dtype, bucket] : open) {
    if (!bucket.members.empty()) rest.push_back(std::move(bucket));
  }
  std::vector<int64_t> position(elements.size());
  for (size_t at = 0; at < order.size(); ++at) {
    position[static_cast<size_t>(order[at])] = static_cast<int64_t>(at);
  }
  const auto filled_at = [&](const PlannedBucket& bucket) {
    return position[static_cast<size_t>(bucket.members.back())];
  };
  std::sort(rest.begin(), rest.end(), [&](const PlannedBucket& a, const PlannedBucket& b) {
    return filled_at(a) < filled_at(b);
  });
  for (PlannedBucket& bucket : rest) done.push_back(std::move(bucket));
  return done;
}

int64_t tuned_bucket_bytes(double latency, double bandwidth, double overhead) {
  if (!(latency > 0.0) || !(bandwidth > 0.0) || !(overhead > 0.0)) {
    throw std::invalid_argument("tuned_bucket_bytes: arguments must be positive");
  }
  const double bytes = latency * bandwidth / overhead;
  constexpr double kLeast = 256.0 * 1024, kMost = 64.0 * 1024 * 1024;
  return static_cast<int64_t>(std::clamp(bytes, kLeast, kMost));
}

void register_bucket_planner(pybind11::module_& module) {
  namespace py = pybind11;
  module.def(
      "plan_buckets",
      [](const std::vector<int64_t>& elements, const std::vector<int64_t>& element_bytes,
         const std::vector<int64_t>& dtypes, const std::vector<int64_t>& order, int64_t first_bytes,
         int64_t cap_bytes, int64_t align_bytes) {
        std::vector<std::tuple<std::vector<int64_t>, std::vector<int64_t>, int64_t>> plan;
        for (PlannedBucket& bucket : plan_buckets(elements, element_bytes, dtypes, order,
                                                  first_bytes, cap_bytes, align_bytes)) {
          plan.emplace_back(std::move(bucket.members), std::move(bucket.offsets), bucket.elements);
        }
        return plan;
      },
      py::arg("elements"), py::arg("element_bytes"), py::arg("dtypes"), py::arg("order"),
      py::arg("first_bytes"), py::arg("cap_bytes"), py::arg("align_bytes") = 64);
  module.def("tuned_bucket_bytes", &tuned_bucket_bytes, py::arg("latency"), py::arg("bandwidth"),
             py::arg("overhead") = 0.05);
}

}  // namespace lepton
