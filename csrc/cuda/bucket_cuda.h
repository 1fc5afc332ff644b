// The bucket kernels as plain functions: bucket.cu launches, bucket.cpp calls.
#pragma once

#include "params/bucket_device.h"

namespace lepton {

void bucket_copy_cuda(const BucketCopy& p, BucketType flat, bool to_flat, int64_t chunks,
                      void* stream);
void bucket_unscale_cuda(const BucketUnscale& p, int64_t chunks, void* stream);
void bucket_squares_cuda(const BucketSquares& p, double* out, int64_t chunks, void* stream);
void bucket_sum_cuda(const BucketSum& p, BucketType in, BucketType out, double* squares,
                     void* stream);
void bucket_quantize_cuda(const BucketQuantize& p, void* stream);
void bucket_dequantize_cuda(const BucketDequantize& p, void* stream);

}  // namespace lepton
