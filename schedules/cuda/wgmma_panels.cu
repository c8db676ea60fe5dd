// Product of a weight whose rows share columns in panels of 64 or 128 rows (all columns, or blocks) on Hopper's tensor
// cores: factors in float16, sums in float32.
//   SP_ROWS (1, 2): tiles of 64 rows of a panel. SP_TN (256, 512): positions of a block; its two groups of four warps have
//   a tile each, or half of the positions each. SP_STEP (32, 64): columns of a step. SP_STAGES: steps that are in shared
//   memory or on their way. SP_RESIDENT: blocks of a multiprocessor. SP_Y_HALF: Y and the residual are float16; X is.
#include "store_rows.cuh"
#include "streams.cuh"
#include "wgmma.cuh"

constexpr int kRows = SP_ROWS, kTN = SP_TN, kStep = SP_STEP, kStages = SP_STAGES;
constexpr int kGroups = 2, kMine = kTN * kRows / kGroups;  // positions of a group
// A block alone on its multiprocessor has four warps that copy, of which one works: groups of four can hand on registers.
constexpr bool kMove = SP_RESIDENT == 1;
constexpr int kThreads = 128 * kGroups + (kMove ? 128 : 32);
constexpr int kBox = kStep * 128, kX = kTN / 64 * kBox, kTile = 64 * kStep * 2, kW = kRows * kTile;  // bytes

using Y = sp::Element<SP_Y_HALF>;

// heads: of each panel its first row, first step, number of steps, 0. starts: where the columns of a step begin. w: of
// each step kRows tiles of kStep / 16 times [2][64][8].
extern "C" __global__ void __launch_bounds__(kThreads, SP_RESIDENT)
    wgmma_panels(const unsigned short* __restrict__ x, SP_RESIDUAL_OF(Y::type) const int4* __restrict__ heads,
                 const int* __restrict__ starts, const char* __restrict__ w, const float* __restrict__ bias,
                 Y::type* __restrict__ y, int rows, int positions, int y_row, int r_row,
                 const __grid_constant__ sp::TensorMap map) {
  (void)x;
  sp::start_next();
  SP_DYNAMIC_SHARED(char, raw);
  char* const boxes = raw + (1024 - sp::shared_address(raw) % 1024) % 1024;
  char* const tiles = boxes + kStages * kX;
  sp::Mbarrier* const full = reinterpret_cast<sp::Mbarrier*>(tiles + kStages * kW);
  sp::Mbarrier* const empty = full + kStages;
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), p0 = blockIdx.x * kTN;
  const int4 head = sp::early(heads + blockIdx.y);
  const int steps = head.z;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      sp::barrier_init(full + s, 1);
      sp::barrier_init(empty + s, kGroups);
    }
    sp::barriers_ready();
  }
  __syncthreads();

  const int lane = threadIdx.x % 32;
  if (warp >= 4 * kGroups) {
    if (kMove) sp::fewer_registers<40>();
    if (warp > 4 * kGroups) return;
    starts += head.y;
    w += static_cast<size_t>(head.y) * kW;
    int ahead = lane < steps ? sp::early(starts + lane) : 0;
    sp::wait_for_previous();
    int stage = 0, parity = 1;
    for (int step = 0; step < steps; step++) {
      const int start = __shfl_sync(~0u, ahead, step % 32);
      if (step % 32 == 31 && step + 1 + lane < steps) ahead = sp::early(starts + step + 1 + lane);
      sp::barrier_wait(empty + stage, parity);
      if (sp::one_lane()) {
        sp::barrier_expect(full + stage, kX + kW);
        sp::bulk_copy(tiles + stage * kW, w + static_cast<size_t>(step) * kW, kW, full + stage);
        for (int column = 0; column < kTN / 64; column++)
          sp::copy_box(boxes + stage * kX + column * kBox, &map, p0 + 64 * column, start, full + stage);
      }
      __syncwarp();
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
    return;
  }
  if (kMove) sp::more_registers<232>();
  const int group = threadIdx.x / 128, mine = threadIdx.x % 128, g = lane / 4, t = lane % 4;
  const char* const my_tile = tiles + (kRows == 2 ? group * kTile : 0);
  const int first = kRows == 2 ? 0 : group * kMine;  // of its positions
  sp::wait_for_previous();
  float sums[kMine / 2] = {};
  int stage = 0, parity = 0, before = 0;
  for (int step = 0; step < steps; step++) {
    sp::barrier_wait(full + stage, parity);
    const char* const from = boxes + stage * kX + first / 64 * kBox;
    sp::wgmma_begin();
#pragma unroll
    for (int k = 0; k < kStep / 16; k++)
      sp::wgmma_dense(sums, sp::wgmma_weight(my_tile + stage * kW + k * 2048), sp::wgmma_boxes(from + k * 2048, kBox));
    sp::wgmma_commit();
    sp::wgmma_wait<1>();  // the step before has been multiplied: its stage is free
    if (step > 0 && mine == 0) sp::barrier_arrive(empty + before);
    before = stage;
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  sp::wgmma_wait<0>();
  sp::wgmma_done(sums);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = head.x + (kRows == 2 ? 64 * group : 0) + mine / 32 * 16 + 8 * half + g, p = p0 + first;
    const bool real = row < rows;
#if SP_RESIDUAL
    const Y::type* const also = residual + static_cast<size_t>(row) * r_row + p;
#else
    const Y::type* const also = nullptr;
    (void)r_row;
#endif
    sp::store_row<SP_Y_HALF, kMine / 8>(y + static_cast<size_t>(row) * y_row + p, also, real ? bias[row] : 0.0f,
                                        real ? positions - p : 0, t,
                                        [&](int j, int e) { return sums[4 * j + 2 * half + e]; });
  }
}
