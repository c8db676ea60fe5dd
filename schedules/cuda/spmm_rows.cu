// Y = W X with the pattern of W in data, rows of W read against X in L1 (or in a copy of it in shared memory).
//
// A block computes some rows of Y at NT positions over one part of K; a cluster of PARTS blocks splits K. A row of W
// is walked by NT / C lanes with C positions each, so GROUP = 32 * C / NT rows go side by side in a warp, padded to the
// longest of them. An entry is (value, byte offset of its X from the block's base); entries come in batches of U a row:
// float4 (value, offset, value, offset) [U / 2][GROUP]. A batch's X loads are all in flight before the first FMA.
//
// A "piece" is a row in one of SLICES pieces of the part of K. Where a row has one piece in all, its warp finishes it;
// else pieces meet in shared memory and are added in the order of K. Each block of a cluster finishes a share of its
// rows: the others store their pieces there (st.async), and its barrier counts what has come.
//
// heads: for every warp of every block {first batch, first group, groups, rows that the block finishes}. groups: for
// every row of a group {row of Y where rows have one piece (-1: none), else place among the block's pieces; batches}.
// rows: rows of Y of a row tile, -1 for none.
// Macros: SP_NT, SP_C, SP_WARPS, SP_U, SP_SLICES, SP_CLUSTER (= PARTS); SP_RESIDENT: blocks per multiprocessor that
// registers must allow; SP_ALIGNED: offsets are multiples of 16 bytes; SP_TILE: X is copied to shared memory (offsets
// count from there); SP_RING: entries come through shared memory; epilogue.cuh's.
#include "cluster.cuh"
#include "epilogue.cuh"
#include "streams.cuh"

constexpr int NT = SP_NT, C = SP_C, WARPS = SP_WARPS, U = SP_U, SLICES = SP_SLICES, PARTS = SP_CLUSTER;
constexpr int LANES = NT / C, GROUP = 32 / LANES, THREADS = WARPS * 32, PIECES = PARTS * SLICES;
constexpr int V = !SP_ALIGNED ? 1 : C < 4 ? C : 4, VECTORS = C / V;  // a lane's positions: VECTORS runs of V
constexpr int BATCH = U / 2 * GROUP;                                 // float4s
static_assert(LANES >= 1 && LANES * GROUP == 32 && U % 2 == 0 && V * VECTORS == C, "no such shape");

__device__ __forceinline__ void load(float (&v)[C], int first, const char* from) {
  if constexpr (V == 4) {
    const float4 q = *reinterpret_cast<const float4*>(from);
    v[first] = q.x, v[first + 1] = q.y, v[first + 2] = q.z, v[first + 3] = q.w;
  } else if constexpr (V == 2) {
    const float2 q = *reinterpret_cast<const float2*>(from);
    v[first] = q.x, v[first + 1] = q.y;
  } else {
    v[first] = *reinterpret_cast<const float*>(from);
  }
}

__device__ __forceinline__ void store(float* to, const float (&v)[C], int first) {
  if constexpr (V == 4)
    *reinterpret_cast<float4*>(to) = make_float4(v[first], v[first + 1], v[first + 2], v[first + 3]);
  else if constexpr (V == 2)
    *reinterpret_cast<float2*>(to) = make_float2(v[first], v[first + 1]);
  else
    *to = v[first];
}

// Batches of a warp's entries, in order.
#if SP_RING
constexpr unsigned CHUNK = 32, RING = 4 * CHUNK;  // float4s: of a copy by the warp, of its ring in shared memory
static_assert(BATCH <= CHUNK, "a batch is at most a chunk");
struct Entries {
  const float4* next;
  float4* ring;
  unsigned lane, sub, position = 0;

  __device__ Entries(const float4* from, float4* shared, int lane_, int sub_)
      : next(from + lane_), ring(shared), lane(lane_), sub(sub_) {
#pragma unroll
    for (unsigned c = 0; c < RING - CHUNK; c += CHUNK) fetch(c);
  }
  __device__ __forceinline__ void fetch(unsigned to) {
    sp::copy16(ring + to + lane, next);
    sp::copy_commit();
    next += CHUNK;
  }
  __device__ __forceinline__ void read(float4 (&e)[U / 2]) {
    if (position % CHUNK == 0) {
      sp::copy_wait<RING / CHUNK - 2>();
      __syncwarp();
      fetch((position - CHUNK) % RING);  // the chunk that all lanes have read
    }
    const float4* const at = ring + (position % RING + sub);
#pragma unroll
    for (int u = 0; u < U / 2; u++) e[u] = at[u * GROUP];
    position += BATCH;
  }
  __device__ __forceinline__ void finish() { sp::copy_wait<0>(); }
};
#else
struct Entries {
  const float4* next;
  float4 ahead[U / 2];  // a batch ahead

  __device__ Entries(const float4* from, float4*, int, int sub) : next(from + sub) { fetch(); }
  __device__ __forceinline__ void fetch() {
#pragma unroll
    for (int u = 0; u < U / 2; u++) ahead[u] = sp::stream4(next + u * GROUP);
    next += BATCH;
  }
  __device__ __forceinline__ void read(float4 (&e)[U / 2]) {
#pragma unroll
    for (int u = 0; u < U / 2; u++) e[u] = ahead[u];
    fetch();
  }
  __device__ __forceinline__ void finish() {}
};
#endif

extern "C" __global__ void SP_CLUSTER_DIMS __launch_bounds__(THREADS, SP_RESIDENT) spmm_rows(
    const float* __restrict__ x, SP_RESIDUAL_PARAMETER const int4* __restrict__ heads, const int2* __restrict__ groups,
    const float4* __restrict__ entries, const int* __restrict__ rows, const float* __restrict__ bias,
    float* __restrict__ y, int column_tiles, int tile_rows, int k, int part_columns, int x0, int x_batch, int x_row,
    int positions, int valid, int pitch, int width, int y0, int y_batch, int y_row, int border_before, int border_after,
    int r0, int r_batch, int r_row) {
  sp::start_next();
  SP_DYNAMIC_SHARED(float, shared);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, sub = lane / LANES, place = lane % LANES;
  const int part = PARTS > 1 ? sp::cluster_rank() : 0;
  const int column = blockIdx.x / PARTS, image = column / column_tiles, p0 = (column - image * column_tiles) * NT;
  const int tile = blockIdx.y;

  // Shared memory: rings of entries, X, pieces, the barrier that counts them.
#if SP_RING
  constexpr int WARP_RING = RING;
#else
  constexpr int WARP_RING = 0;
#endif
  float* const x_tile = shared + WARPS * WARP_RING * 4;
  float* const pieces = x_tile + (SP_TILE ? part_columns * NT : 0);
  const int share = (tile_rows + PARTS - 1) / PARTS;  // rows that each block of the cluster finishes
  x += x0 + image * x_batch + p0;
  y += y0 + image * y_batch;
#if SP_RESIDUAL
  residual += r0 + image * r_batch;
#endif

  const int4 head = heads[(tile * PARTS + part) * WARPS + warp];
  if constexpr (PARTS > 1) {
    sp::Mbarrier* const arrived = reinterpret_cast<sp::Mbarrier*>(pieces + PIECES * share * NT);
    if (tid == 0) {
      sp::barrier_init(arrived, 1);
      sp::barriers_ready();
      sp::barrier_expect(arrived, PIECES * head.w * NT * 4);
    }
    __syncwarp();
    sp::cluster_arrive();
  }
  Entries stream(entries + size_t(head.x) * BATCH, reinterpret_cast<float4*>(shared) + warp * WARP_RING, lane, sub);
  const int2* group = groups + size_t(head.y) * GROUP + sub;
  int2 next = sp::early(group);
  x = sp::wait_for_previous(x);
#if SP_RESIDUAL
  residual = sp::wait_for_previous(residual);
#endif

#if SP_TILE
  {
    constexpr int QUADS = NT / 4, STEP = THREADS / QUADS;
    const int q = tid % QUADS * 4, k0 = part * part_columns;
#pragma unroll 4
    for (int i = tid / QUADS; i < part_columns; i += STEP) {
      const bool inside = k0 + i < k && p0 + q < positions;
      sp::copy16_if(x_tile + i * NT + q, inside ? x + (k0 + i) * x_row + q : x, inside);
    }
    sp::copy_commit();
    sp::copy_wait<0>();
    __syncthreads();
  }
#endif

  // The lane's positions in the block, and their X; lanes past the end read what the last position reads.
  int at[VECTORS];
  const char* base[VECTORS];
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    at[v] = (v * LANES + place) * V;
    base[v] = reinterpret_cast<const char*>(SP_TILE ? x_tile + at[v] : x + min(at[v], positions - V - p0));
  }

  if constexpr (PARTS > 1) sp::cluster_wait();
  for (int i = 0; i < head.z; i++) {
    const int2 record = next;
    group += GROUP;
    next = *group;  // a spare one follows the last
    float sum[C] = {};
    const float start = PIECES == 1 && record.x >= 0 ? bias[record.x] : 0.0f;
#pragma unroll 1
    for (int b = record.y; b > 0; b--) {
      float4 e[U / 2];
      float v[U][C];
      stream.read(e);
#pragma unroll
      for (int u = 0; u < U; u++) {
        const uint32_t offset = __float_as_uint(u % 2 ? e[u / 2].w : e[u / 2].y);
#pragma unroll
        for (int j = 0; j < VECTORS; j++) load(v[u], j * V, base[j] + offset);
      }
#pragma unroll
      for (int u = 0; u < U; u++) {
        const float w = u % 2 ? e[u / 2].z : e[u / 2].x;
#pragma unroll
        for (int j = 0; j < C; j++) sum[j] = fmaf(w, v[u][j], sum[j]);
      }
    }
    if constexpr (PARTS > 1) {
      if (record.x >= 0) {
        const int slice = SLICES > 1 ? record.x / tile_rows : 0, local = record.x - slice * tile_rows;
        const int owner = local / share, slot = ((part * SLICES + slice) * share + local - owner * share) * NT;
        sp::Mbarrier* const arrived = reinterpret_cast<sp::Mbarrier*>(pieces + PIECES * share * NT);
        const sp::RemoteStore to = sp::remote_store(pieces, arrived, owner);
#pragma unroll
        for (int j = 0; j < VECTORS; j++) to.store<V>(slot + at[j], sum + j * V);
      }
    } else if constexpr (PIECES > 1) {
      if (record.x >= 0) {
#pragma unroll
        for (int j = 0; j < VECTORS; j++) store(pieces + record.x * NT + at[j], sum, j * V);
      }
    } else if (record.x >= 0) {
      const int row = record.x;
#pragma unroll
      for (int j = 0; j < VECTORS; j++) {
        const int p = p0 + at[j];
        if (p >= positions) continue;
#if SP_RESIDUAL
        float more[C];
        load(more, j * V, reinterpret_cast<const char*>(residual + row * r_row + p));
#endif
#pragma unroll
        for (int n = j * V; n < j * V + V; n++) {
          const int q = p + n - j * V;
          float value = sum[n] + start;
#if SP_RESIDUAL
          value += more[n];
#endif
          sum[n] = q < valid && q % pitch < width ? sp::activate(value) : 0.0f;
        }
        store(y + row * y_row + p, sum, j * V);
      }
    }
  }
  stream.finish();

  if constexpr (PIECES > 1) {
    if constexpr (PARTS > 1)
      sp::barrier_wait(reinterpret_cast<sp::Mbarrier*>(pieces + PIECES * share * NT), 0);
    else
      __syncthreads();
    constexpr int QUADS = NT / 4;
    for (int i = tid; i < share * QUADS; i += THREADS) {
      const int local = part * share + i / QUADS, q = i % QUADS * 4, p = p0 + q;
      const int row = local < tile_rows ? rows[tile * tile_rows + local] : -1;
      if (row < 0 || p >= positions) continue;
      const float start = bias[row];
      float4 sum = make_float4(start, start, start, start);
#pragma unroll
      for (int piece = 0; piece < PIECES; piece++) {
        const float4 v = *reinterpret_cast<const float4*>(pieces + (piece * share + local - part * share) * NT + q);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
#if SP_RESIDUAL
      const float4 more = *reinterpret_cast<const float4*>(residual + row * r_row + p);
      sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
#endif
      auto real = [&](int position) { return position < valid && position % pitch < width; };
      sum.x = real(p) ? sp::activate(sum.x) : 0.0f;
      sum.y = real(p + 1) ? sp::activate(sum.y) : 0.0f;
      sum.z = real(p + 2) ? sp::activate(sum.z) : 0.0f;
      sum.w = real(p + 3) ? sp::activate(sum.w) : 0.0f;
      *reinterpret_cast<float4*>(y + row * y_row + p) = sum;
    }
  }

  // The zeros around an image belong to the output; its first and last blocks write them.
  const int before = part == 0 && p0 == 0 ? border_before : 0;
  const int after = part == 0 && p0 + NT >= positions ? border_after : 0;
  if (before + after > 0)
    for (int i = warp; i < tile_rows; i += WARPS) {
      const int row = rows[tile * tile_rows + i];
      if (row < 0) continue;
      const float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      for (int q = lane * 4; q < before; q += 128) *reinterpret_cast<float4*>(y + row * y_row - before + q) = zero;
      for (int q = lane * 4; q < after; q += 128) *reinterpret_cast<float4*>(y + row * y_row + positions + q) = zero;
    }
}
