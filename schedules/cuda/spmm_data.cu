// Y = W X with the pattern of W in data: entries of 8 bytes, (value, byte offset of its X in the shared tile).
//
// A block computes WARPS * R rows of Y at NT positions. K goes by in chunks: cp.async brings the chunk's X and its
// entries to shared memory, STAGES chunks at a time. A warp owns R rows, a lane C positions; where NT < 32 * C, SUB
// groups of lanes take turns at a row's batches of U entries and are added by shuffles. A cluster of PARTS blocks splits
// K; each finishes a share of the rows: the others store their sums there (st.async), where they are added in the order
// of the blocks' ranks.
//
// X of a chunk is `chunk_rows` windows of `window` floats. SP_WINDOW 0 (products, 1x1): a window is the block's NT
// positions of one row of X, a lane's positions are neighbours (one vector load an entry). SP_WINDOW 1 (k x k): a
// window is the positions of one channel (and stride phase) that any tap reads, a lane's positions are 32 apart, so
// that taps of any alignment read without bank conflicts.
//
// starts: for each phase the offset of position 0's window, and how many floats of windows from there may be read (of
// one phase alone: x0 and reach instead). rows, bias: of each row of each block, row -1 for rows that fill the last one.
// A chunk's metadata ("block") is block_bytes long: u32 byte offset of each warp's entries, u16 rounds of each row,
// entries.
//
// Blocks of few entries last about as long as their first reads take to arrive, so nothing is looked up on the way: what
// is constant is on its way before the kernel before this one has ended, and rows, bias and masks are there at the end.
// Macros: SP_NT, SP_C, SP_R, SP_WARPS, SP_U, SP_STAGES, SP_CLUSTER (= PARTS), SP_WINDOW, SP_SINGLE (K is one chunk),
// SP_PHASES, SP_GROUPED (several groups of a convolution), SP_IMAGE (zeros between and around rows); epilogue.cuh's.
#include "cluster.cuh"
#include "positions.cuh"

constexpr int NT = SP_NT, C = SP_C, R = SP_R, WARPS = SP_WARPS, U = SP_U, STAGES = SP_STAGES, PARTS = SP_CLUSTER;
constexpr int PHASES = SP_PHASES, QUADS = SP_NT / 4;
constexpr int LANES = NT / C, SUB = 32 / LANES, THREADS = WARPS * 32, ROWS = WARPS * R;
constexpr int BLOCKS_PER_SM = WARPS >= 16 ? 1 : 16 / WARPS;  // at most 128 registers a thread
constexpr int SHARE = (ROWS + PARTS - 1) / PARTS;  // rows that a block of a cluster finishes
static_assert(SUB >= 1 && SUB * LANES == 32 && U % 2 == 0 && STAGES >= 2, "no such shape");
static_assert(ROWS <= THREADS * 4, "a thread copies four rows' numbers");
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

// A warp's entries of one chunk, row after row. Entries are read two batches ahead, X one batch ahead, across the ends of
// rows; the packed stream has readable batches behind its end.
struct Stream {
  const char *entry, *tile;
  float4 next[U / 2];
  float w[U], x[U][C];

  __device__ __forceinline__ Stream(const char* from, const char* tile_) : entry(from), tile(tile_) {
    read_entries();
    read_batch(w, x);
    read_entries();
  }
  __device__ __forceinline__ void read_entries() {
#pragma unroll
    for (int u = 0; u < U / 2; u++) next[u] = *reinterpret_cast<const float4*>(entry + u * 16);
    entry += 8 * U * SUB;
  }
  __device__ __forceinline__ void read_batch(float (&weights)[U], float (&values)[U][C]) {
#pragma unroll
    for (int u = 0; u < U / 2; u++) {
      weights[2 * u] = next[u].x;
      load_x(values[2 * u], tile + __float_as_uint(next[u].y));
      weights[2 * u + 1] = next[u].z;
      load_x(values[2 * u + 1], tile + __float_as_uint(next[u].w));
    }
  }
  // acc += a row of `rounds` batches.
  __device__ __forceinline__ void add_row(float (&acc)[C], int rounds) {
#pragma unroll 2
    for (int i = rounds; i > 0; i--) {
      float w_next[U], x_next[U][C];
      read_batch(w_next, x_next);
      read_entries();
#pragma unroll
      for (int u = 0; u < U; u++)
#pragma unroll
        for (int j = 0; j < C; j++) acc[j] = fmaf(w[u], x[u][j], acc[j]);
#pragma unroll
      for (int u = 0; u < U; u++) {
        w[u] = w_next[u];
#pragma unroll
        for (int j = 0; j < C; j++) x[u][j] = x_next[u][j];
      }
    }
  }
};

// Sum over the lane groups; all of them get it.
__device__ __forceinline__ void add_lanes(float (&acc)[C]) {
#pragma unroll
  for (int s = LANES; s < 32; s *= 2)
#pragma unroll
    for (int j = 0; j < C; j++) acc[j] += __shfl_xor_sync(~0u, acc[j], s);
}

// A lane's positions of one row: its residual, and its outputs. p: the lane's first position. Bit j of `real`: position
// j is a pixel.
__device__ __forceinline__ void read_residual(float (&more)[C], const float* residual, int p, int positions) {
  if constexpr (SP_WINDOW) {
#pragma unroll
    for (int j = 0; j < C; j++) more[j] = p + 32 * j < positions ? residual[p + 32 * j] : 0.0f;
  } else if (p < positions) {
    load_x(more, reinterpret_cast<const char*>(residual + p));
  }
}
__device__ __forceinline__ void write_row(float* y, const float (&acc)[C], const float (&more)[C], float start, int p,
                                          int positions, unsigned real) {
  float out[C];
#pragma unroll
  for (int j = 0; j < C; j++) {
    out[j] = acc[j] + start;
#if SP_RESIDUAL
    out[j] += more[j];
#endif
    out[j] = real >> j & 1 ? sp::activate(out[j]) : 0.0f;
  }
  if constexpr (SP_WINDOW) {
#pragma unroll
    for (int j = 0; j < C; j++)
      if (p + 32 * j < positions) y[p + 32 * j] = out[j];
  } else if (p < positions) {
    if constexpr (C == 4)
      *reinterpret_cast<float4*>(y + p) = make_float4(out[0], out[1], out[2], out[3]);
    else if constexpr (C == 2)
      *reinterpret_cast<float2*>(y + p) = make_float2(out[0], out[1]);
    else
      y[p] = out[0];
  }
}
// Stores the sums of local row `row` in the block that finishes it. sums: [PARTS][SHARE][NT], then the barrier.
__device__ __forceinline__ void send_sums(float* sums, int part, int row, int offset, const float (&acc)[C]) {
  sp::Mbarrier* const arrived = reinterpret_cast<sp::Mbarrier*>(sums + PARTS * SHARE * NT);
  const sp::RemoteStore to = sp::remote_store(sums, arrived, row / SHARE);
  const int at = (part * SHARE + row % SHARE) * NT + offset;
  if constexpr (SP_WINDOW) {
#pragma unroll
    for (int j = 0; j < C; j++) to.store<1>(at + j * 32, acc + j);
  } else {
    to.store<C>(at, acc);
  }
}

extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(THREADS, BLOCKS_PER_SM) spmm_data(
    const float* __restrict__ x, SP_RESIDUAL_PARAMETER const char* __restrict__ blocks, const int* __restrict__ rows,
    const float* __restrict__ bias, const int* __restrict__ starts, float* __restrict__ y, int group_tiles, int chunks,
    int chunk_rows, int block_bytes, int k_rows, int window, int reach, int x0, int x_batch, int x_group, int x_row,
    int positions, int valid, int pitch, int width, int y0, int y_batch, int y_row, int border_before, int border_after,
    int r0, int r_batch, int r_row) {
  sp::start_next();
  SP_DYNAMIC_SHARED(char, shared);
  // Unsigned division by a power of two is a shift.
  const unsigned thread = threadIdx.x;
  const int tid = thread, warp = thread / 32, lane = thread % 32, sub = thread % 32 / LANES, place = thread % LANES;
  const int quad_row = thread / QUADS, q = thread % QUADS * 4;  // of the copies of X and of a cluster's sum
  const int part = PARTS > 1 ? sp::cluster_rank() : 0;
  const int p0 = blockIdx.x / PARTS * NT, image = blockIdx.z, row_tile = blockIdx.y;
  int* const row_of = reinterpret_cast<int*>(shared);
  float* const bias_of = reinterpret_cast<float*>(shared + ROWS * 4);
  char* const stages = shared + ROWS * 8;
  const int x_bytes = chunk_rows * (SP_WINDOW ? window : NT) * 4, stage_bytes = x_bytes + block_bytes;
  const int count = SP_SINGLE ? 1 : chunks, first = part * count;

  float* const sums = reinterpret_cast<float*>(stages + (SP_SINGLE ? 1 : min(STAGES, count)) * stage_bytes);
  sp::Mbarrier* const arrived = reinterpret_cast<sp::Mbarrier*>(sums + PARTS * SHARE * NT);
  if constexpr (PARTS > 1) {
    if (tid == 0) {
      sp::barrier_init(arrived, 1);
      sp::barriers_ready();
      sp::barrier_expect(arrived, PARTS * max(0, min(SHARE, ROWS - part * SHARE)) * NT * 4);
    }
    __syncwarp();
    sp::cluster_arrive();
  }

  blocks += (size_t(row_tile) * PARTS * count + first) * block_bytes;
  auto fill_entries = [&](int c) {
    char* const to = stages + c % STAGES * stage_bytes + x_bytes;
    const char* const from = blocks + size_t(c) * block_bytes;
#pragma unroll 1
    for (int i = tid * 16; i < block_bytes; i += THREADS * 16) sp::copy16(to + i, from + i);
  };
  // Rows of X past the end of K and positions past the last are not copied: no sum that is stored reads them.
  auto fill_x = [&](int c) {
    char* const stage = stages + c % STAGES * stage_bytes;
    const int k0 = (first + c) * chunk_rows, left = min(chunk_rows, k_rows - k0);
    if constexpr (SP_WINDOW) {
      // A warp copies whole windows; those of the phases of a channel follow each other.
      for (int i = warp; i < left; i += WARPS) {
        const int channel = (k0 + i) / PHASES, phase = (k0 + i) % PHASES;
        const float* const from = x + channel * x_row + (PHASES > 1 ? starts[phase * 2] : 0);
        const int floats = min(window, (PHASES > 1 ? starts[phase * 2 + 1] : reach) - p0);
        for (int q = lane * 4; q < floats; q += 128) sp::copy16(stage + (i * window + q) * 4, from + q);
      }
    } else {
      constexpr int STEP = THREADS / QUADS;
      const float* from = x + (k0 + quad_row) * x_row + q;
      char* to = stage + tid * 16;
      if (p0 + q < positions)
#pragma unroll 4
        for (int i = quad_row; i < left; i += STEP, from += STEP * x_row, to += THREADS * 16) sp::copy16(to, from);
    }
  };

  if (const int i = tid * 4; i < ROWS) {
    sp::copy16(row_of + i, rows + row_tile * ROWS + i);
    sp::copy16(bias_of + i, bias + row_tile * ROWS + i);
  }
  x += x0 + image * x_batch + (SP_GROUPED ? row_tile / group_tiles * x_group : 0) + p0;
  // The first of this thread's groups of copies has the entries of all stages.
  constexpr int FILLS = SP_SINGLE ? 1 : STAGES;
#pragma unroll 1
  for (int c = 0; c < FILLS; c++)
    if (c < count) fill_entries(c);
  x = sp::wait_for_previous(x);
#if SP_RESIDUAL
  residual = sp::wait_for_previous(residual);
#endif
#pragma unroll 1
  for (int c = 0; c < FILLS; c++) {
    if (c < count) fill_x(c);
    sp::copy_commit();
  }

  y += y0 + image * y_batch;
#if SP_RESIDUAL
  residual += r0 + image * r_batch;
#endif
  const int p = p0 + (SP_WINDOW ? lane : place * C);
  unsigned real = ~0u;
  if constexpr (SP_IMAGE) {
    if constexpr (PARTS > 1) {
      real = sp::pixels<4>(p0 + q, pitch, width, valid);
    } else if constexpr (SP_WINDOW) {
      real = 0;
#pragma unroll
      for (int j = 0; j < C; j++) real |= sp::pixels<1>(p + 32 * j, pitch, width, valid) << j;
    } else {
      real = sp::pixels<C>(p, pitch, width, valid);
    }
  }

  const int lane_offset = SP_WINDOW ? lane : place * C;
  auto stream = [&](const char* stage) {
    const char* const meta = stage + x_bytes;
    const char* const from = meta + reinterpret_cast<const uint32_t*>(meta)[warp] + sub * (8 * U);
    return Stream(from, stage + lane_offset * 4);
  };
  auto rounds_of = [&](const char* stage) {
    return reinterpret_cast<const uint16_t*>(stage + x_bytes + WARPS * 4) + warp * R;
  };
  if constexpr (SP_SINGLE) {
    sp::copy_wait<0>();
    __syncthreads();
    if constexpr (PARTS > 1) sp::cluster_wait();
    Stream entries = stream(stages);
    const uint16_t* const rounds = rounds_of(stages);
#pragma unroll 1
    for (int r = 0; r < R; r++) {
      float acc[C] = {}, more[C] = {};
      const int row = row_of[warp * R + r];
#if SP_RESIDUAL
      if (PARTS == 1 && row >= 0) read_residual(more, residual + row * r_row, p, positions);
#endif
      entries.add_row(acc, rounds[r]);
      add_lanes(acc);
      if (sub != 0) continue;
      if constexpr (PARTS > 1)
        send_sums(sums, part, warp * R + r, lane_offset, acc);
      else if (row >= 0)
        write_row(y + row * y_row, acc, more, bias_of[warp * R + r], p, positions, real);
    }
  } else {
    float acc[R][C] = {};
    for (int c = 0; c < count; c++) {
      if (c == 0)
        sp::copy_wait<STAGES - 1>();
      else
        sp::copy_wait<STAGES - 2>();
      __syncthreads();
      if (c > 0) {
        if (c - 1 + STAGES < count) {
          fill_entries(c - 1 + STAGES);
          fill_x(c - 1 + STAGES);
        }
        sp::copy_commit();
      }
      const char* const stage = stages + c % STAGES * stage_bytes;
      int rounds[R];
#pragma unroll
      for (int r = 0; r < R; r++) rounds[r] = rounds_of(stage)[r];
      Stream entries = stream(stage);
#pragma unroll
      for (int r = 0; r < R; r++) entries.add_row(acc[r], rounds[r]);
    }
    if constexpr (PARTS > 1) sp::cluster_wait();
#pragma unroll
    for (int r = 0; r < R; r++) add_lanes(acc[r]);
#pragma unroll
    for (int r = 0; r < R; r++) {
      if (r % SUB != sub) continue;
      if constexpr (PARTS > 1) {
        send_sums(sums, part, warp * R + r, lane_offset, acc[r]);
      } else if (const int row = row_of[warp * R + r]; row >= 0) {
        float more[C] = {};
#if SP_RESIDUAL
        read_residual(more, residual + row * r_row, p, positions);
#endif
        write_row(y + row * y_row, acc[r], more, bias_of[warp * R + r], p, positions, real);
      }
    }
  }

  if constexpr (PARTS > 1) {
    sp::barrier_wait(arrived, 0);
    for (int i = quad_row; i < SHARE; i += THREADS / QUADS) {
      const int local = part * SHARE + i;
      if (local >= ROWS || p0 + q >= positions) continue;
      const int row = row_of[local];
      if (row < 0) continue;
#if SP_RESIDUAL
      const float4 more = *reinterpret_cast<const float4*>(residual + row * r_row + p0 + q);
#endif
      const float start = bias_of[local];
      float4 sum = make_float4(start, start, start, start);
#pragma unroll
      for (int from = 0; from < PARTS; from++)
        sum = sp::add4(sum, *reinterpret_cast<const float4*>(sums + (from * SHARE + i) * NT + q));
#if SP_RESIDUAL
      sum = sp::add4(sum, more);
#endif
      *reinterpret_cast<float4*>(y + row * y_row + p0 + q) = sp::finish4(sum, real);
    }
  }

  // The zeros around an image belong to the output; its first and last blocks write them.
  if constexpr (SP_IMAGE) {
    const int before = part == 0 && p0 == 0 ? border_before : 0;
    const int after = part == 0 && p0 + NT >= positions ? border_after : 0;
    if (before + after > 0)
      for (int i = warp; i < ROWS; i += WARPS) {
        if (row_of[i] < 0) continue;
        float* const plane = y + row_of[i] * y_row - before;
        sp::zero_borders(plane, before, before + positions, before + positions + after, lane);
      }
  }
}
