// Copies bytes, four at a time, then the odd bytes at the end.
extern "C" __global__ void copy_bytes(const unsigned char* x, unsigned char* y, int words, int bytes) {
  const int stride = gridDim.x * blockDim.x;
  const int first = blockIdx.x * blockDim.x + threadIdx.x;
  const unsigned* from = reinterpret_cast<const unsigned*>(x);
  unsigned* to = reinterpret_cast<unsigned*>(y);
  for (int i = first; i < words; i += stride) to[i] = from[i];
  for (int i = 4 * words + first; i < bytes; i += stride) y[i] = x[i];
}
