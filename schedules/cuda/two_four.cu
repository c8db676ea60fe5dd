// Product of a weight with at most two non-zeros of every four columns on Hopper's sparse tensor cores: factors in
// float16, sums in float32.
//   SP_TILES (1, 2): tiles of 64 rows of a group of four warps; a block has two groups. SP_TN (128, 256): its positions.
//   SP_STAGES: steps of 64 columns whose X is in shared memory or on its way. SP_SETS: steps whose W is in registers or
//   on its way. SP_CLUSTER: blocks with the same positions and other rows; each copies a part of X to all. SP_Y_HALF: Y
//   is float16.
#include "store_rows.cuh"
#include "streams.cuh"
#include "wgmma.cuh"

constexpr int kTiles = SP_TILES, kTN = SP_TN, kStages = SP_STAGES, kSets = SP_SETS, kCluster = SP_CLUSTER;
constexpr int kGroups = 2, kThreads = 128 * kGroups + 128, kTM = 64 * kTiles * kGroups;
constexpr int kStep = 64, kWide = kTN / 64, kBox = kStep * 128;  // bytes of 64 rows of 64 positions
constexpr int kStage = kWide * kBox;
constexpr int kPieces = kWide > kCluster ? kWide : kCluster, kPiece = kStage / kPieces;  // a copy, bytes of it

using Y = sp::Element<SP_Y_HALF>;

constexpr int kWeights = kTiles * (4096 + 512);  // bytes of W of a group of warps and a step

// W of a step as wgmma_sparse wants it: by tile and half of the columns, and which columns are kept.
struct Weights {
  uint4 kept[kTiles][2];
  uint32_t chosen[kTiles];
};

// Clusters begin at different columns, so that fewer of them ask L2 for the same; blocks on their own are slower so.
__device__ __forceinline__ int first_step(int steps) {
  return kCluster > 1 ? static_cast<int>(blockIdx.x / kCluster) * steps / static_cast<int>(gridDim.x / kCluster) : 0;
}

// w: by group of warps and step: for each tile and half of the columns 16 bytes of each thread, then kTiles words of
// each thread.
extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(kThreads, 1)
    two_four(const unsigned short* __restrict__ x, SP_RESIDUAL_OF(Y::type) const char* __restrict__ w,
             const float* __restrict__ bias, Y::type* __restrict__ y, int rows,
             int steps, int positions, int y_row, int r_row, const __grid_constant__ sp::TensorMap map) {
  (void)x;
  sp::start_next();
  SP_DYNAMIC_SHARED(char, raw);
  char* const stages = raw + (1024 - sp::shared_address(raw) % 1024) % 1024;
  sp::Mbarrier* const full = reinterpret_cast<sp::Mbarrier*>(stages + kStages * kStage);
  sp::Mbarrier* const empty = full + kStages;
  const int rank = kCluster > 1 ? sp::cluster_rank() : 0;
  const int p0 = blockIdx.y * kTN, warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      sp::barrier_init(full + s, 1);
      sp::barrier_init(empty + s, kGroups * kCluster);
    }
    sp::barriers_ready();
  }
  if (kCluster > 1)
    sp::cluster_sync();
  else
    __syncthreads();

  if (warp >= 4 * kGroups) {
    sp::fewer_registers<40>();
    if (warp == 4 * kGroups) {
      sp::wait_for_previous();
      int stage = 0, parity = 1;
      int step = first_step(steps);
      for (int left = steps; left > 0; left--, step = step + 1 == steps ? 0 : step + 1) {
        sp::barrier_wait(empty + stage, parity);
        if (sp::one_lane()) {
          sp::barrier_expect(full + stage, kStage);
          // Of kWide boxes of 64 positions, each in kPieces / kWide parts of its rows.
          for (int piece = rank; piece < kPieces; piece += kCluster) {
            const int column = piece % kWide, part = piece / kWide, height = kPiece / 128;
            sp::copy_box(stages + stage * kStage + column * kBox + part * kPiece, &map, p0 + 64 * column,
                         kStep * step + height * part, full + stage, (1 << kCluster) - 1);
          }
        }
        __syncwarp();
        if (++stage == kStages) stage = 0, parity ^= 1;
      }
    }
  } else {
    sp::more_registers<232>();
    const int group = threadIdx.x / 128, mine = threadIdx.x % 128, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row0 = blockIdx.x * kTM + group * 64 * kTiles;
    w += static_cast<size_t>(blockIdx.x * kGroups + group) * steps * kWeights;
    Weights sets[kSets];
    int next = first_step(steps);
    const auto load = [&](Weights& to) {
      const char* const from = w + static_cast<size_t>(next) * kWeights;
#pragma unroll
      for (int i = 0; i < 2 * kTiles; i++)
        to.kept[i / 2][i % 2] = sp::stream4(reinterpret_cast<const uint4*>(from + i * 2048) + mine);
      sp::stream_words(to.chosen, reinterpret_cast<const uint32_t*>(from + kTiles * 4096) + kTiles * mine);
      next = next + 1 == steps ? 0 : next + 1;
    };
#pragma unroll
    for (int d = 0; d < kSets - 1; d++) load(sets[d]);
    sp::wait_for_previous();
    float sums[kTiles][kTN / 2] = {};
    int stage = 0, parity = 0, before = 0;
    for (int first = 0; first < steps; first += kSets)
#pragma unroll
      for (int d = 0; d < kSets; d++) {
        if (first + d >= steps) break;
        sp::barrier_wait(full + stage, parity);
        const char* const from = stages + stage * kStage;
        sp::wgmma_begin();
#pragma unroll
        for (int i = 0; i < kTiles; i++)
          sp::wgmma_sparse<0>(sums[i], sets[d].kept[i][0], sp::wgmma_boxes(from, kBox), sets[d].chosen[i]);
#pragma unroll
        for (int i = 0; i < kTiles; i++)
          sp::wgmma_sparse<1>(sums[i], sets[d].kept[i][1], sp::wgmma_boxes(from + 32 * 128, kBox), sets[d].chosen[i]);
        sp::wgmma_commit();
        sp::wgmma_wait<1>();  // the step before has been multiplied: its stage and its registers are free
        if (first + d > 0 && mine < kCluster) sp::barrier_arrive_at(empty + before, mine);
        load(sets[(d + kSets - 1) % kSets]);
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
  if (kCluster > 1) sp::cluster_sync();  // until no block copies to this one any more
}
