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

// The sums of a thread. W of a stage is [kBK][kBM].
struct Sums {
  static constexpr int kRows = kTM, kQuads = kTN / 4;
  const int slice, first_row, first_column;
  float sums[kTM][kTN];

  // Lanes in pairs of rows: a quarter of a warp then reads 2 x 4 different vectors and no bank twice.
  __device__ __forceinline__ Sums(int warp, int lane)
      : slice(warp / (kWarpsM * kWarpsN)),
        first_row(warp % kWarpsM * (4 * kTM) + 4 * (lane / 16 * 2 + lane % 2)),
        first_column(warp / kWarpsM % kWarpsN * (8 * kTN) + 4 * (lane / 2 % 8)) {
#pragma unroll
    for (int i = 0; i < kTM; i++)
#pragma unroll
      for (int j = 0; j < kTN; j++) sums[i][j] = 0.0f;
  }

  __device__ __forceinline__ int row(int i) const { return first_row + i / 4 * 16 + i % 4; }
  __device__ __forceinline__ int column(int quad) const { return first_column + 32 * quad; }
  __device__ __forceinline__ float4 at(int i, int quad) const {
    const float* s = sums[i] + 4 * quad;
    return make_float4(s[0], s[1], s[2], s[3]);
  }

  __device__ __forceinline__ void multiply(const float* stage) {
    const float* w = stage + slice * kSliceK * kBM + first_row;
    const float* x = stage + kBK * kBM + slice * kSliceK * kBN + first_column;
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
};

#define SP_KERNEL dense
#include "dense_block.cuh"
