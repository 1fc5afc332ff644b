// How the work of attention is split: tasks, their queue, packed keys, shares of keys.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "ops/attention_common.h"

namespace lepton {

double score_count(const Attention& p, const AttentionTask& task) {
  const AttentionSequence& s = *task.sequence;
  const auto rows = static_cast<double>(task.row_end - task.row_begin);
  const int64_t shift = p.bottom_right ? s.k_len - s.q_len : 0;
  const auto seen = [&](int64_t row) {
    const int64_t middle = row % std::max<int64_t>(s.q_len, 1) + shift;
    const int64_t lo =
        p.window_left < 0 ? task.k_begin : std::max(task.k_begin, middle - p.window_left);
    const int64_t hi =
        p.window_right < 0 ? task.k_end : std::min(task.k_end, middle + p.window_right + 1);
    return static_cast<double>(std::max<int64_t>(hi - lo, 0));
  };
  const int64_t last = std::max(task.row_end - 1, task.row_begin);
  return rows * (seen(task.row_begin) + seen((task.row_begin + last) / 2) + seen(last)) / 3.0;
}

void run_tasks(std::vector<CostedTask>& tasks, int64_t scratch_bytes,
               const std::function<void(const AttentionTask&)>& f) {
  if (tasks.empty()) return;
  double total = 0;
  bool sorted = true;
  for (size_t i = 0; i < tasks.size(); ++i) {
    total += tasks[i].cost;
    sorted = sorted && (i == 0 || tasks[i - 1].cost >= tasks[i].cost);
  }
  if (!sorted) {
    std::stable_sort(tasks.begin(), tasks.end(),
                     [](const CostedTask& a, const CostedTask& b) { return a.cost > b.cost; });
  }
  // Waking a thread costs as much as some ten thousand multiply-adds.
  constexpr double kWorthAThread = 100e3;
  const auto worth = static_cast<int64_t>(total / kWorthAThread) + 1;
  const int64_t count = static_cast<int64_t>(tasks.size());
  const int64_t threads = std::min({torch::stable::get_num_threads() + int64_t{0}, count, worth});
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    const Scratch scratch(scratch_bytes);
    for (int64_t i = next++, following = 0; i < count; i = following) {
      AttentionTask task = tasks[static_cast<size_t>(i)].task;
      // Taken early, as long as many are left, so that its memory can be asked for.
      const bool early = threads == 1 || i + 4 * threads < count;
      following = early ? next++ : count;
      if (following < count) task.next = &tasks[static_cast<size_t>(following)].task;
      task.scratch = scratch.data();
      f(task);
      if (!early) following = next++;
    }
  };
  if (threads <= 1) return work(0, 1);
  torch::stable::parallel_for(0, threads, 1, work);
}

Packed::Packed(const AttentionCall& call, const AttentionPack& pack,
               const std::function<bool(const AttentionSequence&, int64_t)>& wanted)
    : kv_heads_(call.p.kv_heads) {
  if (pack.bytes == nullptr) return;
  int64_t bytes = 0;
  std::vector<int64_t> offsets;
  for (const AttentionSequence& s : call.sequences) {
    for (int64_t h = 0; h < kv_heads_; ++h) {
      const bool packs = wanted(s, h);
      offsets.push_back(packs ? bytes : -1);
      if (packs) bytes += pack.bytes(call.p, s.k_len);
    }
  }
  if (bytes == 0) return;
  memory_ = new_large_tensor({bytes + 64}, ScalarType::Byte);
  const auto address = reinterpret_cast<uintptr_t>(memory_.mutable_data_ptr());
  auto* base = reinterpret_cast<char*>((address + 63) / 64 * 64);
  std::vector<CostedTask> tasks;
  for (size_t i = 0; i < offsets.size(); ++i) {
    packed_.push_back(offsets[i] < 0 ? nullptr : base + offsets[i]);
    if (offsets[i] < 0) continue;
    AttentionTask task{};
    task.sequence_number = static_cast<int64_t>(i) / kv_heads_;
    task.sequence = &call.sequences[static_cast<size_t>(task.sequence_number)];
    task.kv_head = static_cast<int64_t>(i) % kv_heads_;
    const int64_t step = 8 * pack.keys;
    for (int64_t key = 0; key < task.sequence->k_len; key += step) {
      task.k_begin = key;
      task.k_end = std::min(key + step, task.sequence->k_len);
      // A packed element costs some ten multiply-adds.
      const double width = static_cast<double>(call.p.head_dim + call.p.value_dim);
      tasks.push_back({task, static_cast<double>(task.k_end - key) * width * 10.0});
    }
  }
  run_tasks(tasks, 64, [&](const AttentionTask& task) {
    pack.run(call.p, task, const_cast<void*>(at(task)));
  });
}

const void* Packed::at(const AttentionTask& task) const {
  return packed_.empty()
             ? nullptr
             : packed_[static_cast<size_t>(task.sequence_number * kv_heads_ + task.kv_head)];
}

namespace {

constexpr int64_t kFewestKeys = 512;  // of a share that is worth a task

// Tasks that see a share of their keys each, and the merges of their partial results.
class KeyShares {
 public:
  KeyShares(const AttentionCall& call, const AttentionKernels& kernels)
      : call_(call), kernels_(kernels) {}

  // A place for the results of `parts` shares, `stride` floats each, for the rows of `task`. A
  // single share writes its outputs.
  int64_t reserve(const AttentionTask& task, int64_t parts, int64_t stride) {
    const int64_t at = floats_;
    if (parts > 1) {
      merges_.push_back({task, at, parts, stride});
      floats_ += parts * stride;
    }
    return at;
  }

  // Share `i` of `parts`, whose results go to `at`; the cost is the caller's to fill in.
  CostedTask& add(AttentionTask task, int64_t i, int64_t parts, int64_t at) {
    task.k_begin = task.sequence->k_len * i / parts;
    task.k_end = task.sequence->k_len * (i + 1) / parts;
    partial_at_.push_back(parts > 1 ? at : -1);
    tasks_.push_back({task, 0.0});
    return tasks_.back();
  }

  void run(int64_t scratch_bytes, const std::function<void(const AttentionTask&)>& f) {
    Tensor partial;
    float* base = nullptr;
    if (floats_ > 0) {
      partial = new_tensor({floats_}, ScalarType::Float);
      base = static_cast<float*>(partial.mutable_data_ptr());
      for (size_t i = 0; i < tasks_.size(); ++i) {
        if (partial_at_[i] >= 0) tasks_[i].task.partial = base + partial_at_[i];
      }
    }
    run_tasks(tasks_, scratch_bytes, f);
    if (merges_.empty()) return;
    const Scratch scratch(4 * call_.p.value_dim + 64);
    for (Merge& m : merges_) {
      m.task.scratch = scratch.data();
      kernels_.merge(call_.p, m.task, base + m.at, m.count, m.stride);
    }
  }

 private:
  struct Merge {
    AttentionTask task;
    int64_t at, count, stride;
  };

  const AttentionCall& call_;
  const AttentionKernels& kernels_;
  std::vector<CostedTask> tasks_;
  std::vector<int64_t> partial_at_;  // of each task
  std::vector<Merge> merges_;
  int64_t floats_ = 0;
};

// Key heads that a decoding task takes together. Where their rows lie behind each other, memory is
// read in its own order, as far as a core's cache holds a block of keys of all of them.
int64_t decode_heads(const Attention& p) {
  constexpr int64_t kRunBytes = 2048;
  if (p.k_stride.head != p.head_dim || p.v_stride.head != p.value_dim) return 1;
  const int64_t bytes = p.kv_dtype == DType::f32 ? 4 : p.kv_dtype == DType::i8 ? 1 : 2;
  const int64_t row = std::max<int64_t>(bytes * std::max(p.head_dim, p.value_dim), 1);
  const int64_t most = std::max<int64_t>(kRunBytes / row, 1);
  const int64_t groups = std::max<int64_t>((p.kv_heads + most - 1) / most, 1);
  return (p.kv_heads + groups - 1) / groups;
}

// A few rows against many keys: every task reads its share of the keys once, for all rows.
void run_decode(const AttentionCall& call, const AttentionKernels& kernels) {
  const Attention& p = call.p;
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t heads = std::max<int64_t>(decode_heads(p), 1);
  const int64_t groups = (p.kv_heads + heads - 1) / heads;
  int64_t all_keys = 0;
  for (const AttentionSequence& s : call.sequences) all_keys += s.k_len * groups;
  const int64_t keys_per_task =
      threads == 1 ? std::max<int64_t>(all_keys, 1)
                   : std::max(kFewestKeys, (all_keys + 4 * threads - 1) / (4 * threads));
  KeyShares shares(call, kernels);
  for (size_t b = 0; b < call.sequences.size(); ++b) {
    const AttentionSequence& s = call.sequences[b];
    AttentionTask task{};
    task.sequence = &s;
    task.sequence_number = static_cast<int64_t>(b);
    task.row_end = s.q_len * p.group;
    if (task.row_end == 0) continue;
    const int64_t parts = std::max<int64_t>((s.k_len + keys_per_task - 1) / keys_per_task, 1);
    const int64_t stride = task.row_end * (p.value_dim + 2);
    task.partial_head = parts * stride;
    int64_t first = 0;  // the places of the heads lie behind each other
    for (; task.kv_head < p.kv_heads; ++task.kv_head) {
      const int64_t at = shares.reserve(task, parts, stride);
      if (task.kv_head == 0) first = at;
    }
    for (int64_t i = 0; i < parts; ++i) {
      for (int64_t h = 0; h < p.kv_heads; h += heads) {
        task.kv_head = h;
        task.decode_heads = std::min(heads, p.kv_heads - h);
        const auto scores = static_cast<double>(task.decode_heads * task.row_end * s.k_len);
        const auto width = static_cast<double>(p.head_dim + p.value_dim);
        shares.add(task, i, parts, first + h * task.partial_head + i * stride).cost =
            scores / static_cast<double>(parts) * width;
      }
    }
  }
  shares.run(kernels.decode_scratch(p, heads),
             [&](const AttentionTask& task) { kernels.decode(p, task); });
}

// All rows of a sequence and key head.
AttentionTask whole_task(const AttentionCall& call, size_t sequence, int64_t kv_head) {
  AttentionTask task{};
  task.sequence = &call.sequences[sequence];
  task.sequence_number = static_cast<int64_t>(sequence);
  task.kv_head = kv_head;
  task.row_end = task.sequence->q_len * call.p.group;
  task.k_end = task.sequence->k_len;
  return task;
}

// Whether all rows of a key head are one task, by sequence and head. Such a task packs its keys for
// itself, into memory that the next one finds in the cache, with no page to fault in. The last
// heads, and those that are a large part of the work, are left to several threads.
std::vector<bool> whole_heads(const AttentionCall& call, int64_t threads) {
  const int64_t heads = call.p.kv_heads;
  std::vector<double> cost;
  double total = 0;
  for (size_t b = 0; b < call.sequences.size(); ++b) {
    cost.push_back(score_count(call.p, whole_task(call, b, 0)));
    total += cost.back() * static_cast<double>(heads);
  }
  const int64_t units = static_cast<int64_t>(cost.size()) * heads;
  const int64_t most = threads == 1 ? units : (units / threads - 1) * threads;
  const double share = threads == 1 ? total : 1.001 * total / static_cast<double>(2 * threads);
  std::vector<bool> whole;
  for (int64_t i = 0; i < units; ++i) {
    whole.push_back(i < most && cost[static_cast<size_t>(i / heads)] <= share);
  }
  return whole;
}

}  // namespace

void run_attention(AttentionCall& call) {
  const Attention& p = call.p;
  const AttentionKernels& kernels = choose_attention_kernels(p.dtype, p.kv_dtype);
  bool few = p.dropout_below == 0;
  for (const AttentionSequence& s : call.sequences) {
    few = few && s.q_len * p.group <= kernels.few_rows;
  }
  if (few) return run_decode(call, kernels);
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  // Few tasks take smaller blocks of rows, and then share the keys of one block of rows.
  int64_t rows_per_task = kernels.block_rows;
  const auto blocks = [&](int64_t rows) {
    int64_t count = 0;
    for (const AttentionSequence& s : call.sequences) {
      count += p.kv_heads * ((s.q_len * p.group + rows - 1) / rows);
    }
    return count;
  };
  while (rows_per_task > 2 * kernels.lanes && rows_per_task > 32 &&
         blocks(rows_per_task) < 2 * threads) {
    rows_per_task /= 2;
  }
  const int64_t blocks_wanted = 4 * threads,
                blocks_there = std::max<int64_t>(blocks(rows_per_task), 1);
  const int64_t most_parts = blocks_there >= blocks_wanted || threads == 1
                                 ? 1
                                 : (blocks_wanted + blocks_there - 1) / blocks_there;
  const AttentionPack& pack = kernels.forward_pack;
  std::vector<bool> whole;
  if (pack.bytes && most_parts == 1) whole = whole_heads(call, threads);
  const auto is_whole = [&](int64_t sequence, int64_t head) {
    return !whole.empty() && whole[static_cast<size_t>(sequence * p.kv_heads + head)];
  };
  int64_t whole_keys = 0;
  struct Block {
    AttentionTask task;
    int64_t at, stride;
  };
  KeyShares shares(call, kernels);
  for (size_t b = 0; b < call.sequences.size(); ++b) {
    const AttentionSequence& s = call.sequences[b];
    const int64_t rows = s.q_len * p.group;
    const int64_t parts = std::clamp<int64_t>(s.k_len / kFewestKeys, 1, most_parts);
    std::vector<Block> blocks_of_rows;
    for (int64_t h = 0; h < p.kv_heads; ++h) {
      const bool one = is_whole(static_cast<int64_t>(b), h) && rows > rows_per_task;
      if (one) whole_keys = std::max(whole_keys, s.k_len);
      for (int64_t r = 0; r < rows; r += one ? rows : rows_per_task) {
        AttentionTask task = whole_task(call, b, h);
        task.row_begin = r;
        if (!one) task.row_end = std::min(rows, r + rows_per_task);
        const int64_t stride = (task.row_end - r) * (p.value_dim + 2);
        blocks_of_rows.push_back({task, shares.reserve(task, parts, stride), stride});
      }
    }
    const double width = static_cast<double>(p.head_dim + p.value_dim);
    for (int64_t i = 0; i < parts; ++i) {
      for (const Block& block : blocks_of_rows) {
        CostedTask& share = shares.add(block.task, i, parts, block.at + i * block.stride);
        share.cost = score_count(p, share.task) * width;
      }
    }
  }
  const Packed packed(call, pack, [&](const AttentionSequence& s, int64_t head) {
    return s.q_len * p.group > rows_per_task && !is_whole(&s - call.sequences.data(), head);
  });
  const int64_t scratch = round_up(kernels.forward_scratch(p), 64);
  const int64_t own_packed = whole_keys ? pack.bytes(p, whole_keys) : 0;
  shares.run(scratch + own_packed, [&](const AttentionTask& given) {
    AttentionTask task = given;
    task.packed = packed.at(task);
    if (whole_keys && !task.packed && task.row_end - task.row_begin > rows_per_task) {
      char* own = static_cast<char*>(task.scratch) + scratch;
      pack.run(p, task, own);
      task.packed = own;
    }
    kernels.forward(p, task);
  });
}

}  // namespace lepton
