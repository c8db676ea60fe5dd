// Product of a weight with at most two non-zeros of every four columns on Hopper's sparse tensor cores: factors in
// float16, sums in float32.
//   SP_TILES (1, 2): tiles of 64 rows of a group of four warps; a block has two groups. SP_TN (128, 256): its positions.
//   SP_STAGES: steps of 64 columns that are in shared memory or on their way. SP_Y_HALF: Y is float16.
#include "store_rows.cuh"
#include "streams.cuh"
#include "wgmma.cuh"

constexpr int kTiles = SP_TILES, kTN = SP_TN, kStages = SP_STAGES;
constexpr int kGroups = 2, kThreads = 128 * kGroups + 128, kTM = 64 * kTiles * kGroups;
constexpr int kStep = 64, kWide = kTN / 64, kBox = kStep * 128;  // bytes of 64 rows of 64 positions
constexpr int kStage = kWide * kBox;

using Y = sp::Element<SP_Y_HALF>;

constexpr int kWeights = 4096 + 512;  // bytes of 64 rows of W: two halves of 32 columns, which of them are kept
constexpr int kRows = kGroups * kTiles * kWeights;

// w: by tile of 64 rows and step: two halves [2][64][8] of the kept columns in float16, then 128 words as wgmma_sparse
// wants them.
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    two_four(const unsigned short* __restrict__ x, SP_RESIDUAL_OF(Y::type) const char* __restrict__ w,
             const float* __restrict__ bias, Y::type* __restrict__ y, int rows,
             int steps, int positions, int y_row, int r_row, const __grid_constant__ sp::TensorMap map) {
  (void)x;
  sp::start_next();
  SP_DYNAMIC_SHARED(char, raw);
  char* const stages = raw + (1024 - sp::shared_address(raw) % 1024) % 1024;
  char* const weights = stages + kStages * kStage;
  sp::Mbarrier* const full = reinterpret_cast<sp::Mbarrier*>(weights + kStages * kRows);
  sp::Mbarrier* const empty = full + kStages;
  const int p0 = blockIdx.y * kTN, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      sp::barrier_init(full + s, 1);
      sp::barrier_init(empty + s, kGroups);
    }
    sp::barriers_ready();
  }
  __syncthreads();

  if (warp >= 4 * kGroups) {
    sp::fewer_registers<40>();
    if (warp == 4 * kGroups) {
      w += static_cast<size_t>(blockIdx.x * kGroups * kTiles) * steps * kWeights;
      sp::wait_for_previous();
      int stage = 0, parity = 1;
      for (int step = 0; step < steps; step++) {
        sp::barrier_wait(empty + stage, parity);
        if (sp::one_lane()) {
          sp::barrier_expect(full + stage, kStage + kRows);
          for (int i = 0; i < kGroups * kTiles; i++)
            sp::bulk_copy(weights + stage * kRows + i * kWeights, w + static_cast<size_t>(i * steps + step) * kWeights,
                          kWeights, full + stage);
          for (int column = 0; column < kWide; column++)
            sp::copy_box(stages + stage * kStage + column * kBox, &map, p0 + 64 * column, kStep * step, full + stage);
        }
        __syncwarp();
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
    }
  } else {
    sp::more_registers<232>();
    const int group = threadIdx.x / 128, mine = threadIdx.x % 128, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row0 = blockIdx.x * kTM + group * 64 * kTiles;
    sp::wait_for_previous();
    float sums[kTiles][kTN / 2] = {};
    uint32_t chosen[2][kTiles];
    int stage = 0, parity = 0, before = 0;
    for (int first = 0; first < steps; first += 2)
#pragma unroll
      for (int d = 0; d < 2; d++) {
        if (first + d >= steps) break;
        sp::barrier_wait(full + stage, parity);
        const char* const from = stages + stage * kStage;
        const char* const rows_from = weights + stage * kRows + group * kTiles * kWeights;
#pragma unroll
        for (int i = 0; i < kTiles; i++)
          chosen[d][i] = reinterpret_cast<const uint32_t*>(rows_from + i * kWeights + 4096)[mine];
        sp::wgmma_begin();
#pragma unroll
        for (int i = 0; i < kTiles; i++)
          sp::wgmma_sparse<0>(sums[i], sp::wgmma_weight(rows_from + i * kWeights), sp::wgmma_boxes(from, kBox), chosen[d][i]);
#pragma unroll
        for (int i = 0; i < kTiles; i++)
          sp::wgmma_sparse<1>(sums[i], sp::wgmma_weight(rows_from + i * kWeights + 2048),
                              sp::wgmma_boxes(from + 32 * 128, kBox), chosen[d][i]);
        sp::wgmma_commit();
        sp::wgmma_wait<1>();  // the step before has been multiplied: its stage is free
        if (first + d > 0 && mine == 0) sp::barrier_arrive(empty + before);
        before = stage;
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
    sp::wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kTiles; i++) sp::wgmma_done(sums[i]);

#pragma unroll
    for (int i = 0; i < kTiles; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = row0 + 64 * i + mine / 32 * 16 + 8 * half + g;
        const bool real = row < rows;
#if SP_RESIDUAL
        const Y::type* const also = residual + static_cast<size_t>(row) * r_row + p0;
#else
        const Y::type* const also = nullptr;
        (void)r_row;
#endif
        sp::store_row<SP_Y_HALF, kTN / 8>(y + static_cast<size_t>(row) * y_row + p0, also, real ? bias[row] : 0.0f,
                                          real ? positions - p0 : 0, t,
                                          [&](int j, int e) { return sums[i][4 * j + 2 * half + e]; });
      }
  }
}
