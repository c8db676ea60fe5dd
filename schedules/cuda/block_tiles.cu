// Product of a block-sparse weight on tensor cores, many positions: X and W come to shared memory by the copy engine.
// Factors in float16, sums in float32.
//   SP_TM (16, 32): rows of a panel. SP_PANELS (1, 2, 4): panels of a block of threads, which have columns in common.
//   SP_TN (64, 128, 256): positions, shared among SP_WARPS warps. SP_RUN (16, 32), SP_RUNS: columns of a run, runs of a stage.
//   SP_STAGES: stages that are in shared memory or on their way. SP_RESIDENT: blocks of a multiprocessor.
//   SP_Y_HALF: whether Y and the residual are float16 in memory; X is.
// One more warp starts the copies; the others multiply, each all rows of its positions.
#include "ring.cuh"
#include "store_rows.cuh"
#include "streams.cuh"

constexpr int kTM = SP_TM, kPanels = SP_PANELS, kTN = SP_TN, kWarps = SP_WARPS, kStages = SP_STAGES;
constexpr int kRun = SP_RUN, kRuns = SP_RUNS, kMine = kTN / kWarps;  // positions of a warp
constexpr int kBox = kRun * 128, kWide = kTN / 64;                   // bytes of a run of 64 positions; boxes
constexpr int kX = kRuns * kWide * kBox, kTile = kTM * kRun * 2;     // bytes of X of a stage, of W of a panel's run
constexpr int kW = kRuns * kPanels * kTile, kThreads = 32 * (kWarps + 1);
constexpr int kStartBits = 24;
static_assert(kMine % 32 == 0, "store_row takes four times eight positions");

using Y = sp::Element<SP_Y_HALF>;
using Ring = sp::Ring<kStages, kX, kW>;

// groups: of each group of panels the first run, the number of stages, the first tile of W, 0, the panels' first rows
// (`rows` where there is none). runs: where a run begins, and above bit 24 which panels have it (none: the stage has one
// run less). w: a tile for each run and panel that has it: kRun / 16 x kTM / 16 x 32 lanes x 16 bytes.
extern "C" __global__ void __launch_bounds__(kThreads, SP_RESIDENT)
    block_tiles(const unsigned short* __restrict__ x, SP_RESIDUAL_OF(Y::type) const int* __restrict__ groups,
                const int* __restrict__ runs, const char* __restrict__ w, const float* __restrict__ bias,
                Y::type* __restrict__ y, int rows, int positions, int y_row, int r_row,
                const __grid_constant__ sp::TensorMap map) {
  (void)x;
  sp::start_next();
  SP_DYNAMIC_SHARED(char, shared);
  const Ring ring(shared);
  int* const members = reinterpret_cast<int*>(ring.empty + kStages);  // by stage, kPanels bits of each run
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int p0 = blockIdx.x * kTN;
  groups += blockIdx.y * (4 + kPanels);
  const int stages = sp::early(groups + 1);
  ring.start(kWarps);

  if (warp == kWarps) {
    runs += __shfl_sync(~0u, sp::early(groups), 0);
    w += static_cast<size_t>(__shfl_sync(~0u, sp::early(groups + 2), 0)) * kTile;
    int ahead = lane < stages * kRuns ? sp::early(runs + lane) : 0;
    sp::wait_for_previous();
    Ring::Turn turn{0, 1};
    for (int step = 0; step < stages; step++) {
      int run[kRuns], bytes = 0, taken = 0, all = 0;
#pragma unroll
      for (int r = 0; r < kRuns; r++) {
        const int at = step * kRuns + r;
        run[r] = __shfl_sync(~0u, ahead, at % 32);
        if (at % 32 == 31 && at + 1 + lane < stages * kRuns) ahead = sp::early(runs + at + 1 + lane);
        const int have = run[r] >> kStartBits;
        all |= have << (kPanels * r);
        taken += __popc(have) * kTile;
        bytes += have ? kWide * kBox : 0;
      }
      ring.wait_empty(turn);
      if (sp::one_lane()) {
        members[turn.stage] = all;
        ring.expect(turn, bytes + taken);
#pragma unroll
        for (int r = 0; r < kRuns; r++)
          if (run[r] >> kStartBits)
            ring.copy_x<kWide, kBox>(turn, r * kWide * kBox, &map, p0, run[r] & ((1 << kStartBits) - 1));
        ring.copy_w(turn, 0, w, taken);
      }
      __syncwarp();
      w += taken;
      turn.next();
    }
    return;
  }
  sp::wait_for_previous();
  float sums[kPanels][kTM / 16][kMine / 8][4] = {};
  // Lanes point to rows lane % 16 of 16 columns; 16 bytes number c of row k are at number c ^ k % 8.
  const int chunk = warp * kMine % 64 / 8 + lane / 16;
  const int box = warp * kMine / 64 * kBox + lane % 16 * 128;  // of a run, bytes
  const int swizzled = (chunk ^ lane % 8) * 16;
  Ring::Turn turn{0, 0};
  for (int step = 0; step < stages; step++) {
    ring.wait_full(turn);
    const int all = members[turn.stage];
    const char* tile = ring.w(turn) + lane * 16;
#pragma unroll
    for (int r = 0; r < kRuns; r++) {
      const int have = all >> (kPanels * r) & ((1 << kPanels) - 1);
      if (kRuns > 1 && !have) break;
#pragma unroll
      for (int k = 0; k < kRun / 16; k++) {
        const char* const from = ring.x(turn) + box + r * kWide * kBox + k * 2048;
        uint32_t b[kMine / 16][4];
#pragma unroll
        for (int j = 0; j < kMine / 16; j++) sp::read_columns(b[j], from + (swizzled ^ 32 * j));
#pragma unroll
        for (int p = 0; p < kPanels; p++) {
          if (kPanels > 1 && !(have >> p & 1)) continue;
          const char* const part = tile + (kPanels > 1 ? __popc(have & ((1 << p) - 1)) * kTile : 0) + k * (kTM * 32);
          uint4 a[kTM / 16];
#pragma unroll
          for (int i = 0; i < kTM / 16; i++) a[i] = *reinterpret_cast<const uint4*>(part + i * 512);
#pragma unroll
          for (int j = 0; j < kMine / 16; j++)
#pragma unroll
            for (int i = 0; i < kTM / 16; i++) {
              sp::mma_half(sums[p][i][2 * j], a[i], b[j][0], b[j][1]);
              sp::mma_half(sums[p][i][2 * j + 1], a[i], b[j][2], b[j][3]);
            }
        }
      }
      tile += (kPanels > 1 ? __popc(have) : 1) * kTile;
    }
    __syncwarp();
    if (lane == 0) ring.release(turn);
    turn.next();
  }

  const sp::Output<SP_Y_HALF> out{y, SP_RESIDUAL_OR_NULL, bias, rows, positions, y_row, r_row};
  const int g = lane / 4, t = lane % 4, first = p0 + warp * kMine;
#pragma unroll
  for (int p = 0; p < kPanels; p++) {
    const int row0 = groups[4 + p] + g;
#pragma unroll
    for (int i = 0; i < kTM / 16; i++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        out.store<kMine / 8>(row0 + 16 * i + 8 * half, first, t, [&](int j, int e) { return sums[p][i][j][2 * half + e]; });
  }
}
