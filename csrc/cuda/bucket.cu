#include "cuda/bucket_cuda.h"
#include "cuda/bucket_launch.h"
#include "cuda/launcher.cuh"

namespace lepton {

void bucket_copy_cuda(const BucketCopy& p, BucketType flat, bool to_flat, int64_t chunks,
                      void* stream) {
  launch_bucket_copy(p, flat, to_flat, chunks, CudaLauncher(stream));
}
void bucket_unscale_cuda(const BucketUnscale& p, int64_t chunks, void* stream) {
  launch_bucket_unscale(p, chunks, CudaLauncher(stream));
}
void bucket_squares_cuda(const BucketSquares& p, double* out, int64_t chunks, void* stream) {
  launch_bucket_squares(p, out, chunks, CudaLauncher(stream));
}
void bucket_sum_cuda(const BucketSum& p, BucketType in, BucketType out, double* squares,
                     void* stream) {
  launch_bucket_sum(p, in, out, squares, CudaLauncher(stream));
}
void bucket_quantize_cuda(const BucketQuantize& p, void* stream) {
  launch_bucket_quantize(p, CudaLauncher(stream));
}
void bucket_dequantize_cuda(const BucketDequantize& p, void* stream) {
  launch_bucket_dequantize(p, CudaLauncher(stream));
}

}  // namespace lepton
