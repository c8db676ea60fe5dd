// Product of a weight whose rows share columns (blocks, column vectors) on tensor cores: factors in float16, bfloat16 or
// TF32, sums in float32.
//   SP_TM (16, 32, 64), SP_J (2, 4, 8), SP_G: a warp owns a panel of SP_TM rows and 8 * SP_J * SP_G positions.
//   SP_PANELS, SP_SLICES: panels of a block, warps that share the columns of each. SP_DEPTH: steps in flight.
//   SP_RUN (16, 8, 1): columns of a step lie in runs of so many.
//   SP_X_HALF, SP_Y_HALF: whether X, and Y with the residual, are float16 in memory; else float32. SP_TF32: factors are
//   TF32, two instructions for 16 columns; SP_BFLOAT: they are bfloat16. X is float32 in memory then.
// A step is 16 columns of a panel: W of them in fragments, and where their rows of X begin. A warp reads both straight
// into registers, SP_DEPTH steps ahead; the rows that warps of one block share come from L1. An instruction's position n
// is J * n + j of 8 * J neighbours, j the number of one of J instructions: so a lane reads J neighbours of four rows, and
// has the factors of J instructions once it has paired rows; it ends up with 2 * J neighbours of each of its rows.
#include "positions.cuh"
#include "streams.cuh"
#include "tensor.cuh"

constexpr int kTM = SP_TM, kJ = SP_J, kG = SP_G, kPanels = SP_PANELS, kSlices = SP_SLICES, kDepth = SP_DEPTH;
constexpr int kTN = 8 * kJ * kG, kThreads = 32 * kPanels * kSlices;
constexpr int kProducts = SP_TF32 ? 2 : 1;  // instructions for 16 columns
static_assert(!(SP_TF32 || SP_BFLOAT) || !SP_X_HALF, "TF32 and bfloat16 are what float32 is rounded to");

using X = sp::Element<SP_X_HALF>;
using Y = sp::Element<SP_Y_HALF>;

#if SP_RUN == 16
using Starts = int;
#elif SP_RUN == 8
using Starts = int2;
#else
using Starts = int4;
#endif

struct Step {
  uint4 w[kTM / 16][kProducts];
  uint32_t x[kG][4][X::words<kJ>()];
};

__device__ __forceinline__ Starts starts_of(const int* offsets, int step, int quarter) {
#if SP_RUN == 16
  return sp::early(offsets + step);
#elif SP_RUN == 8
  return sp::early(reinterpret_cast<const int2*>(offsets) + step);
#else
  return sp::early(reinterpret_cast<const int4*>(offsets) + 4 * step + quarter);
#endif
}

__device__ __forceinline__ void read_w(Step& to, const uint4* w, int step) {
#pragma unroll
  for (int i = 0; i < kTM / 16 * kProducts; i++)
    to.w[i / kProducts][i % kProducts] = sp::stream4(w + (step * (kTM / 16 * kProducts) + i) * 32);
}

// x: the lane's place in the first row of a run (of 8 or 16 columns: rows 2 t, 2 t + 1 and those 8 further on).
__device__ __forceinline__ void read_x(Step& to, const X::type* x, const int (&columns)[kG], Starts starts, int x_row) {
#if SP_RUN == 16
  const X::type* const rows[4] = {x + starts, x + starts + x_row, x + starts + 8 * x_row, x + starts + 9 * x_row};
#elif SP_RUN == 8
  const X::type* const rows[4] = {x + starts.x, x + starts.x + x_row, x + starts.y, x + starts.y + x_row};
#else
  (void)x_row;
  const X::type* const rows[4] = {x + starts.x, x + starts.y, x + starts.z, x + starts.w};
#endif
#pragma unroll
  for (int group = 0; group < kG; group++)
#pragma unroll
    for (int r = 0; r < 4; r++) sp::read_words<X::words<kJ>()>(to.x[group][r], rows[r] + columns[group]);
}

__device__ __forceinline__ void multiply(float (&sums)[kTM / 16][kG][kJ][4], const Step& step) {
#pragma unroll
  for (int group = 0; group < kG; group++)
#pragma unroll
    for (int j = 0; j < kJ; j++) {
#if SP_TF32
#pragma unroll
      for (int c = 0; c < 2; c++) {
        const uint32_t first = sp::to_tf32(__uint_as_float(step.x[group][2 * c][j]));
        const uint32_t second = sp::to_tf32(__uint_as_float(step.x[group][2 * c + 1][j]));
#pragma unroll
        for (int i = 0; i < kTM / 16; i++) {
          const uint4 w = step.w[i][c];
          const float a[4] = {__uint_as_float(w.x), __uint_as_float(w.y), __uint_as_float(w.z), __uint_as_float(w.w)};
          sp::mma_tf32(sums[i][group][j], a, first, second);
        }
      }
#else
#if SP_BFLOAT
      const auto pair = [&](int r) {
        return sp::to_bfloats(__uint_as_float(step.x[group][r][j]), __uint_as_float(step.x[group][r + 1][j]));
      };
      const uint32_t low = pair(0), high = pair(2);
#pragma unroll
      for (int i = 0; i < kTM / 16; i++) sp::mma_bfloat(sums[i][group][j], step.w[i][0], low, high);
#else
      const uint32_t low = X::pair(step.x[group][0], step.x[group][1], j), high = X::pair(step.x[group][2], step.x[group][3], j);
#pragma unroll
      for (int i = 0; i < kTM / 16; i++) sp::mma_half(sums[i][group][j], step.w[i][0], low, high);
#endif
#endif
    }
}

// heads: of each panel its first row, first step, number of steps, 0. offsets: where the rows of X of a step begin.
// w: steps x (kTM / 16) x kProducts x 32 lanes x 16 bytes. Scalars as in dense_block.cuh; panels: how many there are.
extern "C" __global__ void __launch_bounds__(kThreads)
    block_mma(const X::type* __restrict__ x, SP_RESIDUAL_OF(Y::type) const int4* __restrict__ heads,
              const int* __restrict__ offsets, const uint4* __restrict__ w, const float* __restrict__ bias,
              Y::type* __restrict__ y, int rows, int panels, int positions, int valid, int pitch, int width, int x0,
              int x_batch, int x_row, int y0, int y_batch, int y_row, int r0, int r_batch, int r_row, int head, int tail,
              int stop) {
  sp::start_next();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int slice = warp % kSlices, panel = blockIdx.x * kPanels + warp / kSlices;
  const int p0 = blockIdx.y * kTN;
  const int4 mine = sp::early(heads + min(panel, panels - 1));
  const int first = mine.y + mine.z * slice / kSlices;
  const int last = panel < panels ? mine.y + mine.z * (slice + 1) / kSlices : first;
  w += lane;

  Step steps[kDepth];
  Starts starts[kDepth] = {};
#pragma unroll
  for (int d = 0; d < kDepth; d++)
    if (first + d < last) starts[d] = starts_of(offsets, first + d, t);
#pragma unroll
  for (int d = 0; d < kDepth; d++)
    if (first + d < last) read_w(steps[d], w, first + d);

  const X::type* from = sp::wait_for_previous(x);
  from += x0 + static_cast<size_t>(blockIdx.z) * x_batch + (SP_RUN == 1 ? 0 : 2 * t * x_row);
  // Positions past the end are never stored; what is multiplied for them does not matter.
  int columns[kG];
#pragma unroll
  for (int group = 0; group < kG; group++) columns[group] = min(p0 + (8 * group + g) * kJ, positions - kJ);
#pragma unroll
  for (int d = 0; d < kDepth; d++)
    if (first + d < last) {
      read_x(steps[d], from, columns, starts[d], x_row);
      if (first + d + kDepth < last) starts[d] = starts_of(offsets, first + d + kDepth, t);
    }
  float sums[kTM / 16][kG][kJ][4] = {};
  for (int step = first; step < last; step += kDepth)
#pragma unroll
    for (int d = 0; d < kDepth; d++) {
      if (step + d >= last) break;
      multiply(sums, steps[d]);
      const int next = step + d + kDepth;
      if (next < last) {
        read_w(steps[d], w, next);
        read_x(steps[d], from, columns, starts[d], x_row);
        if (next + kDepth < last) starts[d] = starts_of(offsets, next + kDepth, t);
      }
    }

  // Zeros around the image of the panel's rows, shared among the blocks and warps that have its positions.
  const int row0 = mine.x, stop_row = panel < panels ? min(rows - row0, kTM) : 0;
  y += static_cast<size_t>(blockIdx.z) * y_batch + static_cast<size_t>(row0) * y_row;
  for (int r = blockIdx.y * kSlices + slice; r < stop_row; r += gridDim.y * kSlices)
    Y::zero_borders(y + static_cast<size_t>(r) * y_row, head, tail, stop, lane);
  y += y0;
  bias += row0;
#if SP_RESIDUAL
  residual += r0 + static_cast<size_t>(blockIdx.z) * r_batch + static_cast<size_t>(row0) * r_row;
#else
  (void)r0, (void)r_batch, (void)r_row;
#endif
  const auto finished = [&](float4 v, int r, int p) {
    const float b = bias[r];
    v = sp::add4(v, make_float4(b, b, b, b));
#if SP_RESIDUAL
    v = sp::add4(v, Y::load4(residual + static_cast<size_t>(r) * r_row + p));
#endif
    return sp::finish4(v, sp::pixels<4>(p, pitch, width, valid));
  };
  // Sums of four neighbours: number `quad` of the 2 * kJ of row g + 8 * half of 16 rows.
  const auto four = [&](int i, int group, int half, int quad) {
    const auto one = [&](int at) { return sums[i][group][at % kJ][2 * half + at / kJ]; };
    return make_float4(one(4 * quad), one(4 * quad + 1), one(4 * quad + 2), one(4 * quad + 3));
  };
#if SP_SLICES == 1
  constexpr int kStored = kJ == 8 && SP_Y_HALF ? 8 : 4;  // neighbours stored at once
#pragma unroll
  for (int i = 0; i < kTM / 16; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = 16 * i + 8 * half + g;
      if (r >= stop_row) continue;
#pragma unroll
      for (int group = 0; group < kG; group++)
#pragma unroll
        for (int quad = 0; quad < kJ / 2; quad += kStored / 4) {
          const int p = p0 + 8 * kJ * group + 2 * kJ * t + 4 * quad;
          if (p >= positions) continue;
          float4 v[kStored / 4];
#pragma unroll
          for (int n = 0; n < kStored / 4; n++) v[n] = finished(four(i, group, half, quad + n), r, p + 4 * n);
          Y::store(y + static_cast<size_t>(r) * y_row + p, v);
        }
    }
#else
  // Parts [kSlices][kTM][kParts] of every panel meet in shared memory and are added in the order of the columns.
  SP_DYNAMIC_SHARED(float, shared);
  constexpr int kParts = kTN + 4;  // floats from row to row of a part: rows begin in other banks
  float* const parts = shared + warp / kSlices * (kSlices * kTM * kParts);
#pragma unroll
  for (int i = 0; i < kTM / 16; i++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int group = 0; group < kG; group++)
#pragma unroll
        for (int quad = 0; quad < kJ / 2; quad++)
          *reinterpret_cast<float4*>(parts + (slice * kTM + 16 * i + 8 * half + g) * kParts + 8 * kJ * group + 2 * kJ * t +
                                     4 * quad) = four(i, group, half, quad);
  __syncthreads();
  for (int e = slice * 32 + lane; e < kTM * kTN / 4; e += 32 * kSlices) {
    const int r = e / (kTN / 4), column = e % (kTN / 4) * 4;
    if (r >= stop_row || p0 + column >= positions) continue;
    float4 v[1] = {*reinterpret_cast<const float4*>(parts + r * kParts + column)};
#pragma unroll
    for (int s = 1; s < kSlices; s++)
      v[0] = sp::add4(v[0], *reinterpret_cast<const float4*>(parts + (s * kTM + r) * kParts + column));
    v[0] = finished(v[0], r, p0 + column);
    Y::store(y + static_cast<size_t>(r) * y_row + p0 + column, v);
  }
#endif
}
