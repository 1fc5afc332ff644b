// The bucket kernels in the emulator, with lists of tensors as arrays of addresses, counts and
// dtypes (BucketType).
#include "cuda/bucket_launch.h"
#include "cuda/bucket_list.h"
#include "simt/entry.h"

using namespace lepton;

namespace {

static_assert(kBucketChunk == kBucketChunkElements, "one chunk");

struct Table {
  BucketList list;
  BucketTable table;
};

// A long list is an array of its own, which the kernels read as a tensor.
Table table_of(const int64_t* addresses, const int64_t* counts, const int64_t* types,
               int64_t tensors, BucketType flat) {
  Table t;
  for (int64_t i = 0; i < tensors; ++i) {
    t.list.add(reinterpret_cast<void*>(addresses[i]), counts[i], static_cast<BucketType>(types[i]),
               kBucketAlignBytes / bytes_of(flat));
  }
  t.table = t.list.table(t.list.entries.data());
  if (!t.list.fits_inline()) {
    simt::global_memory.add(t.list.entries.data(), t.list.entries.size() * sizeof(BucketEntry),
                            false, "the list of tensors");
  }
  return t;
}

}  // namespace

LEPTON_SIMT_ENTRY simt_bucket_copy(const int64_t* addresses, const int64_t* counts,
                                   const int64_t* types, int64_t tensors, void* flat,
                                   int64_t flat_type, double factor, int64_t to_flat) {
  const auto type = static_cast<BucketType>(flat_type);
  const Table t = table_of(addresses, counts, types, tensors, type);
  return simt::run([&] {
    launch_bucket_copy({t.table, flat, static_cast<float>(factor)}, type, to_flat != 0,
                       t.list.chunks, simt::Launcher{});
  });
}

LEPTON_SIMT_ENTRY simt_bucket_unscale(const int64_t* addresses, const int64_t* counts,
                                      const int64_t* types, int64_t tensors, float* found_inf,
                                      const float* inverse) {
  const Table t = table_of(addresses, counts, types, tensors, BucketType::f32);
  return simt::run([&] {
    launch_bucket_unscale({t.table, inverse, found_inf}, t.list.chunks, simt::Launcher{});
  });
}

LEPTON_SIMT_ENTRY simt_bucket_squares(const int64_t* addresses, const int64_t* counts,
                                      const int64_t* types, int64_t tensors, double* partial,
                                      double* out) {
  const Table t = table_of(addresses, counts, types, tensors, BucketType::f32);
  return simt::run(
      [&] { launch_bucket_squares({t.table, partial}, out, t.list.chunks, simt::Launcher{}); });
}

LEPTON_SIMT_ENTRY simt_bucket_sum(const int64_t* addresses, const int64_t* counts,
                                  const int64_t* types, int64_t tensors, void* out,
                                  int64_t out_type, double divisor, double* partial,
                                  double* squares, int64_t vector) {
  const Table t = table_of(addresses, counts, types, tensors, BucketType::f32);
  return simt::run([&] {
    launch_bucket_sum({t.table, out, partial, counts[0], static_cast<float>(divisor), vector != 0},
                      static_cast<BucketType>(types[0]), static_cast<BucketType>(out_type), squares,
                      simt::Launcher{});
  });
}

LEPTON_SIMT_ENTRY simt_bucket_quantize(const void* x, int64_t type, float* residual, int8_t* q,
                                       float* scale, int64_t count, int64_t block, int64_t fp8) {
  return simt::run([&] {
    launch_bucket_quantize(
        {x, static_cast<BucketType>(type), residual, q, scale, count, block, fp8 != 0},
        simt::Launcher{});
  });
}

LEPTON_SIMT_ENTRY simt_bucket_dequantize(const int8_t* q, const float* scale, void* out,
                                         int64_t type, double factor, int64_t accumulate,
                                         int64_t count, int64_t block, int64_t fp8) {
  return simt::run([&] {
    launch_bucket_dequantize({q, scale, out, static_cast<BucketType>(type),
                              static_cast<float>(factor), accumulate != 0, count, block, fp8 != 0},
                             simt::Launcher{});
  });
}
