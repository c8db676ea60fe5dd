// Product of a block-sparse weight on tensor cores, many positions: X and W come to shared memory by the copy engine.
// Factors in float16, sums in float32.
//   SP_TM (16, 32): rows of a panel. SP_PANELS (1, 2, 4): panels of a block of threads, which have columns in common.
//   SP_TN (64, 128, 256): positions, shared among SP_WARPS warps. SP_RUN (16, 32), SP_RUNS: columns of a run, runs of a stage.
//   SP_STAGES: stages that are in shared memory or on their way. SP_RESIDENT: blocks of a multiprocessor.
//   SP_Y_HALF: whether Y and the residual are float16 in memory; X is.
// One more warp starts the copies; the others multiply, each all rows of its positions.
#include "store_rows.cuh"
#include "streams.cuh"
#include "wgmma.cuh"

constexpr int kTM = SP_TM, kPanels = SP_PANELS, kTN = SP_TN, kWarps = SP_WARPS, kStages = SP_STAGES;
constexpr int kRun = SP_RUN, kRuns = SP_RUNS, kMine = kTN / kWarps;  // positions of a warp
constexpr int kBox = kRun * 128, kWide = kTN / 64;                   // bytes of a run of 64 positions; boxes
constexpr int kX = kRuns * kWide * kBox, kTile = kTM * kRun * 2;     // bytes of X of a stage, of W of a panel's run
constexpr int kW = kRuns * kPanels * kTile, kThreads = 32 * (kWarps + 1);
constexpr int kStartBits = 24;
static_assert(kMine % 32 == 0, "store_row takes four times eight positions");

using Y = sp::Element<SP_Y_HALF>;

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
  SP_DYNAMIC_SHARED(char, raw);
  char* const boxes = raw + (1024 - sp::shared_address(raw) % 1024) % 1024;
  char* const tiles = boxes + kStages * kX;
  sp::Mbarrier* const full = reinterpret_cast<sp::Mbarrier*>(tiles + kStages * kW);
  sp::Mbarrier* const empty = full + kStages;
  int* const members = reinterpret_cast<int*>(empty + kStages);  // by stage, kPanels bits of each run
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int p0 = blockIdx.x * kTN;
  groups += blockIdx.y * (4 + kPanels);
  const int stages = sp::early(groups + 1);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      sp::barrier_init(full + s, 1);
      sp::barrier_init(empty + s, kWarps);
    }
    sp::barriers_ready();
  }
  __syncthreads();

  if (warp == kWarps) {
    runs += __shfl_sync(~0u, sp::early(groups), 0);
    w += static_cast<size_t>(__shfl_sync(~0u, sp::early(groups + 2), 0)) * kTile;
    int ahead = lane < stages * kRuns ? sp::early(runs + lane) : 0;
    sp::wait_for_previous();
    int stage = 0, parity = 1;
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
      sp::barrier_wait(empty + stage, parity);
      if (sp::one_lane()) {
        members[stage] = all;
        sp::barrier_expect(full + stage, bytes + taken);
#pragma unroll
        for (int r = 0; r < kRuns; r++)
          if (run[r] >> kStartBits)
            for (int column = 0; column < kWide; column++)
              sp::copy_box(boxes + stage * kX + (r * kWide + column) * kBox, &map, p0 + 64 * column,
                           run[r] & ((1 << kStartBits) - 1), full + stage);
        sp::bulk_copy(tiles + stage * kW, w, taken, full + stage);
      }
      __syncwarp();
      w += taken;
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
    return;
  }
  sp::wait_for_previous();
  float sums[kPanels][kTM / 16][kMine / 8][4] = {};
  // Lanes point to rows lane % 16 of 16 columns; 16 bytes number c of row k are at number c ^ k % 8.
  const int chunk = warp * kMine % 64 / 8 + lane / 16;
  const char* const box = boxes + warp * kMine / 64 * kBox + lane % 16 * 128;
  const int swizzled = (chunk ^ lane % 8) * 16;
  int stage = 0, parity = 0;
  for (int step = 0; step < stages; step++) {
    sp::barrier_wait(full + stage, parity);
    const int all = members[stage];
    const char* tile = tiles + stage * kW + lane * 16;
#pragma unroll
    for (int r = 0; r < kRuns; r++) {
      const int have = all >> (kPanels * r) & ((1 << kPanels) - 1);
      if (kRuns > 1 && !have) break;
#pragma unroll
      for (int k = 0; k < kRun / 16; k++) {
        const char* const from = box + stage * kX + r * kWide * kBox + k * 2048;
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
    if (lane == 0) sp::barrier_arrive(empty + stage);
    if (++stage == kStages) stage = 0, parity ^= 1;
  }

  const int g = lane / 4, t = lane % 4, first = p0 + warp * kMine;
#pragma unroll
  for (int p = 0; p < kPanels; p++) {
    const int row0 = groups[4 + p] + g;
#pragma unroll
    for (int i = 0; i < kTM / 16; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = row0 + 16 * i + 8 * half;
        const bool real = row < rows;
#if SP_RESIDUAL
        const Y::type* const more = residual + static_cast<size_t>(row) * r_row + first;
#else
        const Y::type* const more = nullptr;
        (void)r_row;
#endif
        sp::store_row<SP_Y_HALF, kMine / 8>(y + static_cast<size_t>(row) * y_row + first, more, real ? bias[row] : 0.0f,
                                            real ? positions - first : 0, t,
                                            [&](int j, int e) { return sums[p][i][j][2 * half + e]; });
      }
  }
}
