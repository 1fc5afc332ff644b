// What the torch side of the int8 family calls: everything is enqueued on `stream` of the current
// device, nothing waits.
#pragma once

#include "cuda/int8_params.h"

namespace lepton {

// Sets call.processors; returns the bytes of scratch memory that the call needs.
int64_t prepare_int8_call(Int8Call& call);
void enqueue_int8_call(const Int8Call& call, uint8_t* scratch, void* stream);
void enqueue_quantize_int8(const PrepareParams& params, void* stream);
void enqueue_pack_int8_weight(const PackParams& params, void* stream);

}  // namespace lepton
