// Product of a block-sparse weight on tensor cores, many positions: X of a column of blocks is copied to shared memory
// once for all panels of the blocks of a cluster. Factors in float16, sums in float32.
//   SP_TM (16, 32): rows of a panel, of which each warp has one. SP_PANELS: panels of a block. SP_TN (64, 128): positions.
//   SP_STAGES: pairs of runs of 16 columns whose rows of X are in shared memory or on their way. SP_DEPTH: 16-column
//   steps of W of a warp that are. SP_CLUSTER: blocks of other rows that X is copied to. SP_Y_HALF: as in block_mma.cu.
// A warp of its own copies, with one bulk copy a row; the others multiply what their panels have and skip the rest.
#include "cluster.cuh"
#include "streams.cuh"
#include "tensor.cuh"

constexpr int kTM = SP_TM, kTN = SP_TN, kPanels = SP_PANELS, kStages = SP_STAGES, kDepth = SP_DEPTH, kCluster = SP_CLUSTER;
constexpr int kThreads = 32 * (kPanels + 1);
constexpr int kRow = 2 * kTN + 16;  // bytes from row to row of X: rows begin in other banks
constexpr int kStage = 32 * kRow, kStep = kTM * 32;  // bytes of a stage, and of 16 columns of W

using Y = sp::Element<SP_Y_HALF>;

// groups: of each cluster the first stage and the number of stages. starts: where the two runs of a stage begin in X.
// plan: by stage and block of the cluster, bit 2 p + h: panel p has run h. heads: of each panel its first row, the first
// step of its W, the number of steps, 0. w: steps x (SP_TM / 16) x 32 lanes x 16 bytes.
extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(kThreads, SP_RESIDENT)
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
  const int rank = kCluster > 1 ? sp::cluster_rank() : 0;
  const int p0 = blockIdx.y * kTN;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      sp::barrier_init(full + s, 1);
      sp::barrier_init(empty + s, kPanels * kCluster);
    }
    for (int s = 0; s < kPanels * kDepth; s++) sp::barrier_init(empty + kStages + s, 1);
    sp::barriers_ready();
  }
  const int2 mine = sp::early(groups + blockIdx.x / kCluster);
  if (kCluster > 1)
    sp::cluster_sync();
  else
    __syncthreads();

  if (warp == kPanels) {
    const int bytes = min(kTN, positions - p0) * 2;
    int ahead = lane < 2 * mine.y ? sp::early(starts + 2 * mine.x + lane) : 0;
    const unsigned short* from = sp::wait_for_previous(x);
    from += x0 + static_cast<size_t>(blockIdx.z) * x_batch + p0 + lane % 16 * x_row;
    int stage = 0, parity = 1;
    for (int step = 0; step < mine.y; step++) {
      const int start = __shfl_sync(~0u, ahead, step % 16 * 2 + lane / 16);
      if (step % 16 == 15 && 2 * step + 2 + lane < 2 * mine.y) ahead = sp::early(starts + 2 * (mine.x + step + 1) + lane);
      sp::barrier_wait(empty + stage, parity);
      if (lane == 0) sp::barrier_expect(full + stage, 32 * bytes);
      __syncwarp();
      if (lane % kCluster == rank) sp::bulk_copy_to_all(stages + stage * kStage + lane * kRow, from + start, bytes, full + stage);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
  } else {
    const int panel = blockIdx.x * kPanels + warp;
    const int4 of_panel = sp::early(heads + min(panel, panels - 1));
    const int steps = panel < panels ? of_panel.z : 0;
    w += static_cast<size_t>(of_panel.y) * (kStep / 16);
    char* const slot = slots + warp * kDepth * kStep;
    sp::Mbarrier* const filled = empty + kStages + warp * kDepth;
    const auto fetch = [&](int step) {
      if (lane == 0 && step < steps) {
        sp::barrier_expect(filled + step % kDepth, kStep);
        sp::bulk_copy(slot + step % kDepth * kStep, w + step * (kStep / 16), kStep, filled + step % kDepth);
      }
    };
    for (int d = 0; d < kDepth; d++) fetch(d);
    plan += static_cast<size_t>(mine.x) * kCluster + rank;
    sp::wait_for_previous();

    float sums[kTM / 16][kTN / 8][4] = {};
    int stage = 0, parity = 0, at = 0, wanted = 0;
    for (int step = 0; step < mine.y; step++) {
      if (step % 32 == 0 && step + lane < mine.y) wanted = sp::early(plan + (step + lane) * kCluster);
      const int halves = __shfl_sync(~0u, wanted, step % 32) >> (2 * warp);
      sp::barrier_wait(full + stage, parity);
#pragma unroll 1
      for (int half = 0; half < 2; half++) {
        if (!(halves >> half & 1)) continue;
        sp::barrier_wait(filled + at % kDepth, at / kDepth & 1);
        uint4 a[kTM / 16];
#pragma unroll
        for (int i = 0; i < kTM / 16; i++)
          a[i] = *reinterpret_cast<const uint4*>(slot + at % kDepth * kStep + i * 512 + lane * 16);
        const char* const from = stages + stage * kStage + (16 * half + lane % 16) * kRow + lane / 16 * 16;
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
        __syncwarp();
        fetch(at + kDepth);
        at++;
      }
      __syncwarp();
      if (lane < kCluster) sp::barrier_arrive_at(empty + stage, lane);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }

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
  if (kCluster > 1) sp::cluster_sync();  // until no block copies to this one any more
}
