// Y = W X, a warp's rows by turns: entries come column after column, each jumps to the code of its row, and a column of X
// is read once for all rows of the warp that use it.
//
// A block computes WARPS * R rows of Y at NT = 32 * C positions; a lane has 4 of each 128. COPIERS more warps copy each
// chunk's X (CHUNK rows of NT floats) and entries (formats/dispatch_stream.py) STAGES chunks ahead; barriers in shared
// memory tell when a stage is full, and when all warps have done with it. Warps need not wait for each other, so a chunk
// that is longer for one of them costs nothing by itself. One copier leaves X to the copy engine, a row at a time (68
// clocks for 2 KB); several use cp.async, which is faster and takes issue slots from the others. A cluster of SP_CLUSTER
// blocks splits K; partial tiles are added through distributed shared memory in the order of their ranks.
//
// SP_DISPATCH runs the entries of a chunk (formats/dispatch_loop.py). Other macros: SP_C, SP_R, SP_WARPS, SP_COPIERS,
// SP_CHUNK, SP_STAGES, SP_IMAGE (zeros between and around rows); epilogue.cuh's.
#pragma once
#include "bulk.cuh"
#include "positions.cuh"
#include "streams.cuh"

constexpr int C = SP_C, R = SP_R, WARPS = SP_WARPS, CHUNK = SP_CHUNK, STAGES = SP_STAGES, PARTS = SP_CLUSTER;
constexpr int COPIERS = SP_COPIERS;
constexpr int NT = 32 * C, ROWS = WARPS * R, THREADS = WARPS * 32, VECTORS = C / 4, X_BYTES = CHUNK * NT * 4;
constexpr int BARRIER_BYTES = 128;
static_assert(C % 4 == 0 && 2 * STAGES * sizeof(sp::Mbarrier) <= BARRIER_BYTES, "no such shape");

#ifdef SP_EMULATE
// What SP_DISPATCH does, with a loop over the entries.
__device__ inline void dispatch(float (&acc)[R][C], const char* entries, const char* tile) {
  float x[C];
  auto read_x = [&](unsigned offset) {
    for (int v = 0; v < VECTORS; v++) memcpy(x + v * 4, tile + offset + v * 512, 16);
  };
  unsigned words[2];
  memcpy(words, entries, 4);
  read_x(words[0]);
  for (;;) {
    entries += 8;
    memcpy(words, entries, 8);
    const unsigned row = words[1] % (NT * 4);
    if (row == R) return;
    if (row > R) sp_emu::fail("an entry of a row that the warp lacks");
    const float w = __uint_as_float(words[0]);
    for (int c = 0; c < C; c++) acc[row][c] = fmaf(w, x[c], acc[row][c]);
    if (words[1] >> 31) read_x((words[1] & 0x7fffffffu) / (NT * 4) * (NT * 4));
  }
}
#endif

extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(THREADS + COPIERS * 32, 1) spmm_dispatch(
    const float* __restrict__ x, SP_RESIDUAL_PARAMETER const char* __restrict__ blocks, const int* __restrict__ rows,
    const float* __restrict__ bias, float* __restrict__ y, int chunks, int block_bytes, int k_rows, int x0, int x_batch,
    int x_row, int positions, int valid, int pitch, int width, int y0, int y_batch, int y_row, int border_before,
    int border_after, int r0, int r_batch, int r_row) {
  sp::start_next();
  SP_DYNAMIC_SHARED(char, shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int part = PARTS > 1 ? sp::cluster_rank() : 0;
  const int p0 = blockIdx.x / PARTS * NT, row_tile = blockIdx.y, image = blockIdx.z;
  const int stage_bytes = X_BYTES + block_bytes, floats = min(NT, positions - p0);
  sp::Mbarrier* const full = reinterpret_cast<sp::Mbarrier*>(shared);
  sp::Mbarrier* const empty = full + STAGES;
  char* const stages = shared + BARRIER_BYTES;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      sp::barrier_init(full + i, COPIERS == 1 ? 1 : 1 + COPIERS * 32);
      sp::barrier_init(empty + i, WARPS);
    }
    sp::barriers_ready();
  }
  __syncthreads();

  float acc[R][C] = {};
  int my_row = -1;  // of lane r: row and bias at the warp's place r
  float my_bias = 0.0f;
  if (warp >= WARPS) {
    const int copier = threadIdx.x - THREADS;
    blocks += (size_t(row_tile) * PARTS + part) * chunks * block_bytes;
    auto copy_entries = [&](int c) {
      const int k0 = (part * chunks + c) * CHUNK, left = max(0, min(CHUNK, k_rows - k0)), stage = c % STAGES;
      sp::barrier_expect(full + stage, (COPIERS == 1 ? left * floats * 4 : 0) + block_bytes);
      sp::bulk_copy(stages + stage * stage_bytes + X_BYTES, blocks + size_t(c) * block_bytes, block_bytes, full + stage);
    };
    const int ahead = min(STAGES, chunks);
    if (copier == 0)
      for (int c = 0; c < ahead; c++) copy_entries(c);
    x = sp::wait_for_previous(x) + x0 + image * x_batch + p0;
#pragma unroll 1
    for (int c = 0; c < chunks; c++) {
      const int stage = c % STAGES, k0 = (part * chunks + c) * CHUNK, left = min(CHUNK, k_rows - k0);
      if (c >= STAGES) {
        sp::barrier_wait(empty + stage, (c / STAGES - 1) & 1);
        if (copier == 0) copy_entries(c);
      }
      char* const to = stages + stage * stage_bytes;
      const float* const from = x + size_t(k0) * x_row;
      if constexpr (COPIERS == 1) {
        __syncwarp();  // no bytes arrive before they are expected
        for (int i = lane; i < left; i += 32)
          sp::bulk_copy(to + i * (NT * 4), from + size_t(i) * x_row, floats * 4, full + stage);
      } else {
        constexpr unsigned QUADS = NT / 4;
#pragma unroll 8
        for (unsigned i = copier; int(i) < left * int(QUADS); i += COPIERS * 32)
          if (const int q = i % QUADS * 4; q < floats) sp::copy16(to + i * 16, from + size_t(i / QUADS) * x_row + q);
        sp::barrier_arrive_copied(full + stage);
      }
    }
  } else {
    if (lane < R) {
      my_row = sp::early(rows + (row_tile * WARPS + warp) * R + lane);
      my_bias = sp::early(bias + (row_tile * WARPS + warp) * R + lane);
    }
#pragma unroll 1
    for (int c = 0; c < chunks; c++) {
      const int stage = c % STAGES;
      sp::barrier_wait(full + stage, c / STAGES & 1);
      const char* const x_tile = stages + stage * stage_bytes;
      const char* const block = x_tile + X_BYTES;
      const char* const stream = block + reinterpret_cast<const unsigned*>(block)[warp];
#ifdef SP_EMULATE
      dispatch(acc, stream, x_tile + lane * 16);
#else
      const unsigned entries = sp::shared_address(stream), tile = sp::shared_address(x_tile) + lane * 16;
      SP_DISPATCH;
#endif
      __syncwarp();
      if (lane == 0) sp::barrier_arrive(empty + stage);
    }
    y = sp::wait_for_previous(y);
#if SP_RESIDUAL
    residual = sp::wait_for_previous(residual);
#endif
  }

  y += y0 + image * y_batch;
#if SP_RESIDUAL
  residual += r0 + image * r_batch;
#endif
  auto finish = [&](float4 sum, int row, int p) {
#if SP_RESIDUAL
    sum = sp::add4(sum, *reinterpret_cast<const float4*>(residual + row * r_row + p));
#endif
    *reinterpret_cast<float4*>(y + row * y_row + p) =
        sp::finish4(sum, SP_IMAGE ? sp::pixels<4>(p, pitch, width, valid) : ~0u);
  };
  if constexpr (PARTS == 1) {
    if (warp >= WARPS) return;
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int row = __shfl_sync(~0u, my_row, r);
      const float start = __shfl_sync(~0u, my_bias, r);
      if (row < 0) continue;
#pragma unroll
      for (int v = 0; v < VECTORS; v++) {
        const int p = p0 + v * 128 + lane * 4;
        const float* const sum = acc[r] + v * 4;
        if (p < positions) finish(make_float4(sum[0] + start, sum[1] + start, sum[2] + start, sum[3] + start), row, p);
      }
    }
  } else {
    float* const partial = reinterpret_cast<float*>(stages);
    __syncthreads();  // the stages are free
    if (warp < WARPS)
#pragma unroll
      for (int r = 0; r < R; r++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
          *reinterpret_cast<float4*>(partial + (warp * R + r) * NT + v * 128 + lane * 4) =
              make_float4(acc[r][v * 4], acc[r][v * 4 + 1], acc[r][v * 4 + 2], acc[r][v * 4 + 3]);
    sp::cluster_sync();
    // A block adds the rows of every PARTS-th place of each warp, whose numbers that warp has.
    if (warp < WARPS)
#pragma unroll
      for (int r = 0; r < R; r++) {
        const int row = __shfl_sync(~0u, my_row, r);
        const float start = __shfl_sync(~0u, my_bias, r);
        if (r % PARTS != part || row < 0) continue;
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
          const int at = v * 128 + lane * 4;
          if (p0 + at >= positions) continue;
          float4 sum = make_float4(start, start, start, start);
#pragma unroll
          for (int from = 0; from < PARTS; from++)
            sum = sp::add4(sum, sp::cluster_load4(partial + (warp * R + r) * NT + at, from));
          finish(sum, row, p0 + at);
        }
      }
    sp::cluster_sync();
  }

  // The zeros around an image belong to the output; its first and last blocks write them.
  if constexpr (SP_IMAGE) {
    const int before = part == 0 && p0 == 0 ? border_before : 0;
    const int after = part == 0 && p0 + NT >= positions ? border_after : 0;
    if (before + after > 0 && warp < WARPS)
#pragma unroll
      for (int r = 0; r < R; r++) {
        const int row = __shfl_sync(~0u, my_row, r);
        if (row >= 0) sp::zero_borders(y + row * y_row - before, before, before + positions, before + positions + after, lane);
      }
  }
}
