// Product of a weight with at most two non-zeros of every four columns on Hopper's sparse tensor cores: factors in
// float16, sums in float32.
//   SP_TILES (1, 2): tiles of 64 rows of a group of four warps; a block has two groups. SP_TN (64, 128, 256): its positions.
//   SP_STAGES: steps of 64 columns that are in shared memory or on their way. SP_CLUSTER: blocks along x that split K.
//   SP_RESIDENT: blocks of a multiprocessor. SP_Y_HALF: Y is float16.
#include "cluster_sums.cuh"
#include "ring.cuh"

constexpr int kTiles = SP_TILES, kTN = SP_TN, kStages = SP_STAGES, kParts = SP_CLUSTER;
constexpr int kGroups = 2, kTM = 64 * kTiles * kGroups;
// A block alone on its multiprocessor has four warps that copy, of which one works: groups of four can hand on registers.
constexpr bool kMove = SP_RESIDENT == 1;
constexpr int kThreads = 128 * kGroups + (kMove ? 128 : 32);
constexpr int kStep = 64, kWide = kTN / 64, kBox = kStep * 128;  // bytes of 64 rows of 64 positions
constexpr int kX = kWide * kBox;
constexpr int kWeights = 4096 + 512;  // bytes of 64 rows of W: two halves of 32 columns, which of them are kept
constexpr int kW = kGroups * kTiles * kWeights;

using Y = sp::Element<SP_Y_HALF>;
using Ring = sp::Ring<kStages, kX, kW>;
using Parts = sp::ClusterSums<kParts, kTiles, kTN / 2, 128 * kGroups>;
static_assert(Parts::kBytes <= kStages * (kX + kW), "parts of sums lie where the stages were");

// w: by tile of 64 rows and step: two halves [2][64][8] of the kept columns in float16, then 128 words as wgmma_sparse
// wants them.
extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(kThreads, SP_RESIDENT)
    two_four(const unsigned short* __restrict__ x, SP_RESIDUAL_OF(Y::type) const char* __restrict__ w,
             const float* __restrict__ bias, Y::type* __restrict__ y, int rows,
             int steps, int positions, int y_row, int r_row, const __grid_constant__ sp::TensorMap map) {
  (void)x;
  sp::start_next();
  SP_DYNAMIC_SHARED(char, shared);
  const Ring ring(shared);
  const Parts parts(ring.boxes, ring.empty + kStages);
  const int p0 = blockIdx.y * kTN, warp = __shfl_sync(~0u, threadIdx.x / 32, 0), panel = blockIdx.x / kParts;
  const int begin = steps * parts.rank / kParts, end = steps * (parts.rank + 1) / kParts;
  if (threadIdx.x == 0) parts.start();
  ring.start(kGroups);

  if (warp >= 4 * kGroups) {
    if (kMove) sp::fewer_registers<40>();
    if (warp == 4 * kGroups) {
      w += static_cast<size_t>(panel * kGroups * kTiles) * steps * kWeights;
      sp::wait_for_previous();
      Ring::Turn turn{0, 1};
      for (int step = begin; step < end; step++) {
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
    parts.meet();
  } else {
    if (kMove) sp::more_registers<232>();
    const int group = threadIdx.x / 128, mine = threadIdx.x % 128, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row0 = panel * kTM + group * 64 * kTiles;
    sp::wait_for_previous();
    float sums[kTiles][kTN / 2] = {};
    uint32_t chosen[2][kTiles];
    Ring::Turn turn{0, 0}, before = turn;
    for (int first = begin; first < end; first += 2)
#pragma unroll
      for (int d = 0; d < 2; d++) {
        if (first + d >= end) break;
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
        if (first + d > begin && mine == 0) ring.release(before);
        before = turn;
        turn.next();
      }
    sp::wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < kTiles; i++) sp::wgmma_done(sums[i]);

    parts.meet();
    parts.send(sums, threadIdx.x);
    const sp::Output<SP_Y_HALF> out{y, SP_RESIDUAL_OR_NULL, bias, rows, positions, y_row, r_row};
    parts.finish(sums, threadIdx.x, [&](int i, int half, int tile, auto sum) {
      out.store<4>(row0 + 64 * i + mine / 32 * 16 + 8 * half + g, p0 + 8 * tile, t, sum);
    });
  }
}
