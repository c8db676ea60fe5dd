// CUDA C++ for one core: what a kernel source needs to compile with g++, and the state that the scheduler
// (harness.cpp) keeps for it. Threads are fibers; they switch only where CUDA lets threads wait for each other.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#define SP_VECTOR(name, type, bytes)                                             \
  struct alignas(2 * bytes) name##2 { type x, y; };                              \
  struct alignas(4 * bytes) name##4 { type x, y, z, w; };                        \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }               \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
SP_VECTOR(float, float, 4)
SP_VECTOR(int, int, 4)
SP_VECTOR(uint, unsigned, 4)
SP_VECTOR(ushort, unsigned short, 2)
SP_VECTOR(uchar, unsigned char, 1)

namespace sp_emu {
// The state of the running thread. Set before a fiber resumes.
extern uint3 thread, block;
extern dim3 block_size, grid_size;
extern int cluster_size;

void barrier();                                           // of the block
void barrier(int index, int threads);                     // a named one
void cluster_barrier();
const uint64_t* exchange(unsigned mask, uint64_t value);  // values of all lanes of the warp; waits for the mask's lanes
char* dynamic_shared();                                   // of the thread's block
const void* remote(const void* mine, int rank);           // the same place in the shared memory of another block
void copy_later(void* to, const void* from, int bytes, int zeros);
void commit();
void wait(int groups_left);

// A barrier of bulk copies in shared memory. state: bytes that are still to come * 2 + parity of the phase.
struct alignas(8) Mbarrier {
  uint16_t count, pending;
  int32_t state;
};
void mbarrier_init(Mbarrier* bar, int count);
void mbarrier_arrive(Mbarrier* bar, int bytes);  // `bytes` more are to come
void mbarrier_arrive_copied(Mbarrier* bar);      // once the thread's cp.async are done
void mbarrier_wait(Mbarrier* bar, int parity);
void bulk_copy(void* to, const void* from, int bytes, Mbarrier* bar);
void store_later(void* to, const float* values, int count, Mbarrier* bar);  // st.async
[[noreturn]] void fail(const char* message);
}  // namespace sp_emu

#define threadIdx (::sp_emu::thread)
#define blockIdx (::sp_emu::block)
#define blockDim (::sp_emu::block_size)
#define gridDim (::sp_emu::grid_size)
constexpr int warpSize = 32;

inline void __syncthreads() { sp_emu::barrier(); }
inline void __syncwarp(unsigned mask = ~0u) { sp_emu::exchange(mask, 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace sp_emu {
template <class T>
T lane_value(const uint64_t* values, unsigned mask, int lane) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  if (!(mask >> lane & 1)) fail("shuffle reads a lane outside its mask");
  T value;
  memcpy(&value, values + lane, sizeof(T));
  return value;
}
template <class T>
uint64_t as_bits(T value) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}
inline int lane() { return thread.x % 32; }
}  // namespace sp_emu

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  const uint64_t* values = sp_emu::exchange(mask, sp_emu::as_bits(value));
  return sp_emu::lane_value<T>(values, mask, sp_emu::lane() / width * width + (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32) {
  const uint64_t* values = sp_emu::exchange(mask, sp_emu::as_bits(value));
  int from = sp_emu::lane() ^ with;
  return from / width > sp_emu::lane() / width ? value : sp_emu::lane_value<T>(values, mask, from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int width = 32) {
  const uint64_t* values = sp_emu::exchange(mask, sp_emu::as_bits(value));
  int from = sp_emu::lane() + by;
  return from / width != sp_emu::lane() / width ? value : sp_emu::lane_value<T>(values, mask, from);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by, int width = 32) {
  const uint64_t* values = sp_emu::exchange(mask, sp_emu::as_bits(value));
  int from = sp_emu::lane() % width - by;
  return from < 0 ? value : sp_emu::lane_value<T>(values, mask, sp_emu::lane() - by);
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
  const uint64_t* values = sp_emu::exchange(mask, value);
  unsigned bits = 0;
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1 && values[i]) bits |= 1u << i;
  return bits;
}
inline bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
inline bool __all_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) == mask; }

template <class T>
T __ldg(const T* p) { return *p; }
template <class T>
T __ldcg(const T* p) { return *p; }
template <class T>
T __ldcs(const T* p) { return *p; }
template <class T>
void __stcs(T* p, T value) { *p = value; }
template <class T>
void __stcg(T* p, T value) { *p = value; }
template <class T, class V>
T atomicAdd(T* p, V value) {
  T before = *p;
  *p = before + T(value);
  return before;
}

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class To, class From>
To sp_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
inline unsigned __float_as_uint(float x) { return sp_bits<unsigned>(x); }
inline int __float_as_int(float x) { return sp_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return sp_bits<float>(x); }
inline float __int_as_float(int x) { return sp_bits<float>(x); }
namespace sp_emu {
inline float half_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float x = std::ldexp(float(exponent ? mantissa + 1024 : mantissa), exponent ? exponent - 25 : -24);
  if (exponent == 31) x = mantissa ? NAN : INFINITY;
  return bits >> 15 ? -x : x;
}
inline unsigned short float_to_half(float x) {
  const unsigned sign = std::signbit(x) ? 0x8000 : 0;
  const float a = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (a >= 65520.0f) return sign | 0x7c00;
  if (a < 0x1p-14f) return sign | unsigned(std::nearbyint(std::ldexp(a, 24)));
  const int exponent = std::ilogb(a);
  return sign | unsigned(((exponent + 14) << 10) + int(std::nearbyint(std::ldexp(a, 10 - exponent))));
}
}  // namespace sp_emu
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }

namespace sp_emu {
// The tensor cores' product (see sp::mma_tf32): lanes hand each other what they hold of A and B.
inline void multiply_tf32(float (&c)[4], const float (&a)[4], uint32_t b0, uint32_t b1) {
  const int g = lane() / 4, t = lane() % 4;
  float rows[2][8], columns[2][8];
  const auto take = [](uint64_t pair, float& low, float& high) {
    if (pair & 0x1fff00001fff) fail("mma_tf32: a factor is not rounded to TF32");
    low = __uint_as_float(unsigned(pair)), high = __uint_as_float(unsigned(pair >> 32));
  };
  const auto pack = [](uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; };
  for (int half = 0; half < 2; half++) {
    const uint64_t* all = exchange(~0u, pack(__float_as_uint(a[2 * half]), __float_as_uint(a[2 * half + 1])));
    for (int k = 0; k < 4; k++) take(all[4 * g + k], rows[0][4 * half + k], rows[1][4 * half + k]);
  }
  const uint64_t* all = exchange(~0u, pack(b0, b1));
  for (int n = 0; n < 2; n++)
    for (int k = 0; k < 4; k++) take(all[4 * (2 * t + n) + k], columns[n][k], columns[n][k + 4]);
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 8; k++) c[i] += rows[i / 2][k] * columns[i % 2][k];
}
// The same of factors in 16 bits, which `value` reads (see sp::mma_half, sp::mma_bfloat).
template <class Value>
void multiply_short(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1, Value value) {
  const int g = lane() / 4, t = lane() % 4;
  float rows[2][16], columns[2][16];
  const auto take = [&](uint64_t four, float* at) {
    at[0] = value(four & 0xffff), at[1] = value(four >> 16 & 0xffff);
    at[8] = value(four >> 32 & 0xffff), at[9] = value(four >> 48);
  };
  const auto pack = [](uint32_t low, uint32_t high) { return uint64_t(high) << 32 | low; };
  for (int half = 0; half < 2; half++) {
    const uint64_t* all = exchange(~0u, half ? pack(a.y, a.w) : pack(a.x, a.z));
    for (int k = 0; k < 4; k++) take(all[4 * g + k], rows[half] + 2 * k);
  }
  const uint64_t* all = exchange(~0u, pack(b0, b1));
  for (int n = 0; n < 2; n++)
    for (int k = 0; k < 4; k++) take(all[4 * (2 * t + n) + k], columns[n] + 2 * k);
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 16; k++) c[i] += rows[i / 2][k] * columns[i % 2][k];
}
inline void multiply_half(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  multiply_short(c, a, b0, b1, [](uint64_t bits) { return half_to_float(bits); });
}
inline unsigned short float_to_bfloat(float x) {
  const unsigned bits = __float_as_uint(x);
  return std::isnan(x) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline void multiply_bfloat(float (&c)[4], const uint4& a, uint32_t b0, uint32_t b1) {
  multiply_short(c, a, b0, b1, [](uint64_t bits) { return __uint_as_float(unsigned(bits) << 16); });
}
// A map of a matrix of 2-byte numbers, for copies of boxes 64 columns wide (see sp::copy_box).
struct TensorMap {
  const char* matrix;
  int32_t rows, columns, pitch, box_rows;
};
inline uint32_t shared_address(const void* shared) {
  return uint32_t(static_cast<const char*>(shared) - dynamic_shared());
}
inline void copy_box(void* shared, const TensorMap* map, int n, int k, Mbarrier* bar) {
  static const char zeros[16] = {};
  char* to = static_cast<char*>(shared);
  for (int r = 0; r < map->box_rows; r++)
    for (int c = 0; c < 8; c++) {
      const bool inside = k + r < map->rows && n + 8 * c < map->columns;
      const char* from = inside ? map->matrix + 2 * ((k + r) * long(map->pitch) + n + 8 * c) : zeros;
      const int line = shared_address(shared) / 128 + r;
      bulk_copy(to + 128 * r + 16 * (c ^ line % 8), from, 16, bar);
    }
}
// See sp::wgmma_sparse. a: offset in shared memory; b: the same, and the bytes from box to box above bit 32.
template <int COUNT>
void multiply_sparse(float (&d)[COUNT], uint64_t a, uint64_t b, uint32_t chosen, int half) {
  const uint64_t* words = exchange(~0u, chosen);
  const char* const shared = dynamic_shared();
  const auto value = [&](uint64_t at) { return half_to_float(*reinterpret_cast<const unsigned short*>(shared + at)); };
  if (a % 16 || uint32_t(b) % 1024) fail("wgmma: misaligned operand");
  const int g = lane() / 4, t = lane() % 4;
  for (int r = 0; r < 2; r++) {
    const int row = thread.x % 128 / 32 * 16 + 8 * r + g;
    for (int q = 0; q < 16; q++) {
      const uint32_t word = uint32_t(words[4 * g + 2 * half + q / 8]) >> (16 * r);
      const int k = q / 2 * 4 + (word >> (q % 8 / 2 * 4 + q % 2 * 2) & 3);
      if (q % 2 && k <= q / 2 * 4 + int(word >> (q % 8 / 2 * 4) & 3)) fail("wgmma: kept columns are not ascending");
      const float weight = value(a + q / 8 * 1024 + row * 16 + q % 8 * 2);
      for (int j = 0; j < COUNT / 4; j++)
        for (int e = 0; e < 2; e++) {
          const int n = 8 * j + 2 * t + e;
          d[4 * j + 2 * r + e] += weight * value(uint32_t(b) + n / 64 * (b >> 32) + k * 128 + (n % 64 / 8 ^ k % 8) * 16 + n % 8 * 2);
        }
    }
  }
}
// See sp::wgmma_dense.
template <int COUNT>
void multiply_dense(float (&d)[COUNT], uint64_t a, uint64_t b) {
  exchange(~0u, 0);  // the warp's lanes are here together
  const char* const shared = dynamic_shared();
  const auto value = [&](uint64_t at) { return half_to_float(*reinterpret_cast<const unsigned short*>(shared + at)); };
  if (a % 16 || uint32_t(b) % 1024) fail("wgmma: misaligned operand");
  const int g = lane() / 4, t = lane() % 4;
  for (int r = 0; r < 2; r++) {
    const int row = thread.x % 128 / 32 * 16 + 8 * r + g;
    for (int k = 0; k < 16; k++) {
      const float weight = value(a + k / 8 * 1024 + row * 16 + k % 8 * 2);
      for (int j = 0; j < COUNT / 4; j++)
        for (int e = 0; e < 2; e++) {
          const int n = 8 * j + 2 * t + e;
          d[4 * j + 2 * r + e] += weight * value(uint32_t(b) + n / 64 * (b >> 32) + k * 128 + (n % 64 / 8 ^ k % 8) * 16 + n % 8 * 2);
        }
    }
  }
}
// See sp::read_columns: lane 8 i + r points to row r of matrix i; lane 4 g + t gets of each its rows 2 t, 2 t + 1, column g.
inline void read_columns(uint32_t (&b)[4], const void* shared) {
  if (uintptr_t(shared) % 16) fail("ldmatrix: misaligned address");
  const uint64_t* rows = exchange(~0u, uintptr_t(shared));
  for (int i = 0; i < 4; i++) {
    const auto value = [&](int r) {
      return reinterpret_cast<const unsigned short*>(rows[8 * i + r])[lane() / 4];
    };
    b[i] = value(lane() % 4 * 2) | uint32_t(value(lane() % 4 * 2 + 1)) << 16;
  }
}
}  // namespace sp_emu
