// Copies of tensors from one layout to another.
//   SP_HALF: what `transpose` writes is rounded to float16.
#include "device.cuh"

#if defined(SP_HALF) && SP_HALF
using Stored = unsigned short;
#define SP_STORED sp::float_to_half
#else
using Stored = float;
#define SP_STORED
#endif

constexpr int kRows = 16;  // of X in a square of `transpose`: twice the blocks of 32, still 64 bytes of a row of Y

// [rows][columns] matrices become [columns][rows], one per blockIdx.z, through kRows x 32 floats in shared memory.
// rows_in: rows that X really has over all matrices, zeros stand for others; rows_out: the same of Y's rows, others are
// not written.
extern "C" __global__ void __launch_bounds__(256)
    transpose(const float* __restrict__ x, Stored* __restrict__ y, int rows, int columns, int rows_in, int rows_out) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  __shared__ float square[kRows][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, matrix = blockIdx.z;
  const int row0 = blockIdx.y * kRows, column0 = blockIdx.x * 32;
  x += static_cast<size_t>(matrix) * rows * columns;
  y += static_cast<size_t>(matrix) * rows * columns;
  const int real = min(rows, rows_in - matrix * rows), left = min(columns, rows_out - matrix * columns);
  float v[kRows / 8];
#pragma unroll
  for (int i = 0; i < kRows / 8; i++) {
    const int row = row0 + warp + 8 * i, column = column0 + lane;
    v[i] = row < real && column < columns ? x[static_cast<size_t>(row) * columns + column] : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < kRows / 8; i++) square[warp + 8 * i][lane] = v[i];
  __syncthreads();
  // Of Y, a warp has 32 / kRows rows.
  const int column = row0 + lane % kRows;
#pragma unroll
  for (int i = 0; i < kRows / 8; i++) {
    const int at = (warp + 8 * i) * (32 / kRows) + lane / kRows, row = column0 + at;
    if (row < left && column < rows) y[static_cast<size_t>(row) * rows + column] = SP_STORED(square[lane % kRows][at]);
  }
}

// y[tile][column][lane] = x[column][tile * lanes + lane], and back. to_tiles 1: zeros past `rows`.
extern "C" __global__ void __launch_bounds__(256)
    columns(const float* __restrict__ x, float* __restrict__ y, int rows, int cols, int lanes, int tiles, int to_tiles) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  const int at = blockIdx.x * 256 + threadIdx.x;
  if (at >= tiles * cols * lanes) return;
  const int row = at / (cols * lanes) * lanes + at % lanes, column = at / lanes % cols;
  if (to_tiles)
    y[at] = row < rows ? x[static_cast<size_t>(column) * rows + row] : 0.0f;
  else if (row < rows)
    y[static_cast<size_t>(column) * rows + row] = x[at];
}

#ifdef SP_SY
// Images become planes, split into SP_SY x SP_SX phases: four neighbouring floats of Y per thread. blockIdx: channel,
// piece of the plane, phase of an image (so that only a pixel's row is left to divide for).
// X: plane p begins at p * x_plane, its pixel (0, 0) at x0, its rows are x_pitch apart. Pixel (r, c) of phase (py, px) is
// pixel (r * SP_SY + py + oy, c * SP_SX + px + ox) of X, zero where that is outside height x width.
extern "C" __global__ void
    planes(const float* __restrict__ x, float* __restrict__ y, int height, int width, int x_plane, int x0, int x_pitch,
           int y_plane, int y0, int y_rows, int y_width, int y_pitch, int oy, int ox) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  const int at = 4 * (blockIdx.y * blockDim.x + threadIdx.x), channel = blockIdx.x, channels = gridDim.x;
  if (at >= y_plane) return;
  const unsigned phase = blockIdx.z % (SP_SY * SP_SX), image = blockIdx.z / (SP_SY * SP_SX);
  const int p = at - y0, begin = max(p, 0);
  int row = static_cast<unsigned>(begin) / static_cast<unsigned>(y_pitch), column = begin - row * y_pitch;
  const int top = static_cast<int>(phase / SP_SX) + oy, left = static_cast<int>(phase % SP_SX) + ox;
  const float* from = x + static_cast<size_t>(image * channels + channel) * x_plane + x0;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int r = row * SP_SY + top, c = column * SP_SX + left;
    const bool inside = p >= 0 && row < y_rows && column < y_width && r >= 0 && r < height && c >= 0 && c < width;
    v[i] = inside ? from[r * x_pitch + c] : 0.0f;
    if (++column == y_pitch) column = 0, row++;
  }
  y += (static_cast<size_t>(blockIdx.z) * channels + channel) * y_plane;
  *reinterpret_cast<float4*>(y + at) = make_float4(v[0], v[1], v[2], v[3]);
}
#endif

// Planes become images without gaps. blockIdx: plane, piece of it.
extern "C" __global__ void
    images(const float* __restrict__ x, float* __restrict__ y, int height, int width, int x_plane, int x0, int x_pitch) {
  sp::start_next();
  x = sp::wait_for_previous(x);
  const int e = blockIdx.y * blockDim.x + threadIdx.x;
  if (e >= height * width) return;
  const int row = static_cast<unsigned>(e) / static_cast<unsigned>(width);
  x += static_cast<size_t>(blockIdx.x) * x_plane + x0;
  y[static_cast<size_t>(blockIdx.x) * (height * width) + e] = x[row * x_pitch + e - row * width];
}
