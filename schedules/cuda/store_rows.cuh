// Finishes the sums that tensor cores leave in registers and stores them, rows of eight neighbours at a time.
#pragma once
#include "tensor.cuh"

namespace sp {

// Row g of TILES tiles of eight positions: lane 4 g + t has positions 8 j + 2 t and 8 j + 2 t + 1 of tile j, which are
// sum(j, 0) and sum(j, 1). left: positions from the first of these to the end, 0 or less where the row does not exist;
// `to` and `residual` are not read or written then. TILES is a multiple of 4; all lanes of the warp take part.
template <bool HALF, int TILES, typename Sum>
__device__ __forceinline__ void store_row(typename Element<HALF>::type* to, const typename Element<HALF>::type* residual,
                                          float bias, int left, int t, Sum sum) {
  constexpr int kAtOnce = HALF ? 4 : 2;  // tiles: with more, registers spill where blocks share a multiprocessor
#pragma unroll
  for (int j = 0; j < TILES; j += kAtOnce) {
    float2 v[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; n++) {
      v[n] = make_float2(sum(j + n, 0) + bias, sum(j + n, 1) + bias);
#if SP_RESIDUAL
      const int p = 8 * (j + n) + 2 * t;
      if (p < left) {
        const float2 more = Element<HALF>::load2(residual + p);
        v[n].x += more.x, v[n].y += more.y;
      }
#else
      (void)residual;
#endif
      v[n].x = activate(v[n].x), v[n].y = activate(v[n].y);
    }
    if constexpr (HALF) {
      // Lanes of a row swap what they have, so that each has eight neighbours of one tile.
      uint32_t words[4];
#pragma unroll
      for (int n = 0; n < 4; n++) words[n] = to_halves(v[n].x, v[n].y);
      transpose4(words, t);
      if (8 * (j + t) < left) *reinterpret_cast<uint4*>(to + 8 * (j + t)) = make_uint4(words[0], words[1], words[2], words[3]);
    } else {
#pragma unroll
      for (int n = 0; n < kAtOnce; n++)
        if (8 * (j + n) + 2 * t < left) *reinterpret_cast<float2*>(to + 8 * (j + n) + 2 * t) = v[n];
    }
  }
}

// Y and what is added to a row of it. residual: null where there is none.
template <bool HALF>
struct Output {
  using type = typename Element<HALF>::type;
  type* __restrict__ y;
  const type* __restrict__ residual;
  const float* __restrict__ bias;
  int rows, positions, y_row, r_row;

  // store_row of positions p to p + 8 * TILES - 1 of a row, which need not exist.
  template <int TILES, typename Sum>
  __device__ __forceinline__ void store(int row, int p, int t, Sum sum) const {
    const bool real = row < rows;
#if SP_RESIDUAL
    const type* const more = residual + static_cast<size_t>(row) * r_row + p;
#else
    const type* const more = nullptr;
#endif
    store_row<HALF, TILES>(y + static_cast<size_t>(row) * y_row + p, more, real ? bias[row] : 0.0f,
                           real ? positions - p : 0, t, sum);
  }
};

}  // namespace sp
