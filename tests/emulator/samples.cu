// Small kernels, right and wrong, that show what the emulator finds.
#include "../../schedules/cuda/epilogue.cuh"

extern "C" __global__ void reverse(const float* x, float* y, int n) {
  __shared__ float tile[64];
  int i = threadIdx.x;
  tile[i] = i < n ? x[i] : 0.0f;
#ifdef SP_BARRIER
  __syncthreads();
#endif
  if (i < n) y[i] = sp::activate(tile[n - 1 - i]);
}

extern "C" __global__ void past_the_end(const float* x, float* y, int n) { y[threadIdx.x] = x[threadIdx.x + n]; }

extern "C" __global__ void diverges(const float* x, float* y, int n) {
  if (int(threadIdx.x) < n) __syncthreads();
  y[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 1);
  if (int(threadIdx.x) < 32) __syncthreads();
}

extern "C" __global__ void copies(const float* x, float* y, int n) {
  SP_DYNAMIC_SHARED(float, tile);
  int i = threadIdx.x * 4;
  sp::copy16_if(tile + i, x + i, i < n);
  sp::copy_commit();
#ifdef SP_WAIT
  sp::copy_wait<0>();
#endif
  for (int j = 0; j < 4; j++) y[i + j] = tile[i + j];
}

extern "C" __global__ void warp_sums(const float* x, float* y, int n) {
  float v = int(threadIdx.x) < n ? x[threadIdx.x] : 0.0f;
  for (int s = 16; s; s /= 2) v += __shfl_xor_sync(~0u, v, s);
  y[threadIdx.x] = v;
}

#ifdef SP_CLUSTER
extern "C" __global__ void cluster_sums(const float* x, float* y, int n) {
  SP_DYNAMIC_SHARED(float, mine);
  for (int j = 0; j < 4; j++) mine[threadIdx.x * 4 + j] = x[(blockIdx.x * n + threadIdx.x) * 4 + j];
  sp::cluster_sync();
  float4 sum = {0, 0, 0, 0};
  for (int r = 0; r < SP_CLUSTER; r++) {
    float4 v = sp::cluster_load4(mine + threadIdx.x * 4, r);
    sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
  }
  sp::cluster_sync();
  reinterpret_cast<float4*>(y)[blockIdx.x * n + threadIdx.x] = sum;
}
#endif
