// Copies of tensors from one layout to another.
#include "device.cuh"

// [rows][columns] matrices become [columns][rows], one per blockIdx.z, through a square in shared memory.
// rows_in: rows that X really has over all matrices, zeros stand for others; rows_out: the same of Y's rows, others are
// not written.
extern "C" __global__ void __launch_bounds__(256)
    transpose(const float* __restrict__ x, float* __restrict__ y, int rows, int columns, int rows_in, int rows_out) {
  __shared__ float square[32][33];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row0 = blockIdx.y * 32, column0 = blockIdx.x * 32;
  const size_t matrix = blockIdx.z;
#pragma unroll
  for (int i = warp; i < 32; i += 8) {
    const int row = row0 + i, column = column0 + lane;
    const bool real = row < rows && column < columns && static_cast<long long>(matrix) * rows + row < rows_in;
    square[i][lane] = real ? x[(matrix * rows + row) * columns + column] : 0.0f;
  }
  __syncthreads();
#pragma unroll
  for (int i = warp; i < 32; i += 8) {
    const int row = column0 + i, column = row0 + lane;  // of Y
    if (row < columns && column < rows && static_cast<long long>(matrix) * columns + row < rows_out)
      y[(matrix * columns + row) * rows + column] = square[lane][i];
  }
}

// y[tile][column][lane] = x[column][tile * lanes + lane], and back. to_tiles 1: zeros past `rows`.
extern "C" __global__ void __launch_bounds__(256)
    columns(const float* __restrict__ x, float* __restrict__ y, int rows, int cols, int lanes, int tiles, int to_tiles) {
  const int at = blockIdx.x * 256 + threadIdx.x;
  if (at >= tiles * cols * lanes) return;
  const int row = at / (cols * lanes) * lanes + at % lanes, column = at / lanes % cols;
  if (to_tiles)
    y[at] = row < rows ? x[static_cast<size_t>(column) * rows + row] : 0.0f;
  else if (row < rows)
    y[static_cast<size_t>(column) * rows + row] = x[at];
}

// Images become planes, split into phases: four neighbouring floats of Y per thread.
// X: plane p begins at p * x_plane, its pixel (0, 0) at x0, its rows are x_pitch apart. Pixel (r, c) of phase (py, px) is
// pixel (r * sy + py + oy, c * sx + px + ox) of X, zero where that is outside height x width.
extern "C" __global__ void __launch_bounds__(256)
    planes(const float* __restrict__ x, float* __restrict__ y, int count, int channels, int height, int width, int x_plane,
           int x0, int x_pitch, int y_plane, int y0, int y_rows, int y_width, int y_pitch, int sy, int sx, int oy, int ox) {
  const int e = blockIdx.x * 256 + threadIdx.x, quads = y_plane / 4;
  if (e >= count) return;
  const int plane = e / quads, at = e % quads * 4;
  const int channel = plane % channels, phase = plane / channels % (sy * sx), image = plane / channels / (sy * sx);
  const int p = at - y0, begin = p >= 0 ? p : 0;
  int row = begin / y_pitch, column = begin % y_pitch;
  const float* from = x + static_cast<size_t>(image * channels + channel) * x_plane + x0;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int r = row * sy + phase / sx + oy, c = column * sx + phase % sx + ox;
    const bool inside = p >= 0 && row < y_rows && column < y_width && r >= 0 && r < height && c >= 0 && c < width;
    v[i] = inside ? from[static_cast<size_t>(r) * x_pitch + c] : 0.0f;
    if (++column == y_pitch) column = 0, row++;
  }
  *reinterpret_cast<float4*>(y + 4 * static_cast<size_t>(e)) = make_float4(v[0], v[1], v[2], v[3]);
}

// Planes become images without gaps.
extern "C" __global__ void __launch_bounds__(256)
    images(const float* __restrict__ x, float* __restrict__ y, int count, int height, int width, int x_plane, int x0,
           int x_pitch) {
  const int e = blockIdx.x * 256 + threadIdx.x;
  if (e >= count) return;
  const int plane = e / (height * width), row = e / width % height, column = e % width;
  y[e] = x[static_cast<size_t>(plane) * x_plane + x0 + row * x_pitch + column];
}
