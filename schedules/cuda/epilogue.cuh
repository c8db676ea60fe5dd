// What follows a sum: residual and activation. The bias is where the sum starts, or is added before these.
//   SP_RESIDUAL 0 | 1; SP_ACTIVATION 0 none, 1 relu, 2 clip, 3 gelu, 4 gelu_tanh, 5 sigmoid, 6 silu, 7 hard_swish;
//   SP_LOW, SP_HIGH: the bounds of clip.
#pragma once
#include "device.cuh"

#ifndef SP_RESIDUAL
#define SP_RESIDUAL 0
#endif
#ifndef SP_ACTIVATION
#define SP_ACTIVATION 0
#endif
#ifndef SP_LOW
#define SP_LOW 0.0f
#endif
#ifndef SP_HIGH
#define SP_HIGH 0.0f
#endif

// The residual parameter of a kernel, right after X; what it is in calls.
#if SP_RESIDUAL
#define SP_RESIDUAL_OF(type) const type* __restrict__ residual,
#define SP_RESIDUAL_OR_NULL residual
#else
#define SP_RESIDUAL_OF(type)
#define SP_RESIDUAL_OR_NULL nullptr
#endif
#define SP_RESIDUAL_PARAMETER SP_RESIDUAL_OF(float)

namespace sp {

__device__ __forceinline__ float activate(float x) {
#if SP_ACTIVATION == 0
  return x;
#elif SP_ACTIVATION == 1
  return fmaxf(x, 0.0f);
#elif SP_ACTIVATION == 2
  return fminf(fmaxf(x, static_cast<float>(SP_LOW)), static_cast<float>(SP_HIGH));
#elif SP_ACTIVATION == 3
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
#elif SP_ACTIVATION == 4
  return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
#elif SP_ACTIVATION == 5
  return 1.0f / (1.0f + expf(-x));
#elif SP_ACTIVATION == 6
  return x / (1.0f + expf(-x));
#elif SP_ACTIVATION == 7
  return x * fminf(fmaxf(fmaf(x, 1.0f / 6.0f, 0.5f), 0.0f), 1.0f);
#else
#error "SP_ACTIVATION: unknown activation"
#endif
}

}  // namespace sp
