// Torch side of int8_mm on the CPU.
#include "ops/int8_common.h"

namespace lepton {
namespace {

Tensor int8_mm(const Tensor& a, const Tensor& b) {
  constexpr const char* kOp = "int8_mm";
  LEPTON_CHECK(a.scalar_type() == ScalarType::Char, kOp, ": a must be int8, got ",
               name_of(a.scalar_type()));
  LEPTON_CHECK(b.scalar_type() == ScalarType::Char, kOp, ": b must be int8, got ",
               name_of(b.scalar_type()));
  LEPTON_CHECK(a.dim() == 2, kOp, ": a must have shape (M, K), got ", tuple(a.sizes()));
  LEPTON_CHECK(b.dim() == 2 && b.size(0) == a.size(1), kOp, ": b must have shape (", a.size(1),
               ", N) to match a, got ", tuple(b.sizes()));

  const Rows rows = as_rows(a);
  const Tensor packed = pack_for_call(b, 1, 0, 0);
  const auto header = PackedHeader::make(b.size(1), b.size(0), 0);
  Tensor out = new_tensor({a.size(0), b.size(1)}, ScalarType::Int);

  Int8Quantize quantize{};
  quantize.x = rows.tensor.const_data_ptr();
  quantize.x_stride = rows.stride;
  quantize.x_dtype = DType::i8;
  quantize.layout = header.layout();

  Int8Linear p{};
  p.m = rows.count;
  p.n = b.size(1);
  p.layout = header.layout();
  const auto* bytes = static_cast<const uint8_t*>(packed.const_data_ptr());
  p.weight_sum = reinterpret_cast<const int32_t*>(bytes + sizeof(PackedHeader));
  p.tiles = reinterpret_cast<const int8_t*>(bytes + header.tiles_offset());
  p.n_padded = header.out_padded;
  p.out = out.mutable_data_ptr();
  p.out_stride = b.size(1);
  p.out_dtype = DType::i32;
  run_int8_linear(choose_int8_kernels(rows.count, p.layout), quantize, p, false);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lepton, CPU, m) { m.impl("int8_mm", TORCH_BOX(&int8_mm)); }

}  // namespace lepton
