/* A libcuda that computes on the host, for tests of everything that talks to the driver. It knows one kernel, `rows` of
   rows.cu without residual and activation, and goes wrong by the block size: 64 works, 128 writes behind its output, 256
   breaks the context. Time is virtual: a launch takes 3 us, a fill of L2 100 us. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long long u64;
static double now_us;
static int capturing, captured, broken;

/* The GPU is there until a file of the name in FAKE_GPU_GONE is: what runs then breaks, what starts then finds none. */
static int gone(void) { const char* path = getenv("FAKE_GPU_GONE"); return path && access(path, F_OK) == 0; }

int cuInit(unsigned flags) { return gone() ? 100 : 0; }
int cuGetErrorName(int code, const char** text) { *text = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR"; return 0; }
int cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int number) { *device = number; return number ? 101 : 0; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "Test GPU", size); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case 13: *value = 1980000; return 0;
    case 16: *value = 132; return 0;
    case 36: *value = 2619000; return 0;
    case 38: *value = 1 << 20; return 0;
    case 75: *value = 9; return 0;
    case 76: *value = 0; return 0;
    case 97: *value = 232448; return 0;
    default: return 1;
  }
}
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &now_us; return 0; }
int cuCtxSetCurrent(void* context) { return 0; }
int cuStreamCreate(void** stream, unsigned flags) { *stream = &now_us; return 0; }
int cuStreamSynchronize(void* stream) { return broken ? 700 : 0; }
int cuMemAlloc_v2(u64* address, size_t size) { return gone() ? 719 : posix_memalign((void**)address, 256, size) ? 2 : 0; }
int cuMemFree_v2(u64 address) { free((void*)address); return 0; }
int cuMemsetD8_v2(u64 to, unsigned char value, size_t size) { memset((void*)to, value, size); return 0; }
int cuMemsetD8Async(u64 to, unsigned char value, size_t size, void* stream) { now_us += 100; return cuMemsetD8_v2(to, value, size); }
int cuMemcpyHtoD_v2(u64 to, const void* from, size_t size) { memcpy((void*)to, from, size); return 0; }
int cuMemcpyDtoH_v2(void* to, u64 from, size_t size) { memcpy(to, (void*)from, size); return broken ? 700 : 0; }
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, size_t size, void* stream) { memcpy((void*)to, (void*)from, size); return 0; }
int cuEventCreate(void** event, unsigned flags) { *event = malloc(sizeof(double)); return 0; }
int cuEventRecord(void* event, void* stream) { *(double*)event = now_us; return 0; }
int cuEventSynchronize(void* event) { return broken ? 700 : 0; }
int cuEventElapsedTime(float* ms, void* begin, void* end) { *ms = (*(double*)end - *(double*)begin) * 1e-3; return 0; }
int cuEventDestroy_v2(void* event) { free(event); return 0; }
int cuModuleLoadData(void** module, const void* image) { *module = &now_us; return memcmp(image, "\177ELF", 4) ? 200 : 0; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = &now_us;
  return strstr(name, "_rows_") ? 0 : 500;
}
int cuModuleUnload(void* module) { return 0; }
int cuFuncSetAttribute(void* function, int attribute, int value) { return 0; }
int cuLaunchKernelEx(void* config, void* function, void** arguments, void** extra) { return 999; }
int cuTensorMapEncodeTiled(void) { return 999; }

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** a, void** extra) {
  if (capturing) { ++captured; return 0; }
  const float *x = *(float**)a[0], *w = *(float**)a[1], *bias = *(float**)a[2];
  float* y = *(float**)a[3];
  const int m = *(int*)a[4], k = *(int*)a[5], n = *(int*)a[6];
  const int xt = *(int*)a[7], xf = *(int*)a[8], yt = *(int*)a[9], yf = *(int*)a[10];
  now_us += 3;
  if (bx == 256) broken = 1;
  for (int row = 0; row < m; ++row)
    for (int token = 0; token < n; ++token) {
      float sum = bias[row];
      for (int i = 0; i < k; ++i) sum += w[row * k + i] * x[token * xt + i * xf];
      y[token * yt + row * yf] = sum;
    }
  if (bx == 128) y[m * n] = 1.0f;
  return 0;
}

int cuStreamBeginCapture_v2(void* stream, int mode) { capturing = 1; captured = 0; return 0; }
int cuStreamEndCapture(void* stream, void** graph) {
  capturing = 0;
  *graph = malloc(sizeof(int));
  *(int*)*graph = captured;
  return 0;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, u64 flags) {
  *executable = malloc(sizeof(int));
  *(int*)*executable = *(int*)graph;
  return 0;
}
int cuGraphLaunch(void* executable, void* stream) { now_us += 3.0 * *(int*)executable; return 0; }
int cuGraphExecDestroy(void* executable) { free(executable); return 0; }
int cuGraphDestroy(void* graph) { free(graph); return 0; }
