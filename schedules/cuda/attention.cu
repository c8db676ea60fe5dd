// softmax(scale * Q K^T + mask) V for 8 or 16 queries of one head, activations as [features][tokens].
//   SP_DIM: features of a head. SP_SCALE. SP_MASK 0 | 1. SP_SLICES: shares of the features in the scores (short sequences).
//   SP_QUERIES: 8 | 16. SP_BUFFERS: chunks of V in shared memory.
#include "device.cuh"
#include "reduce.cuh"

constexpr int kDim = SP_DIM, kSlices = SP_SLICES, kBuffers = SP_BUFFERS, kQueries = SP_QUERIES, kWarps = 8, kChunk = 128;
constexpr int kPerLane = (kDim + 15) / 16;     // features of a lane in the output
constexpr int kRow = kChunk + 4;               // of V: rows a quarter of the banks apart
constexpr int kEights = kQueries / 8;          // of queries, one for a warp
constexpr int kShares = kWarps / kEights;      // warps that share the keys of a chunk
constexpr int kBuffer = kPerLane * 16 * kRow;  // floats

__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

// Adds the outer product of 4 queries and 4 keys.
__device__ __forceinline__ void outer(float (*sums)[4], float4 a, float4 b) {
  const float left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
}

// v: of this head and image. Keys past `readable` become zero.
__device__ __forceinline__ void fetch(float* buffer, const float* v, int tokens, int first, int readable) {
  for (int e = threadIdx.x; e < kDim * (kChunk / 4); e += 32 * kWarps) {
    const int row = e / (kChunk / 4), key = first + e % (kChunk / 4) * 4;
    const bool inside = key < readable;
    sp::copy16_if(buffer + row * kRow + e % (kChunk / 4) * 4, v + static_cast<size_t>(row) * tokens + (inside ? key : 0), inside);
  }
  sp::copy_commit();
}

// scores[q][key] = q . key over a share of the features, for 8 queries and 128 keys of every warp.
__device__ __forceinline__ void score(float* scores, const float* q, const float* k, int tokens, int blocks, int keys,
                                      int readable) {
  const int lane = threadIdx.x % 32;
  for (int item = threadIdx.x / 32; item < kEights * kSlices * blocks; item += kWarps) {
    const int query = item % kEights * 8, share = item / kEights % kSlices;
    const int key = item / (kEights * kSlices) * kChunk + 4 * lane;
    float sums[8][4] = {};
    const int begin = kDim * share / kSlices, end = kDim * (share + 1) / kSlices;
    if (key < readable) {
#pragma unroll 8
      for (int d = begin; d < end; d++) {
        const float4 four = load4(k + static_cast<size_t>(d) * tokens + key);
        outer(sums, load4(q + d * kQueries + query), four);
        outer(sums + 4, load4(q + d * kQueries + query + 4), four);
      }
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
      *reinterpret_cast<float4*>(scores + (share * kQueries + query + i) * keys + key) =
          make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
  }
}

// Rows of scores become exp(score - largest); inverse[q] is one over their sum. Keys past `seq` become 0.
__device__ __forceinline__ void exponentials(float* scores, float* inverse, const float* mask, int query0, int mask_query,
                                             int seq, int blocks, int keys) {
  const int lane = threadIdx.x % 32;
  for (int q = threadIdx.x / 32; q < kQueries; q += kWarps) {
    float* row = scores + q * keys;
    const float* added = mask + static_cast<size_t>(min(query0 + q, seq - 1)) * mask_query;
    float largest = -INFINITY, total = 0.0f;
    for (int key = lane; key < seq; key += 32) {
      float s = row[key];
#pragma unroll
      for (int share = 1; share < kSlices; share++) s += row[share * kQueries * keys + key];
      s *= static_cast<float>(SP_SCALE);
#if SP_MASK
      s += added[key];
#else
      (void)added;
#endif
      row[key] = s;
      largest = fmaxf(largest, s);
    }
    largest = sp::lane_max<32>(largest);
    for (int key = lane; key < blocks * kChunk; key += 32) {
      const float term = key < seq ? expf(row[key] - largest) : 0.0f;
      row[key] = term;
      total += term;
    }
    total = sp::lane_sum<32>(total);
    if (lane == 0) inverse[q] = 1.0f / total;
  }
}

// q, k, v, y: [heads * kDim][tokens]; image blockIdx.z has the tokens from blockIdx.z * seq on. readable: seq rounded up
// to a multiple of 4 (only a single image may have one that is none). mask_*: floats to the next image, head, query.
extern "C" __global__ void __launch_bounds__(32 * kWarps)
    attention(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
#if SP_MASK
              const float* __restrict__ mask,
#endif
              float* __restrict__ y, int seq, int readable, int tokens, int mask_image, int mask_head, int mask_query) {
  sp::start_next();
  q = sp::wait_for_previous(q);
  k = sp::wait_for_previous(k);
  v = sp::wait_for_previous(v);
#if SP_MASK
  mask = sp::wait_for_previous(mask);
#endif
  SP_DYNAMIC_SHARED(float, shared);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, query0 = blockIdx.x * kQueries;
  const int blocks = (readable + kChunk - 1) / kChunk, keys = blocks * kChunk + 4;
  float* queries = shared;                        // [kDim][kQueries]
  float* inverse = queries + kDim * kQueries;     // [kQueries]
  float* buffers = inverse + kQueries;            // [kBuffers][kPerLane * 16][kRow]
  float* scores = buffers + kBuffers * kBuffer;   // [kSlices][kQueries][keys], later [kShares][kDim][kQueries]
  const size_t offset = static_cast<size_t>(blockIdx.y) * kDim * tokens + static_cast<size_t>(blockIdx.z) * seq;
  q += offset, k += offset, v += offset, y += offset;

  for (int e = tid; e < kDim * (kQueries / 4); e += 32 * kWarps) {
    const int d = e / (kQueries / 4), query = query0 + e % (kQueries / 4) * 4;
    const bool inside = query < readable;
    sp::copy16_if(queries + 4 * e, q + static_cast<size_t>(d) * tokens + (inside ? query : 0), inside);
  }
  sp::copy_commit();
  fetch(buffers, v, tokens, 0, readable);  // needed last, on its way all the while
  sp::copy_wait<1>();
  __syncthreads();
  score(scores, queries, k, tokens, blocks, keys, readable);
  __syncthreads();
#if SP_MASK
  mask += static_cast<size_t>(blockIdx.z) * mask_image + static_cast<size_t>(blockIdx.y) * mask_head;
#else
  (void)mask_image, (void)mask_head;
  const float* mask = nullptr;
#endif
  exponentials(scores, inverse, mask, query0, mask_query, seq, blocks, keys);

  // A lane has 4 queries and every 16th feature; warps of equal queries share the keys of each chunk.
  const int query = warp % kEights * 8 + lane / 16 * 4, share = warp / kEights, feature = lane % 16;
  float sums[kPerLane][4];
#pragma unroll
  for (int i = 0; i < kPerLane; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
  for (int block = 0; block < blocks; block++) {
    sp::copy_wait<0>();
    __syncthreads();
    if (kBuffers > 1 && block + 1 < blocks)
      fetch(buffers + (block + 1) % kBuffers * kBuffer, v, tokens, (block + 1) * kChunk, readable);
    const float* chunk = buffers + block % kBuffers * kBuffer + feature * kRow;
#pragma unroll 2
    for (int key = share * (kChunk / kShares); key < (share + 1) * (kChunk / kShares); key += 4) {
      float4 weights[4];
#pragma unroll
      for (int j = 0; j < 4; j++) weights[j] = load4(scores + (query + j) * keys + block * kChunk + key);
#pragma unroll
      for (int i = 0; i < kPerLane; i++) {
        const float4 value = load4(chunk + i * 16 * kRow + key);
#pragma unroll
        for (int j = 0; j < 4; j++)
          sums[i][j] = fmaf(value.w, weights[j].w, fmaf(value.z, weights[j].z,
                            fmaf(value.y, weights[j].y, fmaf(value.x, weights[j].x, sums[i][j]))));
      }
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kPerLane; i++)
    if (kDim % 16 == 0 || feature + 16 * i < kDim)
      *reinterpret_cast<float4*>(scores + (share * kDim + feature + 16 * i) * kQueries + query) =
          make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
  __syncthreads();
  for (int e = tid; e < kDim * (kQueries / 4); e += 32 * kWarps) {
    const int d = e / (kQueries / 4), first = e % (kQueries / 4) * 4;
    if (query0 + first >= readable) continue;
    const float4 scale = load4(inverse + first);
    float4 sum = load4(scores + d * kQueries + first);
#pragma unroll
    for (int s = 1; s < kShares; s++) {
      const float4 part = load4(scores + (s * kDim + d) * kQueries + first);
      sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
    }
    *reinterpret_cast<float4*>(y + static_cast<size_t>(d) * tokens + query0 + first) =
        make_float4(sum.x * scale.x, sum.y * scale.y, sum.z * scale.z, sum.w * scale.w);
  }
}
