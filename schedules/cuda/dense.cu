// Dense product on flat positions: a block computes kBM rows x kBN positions, the blocks of its cluster split K.
//   SP_BM, SP_BN, SP_BK: the tile in shared memory. SP_TM, SP_TN (4 or 8): the tile of a thread, 4 x 8 threads a warp.
//   Other macros: dense_block.cuh, which has all but the products.
#include "positions.cuh"

constexpr int kBM = SP_BM, kBN = SP_BN, kBK = SP_BK, kTM = SP_TM, kTN = SP_TN, kStages = SP_STAGES;
constexpr int kWarpsM = kBM / (4 * kTM), kWarpsN = kBN / (8 * kTN), kSlices = SP_SLICES;
constexpr int kThreads = 32 * kWarpsM * kWarpsN * kSlices;
constexpr int kSliceK = kBK / kSlices;
constexpr int kRowX = kBN;
// Blocks that a multiprocessor should hold: what caps the registers of a thread, less where it has many copies to make.
constexpr bool kCopies = kBK * kBN / (SP_ROWS ? 4 : 1) > 4 * kThreads;
constexpr int kWanted = (kTM * kTN == 64 ? (kCopies ? 384 : 512) : kTM * kTN == 32 ? (SP_ROWS ? 640 : 512) : 768) / kThreads;

// W of a stage is [kBK][kBM].
constexpr int kRows = kTM, kQuads = kTN / 4;
using Sums = float[kTM][kTN];

struct Place {
  int slice, row, column, w_at, x_at;
};

// Lanes in pairs of rows: a quarter of a warp then reads 2 x 4 different vectors and no bank twice.
__device__ __forceinline__ Place place(int warp, int lane) {
  const int lane_m = lane / 16 * 2 + lane % 2, lane_n = lane / 2 % 8;
  const int slice = warp / (kWarpsM * kWarpsN), warp_m = warp % kWarpsM, warp_n = warp / kWarpsM % kWarpsN;
  const int row = warp_m * (4 * kTM) + 4 * lane_m, column = warp_n * (8 * kTN) + 4 * lane_n;
  return {slice, row, column, slice * kSliceK * kBM + row, kBK * kBM + slice * kSliceK * kBN + column};
}

__device__ __forceinline__ constexpr int row_of(int i) { return i / 4 * 16 + i % 4; }
__device__ __forceinline__ constexpr int column_of(int quad) { return 32 * quad; }
__device__ __forceinline__ float4 four(const Sums& sums, int i, int quad) {
  return make_float4(sums[i][4 * quad], sums[i][4 * quad + 1], sums[i][4 * quad + 2], sums[i][4 * quad + 3]);
}

__device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
  for (int i = 0; i < kTM; i++)
#pragma unroll
    for (int j = 0; j < kTN; j++) sums[i][j] = 0.0f;
}

__device__ __forceinline__ void multiply(Sums& sums, const float* w, const float* x) {
  float a[2][kTM], b[2][kTN];
#pragma unroll
  for (int k = -1; k < kSliceK; k++) {
    // The fragments of column k + 1 are on their way while those of k are multiplied.
    if (k + 1 < kSliceK) {
#pragma unroll
      for (int i = 0; i < kTM; i += 4) sp::read4(a[(k + 1) & 1] + i, w + (k + 1) * kBM + 4 * i);
#pragma unroll
      for (int j = 0; j < kTN; j += 4) sp::read4(b[(k + 1) & 1] + j, x + (k + 1) * kBN + 8 * j);
    }
    if (k >= 0) {
#pragma unroll
      for (int i = 0; i < kTM; i++)
#pragma unroll
        for (int j = 0; j < kTN; j++) sums[i][j] = fmaf(a[k & 1][i], b[k & 1][j], sums[i][j]);
    }
  }
}

#define SP_KERNEL dense
#include "dense_block.cuh"
