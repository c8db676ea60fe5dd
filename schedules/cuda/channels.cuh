// Images whose channels come from several images of the same size, plane by plane; four floats per thread.
//   SP_EACH_PART(f): f(0) f(1) ... of all inputs; the text that includes this file defines it.
//   SP_AFFINE 1: a factor and an addend for each channel, then the activation.
#pragma once
#include "positions.cuh"
#include "streams.cuh"

#define SP_PART(i) const float *__restrict__ x##i,
#define SP_CASE(i) \
  case i:          \
    return x##i;

#if SP_AFFINE
#define SP_FACTORS const float *__restrict__ factors, const float *__restrict__ addends,
#else
#define SP_FACTORS
#endif

// The input of that number. Kernels cannot index their parameters without a copy of all of them.
__device__ __forceinline__ const float* part_of(int number, SP_EACH_PART(SP_PART) int) {
  switch (number) {
    SP_EACH_PART(SP_CASE)
    default:
      return nullptr;
  }
}

// sources: for each channel of Y the number of the input, the channel in it, and how many it has.
// Planes are `plane` floats long, pixel (0, 0) at `origin`, rows `pitch` apart; origin and plane are multiples of 4.
extern "C" __global__ void __launch_bounds__(128)
    gather_channels(SP_EACH_PART(SP_PART) const int4* __restrict__ sources, SP_FACTORS float* __restrict__ y, int count,
                    int channels, int plane, int origin, int pitch, int width, int valid) {
  sp::start_next();
  const int at = (blockIdx.x * 128 + threadIdx.x) * 4;
  const int number = min(at, count - 4) / plane, image = number / channels, channel = number - image * channels;
  const int p = at - number * plane;
  const int4 source = sp::early(sources + channel);
#define SP_NAME(i) x##i,
  const float* x = part_of(source.x, SP_EACH_PART(SP_NAME) 0);
#if SP_AFFINE
  const float factor = sp::early(factors + channel), addend = sp::early(addends + channel);
  const unsigned real = p >= origin ? sp::pixels<4>(p - origin, pitch, width, valid) : 0;
#else
  (void)origin, (void)pitch, (void)width, (void)valid;
#endif
  x = sp::wait_for_previous(x);
  if (at >= count) return;
  float4 v = *reinterpret_cast<const float4*>(x + static_cast<size_t>(image * source.z + source.y) * plane + p);
#if SP_AFFINE
  v.x = fmaf(v.x, factor, addend), v.y = fmaf(v.y, factor, addend);
  v.z = fmaf(v.z, factor, addend), v.w = fmaf(v.w, factor, addend);
  v = sp::finish4(v, real);
#endif
  *reinterpret_cast<float4*>(y + at) = v;
}
