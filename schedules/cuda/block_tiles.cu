// Product of a block-sparse weight on tensor cores, many positions: X and W come to shared memory by the copy engine.
// Factors in float16, sums in float32.
//   SP_TM (16, 32): rows of a panel. SP_PANELS (1, 2, 4): panels of a group, which have columns in common.
//   SP_TN (64, 128, 256): positions of a tile, shared among SP_WARPS warps. SP_RUN (16, 32), SP_RUNS: columns of a run,
//   runs of a stage. SP_STAGES: stages that are in shared memory or on their way. SP_RESIDENT: blocks of a multiprocessor.
//   SP_Y_HALF: whether Y and the residual are float16 in memory; X is.
// A block of threads has a list of tiles, groups at positions. One more warp starts the copies, those of the next tile
// while the last is multiplied and stored; the others multiply, each all rows of its positions.
#include "store_rows.cuh"
#include "streams.cuh"
#include "wgmma.cuh"

constexpr int kTM = SP_TM, kPanels = SP_PANELS, kTN = SP_TN, kWarps = SP_WARPS, kStages = SP_STAGES;
constexpr int kRun = SP_RUN, kRuns = SP_RUNS, kMine = kTN / kWarps;  // positions of a warp
constexpr int kBox = kRun * 128, kWide = kTN / 64;                   // bytes of a run of 64 positions; boxes
constexpr int kX = kRuns * kWide * kBox, kPiece = kTM * kRun * 2;    // bytes of X of a stage, of W of a panel's run
constexpr int kW = kRuns * kPanels * kPiece, kThreads = 32 * (kWarps + 1);
constexpr int kStartBits = 24, kHead = 8, kNote = 2 + kPanels;  // numbers of a tile and of a stage
constexpr int kLast = 1 << 30;     // of a tile, a stage
static_assert(kMine % 32 == 0, "store_row takes four times eight positions");

using Y = sp::Element<SP_Y_HALF>;

// lists: where the tiles of a block begin; those of the next follow. tiles: of each tile the first run, the number of
// stages, the first piece of W, the first position, the first rows of the panels (`rows` where there is none). runs: where
// a run begins, and above bit 24 which panels have it (none: the stage has one run less). w: a piece for each run and
// panel that has it: kRun / 16 x kTM / 16 x 32 lanes x 16 bytes.
extern "C" __global__ void __launch_bounds__(kThreads, SP_RESIDENT)
    block_tiles(const unsigned short* __restrict__ x, SP_RESIDUAL_OF(Y::type) const int* __restrict__ lists,
                const int* __restrict__ tiles, const int* __restrict__ runs, const char* __restrict__ w,
                const float* __restrict__ bias, Y::type* __restrict__ y, int rows, int positions, int y_row, int r_row,
                const __grid_constant__ sp::TensorMap map) {
  (void)x;
  sp::start_next();
  SP_DYNAMIC_SHARED(char, raw);
  char* const boxes = raw + (1024 - sp::shared_address(raw) % 1024) % 1024;
  char* const pieces = boxes + kStages * kX;
  sp::Mbarrier* const full = reinterpret_cast<sp::Mbarrier*>(pieces + kStages * kW);
  sp::Mbarrier* const empty = full + kStages;
  int* const notes = reinterpret_cast<int*>(empty + kStages);  // by stage: kNote numbers
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = sp::early(lists + blockIdx.x), stop = sp::early(lists + blockIdx.x + 1);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      sp::barrier_init(full + s, 1);
      sp::barrier_init(empty + s, kWarps);
    }
    sp::barriers_ready();
  }
  __syncthreads();

  if (warp == kWarps) {
    tiles += first * kHead;
    int4 next = sp::early(reinterpret_cast<const int4*>(tiles));
    int row = sp::early(tiles + 4 + lane % 4);
    sp::wait_for_previous();
    int stage = 0, parity = 1;
    for (int tile = first; tile < stop; tile++, tiles += kHead) {
      const int4 mine = next;
      const int my_row = row;
      const int count = mine.y * kRuns;
      const int* const of_tile = runs + mine.x;
      const char* from = w + static_cast<size_t>(mine.z) * kPiece;
      int ahead = lane < count ? sp::early(of_tile + lane) : 0;
      if (tile + 1 < stop) {
        next = sp::early(reinterpret_cast<const int4*>(tiles + kHead));
        row = sp::early(tiles + kHead + 4 + lane % 4);
      }
      for (int step = 0; step < mine.y; step++) {
        int run[kRuns], bytes = 0, taken = 0, all = 0;
#pragma unroll
        for (int r = 0; r < kRuns; r++) {
          const int at = step * kRuns + r;
          run[r] = __shfl_sync(~0u, ahead, at % 32);
          if (at % 32 == 31 && at + 1 + lane < count) ahead = sp::early(of_tile + at + 1 + lane);
          const int have = run[r] >> kStartBits;
          all |= have << (kPanels * r);
          taken += __popc(have) * kPiece;
          bytes += have ? kWide * kBox : 0;
        }
        sp::barrier_wait(empty + stage, parity);
        // What the others must know of the stage: runs of panels, of a tile's last its position and rows.
        if (lane == 0) notes[stage * kNote] = step + 1 == mine.y ? all | kLast : all;
        if (lane == 1) notes[stage * kNote + 1] = mine.w;
        if (lane < kPanels) notes[stage * kNote + 2 + lane] = my_row;
        __syncwarp();
        if (lane == 0) {
          sp::barrier_expect(full + stage, bytes + taken);
#pragma unroll
          for (int r = 0; r < kRuns; r++)
            if (run[r] >> kStartBits)
              for (int column = 0; column < kWide; column++)
                sp::copy_box(boxes + stage * kX + (r * kWide + column) * kBox, &map, mine.w + 64 * column,
                             run[r] & ((1 << kStartBits) - 1), full + stage, 1);
          if (taken) sp::bulk_copy(pieces + stage * kW, from, taken, full + stage);
        }
        __syncwarp();
        from += taken;
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
    }
    return;
  }
  sp::wait_for_previous();
  // Lanes point to rows lane % 16 of 16 columns; 16 bytes number c of row k are at number c ^ k % 8.
  const int chunk = warp * kMine % 64 / 8 + lane / 16, g = lane / 4, t = lane % 4;
  const char* const box = boxes + warp * kMine / 64 * kBox + lane % 16 * 128;
  const int swizzled = (chunk ^ lane % 8) * 16;
  int stage = 0, parity = 0;
  for (int tile = first; tile < stop; tile++) {
    float sums[kPanels][kTM / 16][kMine / 8][4] = {};
    int p0 = 0, rows0[kPanels] = {};
    for (bool more = true; more;) {
      sp::barrier_wait(full + stage, parity);
      const int* const note = notes + stage * kNote;
      const int all = note[0];
      more = !(all & kLast);
      const char* piece = pieces + stage * kW + lane * 16;
#pragma unroll
      for (int r = 0; r < kRuns; r++) {
        const int have = all >> (kPanels * r) & ((1 << kPanels) - 1);
        if (!have) break;
#pragma unroll
        for (int k = 0; k < kRun / 16; k++) {
          const char* const from = box + stage * kX + r * kWide * kBox + k * 2048;
          uint32_t b[kMine / 16][4];
#pragma unroll
          for (int j = 0; j < kMine / 16; j++) sp::read_columns(b[j], from + (swizzled ^ 32 * j));
#pragma unroll
          for (int p = 0; p < kPanels; p++) {
            if (kPanels > 1 && !(have >> p & 1)) continue;
            const char* const part = piece + (kPanels > 1 ? __popc(have & ((1 << p) - 1)) * kPiece : 0) + k * (kTM * 32);
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
        piece += (kPanels > 1 ? __popc(have) : 1) * kPiece;
      }
      if (!more) {
        p0 = note[1] + warp * kMine;
#pragma unroll
        for (int p = 0; p < kPanels; p++) rows0[p] = note[2 + p] + g;
      }
      __syncwarp();
      if (lane == 0) sp::barrier_arrive(empty + stage);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }

#pragma unroll
    for (int p = 0; p < kPanels; p++) {
#pragma unroll
      for (int i = 0; i < kTM / 16; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int row = rows0[p] + 16 * i + 8 * half;
          const bool real = row < rows;
#if SP_RESIDUAL
          const Y::type* const also = residual + static_cast<size_t>(row) * r_row + p0;
#else
          const Y::type* const also = nullptr;
          (void)r_row;
#endif
          sp::store_row<SP_Y_HALF, kMine / 8>(y + static_cast<size_t>(row) * y_row + p0, also, real ? bias[row] : 0.0f,
                                              real ? positions - p0 : 0, t,
                                              [&](int j, int e) { return sums[p][i][j][2 * half + e]; });
        }
    }
  }
}
