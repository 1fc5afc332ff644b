// What the torch side of sparse_linear calls: everything is enqueued on `stream` of the current
// device, nothing waits.
#pragma once

#include "cuda/sparse_params.h"

namespace lepton {

// Sets call.processors; returns the bytes of scratch memory that the call needs.
int64_t prepare_sparse_call(SparseCall& call);
void enqueue_sparse_call(const SparseCall& call, uint8_t* scratch, void* stream);

}  // namespace lepton
