// float16 becomes float32, or with SP_NARROW float32 becomes float16 (to the nearest): four numbers per thread.
#include "device.cuh"

#if SP_NARROW
using From = float;
using To = unsigned short;
using From4 = float4;
using To4 = ushort4;
#define SP_CAST sp::float_to_half
#define SP_MAKE4 make_ushort4
#else
using From = unsigned short;
using To = float;
using From4 = ushort4;
using To4 = float4;
#define SP_CAST sp::half_to_float
#define SP_MAKE4 make_float4
#endif

extern "C" __global__ void __launch_bounds__(128) cast(const From* __restrict__ x, To* __restrict__ y, int count) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  const int at = (blockIdx.x * 128 + threadIdx.x) * 4;
  if (at + 4 <= count) {
    const From4 v = *reinterpret_cast<const From4*>(x + at);
    *reinterpret_cast<To4*>(y + at) = SP_MAKE4(SP_CAST(v.x), SP_CAST(v.y), SP_CAST(v.z), SP_CAST(v.w));
    return;
  }
  for (int i = at; i < count; i++) y[i] = SP_CAST(x[i]);
}
