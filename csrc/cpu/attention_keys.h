// Keys and values as the products read them, and what to ask for ahead of them. Read behind
// attention_panel.h.
namespace {

// Widens `count` rows of keys or values.
inline void load_keys(const Attention& p, const AttentionTask& t, const void* base,
                      const HeadStrides& stride, const float* scale,
                      const HeadStrides& scale_stride, int64_t first, int64_t count, int64_t dim,
                      float* to) {
  with_dtype(p.kv_dtype, [&](auto dtype) {
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = key_offset(p, t, stride, first + j);
      const float factor = scale ? scale[key_offset(p, t, scale_stride, first + j)] : 1.0f;
      widen_row<dtype()>(element(base, dtype(), at), dim, factor, to + j * row_floats(dim), dim);
    }
  });
}

inline void load_keys_and_values(const Attention& p, const AttentionTask& t, int64_t first,
                                 int64_t count, float* keys, float* values) {
  load_keys(p, t, p.k, p.k_stride, p.k_scale, p.k_scale_stride, first, count, p.head_dim, keys);
  load_keys(p, t, p.v, p.v_stride, p.v_scale, p.v_scale_stride, first, count, p.value_dim, values);
}

// Packed: the widened rows of all keys, then those of all values.
inline int64_t packed_bytes(const Attention& p, int64_t k_len) {
  return 4 * k_len * (row_floats(p.head_dim) + row_floats(p.value_dim));
}

inline void pack(const Attention& p, const AttentionTask& t, void* packed) {
  auto* keys = static_cast<float*>(packed);
  float* values = keys + t.sequence->k_len * row_floats(p.head_dim);
  load_keys_and_values(p, t, t.k_begin, t.k_end - t.k_begin,
                       keys + t.k_begin * row_floats(p.head_dim),
                       values + t.k_begin * row_floats(p.value_dim));
}

// The widened rows of one block of keys at a time.
class KeyBlocks {
 public:
  KeyBlocks(const Attention& p, const AttentionTask& t, Arena& arena)
      : key_row(row_floats(p.head_dim)),
        value_row(row_floats(p.value_dim)),
        p_(p),
        t_(t),
        own_keys_(arena.take<float>(t.packed ? 0 : kBlockKeys * key_row)),
        own_values_(arena.take<float>(t.packed ? 0 : kBlockKeys * value_row)) {}

  // Moves to `count` keys from `key` on.
  void load(int64_t key, int64_t count) {
    keys = own_keys_, values = own_values_;
    if (!t_.packed) return load_keys_and_values(p_, t_, key, count, own_keys_, own_values_);
    keys = static_cast<const float*>(t_.packed) + key * key_row;
    values = static_cast<const float*>(t_.packed) + t_.sequence->k_len * key_row + key * value_row;
  }

  // The `next` keys behind this block's `count`, if they are packed.
  void ask_ahead(int64_t count, int64_t next, RowsAhead& ahead) const {
    if (!t_.packed) return;
    ahead.add(keys + count * key_row, next, 4 * p_.head_dim, 4 * key_row);
    ahead.add(values + count * value_row, next, 4 * p_.value_dim, 4 * value_row);
  }

  const float *keys = nullptr, *values = nullptr;
  const int64_t key_row, value_row;  // floats between rows

 private:
  const Attention& p_;
  const AttentionTask& t_;
  float *own_keys_, *own_values_;
};

// `count` query rows from `row` on, as far as they are of one head.
inline void ask_for_rows(const Attention& p, const AttentionTask& t, const void* base,
                         const HeadStrides& stride, int64_t row, int64_t count, int64_t dim,
                         RowsAhead& ahead) {
  const int64_t of_head = t.sequence->q_len - row_query(*t.sequence, row);
  const int64_t bytes = element_bytes(p.dtype);
  ahead.add(element(base, p.dtype, query_offset(p, t, stride, row)),
            of_head < count ? of_head : count, dim * bytes, stride.row * bytes);
}

// The first keys of a task.
inline void ask_for_keys(const Attention& p, const AttentionTask& t, DType dtype, const void* base,
                         const HeadStrides& stride, int64_t dim, RowsAhead& ahead) {
  const int64_t count = t.k_end - t.k_begin < kBlockKeys ? t.k_end - t.k_begin : kBlockKeys;
  const int64_t bytes = element_bytes(dtype);
  if (count <= 0) return;
  ahead.add(element(base, dtype, key_offset(p, t, stride, t.k_begin)), count, dim * bytes,
            stride.row * bytes);
}

// What is wanted behind the last keys of rows [begin, end): the memory of their results, and the
// next rows, at most `most`, of the task, or of the next one with its first keys.
inline void ask_behind(const Attention& p, const AttentionTask& t, int64_t begin, int64_t end,
                       int64_t most, RowsAhead& ahead) {
  const bool backward = p.grad_out != nullptr, last = end >= t.row_end;
  if (backward) {
    ask_for_rows(p, t, p.grad_q, p.grad_q_stride, begin, end - begin, p.head_dim, ahead);
  } else {
    ask_for_rows(p, t, p.out, p.out_stride, begin, end - begin, p.value_dim, ahead);
  }
  if (backward && last) {
    ask_for_keys(p, t, p.dtype, p.grad_k, p.grad_k_stride, p.head_dim, ahead);
    ask_for_keys(p, t, p.dtype, p.grad_v, p.grad_v_stride, p.value_dim, ahead);
  }
  const AttentionTask* next = last ? t.next : &t;
  if (next == nullptr) return;
  const int64_t row = last ? next->row_begin : end;
  const int64_t left = next->row_end - row, count = left < most ? left : most;
  if (count > 0) {
    ask_for_rows(p, *next, p.q, p.q_stride, row, count, p.head_dim, ahead);
    if (backward) {
      ask_for_rows(p, *next, p.grad_out, p.grad_out_stride, row, count, p.value_dim, ahead);
      ask_for_rows(p, *next, p.out, p.out_stride, row, count, p.value_dim, ahead);
    }
  }
  if (p.block_table || (next->sequence == t.sequence && next->kv_head == t.kv_head)) return;
  ask_for_keys(p, *next, p.kv_dtype, p.k, p.k_stride, p.head_dim, ahead);
  ask_for_keys(p, *next, p.kv_dtype, p.v, p.v_stride, p.value_dim, ahead);
}

}  // namespace
