// Dense product on flat positions: a block computes kBM rows x kBN positions, the blocks of its cluster split K.
//   SP_BM, SP_BN, SP_BK: the tile in shared memory. SP_TM, SP_TN (4 or 8): the tile of a thread, 4 x 8 threads a warp.
//   SP_SLICES: groups of warps that share the K of every tile. SP_STAGES: tiles in flight. SP_CLUSTER: blocks along K.
//   SP_ROWS 1: rows of X lie x_row apart and 16-byte aligned; 0: row k begins at taps[k], anywhere.
#include "positions.cuh"

constexpr int kBM = SP_BM, kBN = SP_BN, kBK = SP_BK, kTM = SP_TM, kTN = SP_TN, kStages = SP_STAGES;
constexpr int kWarpsM = kBM / (4 * kTM), kWarpsN = kBN / (8 * kTN), kSlices = SP_SLICES;
constexpr int kThreads = 32 * kWarpsM * kWarpsN * kSlices;
constexpr int kSliceK = kBK / kSlices;
constexpr int kStage = kBK * (kBM + kBN);       // floats: [kBK][kBM] of W, [kBK][kBN] of X
constexpr int kAcross = kBN / 4;  // 16-byte copies of a row of X
constexpr int kColumns = SP_ROWS && kAcross > kThreads ? kAcross / kThreads : 1;  // of them by one thread
// Blocks that a multiprocessor should hold: what caps the registers of a thread, less where it has many copies to make.
constexpr bool kCopies = kBK * kBN / (SP_ROWS ? 4 : 1) > 4 * kThreads;
constexpr int kWanted = (kTM * kTN == 64 ? (kCopies ? 384 : 512) : kTM * kTN == 32 ? (SP_ROWS ? 640 : 512) : 768) / kThreads;
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
    sp::copy16(stage + 4 * e, x[n % kColumns] + static_cast<size_t>(min(t * kBK + e / kAcross, k - 1)) * x_row);
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
      if (i < left) sp::copy4(stage + row * kBN + lane + i, from + i);
  }
#endif
}

__device__ __forceinline__ void read4(float* to, const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// w: [kBK][kBM] from this thread's first row on, x: [kBK][kBN] from its first position on, of this warp's slice.
__device__ __forceinline__ void multiply(float (&sums)[kTM][kTN], const float* w, const float* x) {
  float a[2][kTM], b[2][kTN];
#pragma unroll
  for (int k = -1; k < kSliceK; k++) {
    // The fragments of column k + 1 are on their way while those of k are multiplied.
    if (k + 1 < kSliceK) {
#pragma unroll
      for (int i = 0; i < kTM; i += 4) read4(a[(k + 1) & 1] + i, w + (k + 1) * kBM + 4 * i);
#pragma unroll
      for (int j = 0; j < kTN; j += 4) read4(b[(k + 1) & 1] + j, x + (k + 1) * kBN + 8 * j);
    }
    if (k >= 0) {
#pragma unroll
      for (int i = 0; i < kTM; i++)
#pragma unroll
        for (int j = 0; j < kTN; j++) sums[i][j] = fmaf(a[k & 1][i], b[k & 1][j], sums[i][j]);
    }
  }
}

// rows: of a convolution group, m_tiles: its row tiles, group_step: from its X to the next one's; tiles: of K.
// head, tail, stop: zeros in [0, head) and [tail, stop) of every output plane. Others as in FlatGeometry.
extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(kThreads, kResident)
    dense(const float* __restrict__ x, SP_RESIDUAL_PARAMETER const float* __restrict__ w, const float* __restrict__ bias,
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

  // Lanes in pairs of rows: a quarter of a warp then reads 2 x 4 different vectors and no bank twice.
  const int lane_m = lane / 16 * 2 + lane % 2, lane_n = lane / 2 % 8;
  const int slice = warp / (kWarpsM * kWarpsN), warp_m = warp % kWarpsM, warp_n = warp / kWarpsM % kWarpsN;
  const int my_row = warp_m * (4 * kTM) + 4 * lane_m, my_column = warp_n * (8 * kTN) + 4 * lane_n;
  const int w_at = slice * kSliceK * kBM + my_row, x_at = kBK * kBM + slice * kSliceK * kBN + my_column;
  float sums[kTM][kTN];
#pragma unroll
  for (int i = 0; i < kTM; i++)
#pragma unroll
    for (int j = 0; j < kTN; j++) sums[i][j] = 0.0f;

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
    multiply(sums, shared + full * kStage + w_at, shared + full * kStage + x_at);
    free = full;
    full = full + 1 == kStages ? 0 : full + 1;
  }
  sp::copy_wait<0>();

  // Pointers to results are made here, since the loop has no registers to keep them.
  y += static_cast<size_t>(blockIdx.z) * y_batch + static_cast<size_t>(group * rows + row0) * y_row;
#if SP_RESIDUAL
  residual += r0 + static_cast<size_t>(blockIdx.z) * r_batch + static_cast<size_t>(group * rows + row0) * r_row;
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
  for (int j = 0; j < kTN; j += 4) {
    const int p = p0 + my_column + 8 * j;
    if (p >= positions) continue;
    const unsigned real = sp::pixels<4>(p, pitch, width, valid);
#pragma unroll
    for (int i = 0; i < kTM; i++) {
      const int r = my_row + i / 4 * 16 + i % 4;
      if (r >= rows) continue;
      const float b = bias[r];
      float4 v = make_float4(sums[i][j] + b, sums[i][j + 1] + b, sums[i][j + 2] + b, sums[i][j + 3] + b);
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
  for (int i = 0; i < kTM; i++)
#pragma unroll
    for (int j = 0; j < kTN; j += 4)
      *reinterpret_cast<float4*>(shared + (slice * kBM + my_row + i / 4 * 16 + i % 4) * kBN + my_column + 8 * j) =
          make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
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
