// Dense product on flat positions on tensor cores: factors rounded to TF32 (W by the host), sums in float32.
//   SP_BM, SP_BN, SP_BK: the tile in shared memory. SP_TM (16, 32, 64), SP_TN (32, 64): the tile of a warp.
//   Other macros: dense_block.cuh, which has all but the products.
// An instruction multiplies 16 rows x 8 columns by 8 columns x 8 positions. Its positions n are 4 n + j of 32 neighbours,
// j the number of one of four instructions: a thread then reads the factors of all four, and stores four sums, at once.
#include "positions.cuh"

constexpr int kBM = SP_BM, kBN = SP_BN, kBK = SP_BK, kTM = SP_TM, kTN = SP_TN, kStages = SP_STAGES;
constexpr int kWarpsM = kBM / kTM, kWarpsN = kBN / kTN, kSlices = SP_SLICES;
constexpr int kThreads = 32 * kWarpsM * kWarpsN * kSlices;
constexpr int kSteps = kBK / kSlices / 8;
// Lanes t of a quarter of a warp read from rows t: those begin in other banks.
constexpr int kRowX = kBN + 8;
// By the size of a warp's tile, what its sums and fragments need.
constexpr int kSumsOfWarp = kTM * kTN;
constexpr int kWanted =
    (kSumsOfWarp == 4096 ? 256 : kSumsOfWarp == 2048 ? 512 : kSumsOfWarp == 1024 ? 640 : 1024) / kThreads;

// W of a stage is [kBK / 8][kBM / 16][32 lanes][4], as the instruction wants it.
constexpr int kRows = kTM / 8, kQuads = kTN / 16;
using Sums = float[kTM / 16][kTN / 8][4];

struct Place {
  int slice, row, column, w_at, x_at;
};

__device__ __forceinline__ Place place(int warp, int lane) {
  const int slice = warp / (kWarpsM * kWarpsN), row = warp % kWarpsM * kTM, column = warp / kWarpsM % kWarpsN * kTN;
  return {slice, row + lane / 4, column + lane % 4 * 8, (slice * kSteps * kBM + row) * 8 + 4 * lane,
          kBK * kBM + (slice * kSteps * 8 + lane % 4) * kRowX + column + lane / 4 * 4};
}

__device__ __forceinline__ constexpr int row_of(int i) { return 8 * i; }
__device__ __forceinline__ constexpr int column_of(int quad) { return quad / 2 * 32 + quad % 2 * 4; }
__device__ __forceinline__ float4 four(const Sums& sums, int i, int quad) {
  const int j = quad / 2 * 4, part = i % 2 * 2 + quad % 2;
  return make_float4(sums[i / 2][j][part], sums[i / 2][j + 1][part], sums[i / 2][j + 2][part], sums[i / 2][j + 3][part]);
}

__device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
  for (int i = 0; i < kTM / 16; i++)
#pragma unroll
    for (int j = 0; j < kTN / 8; j++)
#pragma unroll
      for (int part = 0; part < 4; part++) sums[i][j][part] = 0.0f;
}

__device__ __forceinline__ void multiply(Sums& sums, const float* w, const float* x) {
  float a[2][kTM / 16][4], b[2][2][kTN / 8];
#pragma unroll
  for (int step = -1; step < kSteps; step++) {
    const int next = step + 1, now = step & 1;
    // The fragments of the next step are on their way while those of this one are multiplied.
    if (next < kSteps) {
#pragma unroll
      for (int i = 0; i < kTM / 16; i++) sp::read4(a[next & 1][i], w + (next * kBM + 16 * i) * 8);
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < kTN / 8; j += 4) sp::read4(b[next & 1][half] + j, x + (next * 8 + half * 4) * kRowX + 8 * j);
    }
    if (step >= 0) {
#pragma unroll
      for (int j = 0; j < kTN / 8; j++) {
        const uint32_t low = sp::to_tf32(b[now][0][j]), high = sp::to_tf32(b[now][1][j]);
#pragma unroll
        for (int i = 0; i < kTM / 16; i++) sp::mma_tf32(sums[i][j], a[now][i], low, high);
      }
    }
  }
}

#define SP_KERNEL dense_tf32
#include "dense_block.cuh"
