// Run a compiled model with one float input and one output: ./run model.so 1 1 8 8 < input.f32 > output.f32
// The numbers are the input's shape; input and output are raw values, float32, or float16 where the program is called as
// ./run model.so f16 1 1 8 8 for a model that takes them. docs/deploy.md says how to build this.
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

struct AlignedMemory {  // generated code loads whole vectors: 64 bytes
  void AllocData(DLTensor* t) { t->data = std::aligned_alloc(64, (ffi::GetDataSize(*t) + 63) / 64 * 64); }
  void FreeData(DLTensor* t) { std::free(t->data); }
};

int main(int argc, char** argv) {
  ffi::Module library = ffi::Module::LoadFromFile(realpath(argv[1], nullptr));  // dlopen wants a full path
  ffi::Module vm = library->GetFunction("vm_load_executable", true).value()().cast<ffi::Module>();
  vm->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, 2);  // CPU 0, pooled allocator

  const bool half = argc > 2 && std::string(argv[2]) == "f16";
  const uint8_t bits = half ? 16 : 32;
  std::vector<int64_t> shape;
  for (int i = half ? 3 : 2; i < argc; ++i) shape.push_back(std::atoll(argv[i]));
  ffi::Tensor x = ffi::Tensor::FromNDAlloc(AlignedMemory(), ffi::Shape(shape), {kDLFloat, bits, 1}, {kDLCPU, 0});
  if (std::fread(x.data_ptr(), bits / 8, x.numel(), stdin) != static_cast<size_t>(x.numel())) return 1;

  ffi::Any result = vm->GetFunction("main").value()(x);
  auto several = result.try_cast<ffi::Array<ffi::Tensor>>();  // several outputs come as an array
  ffi::Tensor y = several ? (*several)[0] : result.cast<ffi::Tensor>();
  std::fwrite(y.data_ptr(), y.dtype().bits / 8, y.numel(), stdout);
}
