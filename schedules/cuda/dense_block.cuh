// What dense kernels share, whatever multiplies: a block copies tiles of W and X to shared memory (cp.async, kStages in
// flight), multiplies them and finishes the sums; the blocks of its cluster and the slices of its warps split K.
//   SP_SLICES: groups of warps that share the K of every tile. SP_STAGES: tiles in flight. SP_CLUSTER: blocks along K.
//   SP_ROWS 1: rows of X lie x_row apart and 16-byte aligned; 0: row k begins at taps[k], anywhere.
// Whoever includes this defines SP_KERNEL (the entry), kBM, kBN, kBK, kStages, kSlices, kThreads, kWanted (blocks of a
// multiprocessor), kRowX (floats from row to row of X in a stage), and for the sums of one thread
//   Sums, an array; clear(sums); multiply(sums, w, x), with w and x at w_at and x_at of a stage;
//   place(warp, lane) -> Place {slice, row, column, w_at, x_at};
//   four(sums, i, quad), i < kRows, quad < kQuads: four neighbours at row + row_of(i), column + column_of(quad).
#pragma once
#include "positions.cuh"

constexpr int kStage = kBK * (kBM + kRowX);  // floats: kBK x kBM of W in any order, [kBK][kRowX] of X
constexpr int kAcross = kBN / 4;             // 16-byte copies of a row of X
constexpr int kColumns = SP_ROWS && kAcross > kThreads ? kAcross / kThreads : 1;  // of them by one thread
constexpr int kResident = kWanted > 1 ? kWanted : 1;

// Element tid, tid + kThreads, ... of COUNT.
#define SP_SHARE(n, e, COUNT)                                                             \
  _Pragma("unroll") for (int n = 0, e = threadIdx.x; n < ((COUNT) + kThreads - 1) / kThreads; n++, e += kThreads) \
    if ((COUNT) % kThreads == 0 || e < (COUNT))

// Copies tile t into a stage. w: its first copy by this thread; x: row 0 at the positions that this thread copies, of
// which those from `left` on do not exist; taps: of the tile.
__device__ __forceinline__ void fetch(float* stage, const float* w, const float* const (&x)[kColumns], const int* taps,
                                      int t, int k, int x_row, int left) {
  SP_SHARE(n, e, kBK * kBM / 4) sp::copy16(stage + 4 * e, w + 4 * n * kThreads);
  stage += kBK * kBM;
#if SP_ROWS
  (void)taps, (void)left;
  // Rows past K meet weights of zero.
  SP_SHARE(n, e, kBK * kAcross)
    sp::copy16(stage + (kRowX == kBN ? 4 * e : e / kAcross * kRowX + e % kAcross * 4),
               x[n % kColumns] + static_cast<size_t>(min(t * kBK + e / kAcross, k - 1)) * x_row);
#else
  (void)t, (void)k, (void)x_row;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int first = 0; first < kBK; first += kThreads / 32) {
    const int row = first + warp;
    if (kBK % (kThreads / 32) != 0 && row >= kBK) break;
    const float* from = x[0] + taps[row];
#pragma unroll
    for (int i = 0; i < kBN; i += 32)
      if (i < left) sp::copy4(stage + row * kRowX + lane + i, from + i);
  }
#endif
}

// rows: of a convolution group, m_tiles: its row tiles, group_step: from its X to the next one's; tiles: of K.
// head, tail, stop: zeros in [0, head) and [tail, stop) of every output plane. Others as in FlatGeometry.
extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(kThreads, kResident)
    SP_KERNEL(const float* __restrict__ x, SP_RESIDUAL_PARAMETER const float* __restrict__ w, const float* __restrict__ bias,
          const int* __restrict__ taps, float* __restrict__ y, int rows, int m_tiles, int group_step, int k, int tiles,
          int positions, int valid, int pitch, int width, int x0, int x_batch, int x_row, int y0, int y_batch, int y_row,
          int r0, int r_batch, int r_row, int head, int tail, int stop) {
  sp::start_next();
  sp::wait_for_previous();
  SP_DYNAMIC_SHARED(float, shared);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int rank = SP_CLUSTER > 1 ? sp::cluster_rank() : 0;
  const int block = blockIdx.x / SP_CLUSTER, group = block / m_tiles, row0 = block % m_tiles * kBM;
  const int p0 = blockIdx.y * kBN;
  const int first = static_cast<int>(static_cast<long long>(tiles) * rank / SP_CLUSTER);
  const int last = static_cast<int>(static_cast<long long>(tiles) * (rank + 1) / SP_CLUSTER);
  w += (static_cast<size_t>(block) * tiles + first) * (kBK * kBM) + 4 * tid;
  x += x0 + static_cast<size_t>(blockIdx.z) * x_batch + static_cast<size_t>(group) * group_step;
  // Positions past the end are never stored; what is multiplied for them does not matter.
  const float* from[kColumns];
#pragma unroll
  for (int n = 0; n < kColumns; n++)
    from[n] = x + (SP_ROWS ? min(p0 + (n * kThreads + tid) % kAcross * 4, positions - 4) : p0 + lane);
  const int left = positions - p0 - lane;
#ifndef SP_EMULATE
  // Else nvcc makes these pointers anew for every copy.
#pragma unroll
  for (int n = 0; n < kColumns; n++) asm volatile("" : "+l"(from[n]));
  asm volatile("" : "+l"(w));
#endif
  int* ring = reinterpret_cast<int*>(shared + kStages * kStage);  // taps of the tiles that are fetched next
  const int* const no_taps = nullptr;

#pragma unroll
  for (int s = 0; s < kStages - 1; s++) {
    const int t = first + s;
    if (t < last) fetch(shared + s * kStage, w, from, SP_ROWS ? no_taps : taps + t * kBK, t, k, x_row, left);
    w += kBK * kBM;
    if (!SP_ROWS && t + kStages - 1 < last && tid < kBK / 4)
      sp::copy16(ring + (s + kStages - 1) % kStages * kBK + 4 * tid, taps + (t + kStages - 1) * kBK + 4 * tid);
    sp::copy_commit();
  }

  const Place my = place(warp, lane);
  Sums sums;
  clear(sums);
  int full = 0, free = kStages - 1;  // the stage that is multiplied, the one that is filled
  for (int t = first; t < last; t++) {
    sp::copy_wait<kStages - 2>();
    __syncthreads();
    const int next = t + kStages - 1;
    if (next < last) fetch(shared + free * kStage, w, from, ring + free * kBK, next, k, x_row, left);
    w += kBK * kBM;
    if (!SP_ROWS && next + kStages - 1 < last && tid < kBK / 4) {
      const int slot = free == 0 ? kStages - 1 : free - 1;
      sp::copy16(ring + slot * kBK + 4 * tid, taps + (next + kStages - 1) * kBK + 4 * tid);
    }
    sp::copy_commit();
    multiply(sums, shared + full * kStage + my.w_at, shared + full * kStage + my.x_at);
    free = full;
    full = full + 1 == kStages ? 0 : full + 1;
  }
  sp::copy_wait<0>();

  // Pointers to results are made here, since the loop has no registers to keep them.
  y += static_cast<size_t>(blockIdx.z) * y_batch + static_cast<size_t>(group * rows + row0) * y_row;
#if SP_RESIDUAL
  residual = sp::written_before(residual) + r0 + static_cast<size_t>(blockIdx.z) * r_batch +
             static_cast<size_t>(group * rows + row0) * r_row;
#else
  (void)r0, (void)r_batch, (void)r_row;
#endif
  bias += group * rows + row0;
  rows = min(rows - row0, kBM);
  // Zeros around the image, shared among the blocks of these rows.
  for (int r = blockIdx.y * SP_CLUSTER + rank + gridDim.y * SP_CLUSTER * warp; r < rows;
       r += gridDim.y * SP_CLUSTER * (kThreads / 32))
    sp::zero_borders(y + static_cast<size_t>(r) * y_row, head, tail, stop, lane);
  y += y0;

#if SP_CLUSTER * SP_SLICES == 1
#pragma unroll
  for (int quad = 0; quad < kQuads; quad++) {
    const int p = p0 + my.column + column_of(quad);
    if (p >= positions) continue;
    const unsigned real = sp::pixels<4>(p, pitch, width, valid);
#pragma unroll
    for (int i = 0; i < kRows; i++) {
      const int r = my.row + row_of(i);
      if (r >= rows) continue;
      const float b = bias[r];
      float4 v = sp::add4(four(sums, i, quad), make_float4(b, b, b, b));
#if SP_RESIDUAL
      v = sp::add4(v, *reinterpret_cast<const float4*>(residual + static_cast<size_t>(r) * r_row + p));
#endif
      *reinterpret_cast<float4*>(y + static_cast<size_t>(r) * y_row + p) = sp::finish4(v, real);
    }
  }
#else
  // Parts of the tile [kSlices][kBM][kBN] meet in shared memory; every block adds its share of them, in fixed order.
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRows; i++)
#pragma unroll
    for (int quad = 0; quad < kQuads; quad++)
      *reinterpret_cast<float4*>(shared + (my.slice * kBM + my.row + row_of(i)) * kBN + my.column + column_of(quad)) =
          four(sums, i, quad);
  if (SP_CLUSTER > 1)
    sp::cluster_sync();
  else
    __syncthreads();
  for (int e = rank * kThreads + tid; e < kBM * kBN / 4; e += SP_CLUSTER * kThreads) {
    const int r = e / (kBN / 4), p = p0 + e % (kBN / 4) * 4;
    if (r >= rows || p >= positions) continue;
    const float b = bias[r];
    float4 v = make_float4(b, b, b, b);
#pragma unroll
    for (int part_of = 0; part_of < SP_CLUSTER; part_of++)
#pragma unroll
      for (int s = 0; s < kSlices; s++) {
        const float* part = shared + s * (kBM * kBN) + 4 * e;
        v = sp::add4(v, SP_CLUSTER > 1 ? sp::cluster_load4(part, part_of) : *reinterpret_cast<const float4*>(part));
      }
#if SP_RESIDUAL
    v = sp::add4(v, *reinterpret_cast<const float4*>(residual + static_cast<size_t>(r) * r_row + p));
#endif
    *reinterpret_cast<float4*>(y + static_cast<size_t>(r) * y_row + p) =
        sp::finish4(v, sp::pixels<4>(p, pitch, width, valid));
  }
  if (SP_CLUSTER > 1) sp::cluster_sync();  // until all have read this block's part
#endif
}
