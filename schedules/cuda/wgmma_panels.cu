// Product of a weight whose rows share columns in panels of 64 or 128 rows (all columns, or blocks) on Hopper's tensor
// cores: factors in float16, sums in float32.
//   SP_ROWS (1, 2): tiles of 64 rows of a panel. SP_TN (64 to 512): positions of a block; its two groups of four warps have
//   a tile each, or half of the positions each. SP_STEP (32, 64): columns of a step. SP_STAGES: steps that are in shared
//   memory or on their way. SP_CLUSTER: blocks along x that split the steps of a panel. SP_RESIDENT: blocks of a
//   multiprocessor. SP_Y_HALF: Y and the residual are float16; X is.
#include "cluster_sums.cuh"
#include "ring.cuh"
#include "streams.cuh"

constexpr int kRows = SP_ROWS, kTN = SP_TN, kStep = SP_STEP, kStages = SP_STAGES, kParts = SP_CLUSTER;
constexpr int kGroups = 2, kMine = kTN * kRows / kGroups;  // positions of a group
// A block alone on its multiprocessor has four warps that copy, of which one works: groups of four can hand on registers.
constexpr bool kMove = SP_RESIDENT == 1;
constexpr int kThreads = 128 * kGroups + (kMove ? 128 : 32);
constexpr int kBox = kStep * 128, kX = kTN / 64 * kBox, kTile = 64 * kStep * 2, kW = kRows * kTile;  // bytes

using Y = sp::Element<SP_Y_HALF>;
using Ring = sp::Ring<kStages, kX, kW>;
using Parts = sp::ClusterSums<kParts, 1, kMine / 2, 128 * kGroups>;
static_assert(Parts::kBytes <= kStages * (kX + kW), "parts of sums lie where the stages were");

// heads: of each panel its first row, first step, number of steps, 0. starts: where the columns of a step begin. w: of
// each step kRows tiles of kStep / 16 times [2][64][8].
extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(kThreads, SP_RESIDENT)
    wgmma_panels(const unsigned short* __restrict__ x, SP_RESIDUAL_OF(Y::type) const int4* __restrict__ heads,
                 const int* __restrict__ starts, const char* __restrict__ w, const float* __restrict__ bias,
                 Y::type* __restrict__ y, int rows, int positions, int y_row, int r_row,
                 const __grid_constant__ sp::TensorMap map) {
  (void)x;
  sp::start_next();
  SP_DYNAMIC_SHARED(char, shared);
  const Ring ring(shared);
  const Parts parts(ring.boxes, ring.empty + kStages);
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), p0 = blockIdx.x / kParts * kTN;
  const int4 head = sp::early(heads + blockIdx.y);
  const int begin = head.z * parts.rank / kParts, steps = head.z * (parts.rank + 1) / kParts - begin;
  if (threadIdx.x == 0) parts.start();
  ring.start(kGroups);

  const int lane = threadIdx.x % 32;
  if (warp >= 4 * kGroups) {
    if (kMove) sp::fewer_registers<40>();
    if (warp == 4 * kGroups) {
      starts += head.y + begin;
      w += static_cast<size_t>(head.y + begin) * kW;
      int ahead = lane < steps ? sp::early(starts + lane) : 0;
      sp::wait_for_previous();
      Ring::Turn turn{0, 1};
      for (int step = 0; step < steps; step++) {
        const int start = __shfl_sync(~0u, ahead, step % 32);
        if (step % 32 == 31 && step + 1 + lane < steps) ahead = sp::early(starts + step + 1 + lane);
        ring.wait_empty(turn);
        if (sp::one_lane()) {
          ring.expect(turn, kX + kW);
          ring.copy_w(turn, 0, w + static_cast<size_t>(step) * kW, kW);
          ring.copy_x<kTN / 64, kBox>(turn, 0, &map, p0, start);
        }
        __syncwarp();
        turn.next();
      }
    }
    parts.meet();
    return;
  }
  if (kMove) sp::more_registers<232>();
  const int group = threadIdx.x / 128, mine = threadIdx.x % 128, g = lane / 4, t = lane % 4;
  const int my_tile = kRows == 2 ? group * kTile : 0;
  const int first = kRows == 2 ? 0 : group * kMine;  // of its positions
  sp::wait_for_previous();
  float sums[1][kMine / 2] = {};
  Ring::Turn turn{0, 0}, before = turn;
  for (int step = 0; step < steps; step++) {
    ring.wait_full(turn);
    const char* const from = ring.x(turn) + first / 64 * kBox;
    sp::wgmma_begin();
#pragma unroll
    for (int k = 0; k < kStep / 16; k++)
      sp::wgmma_dense(sums[0], sp::wgmma_weight(ring.w(turn) + my_tile + k * 2048), sp::wgmma_boxes(from + k * 2048, kBox));
    sp::wgmma_commit();
    sp::wgmma_wait<1>();  // the step before has been multiplied: its stage is free
    if (step > 0 && mine == 0) ring.release(before);
    before = turn;
    turn.next();
  }
  sp::wgmma_wait<0>();
  sp::wgmma_done(sums[0]);
  parts.meet();
  parts.send(sums, threadIdx.x);
  const sp::Output<SP_Y_HALF> out{y, SP_RESIDUAL_OR_NULL, bias, rows, positions, y_row, r_row};
  const int row0 = head.x + (kRows == 2 ? 64 * group : 0) + mine / 32 * 16 + g;
  parts.finish(sums, threadIdx.x, [&](int, int half, int tile, auto sum) {
    out.store<4>(row0 + 8 * half, p0 + first + 8 * tile, t, sum);
  });
}
