#include "simt/report.h"

#include <cstring>

namespace lepton::simt {

Report report;

std::string Place::text() const {
  const char* slash = std::strrchr(file, '/');
  return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
}

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::race: return "race";
    case Kind::missing_wait: return "missing_wait";
    case Kind::uninitialised: return "uninitialised";
    case Kind::out_of_bounds: return "out_of_bounds";
    case Kind::misaligned: return "misaligned";
    case Kind::read_only: return "read_only";
    case Kind::divergence: return "divergence";
    case Kind::deadlock: return "deadlock";
    case Kind::invalid_metadata: return "invalid_metadata";
  }
  return "?";
}

namespace {

bool stops(Kind kind) {
  return kind != Kind::race && kind != Kind::missing_wait && kind != Kind::uninitialised;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string triple(const uint32_t (&v)[3]) {
  return "[" + std::to_string(v[0]) + "," + std::to_string(v[1]) + "," + std::to_string(v[2]) + "]";
}

}  // namespace

void Report::clear() { *this = Report(); }

void Report::finding(Kind kind, const Place& place, const std::string& message) {
  ++count_;
  const auto key = std::make_tuple(kind, place.file, place.line);
  const auto found = index_.find(key);
  if (found != index_.end()) {
    ++entries_[found->second].count;
  } else {
    index_[key] = entries_.size();
    entries_.push_back(
        {kind, place.text(), launches_.empty() ? "" : launches_.back().kernel, message, 1});
  }
  if (stops(kind)) throw Stop{};
}

std::string Report::json() const {
  std::string out = "{\"findings\":[";
  for (const Entry& entry : entries_) {
    if (&entry != &entries_.front()) out += ",";
    out += "{\"kind\":" + quoted(name_of(entry.kind)) + ",\"place\":" + quoted(entry.place) +
           ",\"kernel\":" + quoted(entry.kernel) + ",\"message\":" + quoted(entry.message) +
           ",\"count\":" + std::to_string(entry.count) + "}";
  }
  out += "],\"launches\":[";
  for (const LaunchRecord& launch : launches_) {
    const Traffic& t = launch.traffic;
    if (&launch != &launches_.front()) out += ",";
    out += "{\"kernel\":" + quoted(launch.kernel) + ",\"grid\":" + triple(launch.grid) +
           ",\"block\":" + triple(launch.block) +
           ",\"shared_bytes\":" + std::to_string(launch.shared_bytes) +
           ",\"shared_accesses\":" + std::to_string(t.shared_accesses) +
           ",\"shared_wavefronts\":" + std::to_string(t.shared_wavefronts) +
           ",\"shared_conflicts\":" + std::to_string(t.shared_conflicts) +
           ",\"global_accesses\":" + std::to_string(t.global_accesses) +
           ",\"global_sectors\":" + std::to_string(t.global_sectors) +
           ",\"global_sectors_ideal\":" + std::to_string(t.global_sectors_ideal) +
           ",\"unmatched\":" + std::to_string(t.unmatched) + ",\"conflicts\":{";
    bool first = true;
    for (const auto& [place, count] : launch.conflicts) {
      out += (first ? "" : ",") + quoted(place) + ":" + std::to_string(count);
      first = false;
    }
    out += "}}";
  }
  return out + "]}";
}

}  // namespace lepton::simt
