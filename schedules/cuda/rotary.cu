// Rotary embeddings: in each head of tokens in one tile, feature f turns with feature f + depth / 2. Four tokens per thread.
#include "streams.cuh"

// y[f][t] = x[f][t] * cosines[i][t] + x[partner][t] * sines[i][t], i = f % depth; sines of the first half are negative
// (they come so). Rows of x, y and of both tables are `lanes` long, a multiple of 4.
extern "C" __global__ void __launch_bounds__(128)
    rotary(const float* __restrict__ x, const float* __restrict__ cosines, const float* __restrict__ sines,
           float* __restrict__ y, int count, int depth, int lanes) {
  sp::start_next();
  const int at = (blockIdx.x * 128 + threadIdx.x) * 4;
  const int place = min(at, count - 4), feature = place / lanes, i = feature % depth;
  const int entry = i * lanes + place - feature * lanes;
  const float4 c = sp::early(reinterpret_cast<const float4*>(cosines + entry));
  const float4 s = sp::early(reinterpret_cast<const float4*>(sines + entry));
  x = sp::wait_for_previous(x);
  if (at >= count) return;
  const float4 a = *reinterpret_cast<const float4*>(x + at);
  const float4 b = *reinterpret_cast<const float4*>(x + at + (2 * i < depth ? depth / 2 : -depth / 2) * lanes);
  *reinterpret_cast<float4*>(y + at) = make_float4(fmaf(b.x, s.x, a.x * c.x), fmaf(b.y, s.y, a.y * c.y),
                                                   fmaf(b.z, s.z, a.z * c.z), fmaf(b.w, s.w, a.w * c.w));
}
