// Product of a weight with at most two non-zeros of every four columns on Hopper's sparse tensor cores: factors in
// float16, sums in float32.
//   SP_TILES (1, 2): tiles of 64 rows of a group of four warps; a block has two groups. SP_TN (128, 256): its positions.
//   SP_STAGES: steps of 64 columns that are in shared memory or on their way. SP_Y_HALF: Y is float16.
#include "ring.cuh"
#include "store_rows.cuh"

constexpr int kTiles = SP_TILES, kTN = SP_TN, kStages = SP_STAGES;
constexpr int kGroups = 2, kThreads = 128 * kGroups + 128, kTM = 64 * kTiles * kGroups;
constexpr int kStep = 64, kWide = kTN / 64, kBox = kStep * 128;  // bytes of 64 rows of 64 positions
constexpr int kX = kWide * kBox;
constexpr int kWeights = 4096 + 512;  // bytes of 64 rows of W: two halves of 32 columns, which of them are kept
constexpr int kW = kGroups * kTiles * kWeights;

using Y = sp::Element<SP_Y_HALF>;
using Ring = sp::Ring<kStages, kX, kW>;

// w: by tile of 64 rows and step: two halves [2][64][8] of the kept columns in float16, then 128 words as wgmma_sparse
// wants them.
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    two_four(const unsigned short* __restrict__ x, SP_RESIDUAL_OF(Y::type) const char* __restrict__ w,
             const float* __restrict__ bias, Y::type* __restrict__ y, int rows,
             int steps, int positions, int y_row, int r_row, const __grid_constant__ sp::TensorMap map) {
  (void)x;
  sp::start_next();
  SP_DYNAMIC_SHARED(char, shared);
  const Ring ring(shared);
  const int p0 = blockIdx.y * kTN, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  ring.start(kGroups);

  if (warp >= 4 * kGroups) {
    sp::fewer_registers<40>();
    if (warp == 4 * kGroups) {
      w += static_cast<size_t>(blockIdx.x * kGroups * kTiles) * steps * kWeights;
      sp::wait_for_previous();
      Ring::Turn turn{0, 1};
      for (int step = 0; step < steps; step++) {
        ring.wait_empty(turn);
        if (sp::one_lane()) {
          ring.expect(turn, kX + kW);
          for (int i = 0; i < kGroups * kTiles; i++)
            ring.copy_w(turn, i * kWeights, w + static_cast<size_t>(i * steps + step) * kWeights, kWeights);
          ring.copy_x<kWide, kBox>(turn, 0, &map, p0, kStep * step);
        }
        __syncwarp();
        turn.next();
      }
    }
  } else {
    sp::more_registers<232>();
    const int group = threadIdx.x / 128, mine = threadIdx.x % 128, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row0 = blockIdx.x * kTM + group * 64 * kTiles;
    sp::wait_for_previous();
    float sums[kTiles][kTN / 2] = {};
    uint32_t chosen[2][kTiles];
    Ring::Turn turn{0, 0}, before = turn;
    for (int first = 0; first < steps; first += 2)
#pragma unroll
      for (int d = 0; d < 2; d++) {
        if (first + d >= steps) break;
        ring.wait_full(turn);
        const char* const from = ring.x(turn);
        const char* const rows_from = ring.w(turn) + group * kTiles * kWeights;
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
        if (first + d > 0 && mine == 0) ring.release(before);
        before = turn;
        turn.next();
      }
    sp::wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kTiles; i++) sp::wgmma_done(sums[i]);

    const sp::Output<SP_Y_HALF> out{y, SP_RESIDUAL_OR_NULL, bias, rows, positions, y_row, r_row};
#pragma unroll
    for (int i = 0; i < kTiles; i++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        out.store<kTN / 8>(row0 + 64 * i + mine / 32 * 16 + 8 * half + g, p0, t,
                           [&](int j, int e) { return sums[i][4 * j + 2 * half + e]; });
  }
}
