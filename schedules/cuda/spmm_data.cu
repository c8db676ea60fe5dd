// Y = W X with the pattern of W in data: entries of 8 bytes, (value, byte offset of its X in the shared tile).
//
// A block computes WARPS * R rows of Y at NT positions. K goes by in chunks: cp.async brings the chunk's X and its
// entries to shared memory, STAGES chunks at a time. A warp owns R rows, a lane C positions; where NT < 32 * C, SUB
// groups of lanes take turns at a row's batches of U entries and are added by shuffles. A cluster of PARTS blocks splits
// K; partial tiles are added through distributed shared memory in the order of their ranks.
//
// X of a chunk is `chunk_rows` windows of `window` floats. SP_WINDOW 0 (products, 1x1): a window is the block's NT
// positions of one row of X, a lane's positions are neighbours (one vector load an entry). SP_WINDOW 1 (k x k): a
// window is the positions of one channel (and stride phase) that any tap reads, a lane's positions are 32 apart, so
// that taps of any alignment read without bank conflicts.
//
// starts: for each phase the offset of position 0's window, and how many floats of windows from there may be read.
// rows, bias: of each row of each block, row -1 for rows that fill the last one up.
// A chunk's metadata ("block") is block_bytes long: u32 byte offset of each warp's entries, u16 rounds of each row,
// entries. Macros: SP_NT, SP_C, SP_R, SP_WARPS, SP_U, SP_STAGES, SP_CLUSTER (= PARTS), SP_WINDOW; epilogue.cuh's.
#include "epilogue.cuh"

constexpr int NT = SP_NT, C = SP_C, R = SP_R, WARPS = SP_WARPS, U = SP_U, STAGES = SP_STAGES, PARTS = SP_CLUSTER;
constexpr int LANES = NT / C, SUB = 32 / LANES, THREADS = WARPS * 32, ROWS = WARPS * R;
constexpr int BLOCKS_PER_SM = WARPS >= 16 ? 1 : 16 / WARPS;  // at most 128 registers a thread
static_assert(SUB >= 1 && SUB * LANES == 32 && U % 2 == 0 && STAGES >= 2, "no such shape");
static_assert(!SP_WINDOW || SUB == 1, "windows need all lanes on one row");

__device__ __forceinline__ void load_x(float (&x)[C], const char* at) {
  if constexpr (SP_WINDOW) {
#pragma unroll
    for (int j = 0; j < C; j++) x[j] = *reinterpret_cast<const float*>(at + j * 128);
  } else if constexpr (C == 4) {
    const float4 v = *reinterpret_cast<const float4*>(at);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else if constexpr (C == 2) {
    const float2 v = *reinterpret_cast<const float2*>(at);
    x[0] = v.x, x[1] = v.y;
  } else {
    x[0] = *reinterpret_cast<const float*>(at);
  }
}

// acc += the warp's rows of one chunk. Entries are read two batches ahead, X one batch ahead, across the ends of rows;
// the packed stream has readable batches behind its end.
__device__ __forceinline__ void multiply(float (&acc)[R][C], const char* tile, const char* meta, int warp, int sub) {
  const char* entry = meta + reinterpret_cast<const uint32_t*>(meta)[warp] + sub * (8 * U);
  const uint16_t* rounds = reinterpret_cast<const uint16_t*>(meta + WARPS * 4) + warp * R;
  int left[R];
#pragma unroll
  for (int r = 0; r < R; r++) left[r] = rounds[r];
  float4 next[U / 2];
  float w[U], x[U][C];
  auto read_entries = [&] {
#pragma unroll
    for (int u = 0; u < U / 2; u++) next[u] = *reinterpret_cast<const float4*>(entry + u * 16);
    entry += 8 * U * SUB;
  };
  auto read_batch = [&](float (&weights)[U], float (&values)[U][C]) {
#pragma unroll
    for (int u = 0; u < U / 2; u++) {
      weights[2 * u] = next[u].x;
      load_x(values[2 * u], tile + __float_as_uint(next[u].y));
      weights[2 * u + 1] = next[u].z;
      load_x(values[2 * u + 1], tile + __float_as_uint(next[u].w));
    }
  };
  read_entries();
  read_batch(w, x);
  read_entries();
#pragma unroll
  for (int r = 0; r < R; r++) {
#pragma unroll 2
    for (int i = left[r]; i > 0; i--) {
      float w_next[U], x_next[U][C];
      read_batch(w_next, x_next);
      read_entries();
#pragma unroll
      for (int u = 0; u < U; u++)
#pragma unroll
        for (int j = 0; j < C; j++) acc[r][j] = fmaf(w[u], x[u][j], acc[r][j]);
#pragma unroll
      for (int u = 0; u < U; u++) {
        w[u] = w_next[u];
#pragma unroll
        for (int j = 0; j < C; j++) x[u][j] = x_next[u][j];
      }
    }
  }
}

extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(THREADS, BLOCKS_PER_SM) spmm_data(
    const float* __restrict__ x, SP_RESIDUAL_PARAMETER const char* __restrict__ blocks, const int* __restrict__ rows,
    const float* __restrict__ bias, const int* __restrict__ starts, float* __restrict__ y, int column_tiles,
    int group_tiles, int chunks, int chunk_rows, int block_bytes, int k_rows, int phases, int window, int x0, int x_batch,
    int x_group, int x_row, int positions, int valid, int pitch, int width, int y0, int y_batch, int y_row,
    int border_before, int border_after, int r0, int r_batch, int r_row) {
  SP_DYNAMIC_SHARED(char, shared);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, sub = lane / LANES, place = lane % LANES;
  const int part = PARTS > 1 ? sp::cluster_rank() : 0;
  const int column = blockIdx.x / PARTS, image = column / column_tiles, p0 = (column - image * column_tiles) * NT;
  const int row_tile = blockIdx.y, group = row_tile / group_tiles;
  int* const row_of = reinterpret_cast<int*>(shared);
  float* const bias_of = reinterpret_cast<float*>(shared + ROWS * 4);
  char* const stages = shared + ROWS * 8;
  const int x_bytes = chunk_rows * window * 4, stage_bytes = x_bytes + block_bytes;
  const int first = part * chunks;

  x += x0 + image * x_batch + group * x_group + p0;
  blocks += (size_t(row_tile) * PARTS * chunks + first) * block_bytes;
  auto fill = [&](int c) {
    if (c < chunks) {
      char* const stage = stages + c % STAGES * stage_bytes;
      for (int i = tid * 16; i < block_bytes; i += THREADS * 16)
        sp::copy16(stage + x_bytes + i, blocks + size_t(c) * block_bytes + i);
      const int k0 = (first + c) * chunk_rows;
      if constexpr (SP_WINDOW) {
        // A warp copies whole windows; those of the phases of a channel follow each other.
        for (int i = warp; i < chunk_rows; i += WARPS) {
          const int k = k0 + i, channel = k / phases, phase = k - channel * phases;
          const int start = starts[phase * 2], reach = starts[phase * 2 + 1];
          for (int q = lane * 4; q < window; q += 128) {
            const bool inside = k < k_rows && p0 + q < reach;
            sp::copy16_if(stage + (i * window + q) * 4, inside ? x + channel * x_row + start + q : x, inside);
          }
        }
      } else {
        constexpr int QUADS = NT / 4, STEP = THREADS / QUADS;
        const int q = tid % QUADS * 4;
#pragma unroll 4
        for (int i = tid / QUADS; i < chunk_rows; i += STEP) {
          const bool inside = k0 + i < k_rows && p0 + q < positions;
          sp::copy16_if(stage + (i * NT + q) * 4, inside ? x + (k0 + i) * x_row + q : x, inside);
        }
      }
    }
    sp::copy_commit();
  };

  for (int i = tid * 4; i < ROWS; i += THREADS * 4) {
    sp::copy16(row_of + i, rows + row_tile * ROWS + i);
    sp::copy16(bias_of + i, bias + row_tile * ROWS + i);
  }
#pragma unroll
  for (int c = 0; c < STAGES; c++) fill(c);

  float acc[R][C] = {};
  const int lane_offset = SP_WINDOW ? lane * 4 : place * C * 4;
  for (int c = 0; c < chunks; c++) {
    if (c == 0)
      sp::copy_wait<STAGES - 1>();
    else
      sp::copy_wait<STAGES - 2>();
    __syncthreads();
    if (c > 0) fill(c - 1 + STAGES);
    const char* const stage = stages + c % STAGES * stage_bytes;
    multiply(acc, stage + lane_offset, stage + x_bytes, warp, sub);
  }

#pragma unroll
  for (int s = LANES; s < 32; s *= 2)
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int j = 0; j < C; j++) acc[r][j] += __shfl_xor_sync(~0u, acc[r][j], s);

  y += y0 + image * y_batch;
#if SP_RESIDUAL
  residual += r0 + image * r_batch;
#endif
  auto real = [&](int p) { return p < valid && p % pitch < width; };
  if constexpr (PARTS == 1) {
    bool keep[C];
#pragma unroll
    for (int j = 0; j < C; j++) keep[j] = real(p0 + (SP_WINDOW ? lane + 32 * j : place * C + j));
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int row = row_of[warp * R + r];
      if (r % SUB != sub || row < 0) continue;
      const float start = bias_of[warp * R + r];
      float out[C];
#pragma unroll
      for (int j = 0; j < C; j++) out[j] = acc[r][j] + start;
      if constexpr (SP_WINDOW) {
#pragma unroll
        for (int j = 0; j < C; j++) {
          const int p = p0 + lane + 32 * j;
          if (p >= positions) continue;
#if SP_RESIDUAL
          out[j] += residual[row * r_row + p];
#endif
          y[row * y_row + p] = keep[j] ? sp::activate(out[j]) : 0.0f;
        }
      } else {
        const int p = p0 + place * C;
        if (p >= positions) continue;
#if SP_RESIDUAL
        float more[C];
        load_x(more, reinterpret_cast<const char*>(residual + row * r_row + p));
#pragma unroll
        for (int j = 0; j < C; j++) out[j] += more[j];
#endif
#pragma unroll
        for (int j = 0; j < C; j++) out[j] = keep[j] ? sp::activate(out[j]) : 0.0f;
        if constexpr (C == 4)
          *reinterpret_cast<float4*>(y + row * y_row + p) = make_float4(out[0], out[1], out[2], out[3]);
        else if constexpr (C == 2)
          *reinterpret_cast<float2*>(y + row * y_row + p) = make_float2(out[0], out[1]);
        else
          y[row * y_row + p] = out[0];
      }
    }
  } else {
    float* const partial = reinterpret_cast<float*>(stages);
    sp::copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < R; r++)
      if (r % SUB == sub)
#pragma unroll
        for (int j = 0; j < C; j++)
          partial[(warp * R + r) * NT + (SP_WINDOW ? lane + 32 * j : place * C + j)] = acc[r][j];
    sp::cluster_sync();
    constexpr int QUADS = NT / 4, SHARE = (ROWS + PARTS - 1) / PARTS;
    for (int i = tid; i < SHARE * QUADS; i += THREADS) {
      const int local = part * SHARE + i / QUADS, q = i % QUADS * 4, p = p0 + q;
      if (local >= ROWS || p >= positions) continue;
      const int row = row_of[local];
      if (row < 0) continue;
      const float start = bias_of[local];
      float4 sum = make_float4(start, start, start, start);
#pragma unroll
      for (int from = 0; from < PARTS; from++) {
        const float4 v = sp::cluster_load4(partial + local * NT + q, from);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
#if SP_RESIDUAL
      const float4 more = *reinterpret_cast<const float4*>(residual + row * r_row + p);
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
#endif
      sum.x = real(p) ? sp::activate(sum.x) : 0.0f;
      sum.y = real(p + 1) ? sp::activate(sum.y) : 0.0f;
      sum.z = real(p + 2) ? sp::activate(sum.z) : 0.0f;
      sum.w = real(p + 3) ? sp::activate(sum.w) : 0.0f;
      *reinterpret_cast<float4*>(y + row * y_row + p) = sum;
    }
    sp::cluster_sync();
  }

  // The zeros around an image belong to the output; its first and last blocks write them.
  const int before = part == 0 && p0 == 0 ? border_before : 0;
  const int after = part == 0 && p0 + NT >= positions ? border_after : 0;
  if (before + after > 0)
    for (int i = warp; i < ROWS; i += WARPS) {
      const int row = row_of[i];
      if (row < 0) continue;
      const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      for (int q = lane * 4; q < before; q += 128) *reinterpret_cast<float4*>(y + row * y_row - before + q) = zero;
      for (int q = lane * 4; q < after; q += 128) *reinterpret_cast<float4*>(y + row * y_row + positions + q) = zero;
    }
}
