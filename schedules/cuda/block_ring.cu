// Product of a block-sparse weight on tensor cores, many positions: rows of X are copied to shared memory once for all
// panels of a block. Factors in float16, sums in float32.
//   SP_TM (16, 32): rows of a panel, of which each warp has one. SP_PANELS: panels of a block. SP_TN (64, 128): positions.
//   SP_STAGES: pairs of runs of 16 columns whose rows of X are in shared memory or on their way. SP_DEPTH: 16-column
//   steps of W of a warp that are. SP_RESIDENT: blocks of a multiprocessor. SP_Y_HALF: as in block_mma.cu; X is float16.
// Two more warps copy, one each run; the others multiply what their panels have and skip the rest.
#include "bulk.cuh"
#include "streams.cuh"
#include "tensor.cuh"

constexpr int kTM = SP_TM, kTN = SP_TN, kPanels = SP_PANELS, kStages = SP_STAGES, kDepth = SP_DEPTH;
constexpr int kCopiers = 2, kThreads = 32 * (kPanels + kCopiers);
constexpr int kRow = 2 * kTN + 16;  // bytes from row to row of X: rows begin in other banks
constexpr int kStage = 32 * kRow, kStep = kTM * 32;  // bytes of a stage, and of 16 columns of W
constexpr int kLanes = kTN / 8, kAtOnce = 32 / kLanes;  // lanes of a row, rows that a warp copies at once

using Y = sp::Element<SP_Y_HALF>;

// groups: of each block the first stage and the number of stages. starts: where the two runs of a stage begin in X.
// plan: by stage, bit 2 p + h: panel p has run h. heads: of each panel its first row, the first step of its W, the number
// of steps, 0. w: steps x (SP_TM / 16) x 32 lanes x 16 bytes. Scalars as in dense_block.cuh; panels: how many there are.
extern "C" __global__ void __launch_bounds__(kThreads, SP_RESIDENT)
    block_ring(const unsigned short* __restrict__ x, SP_RESIDUAL_OF(Y::type) const int2* __restrict__ groups,
               const int* __restrict__ starts, const int* __restrict__ plan, const int4* __restrict__ heads,
               const uint4* __restrict__ w, const float* __restrict__ bias, Y::type* __restrict__ y, int rows, int panels,
               int positions, int valid, int pitch, int width, int x0, int x_batch, int x_row, int y0, int y_batch,
               int y_row, int r0, int r_batch, int r_row, int head, int tail, int stop) {
  sp::start_next();
  SP_DYNAMIC_SHARED(char, stages);
  char* const slots = stages + kStages * kStage;
  sp::Mbarrier* const full = reinterpret_cast<sp::Mbarrier*>(slots + kPanels * kDepth * kStep);
  sp::Mbarrier* const empty = full + kStages;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int p0 = blockIdx.y * kTN;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      sp::barrier_init(full + s, 32 * kCopiers);
      sp::barrier_init(empty + s, kPanels);
    }
    sp::barriers_ready();
  }
  const int2 mine = sp::early(groups + blockIdx.x);
  __syncthreads();

  if (warp >= kPanels) {
    const int run = warp - kPanels;
    int ahead = lane < mine.y ? sp::early(starts + 2 * (mine.x + lane) + run) : 0;
    const unsigned short* from = sp::wait_for_previous(x);
    // Positions past the end are never stored; what is multiplied for them does not matter.
    from += x0 + static_cast<size_t>(blockIdx.z) * x_batch + min(p0 + lane % kLanes * 8, positions - 8) + lane / kLanes * x_row;
    char* const to = stages + (16 * run + lane / kLanes) * kRow + lane % kLanes * 16;
    int stage = 0, parity = 1;
    for (int step = 0; step < mine.y; step++) {
      const int start = __shfl_sync(~0u, ahead, step % 32);
      if (step % 32 == 31 && step + 1 + lane < mine.y) ahead = sp::early(starts + 2 * (mine.x + step + 1 + lane) + run);
      sp::barrier_wait(empty + stage, parity);
#pragma unroll
      for (int r = 0; r < 16; r += kAtOnce)
        sp::copy16(to + stage * kStage + r * kRow, from + start + r * x_row);
      sp::barrier_arrive_copied(full + stage);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
  } else {
    const int panel = blockIdx.x * kPanels + warp;
    const int4 of_panel = sp::early(heads + min(panel, panels - 1));
    const int steps = panel < panels ? of_panel.z : 0;
    // A lane copies what it reads itself.
    w += static_cast<size_t>(of_panel.y) * (kStep / 16) + lane;
    char* const slot = slots + warp * kDepth * kStep + lane * 16;
    const auto fetch = [&](int step) {
      if (step < steps)
#pragma unroll
        for (int i = 0; i < kTM / 16; i++)
          sp::copy16(slot + step % kDepth * kStep + i * 512, w + step * (kStep / 16) + i * 32);
      sp::copy_commit();
    };
#pragma unroll
    for (int d = 0; d < kDepth - 1; d++) fetch(d);
    plan += mine.x;
    sp::wait_for_previous();

    float sums[kTM / 16][kTN / 8][4] = {};
    int stage = 0, parity = 0, at = 0, wanted = 0;
    for (int step = 0; step < mine.y; step++) {
      if (step % 32 == 0 && step + lane < mine.y) wanted = sp::early(plan + step + lane);
      const int runs = __shfl_sync(~0u, wanted, step % 32) >> (2 * warp);
      sp::barrier_wait(full + stage, parity);
#pragma unroll 1
      for (int run = 0; run < 2; run++) {
        if (!(runs >> run & 1)) continue;
        sp::copy_wait<kDepth - 2>();
        uint4 a[kTM / 16];
#pragma unroll
        for (int i = 0; i < kTM / 16; i++) a[i] = *reinterpret_cast<const uint4*>(slot + at % kDepth * kStep + i * 512);
        fetch(at + kDepth - 1);
        const char* const from = stages + stage * kStage + (16 * run + lane % 16) * kRow + lane / 16 * 16;
#pragma unroll
        for (int j = 0; j < kTN / 8; j += 2) {
          uint32_t b[4];
          sp::read_columns(b, from + 16 * j);
#pragma unroll
          for (int i = 0; i < kTM / 16; i++) {
            sp::mma_half(sums[i][j], a[i], b[0], b[1]);
            sp::mma_half(sums[i][j + 1], a[i], b[2], b[3]);
          }
        }
        at++;
      }
      __syncwarp();
      if (lane == 0) sp::barrier_arrive(empty + stage);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
    sp::copy_wait<0>();

    const int row0 = of_panel.x, stop_row = panel < panels ? min(rows - row0, kTM) : 0;
    y += static_cast<size_t>(blockIdx.z) * y_batch + static_cast<size_t>(row0) * y_row;
    for (int r = blockIdx.y; r < stop_row; r += gridDim.y)
      Y::zero_borders(y + static_cast<size_t>(r) * y_row, head, tail, stop, lane);
    y += y0;
    bias += row0;
#if SP_RESIDUAL
    residual += r0 + static_cast<size_t>(blockIdx.z) * r_batch + static_cast<size_t>(row0) * r_row;
#else
    (void)r0, (void)r_batch, (void)r_row;
#endif
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < kTM / 16; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int r = 16 * i + 8 * half + g;
        const float b = r < stop_row ? bias[r] : 0.0f;
#pragma unroll
        for (int j = 0; j < kTN / 8; j += 4) {
          // Lanes of a row swap what they have, so that each has eight neighbours.
          uint32_t v[2][4];
#pragma unroll
          for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 2; e++) v[e][n] = __float_as_uint(sums[i][j + n][2 * half + e]);
          sp::transpose4(v[0], t);
          sp::transpose4(v[1], t);
          const int p = p0 + 8 * (j + t);
          if (r >= stop_row || p >= positions) continue;
          float4 eight[2];
#pragma unroll
          for (int n = 0; n < 2; n++) {
            eight[n] = make_float4(__uint_as_float(v[0][2 * n]) + b, __uint_as_float(v[1][2 * n]) + b,
                                   __uint_as_float(v[0][2 * n + 1]) + b, __uint_as_float(v[1][2 * n + 1]) + b);
#if SP_RESIDUAL
            eight[n] = sp::add4(eight[n], Y::load4(residual + static_cast<size_t>(r) * r_row + p + 4 * n));
#endif
            eight[n] = sp::finish4(eight[n], sp::pixels<4>(p + 4 * n, pitch, width, valid));
          }
          Y::store(y + static_cast<size_t>(r) * y_row + p, eight);
        }
      }
  }
}
