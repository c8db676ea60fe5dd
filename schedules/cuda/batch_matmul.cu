// Products of two computed tensors, Y[item] = A[item] B[item], all row-major: a block computes kBM x kBN outputs of one.
//   SP_BM, SP_BN, SP_BK: the tile in shared memory. SP_TM, SP_TN: the tile of a thread, 4 x 8 threads a warp.
//   SP_SLICES: groups of warps that share the K of every tile. SP_STAGES: tiles in flight (cp.async).
//   SP_A4, SP_B4 1: rows of A (K floats), of B and of Y (N floats) are multiples of 16 bytes; 0: copied float by float.
#include "positions.cuh"

constexpr int kBM = SP_BM, kBN = SP_BN, kBK = SP_BK, kTM = SP_TM, kTN = SP_TN, kSlices = SP_SLICES, kStages = SP_STAGES;
constexpr int kWarpsM = kBM / (4 * kTM), kWarpsN = kBN / (8 * kTN), kThreads = 32 * kWarpsM * kWarpsN * kSlices;
constexpr int kSliceK = kBK / kSlices;
constexpr int kRowA = kBK + 4;  // of A in shared memory: neighbouring rows begin in other banks
constexpr int kStage = kBM * kRowA + kBK * kBN;
// Threads that a multiprocessor should hold, for blocks: what caps the registers of a thread.
constexpr int kResident = (kTM * kTN == 64 ? 256 : 512) / kThreads;
constexpr bool kStaged = kSlices > 1 || !SP_B4;  // sums go through shared memory
static_assert(kSliceK % 4 == 0 && kTN % 4 == 0, "fragments are vectors of four");
static_assert(kStages > 1, "a tile is copied while another one is multiplied");

// Copies the ROWS x COLUMNS tile whose first element is `from`, rows `pitch` apart; zeros past `rows` and `columns`.
template <int ROWS, int COLUMNS, int PITCH, bool FOUR>
__device__ __forceinline__ void fetch(float* to, const float* from, int pitch, int rows, int columns) {
  constexpr int kWidth = FOUR ? 4 : 1, kAcross = COLUMNS / kWidth, kCopies = ROWS * kAcross;
#pragma unroll FOUR ? 8 : 2  // addresses and conditions of all would need too many registers
  for (int n = 0; n < (kCopies + kThreads - 1) / kThreads; n++) {
    const int e = n * kThreads + threadIdx.x;
    if (kCopies % kThreads != 0 && e >= kCopies) break;
    const int row = e / kAcross, column = e % kAcross * kWidth;
    const bool inside = row < rows && column < columns;
    const float* source = from + (inside ? static_cast<size_t>(row) * pitch + column : 0);
    if (FOUR)
      sp::copy16_if(to + row * PITCH + column, source, inside);
    else
      sp::copy4_if(to + row * PITCH + column, source, inside);
  }
}

// Adds the product of a share of a stage; a, b: of this thread's first row and column.
__device__ __forceinline__ void multiply(float (&sums)[kTM][kTN], const float* a, const float* b) {
#pragma unroll kTM * kTN == 64 ? 1 : 4  // more would need too many registers
  for (int k = 0; k < kSliceK; k += 4) {
    float left[kTM][4], right[kTN];
#pragma unroll
    for (int i = 0; i < kTM; i++) sp::read4(left[i], a + 4 * i * kRowA + k);
#pragma unroll
    for (int d = 0; d < 4; d++) {
#pragma unroll
      for (int j = 0; j < kTN; j += 4) sp::read4(right + j, b + (k + d) * kBN + 8 * j);
#pragma unroll
      for (int i = 0; i < kTM; i++)
#pragma unroll
        for (int j = 0; j < kTN; j++) sums[i][j] = fmaf(left[i][d], right[j], sums[i][j]);
    }
  }
}

// Items lie in three axes, outermost first, of which the two inner ones have `size1` and `size2` entries; *_step: floats
// from an entry to the next (0: the operand has only one).
extern "C" __global__ void __launch_bounds__(kThreads, kResident)
    batch_matmul(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ y, int m, int k, int n,
                 int m_tiles, int n_tiles, int size1, int size2, int a_step0, int a_step1, int a_step2, int b_step0,
                 int b_step1, int b_step2) {
  sp::start_next();
  a = sp::wait_for_previous(a);
  b = sp::wait_for_previous(b);
  SP_DYNAMIC_SHARED(float, shared);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int tile = blockIdx.x % (m_tiles * n_tiles), item = blockIdx.x / (m_tiles * n_tiles);
  const int row0 = tile / n_tiles * kBM, column0 = tile % n_tiles * kBN;
  const size_t at0 = item / (size1 * size2), at1 = item / size2 % size1, at2 = item % size2;
  a += at0 * a_step0 + at1 * a_step1 + at2 * a_step2 + static_cast<size_t>(row0) * k;
  b += at0 * b_step0 + at1 * b_step1 + at2 * b_step2 + column0;
  y += static_cast<size_t>(item) * m * n + static_cast<size_t>(row0) * n + column0;
  const int rows = min(m - row0, kBM), columns = min(n - column0, kBN), tiles = (k + kBK - 1) / kBK;

  // Lanes in pairs of rows, as in dense.cu.
  const int slice = warp / (kWarpsM * kWarpsN), warp_m = warp % kWarpsM, warp_n = warp / kWarpsM % kWarpsN;
  const int row = warp_m * (4 * kTM) + lane / 16 * 2 + lane % 2, column = warp_n * (8 * kTN) + 4 * (lane / 2 % 8);
  const bool idle = warp_m * (4 * kTM) >= rows || warp_n * (8 * kTN) >= columns;  // all of the warp
  float sums[kTM][kTN];
#pragma unroll
  for (int i = 0; i < kTM; i++)
#pragma unroll
    for (int j = 0; j < kTN; j++) sums[i][j] = 0.0f;

#pragma unroll
  for (int t = 0; t < kStages - 1; t++) {
    if (t < tiles) {
      float* stage = shared + t * kStage;
      fetch<kBM, kBK, kRowA, SP_A4>(stage, a + t * kBK, k, rows, k - t * kBK);
      fetch<kBK, kBN, kBN, SP_B4>(stage + kBM * kRowA, b + static_cast<size_t>(t) * kBK * n, n, k - t * kBK, columns);
    }
    sp::copy_commit();
  }
  int full = 0, free = kStages - 1;  // the stage that is multiplied, the one that is filled
  for (int t = 0; t < tiles; t++) {
    sp::copy_wait<kStages - 2>();
    __syncthreads();
    const int next = t + kStages - 1;
    if (next < tiles) {
      float* stage = shared + free * kStage;
      fetch<kBM, kBK, kRowA, SP_A4>(stage, a + next * kBK, k, rows, k - next * kBK);
      fetch<kBK, kBN, kBN, SP_B4>(stage + kBM * kRowA, b + static_cast<size_t>(next) * kBK * n, n, k - next * kBK, columns);
    }
    sp::copy_commit();
    const float* stage = shared + full * kStage;
    if (!idle)
      multiply(sums, stage + row * kRowA + slice * kSliceK, stage + kBM * kRowA + slice * kSliceK * kBN + column);
    free = full;
    full = full + 1 == kStages ? 0 : full + 1;
  }
  sp::copy_wait<0>();

  if (!kStaged) {
#pragma unroll
    for (int i = 0; i < kTM; i++) {
      if (row + 4 * i >= rows) break;
#pragma unroll
      for (int j = 0; j < kTN; j += 4)
        if (column + 8 * j < columns)
          *reinterpret_cast<float4*>(y + static_cast<size_t>(row + 4 * i) * n + column + 8 * j) =
              make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
    }
    return;
  }
  // The slices' sums [kSlices][kBM][kBN] meet in shared memory and are added in fixed order.
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kTM; i++)
#pragma unroll
    for (int j = 0; j < kTN; j += 4)
      *reinterpret_cast<float4*>(shared + (slice * kBM + row + 4 * i) * kBN + column + 8 * j) =
          make_float4(sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]);
  __syncthreads();
  constexpr int kWidth = SP_B4 ? 4 : 1;
  for (int e = kWidth * tid; e < rows * kBN; e += kWidth * kThreads) {
    if (e % kBN >= columns) continue;
    float* to = y + static_cast<size_t>(e / kBN) * n + e % kBN;
    if (SP_B4) {
      float4 sum = *reinterpret_cast<const float4*>(shared + e);
#pragma unroll
      for (int s = 1; s < kSlices; s++) sum = sp::add4(sum, *reinterpret_cast<const float4*>(shared + s * (kBM * kBN) + e));
      *reinterpret_cast<float4*>(to) = sum;
    } else {
      float sum = shared[e];
#pragma unroll
      for (int s = 1; s < kSlices; s++) sum += shared[s * (kBM * kBN) + e];
      *to = sum;
    }
  }
}
