// y = activation(bias + sum_k w[row][k] * x + residual), one thread per output; the steps tell the layouts apart.
// SP_FAULT, where it is defined: 1 stores far outside of all memory, 2 never ends.
extern "C" __global__ void rows(const float* x,
#if SP_RESIDUAL
                                const float* residual,
#endif
                                const float* w, const float* bias, float* y, int m, int k, int n, int x_token,
                                int x_feature, int y_token, int y_feature) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
#if SP_FAULT == 1
  if (at == 0) y[1ll << 44] = 1.0f;
#elif SP_FAULT == 2
  while (*(volatile const float*)y != 1.0f) {
  }
#endif
  if (at >= m * n) return;
  const int row = at / n, token = at % n;
  float sum = bias[row];
  for (int i = 0; i < k; ++i) sum += w[row * k + i] * x[token * x_token + i * x_feature];
#if SP_RESIDUAL
  sum += residual[token * y_token + row * y_feature];
#endif
  y[token * y_token + row * y_feature] = SP_RELU ? fmaxf(sum, 0.0f) : sum;
}
