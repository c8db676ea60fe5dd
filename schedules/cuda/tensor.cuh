// Tensor cores on float16 and bfloat16 factors, and activations that are float16 or float32 in memory.
#pragma once
#include "positions.cuh"

namespace sp {

#ifdef SP_EMULATE

// The two float16 numbers at bits 0 and 16 of both words: the lower two, the upper two. The first becomes the lower.
__device__ __forceinline__ uint32_t lower_halves(uint32_t a, uint32_t b) { return (a & 0xffff) | b << 16; }
__device__ __forceinline__ uint32_t upper_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xffff0000u); }
__device__ __forceinline__ uint32_t to_halves(float low, float high) {
  return float_to_half(low) | uint32_t(float_to_half(high)) << 16;
}
__device__ __forceinline__ void mma_half(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  sp_emu::multiply_half(c, a, b0, b1);
}
__device__ __forceinline__ uint32_t to_bfloats(float low, float high) {
  return sp_emu::float_to_bfloat(low) | uint32_t(sp_emu::float_to_bfloat(high)) << 16;
}
__device__ __forceinline__ void mma_bfloat(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  sp_emu::multiply_bfloat(c, a, b0, b1);
}
__device__ __forceinline__ void read_columns(uint32_t (&b)[4], const void* shared) { sp_emu::read_columns(b, shared); }

#else

__device__ __forceinline__ uint32_t lower_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ uint32_t upper_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }
// Two float32 rounded to float16 side by side.
__device__ __forceinline__ uint32_t to_halves(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
// C[16][8] += A[16][16] B[16][8] by a warp, factors in float16, sums in float32. Lane 4 g + t has, two to a word,
//   a: A[g][2 t], A[g + 8][2 t], A[g][2 t + 8], A[g + 8][2 t + 8] and the columns after these;
//   b0, b1: B[2 t][g], B[2 t + 8][g] and the rows after these;
//   c: C[g][2 t], C[g][2 t + 1], C[g + 8][2 t], C[g + 8][2 t + 1].
__device__ __forceinline__ void mma_half(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
// The same two of bfloat16.
__device__ __forceinline__ uint32_t to_bfloats(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
__device__ __forceinline__ void mma_bfloat(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
// B[16][16] for two products of 16 columns, positions 0 to 7 and 8 to 15. shared: lane k + 16 h points to positions 8 h of row k.
__device__ __forceinline__ void read_columns(uint32_t (&b)[4], const void* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(shared_address(shared))
               : "memory");
}

#endif

// Of four lanes 4 g + t each has words 0 ... 3; afterwards lane t has words t of all four.
__device__ __forceinline__ void transpose4(uint32_t (&words)[4], int t) {
#pragma unroll
  for (int by = 1; by < 4; by *= 2) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i & by) continue;
      const bool upper = t & by;
      const uint32_t other = __shfl_xor_sync(~0u, upper ? words[i] : words[i | by], by);
      if (upper)
        words[i] = other;
      else
        words[i | by] = other;
    }
  }
}

// WORDS (1, 2, 4 or 8) neighbouring words, aligned to as many bytes as that is, 16 at most.
template <int WORDS>
__device__ __forceinline__ void read_words(uint32_t (&to)[WORDS], const void* from) {
  if (WORDS == 1) {
    to[0] = *static_cast<const uint32_t*>(from);
  } else if (WORDS == 2) {
    const uint2 v = *static_cast<const uint2*>(from);
    to[0] = v.x, to[WORDS > 1 ? 1 : 0] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < WORDS / 4; i++) {
      const uint4 v = static_cast<const uint4*>(from)[i];
      to[(4 * i) % WORDS] = v.x, to[(4 * i + 1) % WORDS] = v.y, to[(4 * i + 2) % WORDS] = v.z, to[(4 * i + 3) % WORDS] = v.w;
    }
  }
}

// How activations lie in memory. pair: number j of neighbours of two rows as two float16, the first row's the lower.
template <bool HALF>
struct Element {
  using type = float;
  template <int COUNT>
  static constexpr __device__ int words() { return COUNT; }
  template <int WORDS>
  static __device__ __forceinline__ uint32_t pair(const uint32_t (&a)[WORDS], const uint32_t (&b)[WORDS], int j) {
    return to_halves(__uint_as_float(a[j]), __uint_as_float(b[j]));
  }
  // Residuals: what other kernels wrote.
  static __device__ __forceinline__ float2 load2(const float* from) { return load_written<float2>(from); }
  static __device__ __forceinline__ float4 load4(const float* from) { return load_written<float4>(from); }
  template <int COUNT>
  static __device__ __forceinline__ void store(float* to, const float4 (&v)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) reinterpret_cast<float4*>(to)[i] = v[i];
  }
  static __device__ __forceinline__ void zero_borders(float* plane, int head, int tail, int stop, int lane) {
    sp::zero_borders(plane, head, tail, stop, lane);
  }
};

template <>
struct Element<true> {
  using type = unsigned short;
  template <int COUNT>
  static constexpr __device__ int words() { return COUNT / 2; }
  template <int WORDS>
  static __device__ __forceinline__ uint32_t pair(const uint32_t (&a)[WORDS], const uint32_t (&b)[WORDS], int j) {
    return j % 2 ? upper_halves(a[j / 2], b[j / 2]) : lower_halves(a[j / 2], b[j / 2]);
  }
  static __device__ __forceinline__ float2 load2(const type* from) {
    const ushort2 v = load_written<ushort2>(from);
    return make_float2(half_to_float(v.x), half_to_float(v.y));
  }
  static __device__ __forceinline__ float4 load4(const type* from) {
    const ushort4 v = load_written<ushort4>(from);
    return make_float4(half_to_float(v.x), half_to_float(v.y), half_to_float(v.z), half_to_float(v.w));
  }
  static __device__ __forceinline__ void store(type* to, const float4 (&v)[1]) {
    *reinterpret_cast<uint2*>(to) = make_uint2(to_halves(v[0].x, v[0].y), to_halves(v[0].z, v[0].w));
  }
  static __device__ __forceinline__ void store(type* to, const float4 (&v)[2]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(to_halves(v[0].x, v[0].y), to_halves(v[0].z, v[0].w),
                                               to_halves(v[1].x, v[1].y), to_halves(v[1].z, v[1].w));
  }
  static __device__ __forceinline__ void zero_borders(type* plane, int head, int tail, int stop, int lane) {
    const uint2 zero = make_uint2(0, 0);
    for (int i = 4 * lane; i < head; i += 128) *reinterpret_cast<uint2*>(plane + i) = zero;
    for (int i = tail + 4 * lane; i < stop; i += 128) *reinterpret_cast<uint2*>(plane + i) = zero;
  }
};

}  // namespace sp
